from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fs3.ids import U64_MAX, ChunkId

chunk_ids = st.builds(ChunkId, st.integers(0, U64_MAX), st.integers(0, U64_MAX))


@given(chunk_ids)
def test_packed_ids_come_back(chunk: ChunkId) -> None:
    assert len(chunk.pack()) == 16 and ChunkId.unpack(chunk.pack()) == chunk


@given(chunk_ids, chunk_ids)
def test_packed_ids_sort_like_ids(a: ChunkId, b: ChunkId) -> None:
    assert (a.pack() < b.pack()) == (a < b)


def test_packed_bytes_are_pinned() -> None:
    assert ChunkId(1, 0x0203).pack().hex() == "00000000000000010000000000000203"
