"""User-space rings of a real mount: what programs read and write by them, what is left of those that are killed, and what
the mount makes of those that lie."""

from __future__ import annotations

import errno
import gc
import json
import mmap
import os
import random
import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import pytest

from fs3 import control, usrbio
from fs3.rings import COUNT, SUBMISSION, ring_bytes
from fs3.usrbio import Ior, Iov, deregister_fd, mount_point_of, register_fd
from fuse import guard
from tests.process.harness import REPOSITORY, Cluster, cluster, wait_until, watchdog

pytestmark = pytest.mark.process

KIB = 1024
MIB = 1024 * KIB
LIMIT_S = 60

LOAD = """
import ctypes, os, random, sys
from fs3.usrbio import Ior, Iov, register_fd

mount, name, rounds, uid = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
os.chdir(mount)  # which another user may not find
if uid:
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # dumpable again, as after exec
size, count = 64 * 1024, 32
fd = os.open(name, os.O_RDWR | os.O_CREAT, 0o644)
register_fd(fd)
iov = Iov.create(mount, 2 * size * count)
writes, reads = Ior(mount, count, for_read=False), Ior(mount, count, io_depth=-8)
number = 0
while rounds == 0 or number < rounds:
    number += 1
    seed = random.Random(number)
    iov.view[: size * count] = seed.randbytes(size * count)
    places = seed.sample(range(count), count)
    for place in places:
        writes.prepare(iov, place * size, size, fd, place * size)
    writes.submit()
    assert [done.result for done in writes.wait(min_results=count)] == [size] * count
    for place in places:
        reads.prepare(iov, (count + place) * size, size, fd, place * size, place)
    reads.submit()
    found = reads.wait(min_results=count)
    assert [(done.result, done.userdata) for done in found] == [(size, place) for place in places], found
    assert iov.view[: size * count] == iov.view[size * count :]
    print("round", flush=True)
"""


def program(made: Cluster, name: str, rounds: int, uid: int = 0) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", LOAD, str(made.mount), name, str(rounds), str(uid)]
    return subprocess.Popen(words, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)


