from __future__ import annotations

from dataclasses import dataclass

import pytest

from fs3.api.storage import Update, UpdateKind
from fs3.ids import ChunkId, RequestTag
from storage import blocks
from storage.replica import Action, ChunkVersion, Decision, prepare_first, prepare_next, readable

TAG = RequestTag(1, 2, 3)
OTHER = RequestTag(1, 2, 2)


@dataclass
class State:
    committed: ChunkVersion | None = None
    pending: ChunkVersion | None = None
    damaged: bool = False


def version(
    number: int, *, tag: RequestTag = OTHER, checksums: tuple[int, ...] = (7,), chain_version: int = 4
) -> ChunkVersion:
    return ChunkVersion(number, chain_version, 10, blocks.pack(checksums), tag)


def update(kind: UpdateKind, number: int = 0, length: int = 10, checksums: tuple[int, ...] = (7,), since: int = 0) -> Update:
    return Update(TAG, 1, 4, 1, ChunkId(1, 1), kind, 0, length, 65536, checksums, number, since)


W, T, R, P = UpdateKind.WRITE, UpdateKind.TRUNCATE, UpdateKind.REMOVE, UpdateKind.REPLACE


def test_damage_is_replaced_and_what_is_lost_elsewhere_is_kept() -> None:
    good, bad = State(version(4)), State(version(4), damaged=True)
    assert prepare_next(good, update(P, 4), False).action is Action.REPLAY
    assert prepare_next(bad, update(P, 4), False) == Decision(Action.APPLY, 4)
    assert prepare_next(bad, update(P, 4), True) == Decision(Action.APPLY, 4)
    lost = UpdateKind.LOST
    for syncing in (False, True):
        assert prepare_next(good, update(lost, 4), syncing).action is Action.REPLAY
        assert prepare_next(State(version(3)), update(lost, 4), syncing) == Decision(Action.APPLY, 4)
        assert prepare_next(State(version(4, checksums=(8,))), update(lost, 4), syncing) == Decision(Action.APPLY, 4)


def test_nothing_to_punch() -> None:
    assert prepare_first(None, update(UpdateKind.PUNCH)).action is Action.NOTHING
    assert prepare_first(State(version(4)), update(UpdateKind.PUNCH)) == Decision(Action.APPLY, 5)
    assert prepare_next(State(version(4)), update(UpdateKind.PUNCH, 5), False) == Decision(Action.APPLY, 5)


def test_head_numbers_updates() -> None:
    assert prepare_first(None, update(W)) == Decision(Action.APPLY, 1)
    assert prepare_first(State(version(4)), update(W)) == Decision(Action.APPLY, 5)
    assert prepare_first(State(version(4)), update(R)) == Decision(Action.APPLY, 5)
    assert prepare_first(None, update(T, length=5)) == Decision(Action.APPLY, 1)


def test_head_has_nothing_to_do_for_what_is_absent() -> None:
    assert prepare_first(None, update(R)).action is Action.NOTHING
    assert prepare_first(None, update(T, length=0)).action is Action.NOTHING
    assert prepare_first(State(version(1)), update(T, length=0)).action is Action.APPLY


def test_head_resumes_a_retry_and_takes_nothing_over_a_pending_version() -> None:
    assert prepare_first(State(version(4), version(5, tag=TAG)), update(W)) == Decision(Action.RESUME, 5)
    with pytest.raises(AssertionError):
        prepare_first(State(version(4), version(5)), update(W))


@pytest.mark.parametrize(
    ("number", "action"),
    [(3, Action.STALE), (4, Action.REPLAY), (5, Action.APPLY), (6, Action.GAP)],
)
def test_next_goes_by_the_version(number: int, action: Action) -> None:
    for kind in (W, T):
        assert prepare_next(State(version(4)), update(kind, number), False).action is action


def test_next_without_the_chunk() -> None:
    assert prepare_next(None, update(W, 1), False) == Decision(Action.APPLY, 1)
    assert prepare_next(None, update(W, 2), False).action is Action.GAP
    assert prepare_next(None, update(R, 2), False).action is Action.NOTHING
    assert prepare_next(None, update(P, 9), False) == Decision(Action.APPLY, 9)


def test_next_with_a_pending_version() -> None:
    mine = State(version(4), version(5, tag=TAG))
    assert prepare_next(mine, update(W, 5), False) == Decision(Action.RESUME, 5)
    others = State(version(4), version(5))
    assert prepare_next(others, update(W, 5), False) == Decision(Action.APPLY, 5)


def test_next_removes() -> None:
    assert prepare_next(State(version(4)), update(R, 5), False) == Decision(Action.APPLY, 5)
    assert prepare_next(State(version(5)), update(R, 5), False).action is Action.STALE
    assert prepare_next(State(version(5)), update(R, 0), True).action is Action.APPLY


def test_whole_chunks() -> None:
    assert prepare_next(State(version(4)), update(P, 9), False) == Decision(Action.APPLY, 9)
    assert prepare_next(State(version(9)), update(P, 4), False).action is Action.STALE
    assert prepare_next(State(version(4)), update(P, 4), False).action is Action.REPLAY
    assert prepare_next(State(version(4)), update(P, 4, checksums=(8,)), False).action is Action.APPLY


def test_syncing_target_takes_whole_chunks_of_any_version() -> None:
    assert prepare_next(State(version(4)), update(W, 5), True).action is Action.GAP
    assert prepare_next(State(version(9)), update(P, 4), True) == Decision(Action.APPLY, 4)
    assert prepare_next(State(version(4), version(5, tag=TAG)), update(P, 5), True) == Decision(Action.APPLY, 5)
    assert prepare_next(State(version(4)), update(P, 4), True).action is Action.REPLAY
    # Of an earlier chain version: the same numbers may stand for something else, or will at the next comparison.
    assert prepare_next(State(version(4, chain_version=3)), update(P, 4), True).action is Action.APPLY
    assert prepare_next(State(version(4, chain_version=3)), update(P, 4, since=3), True).action is Action.REPLAY


def test_readable() -> None:
    assert readable(State(version(1)))
    assert not readable(State(version(1), version(2)))
