"""Where the bytes of a file lie: byte range -> (chain, chunk, range in chunk). Pure.

The chains of a file are drawn from its chain table by a shuffle that any program can repeat: a Fisher-Yates shuffle from
the end, whose random numbers are SplitMix64 of the file's seed, reduced by `x % n`. docs/design.md states it in full.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from .ids import U64_MAX
from .quick import quick

CHUNK_SIZE_MIN = 64 * 1024
CHUNK_SIZE_MAX = 64 * 1024 * 1024
FILE_LENGTH_MAX = (1 << 63) - 1


@quick
@dataclass(frozen=True, slots=True)
class FileLayout:
    """How one file is cut and spread; fixed when the file is made.

    chunk_size: bytes, a power of two from 64 KiB to 64 MiB. stripe: over how many chains, at least 1.
    table: the chain table's id; table_version: its version when the file was made. seed: 64-bit, of the shuffle.
    """

    table: int
    table_version: int
    chunk_size: int
    stripe: int
    seed: int


@quick
@dataclass(frozen=True, slots=True)
class Extent:
    """A piece of a file's byte range that lies in one chunk. Lengths and offsets in bytes."""

    chain: int
    index: int
    offset: int
    length: int
    file_offset: int


def valid_chunk_size(size: int) -> bool:
    """Whether a chunk may have this many bytes."""
    return CHUNK_SIZE_MIN <= size <= CHUNK_SIZE_MAX and size & (size - 1) == 0


def splitmix64(state: int) -> int:
    """The mixing of splitmix64: each bit of 64 changes half of the others."""
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & U64_MAX
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB & U64_MAX
    return state ^ (state >> 31)


@lru_cache(maxsize=4096)
def shuffled(chains: tuple[int, ...], seed: int) -> tuple[int, ...]:
    """The chains of a table in the order in which a file with this seed uses them."""
    order = list(chains)
    state = seed
    for last in range(len(order) - 1, 0, -1):
        state = (state + 0x9E3779B97F4A7C15) & U64_MAX
        other = splitmix64(state) % (last + 1)
        order[last], order[other] = order[other], order[last]
    return tuple(order)


def file_chains(layout: FileLayout, table_chains: Sequence[int]) -> tuple[int, ...]:
    """The chains that hold the file's chunks: chunk i lies on the i-th of them, modulo their number."""
    return shuffled(tuple(table_chains), layout.seed)[: layout.stripe]


def split(layout: FileLayout, chains: Sequence[int], offset: int, length: int) -> Iterator[Extent]:
    """Cut the byte range [offset, offset + length) of a file at its chunk borders, in order."""
    assert offset >= 0 and length >= 0
    size = layout.chunk_size
    end = offset + length
    while offset < end:
        index, within = divmod(offset, size)
        piece = min(size - within, end - offset)
        yield Extent(chains[index % len(chains)], index, within, piece, offset)
        offset += piece
