"""Operators look at files and put a damaged cluster in order, while a mount writes: `fs3 admin` on real daemons."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import CliRunner

from fs3.api.storage import WRITE, Update, UpdateKind, WriteRequest
from fs3.checksum import crc32c
from fs3.cli.main import cli
from fs3.env import Env
from fs3.ids import ROOT_INODE, ChunkId, RequestTag
from fs3.kv.registry import open_engine
from fs3.transport.registry import Transports
from meta.schema import STAT_INODES, entry_key, inode_key, unpack_entry
from tests.process.harness import REPOSITORY, Cluster, cluster, fs3, wait_until, watchdog
from tests.process.replicas import Visit, visit

pytestmark = pytest.mark.process

LIMIT_S = 150.0
CHUNK = 1 << 20
SETTINGS = {"mgmtd": "client_lease_ms = 2000", "meta": "session_grace_ms = 600_000"}
OPEN_AND_WAIT = """
import sys, time
from fs3.client import sync
with sync.connect(sys.argv[1].split(",")) as fs:
    file = fs.open("/open", "w")
    file.write(b"12345")
    file.flush()
    with fs.lock("/open", timeout_s=10):
        print("open", flush=True)
        time.sleep(600)
"""


def admin(made: Cluster, *words: str, code: int = 0) -> Any:
    """What `fs3 admin WORDS --json` prints; its exit code must be `code`."""
    done = CliRunner().invoke(cli, ["admin", "--data", str(made.data), *words, "--json"])
    assert done.exit_code == code, f"{words}: exit {done.exit_code}\n{done.output}\n{done.exception}\n{made.logs()}"
    return json.loads(done.stdout)


def fsck(made: Cluster, *flags: str, code: int = 0) -> Any:
    """The same of `fs3 admin fsck`, which starts a program."""
    done = fs3("admin", "--data", str(made.data), "fsck", *flags, "--json")
    assert done.returncode == code, f"fsck {flags}: exit {done.returncode}\n{done.stdout}{done.stderr}\n{made.logs()}"
    return json.loads(done.stdout)


@contextmanager
def writing(folder: Path) -> Iterator[list[Path]]:
    """Files come, are renamed, and go, all the while."""
    stop = threading.Event()
    done: list[Path] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            while not stop.wait(0.005):
                path = folder / f"w{len(done)}"
                path.write_bytes(b"x" * 50_000)
                path = path.rename(folder / f"x{len(done)}")
                if len(done) % 3:
                    path.unlink()
                done.append(path)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield done
    finally:
        stop.set()
        thread.join()
    assert not failed, failed


def test_files_are_located_summed_and_laid_out(fuse: None) -> None:
    with cluster(storages=2, replicas=2, settings=SETTINGS) as made, watchdog(made, LIMIT_S):
        _look(made)
        _sessions(made)
        _trees(made)
        _fsck(made)


def _look(made: Cluster) -> None:
    data = os.urandom(2 * CHUNK + 5000)
    folder, file = made.mount / "d", made.mount / "d" / "file"
    folder.mkdir()
    file.write_bytes(data)
    found = admin(made, "stat", str(file))
    assert (found["inode"], found["length"]) == (file.stat().st_ino, len(data))
    chunks = admin(made, "locate", "/d/file", "--offset", "1MiB")["chunks"]
    assert [(row["chunk"], row["length"], len(row["targets"])) for row in chunks] == [(1, CHUNK, 2), (2, 5000, 2)]
    assert {place["state"] for row in chunks for place in row["targets"]} == {"serving"}
    for extra in ((), ("--read",)):
        sums = admin(made, "checksum", "/d/file", *extra)
        assert (sums["crc32c"], sums["same"], len(sums["replicas"])) == (f"{crc32c(data):08x}", True, 2)
    admin(made, "layout", "set", str(folder), "--chunk-size", "128KiB", "--stripe", "2")
    (folder / "new").write_bytes(b"x")
    found = admin(made, "layout", "get", "/d/new")
    assert (found["chunk_size"], found["stripe"]) == (128 * 1024, 2)
    assert admin(made, "layout", "get", "/d/file")["chunk_size"] == CHUNK


def _sessions(made: Cluster) -> None:
    """Of a client that was killed."""
    line = [sys.executable, "-c", OPEN_AND_WAIT, ",".join(made.mgmtd())]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    assert process.stdout is not None and process.stdout.readline() == "open\n"
    (session,) = admin(made, "session", "list", "--path", "/open")
    assert (session["state"], session["kind"]) == ("alive", "write")
    client = str(session["client"])
    done = fs3("admin", "--data", str(made.data), "session", "prune", client, "--yes")
    assert done.returncode == 1 and "is alive" in done.stderr
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()

    def dead() -> bool:
        return all(row["state"] == "dead" for row in admin(made, "session", "list", "--client", client))

    wait_until(dead, "the client to be dead", 20)
    (held,) = admin(made, "lock", "list", "--path", "/open")
    assert (str(held["client"]), held["state"], held["mode"]) == (client, "dead", "exclusive")
    words = ("lock", "--data", str(made.data), "--nonblock", "-E", "7", str(made.mount / "open"))
    assert fs3(*words, "true").returncode == 7, "nobody else gets the lock of a client that may yet be alive"
    assert admin(made, "session", "prune", client, "--yes")["ended"] == 2
    done = fs3(*words, "--", "sh", "-c", "echo locked; exit 3")
    assert (done.returncode, done.stdout) == (3, "locked\n"), done.stderr
    assert admin(made, "lock", "list") == []
    assert admin(made, "session", "list", "--path", "/open") == []
    assert (made.mount / "open").read_bytes() == b"12345"


def _fsck(made: Cluster) -> None:
    for name in ("lost", "unnamed", "kept"):
        (made.mount / name).write_bytes(name.encode() * 1000)
    inodes = {name: (made.mount / name).stat().st_ino for name in ("lost", "unnamed", "kept")}
    supervisor = made.pids()["up"]
    os.kill(supervisor, signal.SIGSTOP)  # so that it does not start meta again meanwhile
    made.kill("meta")
    wait_until(lambda: _free(made.data / "meta" / "store" / "LOCK"), "the store to be free", 10)
    trio.run(_spoil_names, made, inodes)
    os.kill(supervisor, signal.SIGCONT)
    _spoil_replica(made, inodes["kept"])
    with writing(made.mount / "d") as done:
        found = fsck(made, code=4)["findings"]
        assert {entry["fault"] for entry in found} == {
            "dangling_entry", "unreachable", "orphan_chunk", "wrong_count", "replicas_differ", "wrong_links",
        }  # fmt: skip
        repaired = fsck(made, "--repair", code=1)
        assert {entry["state"] for entry in repaired["findings"]} == {"repaired"}, repaired
        assert fsck(made, "--repair")["findings"] == []
        assert len(done) > 10
    assert not (made.mount / "lost").exists()
    assert (made.mount / "lost+found" / f"#{inodes['unnamed']}").read_bytes() == b"unnamed" * 1000
    assert (made.mount / "kept").read_bytes() == b"kept" * 1000
    assert admin(made, "checksum", "/kept", "--read")["same"]
    assert admin(made, "gc", "status")["files_a_second"] >= 0


def _trees(made: Cluster) -> None:
    """A directory goes at once with all that is in it, and what was in it soon; a file in it stays where it has a name."""
    top = made.mount / "top"
    for number in range(3):
        (top / "a" / f"{number}").mkdir(parents=True)
        for each in range(50):
            (top / "a" / f"{number}" / f"{each}").write_bytes(b"x")
    (made.mount / "stays").hardlink_to(top / "a" / "0" / "0")
    refused = fs3("rmtree", "--data", str(made.data), str(made.mount / "stays"), "--yes")
    assert refused.returncode == 1 and "this is a file" in refused.stderr
    shown = fs3("rmtree", "--data", str(made.data), str(top), "--json")
    assert not json.loads(shown.stdout)["removed"] and (top / "a" / "2" / "49").exists()
    done = fs3("rmtree", "--data", str(made.data), str(top), "--yes", "--wait")
    assert done.returncode == 0 and "is removed" in done.stdout, done.stdout + done.stderr
    assert "top" not in os.listdir(made.mount) and (made.mount / "stays").read_bytes() == b"x"
    assert admin(made, "gc", "status")["trees"] == []
    assert admin(made, "stat", "/stays")["nlink"] == 1


def _free(path: Path) -> bool:
    """Whether nobody holds a lock: what is left of a killed process may do so for a moment."""
    with path.open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


async def _spoil_names(made: Cluster, inodes: dict[str, int]) -> None:
    """One file loses its inode, another one its entry; the count of inodes is wrong."""
    async with open_engine(f"embedded:{made.data / 'meta' / 'store'}", Env(Transports())) as engine:
        txn = engine.transaction()
        entry = await txn.get(entry_key(ROOT_INODE, b"unnamed"))
        assert entry is not None and unpack_entry(entry)[0] == inodes["unnamed"]
        txn.clear(entry_key(ROOT_INODE, b"unnamed"))
        txn.clear(inode_key(inodes["lost"]))
        txn.atomic_add(STAT_INODES, 1000)  # more than what comes and goes while fsck counts
        await txn.commit()
        await engine.sync()


def _spoil_replica(made: Cluster, inode: int) -> None:
    """The tail of a chain forgets a chunk, as if its predecessor had told it to."""
    row = admin(made, "locate", "/kept")["chunks"][0]

    async def forget(cluster: Visit) -> None:
        chain = cluster.routing.chains[row["chain"]]
        tail = chain.serving()[-1]
        tag = RequestTag(0, 0, 0)
        update = Update(tag, chain.id, chain.version, tail, ChunkId(inode, 0), UpdateKind.REMOVE, 0, 0, CHUNK, (), 2)
        reply = await cluster.rpc.call(
            cluster.address(tail), WRITE, WriteRequest((update,), False), deadline=cluster.deadline
        )
        assert reply.results[0].code == 0, reply

    visit(made.mgmtd(), forget)
    sums = admin(made, "checksum", "/kept", code=1)
    assert {entry["problem"] for entry in sums["differences"]} == {"", "absent"}
