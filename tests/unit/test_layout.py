from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fs3.layout import FileLayout, file_chains, shuffled, split, valid_chunk_size


@pytest.mark.parametrize(
    ("count", "seed", "order"),
    [
        (1, 5, (10,)),
        # SplitMix64 of 0 begins e220a8397b1dcdaf 6e789e6aa1b965f4 06c45d188009454f f88bb8a8724c81ec 1b39896a51a8749b.
        (6, 0, (14, 12, 15, 13, 10, 11)),
        (6, 1, (10, 11, 13, 12, 14, 15)),
        (6, 2**64 - 1, (13, 15, 10, 11, 14, 12)),
    ],
)
def test_shuffle_is_pinned(count: int, seed: int, order: tuple[int, ...]) -> None:
    """Files lie where this says: a change here loses data. docs/design.md states the algorithm."""
    assert shuffled(tuple(range(10, 10 + count)), seed) == order


@given(st.lists(st.integers(1, 99), unique=True, min_size=1).map(tuple), st.integers(0, 2**64 - 1), st.integers(1, 120))
def test_a_file_uses_different_chains(chains: tuple[int, ...], seed: int, stripe: int) -> None:
    assert sorted(shuffled(chains, seed)) == sorted(chains)
    mine = file_chains(FileLayout(1, 1, 65536, stripe, seed), chains)
    assert len(mine) == len(set(mine)) == min(stripe, len(chains))


def test_first_chains_spread_evenly() -> None:
    firsts = [shuffled(tuple(range(8)), seed)[0] for seed in range(4000)]
    assert all(400 < firsts.count(chain) < 600 for chain in range(8))


sizes = st.sampled_from([65536, 1 << 20, 64 << 20])


@given(sizes, st.integers(0, 1 << 46), st.integers(0, 200_000), st.integers(1, 9))
def test_extents_tile_the_range(chunk_size: int, offset: int, length: int, chains: int) -> None:
    extents = list(split(FileLayout(1, 1, chunk_size, chains, 0), range(100, 100 + chains), offset, length))
    at = offset
    for extent in extents:
        assert extent.file_offset == at == extent.index * chunk_size + extent.offset
        assert 0 < extent.length <= chunk_size - extent.offset
        assert extent.chain == 100 + extent.index % chains
        at += extent.length
    assert at == offset + length
    assert len(extents) == (0 if length == 0 else (offset + length - 1) // chunk_size - offset // chunk_size + 1)


def test_chunk_sizes() -> None:
    sizes = (0, 1, 32 << 10, 64 << 10, 65537, 96 << 10, 1 << 20, 64 << 20, 128 << 20)
    assert [size for size in sizes if valid_chunk_size(size)] == [64 << 10, 1 << 20, 64 << 20]
