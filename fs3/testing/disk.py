"""The conformance kit of the storage daemon's disk port. Every adapter passes it: `await check_disk(make)`.

The port is declared in storage/disk.py; the library knows daemons by their shape alone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Protocol

import trio

from ..checksum import Buffer
from ..errors import Code, FS3Error


class _File(Protocol):
    async def read(self, offset: int, into: memoryview) -> None: ...
    def read_now(self, offset: int, into: memoryview) -> bool: ...
    async def write(self, offset: int, parts: Sequence[Buffer]) -> None: ...
    async def read_medium(self, offset: int, into: memoryview) -> None: ...
    def read_blocking(self, offset: int, into: memoryview) -> None: ...
    async def zero(self, offset: int, length: int) -> None: ...
    async def punch(self, offset: int, length: int) -> None: ...
    async def sync(self) -> None: ...
    def close(self) -> None: ...


class _Records(Protocol):
    def load(self) -> Iterator[tuple[bytes, bytes]]: ...
    def write(self, puts: Sequence[tuple[bytes, bytes]], deletes: Sequence[bytes] = ()) -> None: ...
    async def sync(self) -> None: ...
    def close(self) -> None: ...


class _Disk(Protocol):
    name: str

    def space(self) -> Any: ...
    def read_small(self, name: str) -> bytes | None: ...
    def write_small(self, name: str, data: bytes) -> None: ...
    def files(self, folder: str) -> list[str]: ...
    def open_file(self, name: str) -> _File: ...
    def open_records(self, name: str) -> _Records: ...
    def close(self) -> None: ...


Make = Callable[[], _Disk]
"""Opens the disk under test: always the same one, empty at the first time."""

_BLOCK = 64 * 1024


async def check_disk(make: Make) -> None:
    """All checks, in order. Raises AssertionError where the adapter breaks the port's promises."""
    checks: Sequence[Callable[[Make], Awaitable[None]]] = (
        _small_files,
        _lock,
        _sparse,
        _many_parts,
        _zero,
        _punch,
        _reopen,
        _many_at_once,
        _records,
        _records_reopen,
    )
    for check in checks:
        await check(make)


async def _read(file: _File, offset: int, length: int) -> bytes:
    into = memoryview(bytearray(b"\xff" * length))
    await file.read(offset, into)
    again = memoryview(bytearray(b"\xee" * length))
    assert not file.read_now(offset, again) or again == into, "read_now() differs from read()"
    await file.read_medium(offset, again)
    assert again == into, "read_medium() differs from read()"
    again[:] = bytes(length)
    file.read_blocking(offset, again)
    assert again == into, "read_blocking() differs from read()"
    return bytes(into)


async def _small_files(make: Make) -> None:
    disk = make()
    assert disk.name
    assert disk.read_small("absent") is None
    assert disk.files("nowhere") == []
    disk.write_small("small", b"one")
    disk.write_small("folder/small", b"two")
    disk.write_small("small", b"three")
    assert disk.read_small("small") == b"three"
    assert disk.read_small("folder/small") == b"two"
    assert disk.files("folder") == ["small"]
    assert {"small", "folder"} <= set(disk.files(""))
    space = disk.space()
    assert 0 < space.free <= space.total
    disk.close()
    disk.close()
    disk = make()
    assert disk.read_small("small") == b"three"
    disk.close()


async def _lock(make: Make) -> None:
    disk = make()
    try:
        make().close()
    except FS3Error as error:
        assert error.code is Code.CONFIG
    else:
        raise AssertionError("the disk was opened twice at once")
    disk.close()


async def _sparse(make: Make) -> None:
    disk = make()
    file = disk.open_file("sparse/data")
    assert await _read(file, 0, 100) == bytes(100), "an empty file reads as zeros"
    await file.write(10 * _BLOCK, [b"x" * 100])
    assert await _read(file, 10 * _BLOCK - 50, 200) == bytes(50) + b"x" * 100 + bytes(50)
    assert await _read(file, 0, 3 * _BLOCK) == bytes(3 * _BLOCK)
    await file.write(10 * _BLOCK + 20, [b"y" * 10])
    assert await _read(file, 10 * _BLOCK, 100) == b"x" * 20 + b"y" * 10 + b"x" * 70
    assert await _read(file, 1 << 40, 10) == bytes(10)
    file.close()
    disk.close()


async def _many_parts(make: Make) -> None:
    disk = make()
    file = disk.open_file("parts")
    parts = [bytes([number % 251]) * (number % 7) for number in range(3000)]
    await file.write(5, [memoryview(part) for part in parts])
    everything = b"".join(parts)
    assert await _read(file, 5, len(everything)) == everything
    large = bytes(range(256)) * (5 * 1024 * 1024 // 256)
    await file.write(1 << 20, [large[:100], bytearray(large[100:])])
    assert await _read(file, 1 << 20, len(large)) == large
    file.close()
    disk.close()


async def _zero(make: Make) -> None:
    disk = make()
    file = disk.open_file("zeroed")
    data = bytes(range(1, 251)) * (4 * _BLOCK // 250)
    for offset, length in ((0, 10), (_BLOCK, _BLOCK), (_BLOCK - 1, 2 * _BLOCK + 2), (len(data) - 5, 100)):
        await file.write(0, [data])
        await file.zero(offset, length)
        assert (
            await _read(file, 0, len(data))
            == data[:offset] + bytes(min(length, len(data) - offset)) + data[offset + length :]
        )
    file.close()
    disk.close()


async def _punch(make: Make) -> None:
    disk = make()
    file = disk.open_file("punched")
    await file.write(0, [b"a" * 3 * _BLOCK])
    await file.punch(_BLOCK, _BLOCK)
    assert await _read(file, 0, 3 * _BLOCK) == b"a" * _BLOCK + bytes(_BLOCK) + b"a" * _BLOCK
    file.close()
    disk.close()


async def _reopen(make: Make) -> None:
    disk = make()
    file = disk.open_file("kept")
    await file.write(100, [b"kept"])
    await file.sync()
    file.close()
    file.close()
    disk.close()
    disk = make()
    file = disk.open_file("kept")
    assert await _read(file, 98, 8) == b"\0\0kept\0\0"
    file.close()
    disk.close()


async def _many_at_once(make: Make) -> None:
    disk = make()
    file = disk.open_file("busy")

    async def write(number: int) -> None:
        await file.write(number * _BLOCK, [bytes([number]) * _BLOCK])
        await file.sync()
        assert await _read(file, number * _BLOCK, _BLOCK) == bytes([number]) * _BLOCK

    async with trio.open_nursery() as nursery:
        for number in range(32):
            nursery.start_soon(write, number)
    file.close()
    disk.close()


async def _records(make: Make) -> None:
    disk = make()
    records = disk.open_records("store/records")
    assert list(records.load()) == []
    records.write([(b"b", b"2"), (b"a", b"1"), (b"\xff", b""), (b"\x00", b"0" * 100_000)])
    records.write([(b"a", b"one")], [b"b", b"never there"])
    assert list(records.load()) == [(b"\x00", b"0" * 100_000), (b"a", b"one"), (b"\xff", b"")]
    await records.sync()
    records.write((), [b"\x00"])
    records.close()
    records.close()
    disk.close()


async def _records_reopen(make: Make) -> None:
    disk = make()
    records = disk.open_records("store/records")
    assert list(records.load()) == [(b"a", b"one"), (b"\xff", b"")]
    records.write([(number.to_bytes(4, "big"), bytes(200)) for number in range(10_000)])
    records.close()
    records = disk.open_records("store/records")
    assert len(list(records.load())) == 10_002
    records.close()
    disk.close()
