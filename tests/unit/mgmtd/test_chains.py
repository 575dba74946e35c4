from __future__ import annotations

import pytest

from fs3.routing import Chain, ChainTarget, LocalState, PublicState
from mgmtd.chains import new_chain, next_chain

S, Y, W, L, X = (
    PublicState.SERVING,
    PublicState.SYNCING,
    PublicState.WAITING,
    PublicState.LASTSRV,
    PublicState.OFFLINE,
)
UP, ON, OFF, UNKNOWN = LocalState.UPTODATE, LocalState.ONLINE, LocalState.OFFLINE, None


def chain(*states: PublicState) -> Chain:
    """Targets 1, 2, 3... with these states, at version 7."""
    return Chain(5, 7, tuple(ChainTarget(i + 1, state) for i, state in enumerate(states)))


def after(states: tuple[PublicState, ...], local: tuple[LocalState | None, ...]) -> tuple[tuple[int, PublicState], ...]:
    known = {i + 1: state for i, state in enumerate(local) if state is not None}
    return tuple((t.target, t.state) for t in next_chain(chain(*states), known).targets)


@pytest.mark.parametrize(
    ("states", "local", "expected"),
    [
        # Every row of the table, in the smallest chain that shows it.
        ((S,), (UP,), ((1, S),)),
        ((S,), (ON,), ((1, S),)),
        ((S,), (OFF,), ((1, L),)),
        ((S, S), (OFF, UP), ((2, S), (1, X))),
        ((S, S), (UP, OFF), ((1, S), (2, X))),
        ((S, S, S), (OFF, OFF, OFF), ((1, L), (2, X), (3, X))),
        ((S, Y), (UP, UP), ((1, S), (2, S))),
        ((S, Y), (UP, ON), ((1, S), (2, Y))),
        ((S, Y), (OFF, ON), ((1, L), (2, W))),
        ((S, Y), (OFF, UP), ((2, S), (1, X))),
        ((S, Y), (UP, OFF), ((1, S), (2, X))),
        ((S, W), (UP, ON), ((1, S), (2, Y))),
        ((S, W), (UP, UP), ((1, S), (2, W))),
        ((S, W), (UP, OFF), ((1, S), (2, X))),
        ((S, X), (UP, ON), ((1, S), (2, Y))),
        ((S, X), (UP, UP), ((1, S), (2, W))),
        ((S, X), (UP, OFF), ((1, S), (2, X))),
        ((L,), (ON,), ((1, S),)),
        ((L,), (UP,), ((1, S),)),
        ((L,), (OFF,), ((1, L),)),
        ((L, X), (OFF, ON), ((1, L), (2, W))),
        ((L, W), (OFF, UP), ((1, L), (2, W))),
        ((L, W), (ON, ON), ((1, S), (2, Y))),
        # Only one is filled at a time, the one that waits longest first.
        ((S, Y, W), (UP, ON, ON), ((1, S), (2, Y), (3, W))),
        ((S, Y, W), (UP, UP, ON), ((1, S), (2, S), (3, Y))),
        ((S, W, W), (UP, OFF, ON), ((1, S), (3, Y), (2, X))),
        ((S, W, X), (UP, ON, ON), ((1, S), (2, Y), (3, W))),
        # An offline target goes to the very end.
        ((S, S, X), (OFF, UP, OFF), ((2, S), (3, X), (1, X))),
        ((S, S, S), (UP, OFF, UP), ((1, S), (3, S), (2, X))),
        # No news, no change; but nothing can be filled where nothing serves.
        ((S, S, Y, W, X), (UNKNOWN,) * 5, ((1, S), (2, S), (3, Y), (4, W), (5, X))),
        ((L, X), (UNKNOWN, UNKNOWN), ((1, L), (2, X))),
        ((S, Y), (OFF, UNKNOWN), ((1, L), (2, W))),
    ],
)
def test_table(
    states: tuple[PublicState, ...],
    local: tuple[LocalState | None, ...],
    expected: tuple[tuple[int, PublicState], ...],
) -> None:
    assert after(states, local) == expected


def test_new_chain_serves_with_all_targets() -> None:
    fresh = new_chain(9, (4, 2, 7))
    assert (fresh.id, fresh.version, fresh.serving()) == (9, 1, (4, 2, 7))
    assert next_chain(fresh, {4: ON, 2: ON, 7: ON}) is fresh


def test_all_restarted_one_after_the_other_keeps_the_last() -> None:
    """Each node dies and comes back before the next one dies: nobody who missed something serves before it is filled."""
    c = new_chain(1, (1, 2, 3))
    c = next_chain(c, {1: OFF, 2: UP, 3: UP})
    c = next_chain(c, {1: ON, 2: UP, 3: UP})
    c = next_chain(c, {1: ON, 2: OFF, 3: UP})
    c = next_chain(c, {1: ON, 2: ON, 3: UP})
    assert [(t.target, t.state) for t in c.targets] == [(3, S), (1, Y), (2, W)]
    c = next_chain(c, {1: ON, 2: ON, 3: OFF})
    assert [(t.target, t.state) for t in c.targets] == [(3, L), (1, W), (2, W)]
    c = next_chain(c, {1: ON, 2: ON, 3: ON})
    assert [(t.target, t.state) for t in c.targets] == [(3, S), (1, Y), (2, W)]
    assert c.version == 7
