from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fs3.checksum import BLOCK_SIZE, block_checksums, combine, crc32c, of_zeros, piece_checksums, replaced


def slow_crc32c(data: bytes) -> int:
    """Bit by bit, as RFC 3720 has it."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


@pytest.mark.parametrize(
    ("data", "value"),
    [(bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43), (bytes(range(32)), 0x46DD794E), (b"123456789", 0xE3069283)],
)
def test_rfc_3720_vectors(data: bytes, value: int) -> None:
    assert crc32c(data) == value


@given(st.binary(max_size=200))
def test_against_the_slow_one(data: bytes) -> None:
    assert crc32c(data) == slow_crc32c(data)


@given(st.binary(max_size=100), st.binary(max_size=100))
def test_combine_against_direct_computing(a: bytes, b: bytes) -> None:
    assert combine(crc32c(a), crc32c(b), len(b)) == crc32c(a + b) == crc32c(b, crc32c(a))


@given(st.binary(max_size=50), st.binary(max_size=50), st.binary(max_size=50), st.integers(0, 2**32))
def test_replaced_against_direct_computing(head: bytes, old: bytes, tail: bytes, seed: int) -> None:
    new = random.Random(seed).randbytes(len(old))
    whole = crc32c(head + old + tail)
    assert replaced(whole, crc32c(old), crc32c(new), len(tail)) == crc32c(head + new + tail)


@pytest.mark.parametrize("length", [1, 255, 4096, 65536, 1_000_003])
def test_combine_of_long_ranges(length: int) -> None:
    data = random.Random(length).randbytes(length + 77)
    assert combine(crc32c(data[:77]), crc32c(data[77:]), length) == crc32c(data)


@pytest.mark.parametrize("length", [0, 1, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, 3 * BLOCK_SIZE])
@pytest.mark.parametrize("offset", [0, 1, BLOCK_SIZE - 1, BLOCK_SIZE, 5 * BLOCK_SIZE + 7])
def test_pieces_are_cut_at_block_borders(offset: int, length: int) -> None:
    data = random.Random(1).randbytes(length)
    borders = [at for at in range(offset, offset + length) if at == offset or at % BLOCK_SIZE == 0]
    ends = [*borders[1:], offset + length]
    expected = tuple(crc32c(data[a - offset : b - offset]) for a, b in zip(borders, ends, strict=False))
    assert piece_checksums(data, offset) == expected
    if offset == 0:
        assert block_checksums(memoryview(data)) == expected


@pytest.mark.parametrize("length", [0, 1, 2, 5, 65536, 1_000_003])
def test_the_checksum_of_zeros(length: int) -> None:
    assert of_zeros(length) == crc32c(bytes(length))
