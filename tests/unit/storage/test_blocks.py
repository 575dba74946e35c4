"""Block checksums that follow changes, against those made of the whole content."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from fs3.checksum import BLOCK_SIZE, block_checksums, crc32c, piece_checksums
from storage import blocks

# Lengths around block borders, where things go wrong.
LENGTHS = st.builds(lambda whole, off: max(0, whole * BLOCK_SIZE + off), st.integers(0, 3), st.integers(-2, 2))


def whole(content: bytes) -> bytes:
    return blocks.pack(block_checksums(content))


def test_pack() -> None:
    packed = blocks.pack((1, 0xFFFFFFFF, 7))
    assert packed == b"\1\0\0\0\xff\xff\xff\xff\7\0\0\0"
    assert blocks.unpack(packed) == (1, 0xFFFFFFFF, 7)
    assert blocks.at(packed, 1) == 0xFFFFFFFF
    assert blocks.unpack(b"") == ()


@settings(max_examples=60, deadline=None)
@given(LENGTHS, LENGTHS, LENGTHS.filter(bool))
def test_overwritten(length: int, offset: int, size: int) -> None:
    offset = min(offset, length)
    old = bytes(range(251)) * (length // 251 + 1)
    old = old[:length]
    data = b"\xaa" * size
    fresh = old[:offset] + data + old[offset + size :]
    start = offset - offset % BLOCK_SIZE
    end = offset + size
    last_end = min(-(-end // BLOCK_SIZE) * BLOCK_SIZE, length)
    found = blocks.overwritten(
        whole(old), offset, memoryview(data), piece_checksums(data, offset), crc32c(old[start:offset]), old[end:last_end]
    )
    assert found == whole(fresh)


@settings(max_examples=60, deadline=None)
@given(LENGTHS, LENGTHS)
def test_extended_and_cut(length: int, other: int) -> None:
    short, long = sorted((length, other))
    content = b"c" * short
    assert blocks.extended(whole(content), short, long) == whole(content + bytes(long - short))
    content = b"c" * long
    assert blocks.cut(whole(content), short, content[short - short % BLOCK_SIZE : short]) == whole(content[:short])