def values(made: Cluster) -> dict[str, float]:
    """What the mount counts."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(control.door(guard.device_of(str(made.mount))))
        sock.sendall(b'{"ask": "metrics"}\n')
        text = sock.makefile().readline()
    return {name: value for name, value in json.loads(text)["values"].items() if name.startswith("rings.")}


def nothing_is_left(made: Cluster) -> bool:
    found = values(made)
    return not any(found[f"rings.{what}"] for what in ("open", "files", "memory_bytes", "batches_under_way"))


@pytest.fixture(scope="module")
def made(fuse: None) -> Iterator[Cluster]:
    with cluster(storages=2, replicas=2, lease_ms=2000) as found:
        found.mount.chmod(0o777)
        found.wait_serving()
        yield found


@pytest.fixture
def mount(made: Cluster) -> Iterator[str]:
    """Where the mount is; afterwards nothing must be left of what this process had of it."""
    with watchdog(made, LIMIT_S):
        yield str(made.mount)
        for fd in list(usrbio._process.files):
            deregister_fd(fd)
            with suppress(OSError):
                os.close(fd)
        gc.collect()  # rings and memory that hang on tracebacks


def file_of(mount: str, name: str, data: bytes, flags: int = os.O_RDWR) -> int:
    """Its registered descriptor."""
    path = Path(mount, name)
    path.write_bytes(data)
    fd = os.open(path, flags)
    register_fd(fd)
    return fd


def one(ring: Ior, iov: Iov, at: int, length: int, fd: int, offset: int) -> int:
    """The result of an operation."""
    ring.prepare(iov, at, length, fd, offset)
    ring.submit()
    (done,) = ring.wait(min_results=1, timeout_s=30)
    return done.result


def test_several_programs_of_several_users_at_once(made: Cluster, mount: str) -> None:
    uids = (0, 0, 65534) if os.geteuid() == 0 else (0,)
    running = [program(made, f"load-{number}", 3, uid) for number, uid in enumerate(uids)]
    for each in running:
        assert each.communicate(timeout=LIMIT_S)[0] == "round\n" * 3
        assert each.returncode == 0
    expected = random.Random(3).randbytes(2 * MIB)
    for number in range(len(uids)):
        assert Path(mount, f"load-{number}").read_bytes() == expected
    wait_until(lambda: nothing_is_left(made), "all of the programs to be given back", 10)


def test_a_killed_program_leaves_nothing(made: Cluster, mount: str) -> None:
    running = program(made, "killed", 0)
    assert running.stdout is not None
    assert running.stdout.readline() == "round\n"
    assert values(made)["rings.open"] == 2
    running.kill()
    wait_until(lambda: nothing_is_left(made), "all of the killed program to be given back", 10)
    running.communicate()
    fd = file_of(mount, "after", b"x" * MIB)
    assert one(Ior(mount, 1), Iov.create(mount, MIB), 0, MIB, fd, 0) == MIB


def test_a_killed_storage_daemon_fails_nothing(made: Cluster, mount: str) -> None:
    running = program(made, "failover", 20)
    assert running.stdout is not None
    running.stdout.readline()
    old = made.kill("storage-1")
    assert running.communicate(timeout=LIMIT_S)[0] == "round\n" * 19
    assert running.returncode == 0
    made.wait_restarted("storage-1", old)


def test_what_is_written_is_seen_by_all_and_reads_are_short_at_the_end_only(mount: str) -> None:
    fd = file_of(mount, "f", b"a" * MIB)
    path = Path(mount, "f")
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), MIB) as mapped:
        assert mapped[:4] == path.read_bytes()[:4] == b"aaaa"  # now the kernel has it
        iov = Iov.create(mount, 2 * MIB)
        iov.view[:5] = b"bbbbb"
        writes, reads = Ior(mount, 8, for_read=False), Ior(mount, 8)
        assert one(writes, iov, 0, 5, fd, MIB - 2) == 5
        assert path.stat().st_size == MIB + 3
        assert path.read_bytes()[MIB - 3 :] == b"abbbbb"
        assert mapped[MIB - 3 :] == b"abb"
        assert one(reads, iov, 0, 2 * MIB, fd, 0) == MIB + 3
        assert iov.view[: MIB + 3] == b"a" * (MIB - 2) + b"bbbbb"
        assert one(reads, iov, 0, 10, fd, MIB + 3) == 0
        assert one(reads, iov, 0, 10, fd, 1 << 60) == 0
        iov.view[:5] = b"ccccc"
        assert one(writes, iov, 0, 5, fd, 3 * MIB) == 5  # a hole before it
        assert one(reads, iov, 0, MIB, fd, 2 * MIB) == MIB
        assert not any(iov.view[:MIB])
        os.pwrite(fd, b"dd", 1)
        assert one(reads, iov, 0, 4, fd, 0) == 4
        assert bytes(iov.view[:4]) == b"adda"
        os.ftruncate(fd, 2)
        assert one(reads, iov, 0, 4, fd, 0) == 2
        file.flush()


def test_errors_are_those_of_the_descriptor(mount: str) -> None:
    reading, writing = file_of(mount, "r", b"x" * 100, os.O_RDONLY), file_of(mount, "w", b"", os.O_WRONLY)
    appending = file_of(mount, "a", b"", os.O_WRONLY | os.O_APPEND)
    iov = Iov.create(mount, 100)
    reads, writes = Ior(mount, 2), Ior(mount, 2, for_read=False)
    for ring, fd, at, offset, expected in (
        (reads, writing, 0, 0, errno.EACCES),
        (writes, reading, 0, 0, errno.EACCES),
        (writes, appending, 0, 0, errno.EINVAL),
        (reads, 999, 0, 0, errno.EBADF),
        (reads, reading, 91, 0, errno.EINVAL),
        (reads, reading, -1, 0, errno.EINVAL),
        (reads, reading, 0, -1, errno.EINVAL),
        (reads, reading, 0, 2**63 - 5, errno.EINVAL),
    ):
        with pytest.raises(OSError) as caught:
            ring.prepare(iov, at, 10, fd, offset)
        assert caught.value.errno == expected
    with pytest.raises(OSError) as caught:
        register_fd(reading)
    assert caught.value.errno == errno.EINVAL
    for _ in range(2):
        reads.prepare(iov, 0, 10, reading, 0)
    with pytest.raises(BlockingIOError):
        reads.prepare(iov, 0, 10, reading, 0)
    os.close(reading)
    assert reads.submit() == 2
    assert [done.result for done in reads.wait(min_results=2)] == [10, 10]  # registered, though it is closed
    deregister_fd(reading)
    deregister_fd(reading)
    with pytest.raises(OSError) as caught:
        reads.prepare(iov, 0, 10, reading, 0)
    assert caught.value.errno == errno.EBADF


def test_what_cannot_be_registered(mount: str, tmp_path: Path) -> None:
    Path(mount, "p").write_bytes(b"x")
    (tmp_path / "q").write_bytes(b"x")
    for path, flags, expected in (
        (Path(mount, "p"), os.O_PATH, errno.EBADF),
        (Path(mount), os.O_RDONLY, errno.EINVAL),
        (tmp_path / "q", os.O_RDONLY, errno.EBADF),
    ):
        fd = os.open(path, flags)
        try:
            with pytest.raises(OSError) as caught:
                register_fd(fd)
            assert caught.value.errno == expected
        finally:
            os.close(fd)
    with pytest.raises(ValueError):
        mount_point_of(str(tmp_path))
    assert mount_point_of(str(Path(mount, "no", "such"))) == mount
    with pytest.raises(OSError) as caught:
        Iov.create(str(tmp_path), 1)
    assert caught.value.errno == errno.ENODEV


def test_the_limit_of_file_sizes_holds(mount: str) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, before[1]))
    try:
        fd = file_of(mount, "limited", b"")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    writes, iov = Ior(mount, 1, for_read=False), Iov.create(mount, 100)
    assert one(writes, iov, 0, 100, fd, MIB - 40) == 40
    assert one(writes, iov, 0, 100, fd, MIB) == -errno.EFBIG


def test_shared_memory_of_programs(mount: str) -> None:
    data = os.urandom(MIB)
    fd = file_of(mount, "shared", data)
    shared = SharedMemory(create=True, size=MIB)
    iov = Iov.wrap(mount, shared._fd, MIB)  # type: ignore[attr-defined]
    shared.unlink()
    assert one(Ior(mount, 1), iov, 0, MIB, fd, 0) == MIB
    assert shared.buf is not None
    assert shared.buf[:MIB] == data
    iov.close()
    shared.close()
    for bad in (os.open("/dev/null", os.O_RDWR), os.pipe()[0], fd):
        with pytest.raises(OSError):
            usrbio._process.door_of(mount).ask({"do": "wrap", "fd": bad, "size": 1})


def test_a_child_has_to_make_its_own(mount: str) -> None:
    fd = file_of(mount, "forked", b"x" * 100)
    ring, iov = Ior(mount, 1), Iov.create(mount, 100)
    child = os.fork()
    if child == 0:
        wrong = 1
        try:
            calls: list[Callable[[], int]] = [lambda: ring.prepare(iov, 0, 10, fd, 0), ring.submit]
            for call in calls:
                try:
                    call()
                except OSError as error:
                    wrong = 0 if error.errno in (errno.EBADF, errno.ENODEV) else 2
            register_fd(fd)
            if one(Ior(mount, 1), Iov.create(mount, 100), 0, 10, fd, 0) != 10:
                wrong = 3
        finally:
            os._exit(wrong)
    assert os.waitpid(child, 0)[1] == 0
    assert one(ring, iov, 0, 10, fd, 0) == 10


class Liar:
    """Speaks with the daemon without the library."""

    def __init__(self, mount: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(20)
        self.socket.connect(usrbio.door(guard.device_of(mount)))

    def ask(self, question: bytes, fds: tuple[int, ...] = ()) -> tuple[dict[str, Any], list[int]]:
        socket.send_fds(self.socket, [question], fds)
        answer, found, _, _ = socket.recv_fds(self.socket, 4096, 2)
        return json.loads(answer), list(found)

    def tell(self, **question: Any) -> dict[str, Any]:
        return self.ask(json.dumps(question).encode())[0]


def test_the_mount_goes_on_whatever_it_is_told(made: Cluster, mount: str) -> None:
    rubbish = random.Random(7)
    path = Path(mount, "liars")
    path.write_bytes(b"x" * MIB)
    fd = os.open(path, os.O_RDONLY)
    liar = Liar(mount)
    for question in (
        b"\0", b"[" * 3000, b"{}", b"[]", b'{"do": 1}', b'{"do": "no"}', b'{"do": "memory"}',
        b'{"do": "hello", "version": 9}', b'{"do": "wrap", "fd": 0, "size": 1}',
        b'{"do": "memory", "size": -1}', b'{"do": "memory", "size": 1e400}', b'{"do": "memory", "size": 9999999999999999}',
        b'{"do": "ring", "entries": 1, "depth": 5, "priority": 0}', b'{"do": "ring", "entries": 9999999, "depth": 0}',
        b'{"do": "ring", "entries": 1, "depth": 0, "priority": 0, "timeout_s": NaN}',
        b'{"do": "open", "fd": 9999, "inode": 1}', b'{"do": "open", "fd": 0, "inode": 1}',
        json.dumps({"do": "open", "fd": fd, "inode": path.stat().st_ino + 1}).encode(),
        json.dumps({"do": "wrap", "fd": fd, "size": 1}).encode(),
    ):  # fmt: skip
        assert "errno" in liar.ask(question)[0], question
    # A descriptor of the mount itself, which nobody else keeps open: to close it would be to wait for the daemon.
    sent = os.open(path, os.O_RDWR)
    with suppress(PermissionError):  # by the kernel, since Linux 6.16
        liar.ask(b'{"do": "hello"}', (sent,) * 5)
    os.close(sent)
    file = liar.tell(do="open", fd=fd, inode=path.stat().st_ino)["id"]
    reply, (memory,) = liar.ask(b'{"do": "memory", "size": 65536}')
    with pytest.raises(PermissionError):
        os.ftruncate(memory, 0)
    for depth, count in ((0, 64), (-3, 64), (64, 64), (0, 65), (0, 0), (0, 2**32 - 1)):
        fds = liar.ask(json.dumps({"do": "ring", "entries": 64, "read": True, "depth": depth, "priority": 0}).encode())[1]
        ring = socket.socket(fileno=fds[1])
        with mmap.mmap(fds[0], ring_bytes(64)) as area:
            area[:] = rubbish.randbytes(len(area))
            for slot in range(0, 64, 2):  # some with numbers that there are
                numbers = (
                    rubbish.choice((0, MIB - 5, 2**64 - 1)),
                    rubbish.choice((0, 65535)),
                    rubbish.choice((1, 70000, 2**64 - 1)),
                )
                SUBMISSION.pack_into(area, slot * SUBMISSION.size, *numbers, file, reply["id"])
            ring.send(COUNT.pack(count))
            ring.settimeout(20)
            got = 0
            while count == 64 and got < 64:
                got += COUNT.unpack(ring.recv(4))[0]
            if count != 64:
                assert ring.recv(4) == b""  # it broke the rules
        os.close(fds[0])
        ring.close()
    fds = liar.ask(b'{"do": "ring", "entries": 4, "read": false, "depth": 0, "priority": 0}')[1]
    os.write(fds[1], b"more than a count")
    with socket.socket(fileno=fds[1]) as ring:
        ring.settimeout(20)
        assert ring.recv(4) == b""
    os.close(fds[0])
    os.close(memory)
    assert path.read_bytes() == b"x" * MIB
    liar.socket.close()
    os.close(fd)
    wait_until(lambda: nothing_is_left(made), "all of the liar to be given back", 10)


SHRINKER = """
import ctypes, errno, os, sys, threading
from fs3.usrbio import Ior, Iov, register_fd
mount = sys.argv[1]
os.chdir(mount)
os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    Iov.create(mount, 1)
except OSError:
    sys.exit(3)
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
size = 1 << 20
memory = os.memfd_create("mine")
os.ftruncate(memory, size)
iov = Iov.wrap(mount, memory, size)
fd = os.open("shrinks", os.O_RDWR | os.O_CREAT, 0o600)
os.write(fd, b"y" * size)
register_fd(fd)
stop = threading.Event()
def shrink():
    while not stop.is_set():
        os.ftruncate(memory, 0)
        os.ftruncate(memory, size)
