from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fs3.api.storage import ChunkMeta
from fs3.ids import ChunkId
from storage.resync import Step, batches, compare, content, plan


def meta(
    index: int = 0,
    version: int = 3,
    chain_version: int = 5,
    pending: int = 0,
    length: int = 10,
    crc: int = 1,
    damaged: bool = False,
) -> ChunkMeta:
    return ChunkMeta(ChunkId(1, index), version, chain_version, pending, length, crc, damaged)


@pytest.mark.parametrize(
    ("local", "remote", "step"),
    [
        (meta(), meta(), Step.SAME),
        (meta(), None, Step.TRANSFER),
        (meta(), meta(damaged=True), Step.TRANSFER),
        (meta(damaged=True, chain_version=6), meta(), Step.SAME),
        (meta(damaged=True), meta(damaged=True), Step.SAME),
        (meta(damaged=True), meta(version=2), Step.TRANSFER),
        (meta(damaged=True), None, Step.TRANSFER),
        (None, meta(), Step.REMOVE),
        (meta(version=0, pending=1), meta(), Step.REMOVE),
        (meta(version=0, pending=1), None, Step.SAME),
        (meta(chain_version=6), meta(), Step.TRANSFER),
        (meta(chain_version=4), meta(), Step.SAME),
        (meta(version=4), meta(), Step.TRANSFER),
        (meta(version=2), meta(), Step.TRANSFER),
        (meta(length=9), meta(), Step.TRANSFER),
        (meta(crc=2), meta(), Step.TRANSFER),
        (meta(), meta(pending=4), Step.TRANSFER),
        (meta(pending=4), meta(), Step.SAME),
    ],
)
def test_rules(local: ChunkMeta | None, remote: ChunkMeta | None, step: Step) -> None:
    assert compare(local, remote) is step


def test_plan_merges_two_lists() -> None:
    local = [meta(1), meta(2), meta(4, version=9), meta(6)]
    remote = [meta(0), meta(2), meta(4), meta(5), meta(7)]
    assert list(plan(local, remote)) == [
        (ChunkId(1, 0), Step.REMOVE),
        (ChunkId(1, 1), Step.TRANSFER),
        (ChunkId(1, 4), Step.TRANSFER),
        (ChunkId(1, 5), Step.REMOVE),
        (ChunkId(1, 6), Step.TRANSFER),
        (ChunkId(1, 7), Step.REMOVE),
    ]
    assert list(plan([], [])) == []


METAS = st.lists(
    st.builds(
        meta,
        index=st.integers(0, 30),
        version=st.integers(0, 2),
        chain_version=st.integers(1, 2),
        pending=st.integers(0, 1),
        length=st.integers(0, 12),
        crc=st.integers(0, 1),
        damaged=st.booleans(),
    ),
    unique_by=lambda found: found.chunk,
).map(lambda metas: sorted(metas, key=lambda found: found.chunk))


@given(METAS, METAS, st.integers(1, 5), st.integers(1, 20))
def test_batches_hold_the_plan_in_order_and_within_limits(
    local: list[ChunkMeta], remote: list[ChunkMeta], chunks_max: int, bytes_max: int
) -> None:
    steps = list(plan(local, remote))
    made = list(batches(steps, local, chunks_max, bytes_max))
    assert [chunk for batch in made for chunk in batch.chunks] == [chunk for chunk, _ in steps]
    lengths = {found.chunk: found.length for found in local}
    for batch in made:
        assert batch.bytes == sum(lengths.get(chunk, 0) for chunk in batch.chunks)
        assert 1 <= len(batch.chunks) <= chunks_max
        assert batch.bytes <= bytes_max or len(batch.chunks) == 1


@given(METAS, METAS)
def test_what_the_plan_leaves_alone_is_equal_or_as_good_as_can_be(local: list[ChunkMeta], remote: list[ChunkMeta]) -> None:
    changed = {chunk for chunk, _ in plan(local, remote)}
    ours = {found.chunk: found for found in local if found.version}
    theirs = {found.chunk: found for found in remote}
    for chunk in (ours.keys() | theirs.keys()) - changed:
        assert content([ours[chunk]]) == content([theirs[chunk]]) and not theirs[chunk].pending
        assert not theirs[chunk].damaged or ours[chunk].damaged
