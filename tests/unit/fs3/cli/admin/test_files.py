"""What `fs3 admin` tells of files: paths, places of chunks, checksums, sessions, the collector. Facts in, rows out."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

import pytest

from fs3.api.meta import Attr, FileKind
from fs3.api.meta_admin import GcStatusReply, SessionInfo, TreeInfo
from fs3.api.mgmtd import ClientInfo
from fs3.checksum import crc32c
from fs3.cli.admin.contents import Copy, Replicas, differing, report, view, whole_crc
from fs3.cli.admin.files import in_cluster, mode_text
from fs3.cli.admin.paths import chunk_rows, locate_view, stat_row, stat_view, when
from fs3.cli.admin.sessions import gc_lines, gc_row, session_row, tree_row
from fs3.cli.mounts import Mount
from fs3.errors import Code, ConfigError, FS3Error
from fs3.layout import FileLayout

from .support import OFFLINE, SERVING, Operator, routing

CHUNK = 64 * 1024
MOUNTS = (
    Mount(Path("/mnt/one"), "fuse.fs3", "fs3:c0ffee"),
    Mount(Path("/mnt/one/two"), "fuse.fs3", "fs3:c0ffee"),
    Mount(Path("/mnt/other"), "fuse.fs3", "fs3:beef"),
    Mount(Path("/mnt/tmp"), "tmpfs", "fs3:c0ffee"),
)


def attr(length: int = 0, kind: FileKind = FileKind.FILE) -> Attr:
    layout = FileLayout(1, 1, CHUNK, 3, 7)
    return Attr(5, 0, kind, 0o4755, 1, 2, 1, length, 0, 1_700_000_000_123_000_000, 2**62, layout=layout)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("/a/b", b"/a/b"),
        ("/", b"/"),
        ("/mnt/one/a/b", b"a/b"),
        ("/mnt/one", b"."),
        ("/mnt/one/two/c", b"c"),
        ("/mnt/one/../one/x", b"x"),
        ("/mnt/onetwo", b"/mnt/onetwo"),
        ("/mnt/other/a", b"/mnt/other/a"),
        ("/mnt/tmp/a", b"/mnt/tmp/a"),
    ],
)
def test_paths_are_those_of_the_cluster_or_of_its_mounts_here(text: str, path: bytes) -> None:
    assert in_cluster(text, "c0ffee", MOUNTS) == path


def test_relative_paths_lie_below_a_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getcwd", lambda: "/mnt/one/a")
    assert in_cluster("b/../c", "c0ffee", MOUNTS) == b"a/c"
    monkeypatch.setattr(os, "getcwd", lambda: "/home")
    with pytest.raises(ConfigError, match="expected a path of the cluster"):
        in_cluster("b", "c0ffee", MOUNTS)


def test_attributes_are_shown_as_ls_does() -> None:
    assert mode_text(attr()) == "-rwsr-xr-x"
    assert mode_text(attr(kind=FileKind.DIRECTORY))[0] == "d"
    assert when(1_700_000_000_123_000_000) == "2023-11-14 22:13:20.123 UTC"
    assert when(2**200).endswith(" ns")
    row = stat_row("/f", attr(10))
    row |= {"sessions": [{"client": 3, "session": 1, "hold": True}], "chains": [1]}
    assert row["layout"]["chunk_size"] == CHUNK and stat_view(row)


def test_chunks_are_located() -> None:
    info = routing(((10101, 10201), (10202, (10301, OFFLINE)), (10302, 10102)))
    rows, more = chunk_rows(info, attr(5 * CHUNK + 10), (1, 2, 3), CHUNK + 5, 2 * CHUNK, 10)
    assert [(row["chunk"], row["offset"], row["length"], row["chain"]) for row in rows] == [
        (1, CHUNK + 5, CHUNK - 5, 2),
        (2, 2 * CHUNK, CHUNK, 3),
        (3, 3 * CHUNK, 5, 1),
    ]
    assert not more
    assert rows[0]["targets"][1] == {"target": 10301, "state": "offline", "node": 103, "host": "h103", "disk": 0}
    rows, more = chunk_rows(info, attr(5 * CHUNK), (1, 2, 3), 0, None, 4)
    assert len(rows) == 4 and more
    assert len(locate_view({"chunks": rows, "more": True, "length": 1}, 4)) == 2
    assert chunk_rows(info, attr(10), (1, 2, 3), 99, None, 4) == ([], False)


def copies_of(data: bytes, holes: tuple[int, ...] = ()) -> list[dict[int, Copy]]:
    """The chunks of a file over three chains."""
    found: list[dict[int, Copy]] = [{}, {}, {}]
    for index, at in enumerate(range(0, len(data), CHUNK)):
        if index not in holes:
            piece = data[at : at + CHUNK]
            found[index % 3][index] = Copy(1, len(piece), crc32c(piece))
    return found


@pytest.mark.parametrize("length", [0, 1, CHUNK, 3 * CHUNK, 5 * CHUNK + 17])
def test_the_checksum_of_a_file_follows_from_those_of_its_chunks(length: int) -> None:
    data = Random(length).randbytes(length)
    assert whole_crc(length, CHUNK, (1, 2, 3), copies_of(data)) == crc32c(data)
    longer = length + 3 * CHUNK
    if length % CHUNK:
        assert whole_crc(longer, CHUNK, (1, 2, 3), copies_of(data)) == crc32c(data + bytes(3 * CHUNK))


def test_holes_are_zeros_and_the_unreadable_has_no_checksum() -> None:
    data = Random(1).randbytes(CHUNK) + bytes(CHUNK) + Random(2).randbytes(CHUNK)
    copies = copies_of(data, holes=(1,))
    assert whole_crc(len(data), CHUNK, (1, 2, 3), copies) == crc32c(data)
    copies[2][2] = Copy(1, 0, -1, "READ_FAILED")
    assert whole_crc(len(data), CHUNK, (1, 2, 3), copies) is None


def test_replicas_that_differ_are_told() -> None:
    good = {0: Copy(2, 10, 111), 3: Copy(1, 5, 222)}
    same = Replicas(1, {10101: dict(good), 10201: dict(good)})
    assert list(differing(same)) == []
    found = report("/f", attr(10), (1,), {1: same}, False)
    assert found["same"] and found["crc32c"] and "2 replicas" in str(view(found)[0])
    for other in ({0: good[0]}, good | {3: Copy(1, 5, 223)}, good | {3: Copy(1, 5, 222, "damaged")}):
        replicas = Replicas(1, {10101: dict(good), 10201: other})
        assert list(differing(replicas)) == [3]
        found = report("/f", attr(4 * CHUNK), (1,), {1: replicas}, False)
        assert not found["same"] and found["crc32c"] is None
        assert [(row["chunk"], row["target"]) for row in found["differences"]] == [(3, 10101), (3, 10201)]
        assert len(view(found)) == 4


def test_sessions_say_who_has_them() -> None:
    info = SessionInfo(7, 40, 1, 0, True, 5_000_000_000, 12, 0)
    row = session_row(info, ClientInfo(40, "box", False), 65_000_000_000)
    assert (row["host"], row["state"], row["kind"], row["age_s"]) == ("box", "dead", "hold", 60)
    assert session_row(info, None, 0)["state"] == "unknown"


def test_the_queue_of_the_collector_is_summed_up() -> None:
    def status(collected: int, problem: str = "") -> GcStatusReply:
        return GcStatusReply(3, 900, 1, 61_000, False, 2, collected, 1, 5_000, problem)

    silent = FS3Error(Code.CONNECT_FAILED, "gone")
    row = gc_row({11: status(10), 12: silent}, {11: status(14, "chain 3"), 12: status(9), 13: silent}, 2.0)
    assert (row["files"], row["files_a_second"], row["silent"]) == (3, 2.0, [13])
    text = gc_lines(row)
    assert "1 min 1 s ago" in text and "chain 3" in text and "node 13 does not answer" in text
    trees = [tree_row(TreeInfo(7, 5_000_000_000, 1000, 40, 2, 1000), 65_000_000_000)]
    last = gc_lines(row | {"trees": trees}).splitlines()[-1]
    assert last.startswith("tree 7, removed 1 min ago by uid 1000: 40 names") and "2 kept" in last
    with pytest.raises(FS3Error):
        gc_row({}, {13: silent}, 1.0)


def test_commands_refuse_what_makes_no_sense(operator: Operator) -> None:
    done = operator.types("layout set /d")
    assert done.exit_code == 2 and "nothing to set" in done.output
    info = routing()
    done = operator.on(info.__class__(9, "c0ffee", info.chains, info.tables, info.targets, {})).types("stat /d")
    assert isinstance(done.exception, FS3Error) and "no meta daemon is alive" in str(done.exception)
    assert SERVING in {entry.state for chain in info.chains.values() for entry in chain.targets}
