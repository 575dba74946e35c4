from __future__ import annotations

import pytest

from fs3.api.storage import ChunkMeta
from fs3.ids import ChunkId
from storage.resync import Step, compare, plan


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