thread = threading.Thread(target=shrink)
thread.start()
results = set()
for for_read in (True, False):
    ring = Ior(mount, 8, for_read=for_read)
    for _ in range(20):
        for number in range(8):
            ring.prepare(iov, number << 17, 1 << 17, fd, number << 17)
        ring.submit()
        results |= {done.result for done in ring.wait(min_results=8)}
stop.set()
thread.join()
assert results <= {1 << 17, -errno.EFAULT}, results
for bad in ("/proc/self/mem", "/proc/1/mem"):
    try:
        os.open(bad, os.O_RDWR)
    except OSError:
        pass
read_only = os.open(f"/proc/self/fd/{memory}", os.O_RDONLY)
iov._door.ask({"do": "wrap", "fd": memory, "size": 1})
try:
    iov._door.ask({"do": "wrap", "fd": read_only, "size": 1})
except OSError as error:
    assert error.errno == errno.EACCES, error
else:
    raise AssertionError("wrapped what may only be read")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="not root: cannot become another user")
def test_memory_that_shrinks_under_the_daemons_hands(made: Cluster, mount: str) -> None:
    words = [sys.executable, "-c", SHRINKER, mount]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr
    assert Path(mount, "shrinks").stat().st_size == MIB


def test_who_waits_hears_of_the_end_of_the_mount(made: Cluster, mount: str) -> None:
    path = Path(mount, "ends")
    path.write_bytes(b"x" * MIB)
    fd = os.open(path, os.O_RDONLY)
    register_fd(fd)
    iov, ring = Iov.create(mount, MIB), Ior(mount, 4, io_depth=4)
    ring.prepare(iov, 0, MIB, fd, 0)
    ring.submit()
    assert ring.wait(min_results=1, timeout_s=0.1) == []  # it waits for three more
    old = made.kill("mount")
    with pytest.raises(OSError) as caught:
        ring.wait(min_results=1, timeout_s=30)
    assert caught.value.errno == errno.ENODEV
    with pytest.raises(OSError) as caught:
        ring.submit()
    assert caught.value.errno == errno.ENODEV
    ring.close()  # which is no error, nor are these
    iov.close()
    deregister_fd(fd)
    with pytest.raises(OSError):
        os.close(fd)
    made.wait_restarted("mount", old)
    wait_until(lambda: os.path.ismount(mount), "the new mount", 30)
    again = os.open(path, os.O_RDONLY)
    register_fd(again)
    assert one(Ior(mount, 4), Iov.create(mount, MIB), 0, MIB, again, 0) == MIB
