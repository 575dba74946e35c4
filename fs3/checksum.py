"""CRC32C over fixed blocks. Pure.

A chunk's content is cut into blocks of `BLOCK_SIZE` bytes from its start; the last block is as long as what is left. Each
block has its CRC32C (RFC 3720, appendix B.4). `combine` joins the checksums of neighbouring ranges without their bytes.
"""

from __future__ import annotations

from functools import lru_cache

from crc32c import crc32c as _crc32c

BLOCK_SIZE = 64 * 1024
"""Bytes covered by one stored checksum."""

_POLYNOMIAL = 0x82F63B78

Buffer = bytes | bytearray | memoryview


def crc32c(data: Buffer, value: int = 0) -> int:
    """The CRC32C of `data`, continuing from `value`, the CRC32C of what stands before it."""
    return _crc32c(data, value)


def block_checksums(data: Buffer) -> tuple[int, ...]:
    """The checksum of each block of `data`, whose first byte is the first of a block."""
    length = len(data)
    if length <= BLOCK_SIZE:
        return (_crc32c(data),) if length else ()
    view = memoryview(data)
    return tuple([_crc32c(view[at : at + BLOCK_SIZE]) for at in range(0, length, BLOCK_SIZE)])


def piece_checksums(data: Buffer, offset: int) -> tuple[int, ...]:
    """The checksum of each piece of `data`, cut at the block borders of a chunk in which its first byte is at `offset`."""
    first = -offset % BLOCK_SIZE
    if first == 0:
        return block_checksums(data)
    view = memoryview(data)
    if len(view) <= first:
        return (_crc32c(view),) if len(view) else ()
    return (_crc32c(view[:first]), *block_checksums(view[first:]))


def combine(first: int, second: int, second_length: int) -> int:
    """The CRC32C of A+B from crc(A), crc(B) and len(B) in bytes."""
    if second_length == 0:
        return first
    for bit in range(second_length.bit_length()):
        if second_length >> bit & 1:
            first = _apply(_shift_matrix(bit), first)
    return first ^ second


def of_zeros(length: int) -> int:
    """The CRC32C of so many zero bytes."""
    crc = 0
    one = _crc32c(b"\0")  # of 2**bit zeros
    for bit in range(length.bit_length()):
        if length >> bit & 1:
            crc = combine(crc, one, 1 << bit)
        one = combine(one, one, 1 << bit)
    return crc


def replaced(whole: int, old: int, new: int, behind: int) -> int:
    """The CRC32C of a message after a part of it was replaced by as many other bytes, from the CRC32Cs of all of it and of
    both parts; behind: how many bytes follow the part. Fast when few different values of that are in use."""
    return whole ^ _apply(_shift(behind), old ^ new)


@lru_cache(maxsize=256)
def _shift(length: int) -> tuple[int, ...]:
    """The linear map that appends so many zero bytes."""
    matrix = tuple([1 << bit for bit in range(32)])
    for bit in range(length.bit_length()):
        if length >> bit & 1:
            matrix = tuple([_apply(_shift_matrix(bit), column) for column in matrix])
    return matrix


def _apply(matrix: tuple[int, ...], vector: int) -> int:
    result = 0
    index = 0
    while vector:
        if vector & 1:
            result ^= matrix[index]
        vector >>= 1
        index += 1
    return result


@lru_cache(maxsize=64)
def _shift_matrix(bit: int) -> tuple[int, ...]:
    """The linear map over GF(2) that appends 2**bit zero bytes to a message."""
    if bit == 0:
        matrix = (_POLYNOMIAL, *(1 << i for i in range(31)))  # one zero bit
        for _ in range(3):
            matrix = tuple(_apply(matrix, column) for column in matrix)
        return matrix
    half = _shift_matrix(bit - 1)
    return tuple(_apply(half, column) for column in half)
