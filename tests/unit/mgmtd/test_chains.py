from __future__ import annotations

import itertools
from collections.abc import Iterator

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
ORDER = (S, L, Y, W, X)
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


def valid_chains(length: int) -> Iterator[Chain]:
    """All chains that can arise: one history (some serve, or one was the last), at most one syncing, in order."""
    for states in itertools.combinations_with_replacement(ORDER, length):
        lastsrv, serving, syncing = states.count(L), states.count(S), states.count(Y)
        if (serving > 0) != (lastsrv == 1) and lastsrv <= 1 and syncing <= (1 if serving else 0):
            yield chain(*states)


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_invariants_over_all_states(length: int) -> None:
    seen = 0
    for before in valid_chains(length):
        for local in itertools.product((UP, ON, OFF, UNKNOWN), repeat=length):
            known = {i + 1: state for i, state in enumerate(local) if state is not None}
            result = next_chain(before, known)
            check_step(before, known, result)
            assert next_chain(result, known) is result, (before, known)
            seen += 1
    assert seen >= 4**length * 2


def check_step(before: Chain, known: dict[int, LocalState], result: Chain) -> None:
    context = (before, known, result)
    states = [t.state for t in result.targets]
    assert sorted(t.target for t in result.targets) == sorted(t.target for t in before.targets), context
    assert states == sorted(states, key=ORDER.index), context
    # One history: some serve, or exactly one is remembered as the last that served.
    assert (S in states) != (states.count(L) == 1), context
    assert states.count(L) <= 1, context
    assert states.count(Y) <= (1 if S in states else 0), context
    if (before.targets == result.targets) is False:
        assert result.version == before.version + 1, context
    else:
        assert result is before, context
    complete = {t.target for t in before.targets if t.state in (S, L)}
    complete |= {t.target for t in before.targets if t.state is Y and known.get(t.target) is UP}
    for entry in result.targets:
        # Only who has the whole history may serve, or be waited for.
        assert entry.state not in (S, L) or entry.target in complete, context
        assert entry.state in (L, X) or known.get(entry.target) is not OFF, context
        # Nobody leaves the living without a reason.
        if known.get(entry.target) is not OFF and before.state_of(entry.target) is S:
            assert entry.state is S, context
    if S not in states:
        assert all(known.get(t) is OFF for t in before.serving()), context
        if L in [t.state for t in before.targets]:
            assert result.targets[0] == before.targets[0], context
        else:
            assert result.targets[0].target == before.head(), context


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
