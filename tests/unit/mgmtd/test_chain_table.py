"""Every chain that can be, to five targets, with all that can be known of them, against 3FS's table as it is written.

TABLE is the table of 3FS's design notes, row by row, and says of one target what becomes of it by its local state, its
public state and the target before it. `next_chain` does in one step what the table does in as many as it takes: a target
that returns becomes waiting by one row and syncing by another.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace

import pytest

from fs3.errors import Code, FS3Error
from fs3.routing import Chain, ChainTarget, LocalState, PublicState
from mgmtd.chains import add_target, drop_target, give_up, next_chain

TABLE = """
up-to-date | serving | any            | serving
up-to-date | syncing | any            | serving
up-to-date | waiting | any            | waiting
up-to-date | lastsrv | any            | serving
up-to-date | offline | any            | waiting
online     | serving | any            | serving
online     | syncing | serving        | syncing
online     | syncing | not serving    | waiting
online     | waiting | serving        | syncing
online     | waiting | not serving    | waiting
online     | lastsrv | any            | serving
online     | offline | any            | waiting
offline    | serving | none           | lastsrv
offline    | serving | some           | offline
offline    | syncing | any            | offline
offline    | waiting | any            | offline
offline    | lastsrv | any            | lastsrv
offline    | offline | any            | offline
"""
NOT_KNOWN = """
not known  | serving | any            | serving
not known  | syncing | serving        | syncing
not known  | syncing | not serving    | waiting
not known  | waiting | any            | waiting
not known  | lastsrv | any            | lastsrv
not known  | offline | any            | offline
"""
"""Rows of ours: mgmtd was started and has not heard of the target yet. No news change nothing."""

LOCAL = {
    "up-to-date": LocalState.UPTODATE,
    "online": LocalState.ONLINE,
    "offline": LocalState.OFFLINE,
    "not known": None,
}
S, L, Y, W, X = ORDER = (
    PublicState.SERVING,
    PublicState.LASTSRV,
    PublicState.SYNCING,
    PublicState.WAITING,
    PublicState.OFFLINE,
)
LENGTH_MAX = 5
CASES = {1: 8, 2: 96, 3: 768, 4: 5_120, 5: 30_720}
"""How many there are by length: valid chains times what can be known of their targets."""

Row = dict[str, PublicState]


def parse(table: str) -> dict[tuple[LocalState | None, PublicState], Row]:
    rows: dict[tuple[LocalState | None, PublicState], Row] = {}
    for line in table.strip().splitlines():
        local, public, before, after = [word.strip() for word in line.split("|")]
        rows.setdefault((LOCAL[local], PublicState[public.upper()]), {})[before] = PublicState[after.upper()]
    return rows


ROWS = parse(TABLE) | parse(NOT_KNOWN)


def row_says(local: LocalState | None, public: PublicState, before: PublicState | None) -> PublicState:
    """What becomes of a target. before: the state of the target before it in the chain, None for the first."""
    row = ROWS[local, public]
    words = {
        "any": True,
        "serving": before is S,
        "not serving": before is not S,
        "none": before is None,
        "some": before is not None,
    }
    (after,) = [after for word, after in row.items() if words[word]]
    return after


def chain(*states: PublicState) -> Chain:
    """Targets 1, 2, 3... with these states, at version 7."""
    return Chain(5, 7, tuple(ChainTarget(i + 1, state) for i, state in enumerate(states)))


def valid(states: tuple[PublicState, ...]) -> bool:
    """One history: some serve, or one is remembered as the last that did. One at most is filled, and by those that serve."""
    one_history = (S in states) != (states.count(L) == 1) and states.count(L) <= 1
    return one_history and states.count(Y) <= (S in states) and list(states) == sorted(states, key=ORDER.index)


def valid_chains(length: int) -> Iterator[Chain]:
    for states in itertools.combinations_with_replacement(ORDER, length):
        if valid(states):
            yield chain(*states)


def all_known(length: int) -> Iterator[dict[int, LocalState]]:
    """All that can be known of the targets."""
    for local in itertools.product(LOCAL.values(), repeat=length):
        yield {i + 1: state for i, state in enumerate(local) if state is not None}


def test_the_table_has_a_row_for_every_case() -> None:
    assert ROWS.keys() == set(itertools.product(LOCAL.values(), ORDER))
    assert all(row.keys() in ({"any"}, {"serving", "not serving"}, {"none", "some"}) for row in ROWS.values())


@pytest.mark.parametrize("length", range(1, LENGTH_MAX + 1))
def test_every_chain_with_all_that_can_be_known(length: int) -> None:
    cases = 0
    for before in valid_chains(length):
        for known in all_known(length):
            after = next_chain(before, known)
            check_rows(before, known, after)
            check_chain(before, known, after)
            assert next_chain(after, known) is after, (before, known)
            cases += 1
    assert cases == CASES[length]


def check_rows(before: Chain, known: Mapping[int, LocalState], after: Chain) -> None:
    """Each target has become what its row says, given the target that is before it now."""
    context = (before, known, after)
    previous: PublicState | None = None
    for entry in after.targets:
        local = known.get(entry.target)
        public = before.state_of(entry.target)
        assert public is not None, context
        expected = row_says(local, public, previous)
        if expected is not public:  # perhaps the next scan of the table would go on
            expected = row_says(local, expected, previous)
        assert entry.state is expected, context
        previous = entry.state


def check_chain(before: Chain, known: Mapping[int, LocalState], after: Chain) -> None:
    """What must hold whatever the table says."""
    context = (before, known, after)
    states = tuple([entry.state for entry in after.targets])
    assert valid(states), context
    assert sorted([t.target for t in after.targets]) == sorted([t.target for t in before.targets]), context
    changed = after.targets != before.targets
    assert (after.version == before.version + 1) if changed else (after is before), context
    complete = complete_in(before, known)
    assert {t.target for t in after.targets if t.state in (S, L)} <= complete, context
    # Who has it all and can be reached is waited for by nobody.
    assert S in states or not any(known.get(t) in (LocalState.UPTODATE, LocalState.ONLINE) for t in complete), context
    # Of several that were lost at once the head, which writes reach first, is the one to wait for.
    assert L not in states or after.targets[0].target == before.targets[0].target, context
    # Those that stay keep their order, in front of those that come: updates under way and fairness rely on it. Only who was
    # being filled and must wait for somebody to do it stays ahead of who waited behind it.
    for state in ORDER:
        members = [entry.target for entry in after.targets if entry.state is state]
        kept = (W, Y) if state is W else (state,)
        stayed = [entry.target for entry in before.targets if entry.state in kept and entry.target in members]
        assert members[: len(stayed)] == stayed, context
    # Of those that could be filled the one that waits longest is.
    filled = [entry.target for entry in after.targets if entry.state is Y]
    if filled and before.state_of(filled[0]) is not Y:
        queue = [t.target for t in before.targets if t.state in (W, X) and known.get(t.target) is LocalState.ONLINE]
        assert filled == queue[:1], context


def complete_in(before: Chain, known: Mapping[int, LocalState]) -> set[int]:
    """The targets that hold all that was acknowledged."""
    return {
        entry.target
        for entry in before.targets
        if entry.state in (S, L) or (entry.state is Y and known.get(entry.target) is LocalState.UPTODATE)
    }


# What operators do


def refused(before: Chain, call: object, *arguments: object) -> bool:
    try:
        call(before, *arguments)  # type: ignore[operator]
    except FS3Error as error:
        assert error.code is Code.BAD_PLAN
        assert f"target {arguments[0]}" in error.message or "is served" in error.message
        return True
    return False


@pytest.mark.parametrize("length", range(1, LENGTH_MAX + 1))
def test_operators_never_discard_the_only_complete_copy_but_by_give_up(length: int) -> None:
    for before in valid_chains(length):
        counting = {entry.target for entry in before.targets if entry.state in (S, L)}
        assert counting
        for entry in before.targets:
            target = entry.target
            if refused(before, drop_target, target):
                assert target in counting, before
            else:
                after = drop_target(before, target)
                assert target not in counting and after.state_of(target) is None, before
                assert after.targets == tuple([t for t in before.targets if t != entry]), before
                assert after.version == before.version + 1 and valid(states_of(after)), before
            assert refused(before, add_target, target)
            alive_too = [give_up(before, target, True)] if not refused(before, give_up, target, True) else []
            assert refused(before, give_up, target, False)
            assert bool(alive_too) == (L in states_of(before) and entry.state is not L), before
            for after in alive_too:
                assert after.serving() == (target,) and after.version == before.version + 1
                assert valid(states_of(after)) and len(after.targets) == len(before.targets)
        after = add_target(before, 9)
        assert after == replace(before, version=8, targets=(*before.targets, ChainTarget(9, X)))
        assert valid(states_of(after))
    assert refused(before, drop_target, 9)
    assert refused(before, give_up, 9, True)


def states_of(of: Chain) -> tuple[PublicState, ...]:
    return tuple([entry.state for entry in of.targets])
