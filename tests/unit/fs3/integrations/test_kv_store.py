"""The block store over plain files: what several stores in one folder see of each other, and what crashes leave."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from fs3.doors import Done, Piece, PlainDoor
from fs3.integrations import kv_records
from fs3.integrations.kv_segments import DATA, INDEX
from fs3.integrations.kv_store import BlockStore

MIB = 1024 * 1024


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class FaultyDoor(PlainDoor):
    """Writes that fail as told."""

    def __init__(self, place: str) -> None:
        super().__init__(place)
        self.fail: Callable[[int, int], int | None] = lambda offset, length: None

    def write(self, pieces: Sequence[Piece]) -> list[int]:
        return [self._one(*piece) for piece in pieces]

    def _one(self, handle: Any, offset: int, data: Any) -> int:
        failed = self.fail(offset, len(data))
        return super().write([(handle, offset, data)])[0] if failed is None else failed


def store(path: Path, clock: Clock | None = None, **options: Any) -> BlockStore:
    return BlockStore(PlainDoor(str(path)), clock=clock or Clock(), **options)


def block(number: int, length: int = 10_000) -> bytes:
    return (number.to_bytes(4, "big") * (length // 4 + 1))[:length]


def read(found: BlockStore, keys: Sequence[str], length: int = 10_000) -> list[bytes | None]:
    into = [bytearray(length) for _ in keys]
    return [
        None if count is None else bytes(buffer[:count])
        for count, buffer in zip(found.get(keys, into), into, strict=True)
    ]  # fmt: skip


def test_what_was_put_is_found_by_all_and_after_a_restart(tmp_path: Path) -> None:
    clock = Clock()
    one, two = store(tmp_path, clock), store(tmp_path, clock)
    assert one.put(["a", b"b", "a"], [block(1), block(2, 5), block(1)]) == [True] * 3
    assert one.exists(["a", "b", "c"]) == [True, True, False]
    assert read(one, ["a", "b", "c"]) == [block(1), block(2, 5), None]
    assert two.exists(["a"]) == [False]  # it has looked a moment ago
    clock.now = 1.0
    assert two.leading(["a", "b", "c", "a"]) == 2
    assert two.lengths(["b", "c"]) == [5, None]
    assert read(two, ["b", "a"]) == [block(2, 5), block(1)]
    one.close()
    assert two.put(["a", "d"], [block(9), block(4)]) == [True, True]  # a stays as it is
    two.close()
    three = store(tmp_path)
    assert read(three, ["a", "b", "d"]) == [block(1), block(2, 5), block(4)]
    three.close()


def test_a_buffer_that_is_too_small_is_a_miss(tmp_path: Path) -> None:
    made = store(tmp_path)
    made.put(["a"], [block(1)])
    assert read(made, ["a"], 9_999) == [None]
    assert read(made, ["a"]) == [block(1)]
    made.close()


def test_blocks_larger_than_segments_and_none_at_all(tmp_path: Path) -> None:
    made = store(tmp_path, segment_bytes=MIB)
    assert made.put([], []) == [] == made.get([], [])
    sizes = [3 * MIB + 1, 10, MIB, 0, MIB // 2]
    keys = [str(size) for size in sizes]
    assert made.put(keys, [block(size, size) for size in sizes]) == [True] * 5
    assert read(made, keys, 4 * MIB) == [block(size, size) for size in sizes]
    assert len(os.listdir(tmp_path / DATA)) == 4
    made.close()
    assert sum(path.stat().st_size for path in (tmp_path / DATA).iterdir()) < 5 * MIB  # nothing is kept for later
    again = store(tmp_path)
    assert read(again, keys, 4 * MIB) == [block(size, size) for size in sizes]
    again.close()


def test_deleted_blocks_are_gone_for_all_and_for_good(tmp_path: Path) -> None:
    clock = Clock()
    one = store(tmp_path, clock)
    one.put(["a", "b"], [block(1), block(2, 3)])
    two = store(tmp_path, clock)
    assert two.delete(["a", "c", "b"]) == [True, False, True]
    assert read(one, ["a", "b"]) == [None, None]
    assert read(one, ["a", "b"]) == [None, None]
    assert one.exists(["a"]) == [False]
    three = store(tmp_path, clock)
    assert three.exists(["a", "b"]) == [False, False]
    assert one.put(["a"], [block(5)]) == [True]
    clock.now = 9.0
    assert read(two, ["a"]) == read(three, ["a"]) == [block(5)]
    for each in (one, two, three):
        each.close()


def test_clear_is_seen_by_others_who_go_on(tmp_path: Path) -> None:
    clock = Clock()
    one, two = store(tmp_path, clock), store(tmp_path, clock)
    one.put(["a"], [block(1)])
    two.put(["b"], [block(2)])
    two.clear()
    assert two.exists(["a", "b"]) == [False, False] and read(one, ["b"]) == [None]
    clock.now = 5.0
    assert one.exists(["a", "x"]) == [False, False]
    assert one.put(["a"], [block(3)]) == [True]  # not into what was removed
    clock.now = 9.0
    assert read(two, ["a"]) == [block(3)]
    one.close()
    two.close()


def test_the_least_recently_used_segments_go_first(tmp_path: Path) -> None:
    clock = Clock()
    made = store(tmp_path, clock, capacity_bytes=8 * MIB, segment_bytes=MIB)
    other = store(tmp_path, clock, capacity_bytes=8 * MIB)
    for number in range(7):
        made.put([str(number)], [block(number, MIB)])
        for path in (tmp_path / DATA).iterdir():  # as if all had been a while ago
            stat = path.stat()
            os.utime(path, ns=(stat.st_mtime_ns - 10**9, stat.st_mtime_ns - 10**9))
    clock.now = 100.0
    assert read(other, ["0"], MIB) == [block(0, MIB)]  # which makes it be in use
    for number in range(7, 10):
        assert made.put([str(number)], [block(number, MIB)]) == [True]
    assert sum(path.stat().st_size for path in (tmp_path / DATA).iterdir()) <= 8 * MIB
    assert made.exists([str(number) for number in range(10)]) == [True, False, False, *[True] * 7]
    assert read(other, ["1"], MIB) == [None]  # which it thought was there
    assert sorted(os.listdir(tmp_path / DATA)) == sorted(os.listdir(tmp_path / INDEX))
    assert made.usage()[0] <= 8 * MIB
    made.close()
    other.close()


def test_several_writers_keep_the_bound(tmp_path: Path) -> None:
    writers = 4
    stores = [store(tmp_path, capacity_bytes=16 * MIB, segment_bytes=MIB, refresh_s=0.0) for _ in range(writers)]
    failed: list[str] = []

    def work(number: int) -> None:
        made = stores[number]
        for turn in range(24):
            keys = [f"{number}-{turn}-{each}" for each in range(3)]
            if made.put(keys, [block(turn + each, MIB // 4) for each in range(3)]) != [True] * 3:
                failed.append(f"{number}: put {turn}")
            theirs = [f"{(number + 1) % writers}-{turn}-{each}" for each in range(3)]
            for each, found in enumerate(read(made, theirs, MIB // 4)):
                if found not in (None, block(turn + each, MIB // 4)):
                    failed.append(f"{number}: {theirs[each]} is wrong")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert sum(path.stat().st_size for path in (tmp_path / DATA).iterdir()) <= 16 * MIB
    for made in stores:
        made.close()


def test_a_torn_block_and_a_torn_index_are_misses(tmp_path: Path) -> None:
    made = store(tmp_path)
    made.put(["a", "b", "c"], [block(1), block(2), block(3)])
    made.close()
    (data,) = (tmp_path / DATA).iterdir()
    with open(data, "r+b") as file:
        file.seek(5_000)
        file.write(b"\0" * 100)  # within a: its last pages did not reach the disk
    (index,) = (tmp_path / INDEX).iterdir()
    os.truncate(index, kv_records.RECORD_SIZE * 3 + 10)  # and not the record of c
    again = store(tmp_path)
    assert again.exists(["c"]) == [False]
    assert read(again, ["a", "b"]) == [None, block(2)]
    assert again.exists(["a"]) == [False]
    assert again.put(["a", "c"], [block(1), block(3)]) == [True, True]
    assert read(again, ["a", "b", "c"]) == [block(1), block(2), block(3)]
    again.close()


def test_what_a_crash_leaves_between_two_files(tmp_path: Path) -> None:
    made = store(tmp_path, capacity_bytes=4 * MIB, segment_bytes=MIB)
    (tmp_path / INDEX / "0-nodata").write_bytes(kv_records.header(MIB) + kv_records.pack(b"x" * 16, 0, 5, 1))
    (tmp_path / INDEX / "1-empty").write_bytes(b"")
    (tmp_path / INDEX / "2-strange").write_bytes(b"?" * 200)
    (tmp_path / DATA / "3-noindex").write_bytes(b"?" * 200)
    os.utime(tmp_path / INDEX / "0-nodata", (0, 0))
    made.refresh()
    for number in range(5):
        assert made.put([str(number)], [block(number, MIB)]) == [True]
    assert not (tmp_path / DATA / "3-noindex").exists() and not (tmp_path / INDEX / "0-nodata").exists()
    assert read(made, ["4"], MIB) == [block(4, MIB)]
    made.close()


def test_a_full_file_system_costs_old_blocks_and_no_errors(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    door = FaultyDoor(str(tmp_path))
    made = BlockStore(door, segment_bytes=MIB)
    made.put(["old"], [block(1, MIB)])
    door.fail = lambda offset, length: -errno.ENOSPC if length == MIB else None
    assert made.put(["new", "small"], [block(2, MIB), block(3, 10)]) == [False, True]
    assert "not kept" in caplog.text
    assert made.exists(["old", "new", "small"]) == [False, False, True]
    door.fail = lambda offset, length: None
    assert made.put(["new"], [block(2, MIB)]) == [True]
    assert read(made, ["new", "small"], MIB) == [block(2, MIB), block(3, 10)]
    made.close()


def test_an_index_that_cannot_be_written_is_left(tmp_path: Path) -> None:
    door = FaultyDoor(str(tmp_path))
    made = BlockStore(door)
    made.put(["a"], [block(1)])
    door.fail = lambda offset, length: -errno.EIO if length == kv_records.RECORD_SIZE and offset else None
    assert made.put(["b"], [block(2)]) == [False]
    door.fail = lambda offset, length: None
    assert made.put(["b"], [block(2)]) == [True]
    assert len(os.listdir(tmp_path / DATA)) == 2  # into another segment: nobody knows what the first one's index has
    assert read(made, ["a", "b"]) == [block(1), block(2)]
    made.close()


def test_a_door_that_cannot_read_is_a_miss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = store(tmp_path)
    made.put(["a"], [block(1)])

    def broken(self: PlainDoor, pieces: Sequence[Piece], done: Done) -> None:
        raise OSError(errno.ETIMEDOUT, "nobody answers")

    with monkeypatch.context() as patch:
        patch.setattr(PlainDoor, "read", broken)
        assert read(made, ["a"]) == [None]
    assert read(made, ["a"]) == [block(1)]
    made.close()


def test_nothing_is_put_below_a_mount_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon of a mount was killed: until it is back, its place is a folder of the local disk."""
    monkeypatch.setattr("os.path.ismount", lambda path: path == str(tmp_path))
    made = store(tmp_path / "kv", segment_bytes=MIB)
    assert made.put(["a"], [block(1, MIB)]) == [True]
    away = tmp_path.with_name("away")
    (tmp_path / "kv").rename(away)
    with monkeypatch.context() as patch:
        patch.setattr("os.path.ismount", lambda path: path == "/")
        assert made.put(["b"], [block(2, MIB)]) == [False]
        assert not (tmp_path / "kv").exists()
    away.rename(tmp_path / "kv")
    assert made.put(["b"], [block(2, MIB)]) == [True]
    assert read(made, ["a", "b"], MIB) == [block(1, MIB), block(2, MIB)]
    made.close()


def test_a_bound_that_is_too_small_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="capacity_bytes: at least 2097152"):
        store(tmp_path, capacity_bytes=MIB)
