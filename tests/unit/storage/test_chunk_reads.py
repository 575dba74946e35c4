"""Reads of parts of blocks, the first time and again."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from fs3.checksum import piece_checksums
from fs3.errors import Code, FS3Error

from .test_engine import C1, open_engine, write

LENGTH = 300_001


async def test_any_range_has_its_bytes_and_checksums(tmp_path: Path) -> None:
    engine, disk = open_engine(tmp_path)
    chance = random.Random(1)
    content = bytearray(chance.randbytes(LENGTH))
    await write(engine, 0, content)
    for _ in range(400):
        unit = chance.choice((1, 4096, 65_536))
        offset = chance.randrange(LENGTH // unit + 1) * unit
        length = min(chance.randrange(1, 40) * unit, LENGTH)
        if chance.random() < 0.2 and offset < LENGTH:
            data = chance.randbytes(min(length, LENGTH - offset, 20_000))
            content[offset : offset + len(data)] = data
            await write(engine, offset, data)
        into = memoryview(bytearray(length))
        found = engine.read_now(C1, offset, into)
        assert found is not None, "all of it is in the page cache"
        expected = content[offset : offset + length]
        assert found.data == expected == into[: len(expected)]
        assert found.checksums == piece_checksums(expected, offset)
        assert found == await engine.read(C1, offset, length)
    engine.close()
    disk.close()


async def test_pages_that_rot_after_they_were_read(tmp_path: Path) -> None:
    engine, disk = open_engine(tmp_path)
    await write(engine, 0, b"a" * 200_000)
    await engine.read(C1, 4096, 4096)
    with (tmp_path / "target-1/data-18-0").open("r+b") as file:
        file.seek(5000)
        file.write(b"!")
    page = await engine.read(C1, 4096, 4096)
    assert page.checksums != piece_checksums(page.data, 4096), "found by who verifies it"
    for offset, length in ((4096, 8192), (4096, 100), (4000, 1000)):
        with pytest.raises(FS3Error) as caught:
            await engine.read(C1, offset, length)
        assert caught.value.code is Code.CHECKSUM
    assert (await engine.read(C1, 8192, 100)).data == b"a" * 100
    engine.close()
    disk.close()
