from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fs3.api.mgmtd import GetRoutingReply, RoutingDelta
from fs3.ids import NodeKind
from fs3.routing import Chain, ChainTarget, LocalState, Node, PublicState, RoutingInfo, Table, Target
from fs3.wire.codec import decode, encode
from mgmtd import deltas as module
from mgmtd.deltas import AGE_S_PER_ENTRY, Deltas
from mgmtd.draft import Draft
from mgmtd.state import FIRST_CLIENT, Change, Head, Saved, State

KINDS = ("chains", "tables", "targets", "nodes")


def entry(kind: str, number: int, value: int) -> Any:
    """Something of a kind, different for each value."""
    if kind == "chains":
        return Chain(number, value + 1, (ChainTarget(number, PublicState.SERVING),))
    if kind == "tables":
        return Table(number, value + 1, (1,), 1)
    if kind == "targets":
        return Target(number, 1, 0, 0, LocalState.ONLINE, 100, value)
    return Node(number, NodeKind.STORAGE, "mem://x", "h", bool(value % 2), value)


def changed(state: State, *changes: tuple[str, int, int | None]) -> Change:
    """The change that puts or (None) removes entries: (kind, number, value)."""
    draft = Draft(state)
    for kind, number, value in changes:
        known = number in getattr(state, kind)
        if value is None and not known:
            continue
        getattr(draft, kind)[number] = None if value is None else entry(kind, number, value)
        if kind == "targets":
            draft.stored_targets.add(number)
    return draft.done()


class Primary:
    """A state, its deltas, and every routing info that there was."""

    def __init__(self, entries: int = 0) -> None:
        self.state = State(Saved(Head(1, 1, "c", FIRST_CLIENT)))
        self.deltas = Deltas(1)
        self.infos = {1: self.state.routing}
        if entries:
            self.change(*[("targets", number, 0) for number in range(1, entries + 1)])

    def change(self, *changes: tuple[str, int, int | None]) -> None:
        change = changed(self.state, *changes)
        self.state.apply(change)
        self.deltas.add(change)
        self.infos[self.version] = self.state.routing

    @property
    def version(self) -> int:
        return self.state.head.routing_version

    def ask(self, base: int, deltas: bool = True, now: float = 0.0) -> GetRoutingReply:
        return decode(GetRoutingReply, self.deltas.reply(self.state.routing, base, deltas, now))

    def told(self, base: int) -> RoutingInfo:
        """What one who knows `base` then knows."""
        reply = self.ask(base)
        if reply.delta is not None:
            assert reply.routing is None
            return reply.delta.apply(self.infos[base])
        assert reply.routing is not None
        return reply.routing.to_info()


_CHANGES = st.lists(
    st.tuples(st.sampled_from(KINDS), st.integers(1, 4), st.none() | st.integers(0, 5)), min_size=1, max_size=4
)


@settings(max_examples=60, deadline=None)
@given(st.lists(_CHANGES, max_size=12), st.integers(2, 40), st.randoms(use_true_random=False))
def test_what_is_told_equals_the_whole(steps: list[Any], ids_max: int, chance: Any) -> None:
    before, module.IDS_MAX = module.IDS_MAX, ids_max
    try:
        primary = Primary()
        for step in steps:
            primary.change(*step)
            for base in chance.sample(sorted(primary.infos), min(3, len(primary.infos))):
                if base != primary.version:
                    assert primary.told(base) == primary.state.routing
    finally:
        module.IDS_MAX = before


def test_only_what_changed_is_sent_and_what_did_not_is_kept() -> None:
    primary = Primary(10)
    primary.change(("nodes", 1, 1), ("nodes", 2, 1))
    base = primary.version
    primary.change(("targets", 3, 7))
    primary.change(("targets", 4, 7), ("nodes", 2, None))
    delta = primary.ask(base).delta
    assert delta == RoutingDelta(
        base, base + 2, "c", targets=(entry("targets", 3, 7), entry("targets", 4, 7)), gone_nodes=(2,)
    )
    info = delta.apply(primary.infos[base])
    assert info == primary.state.routing
    assert info.chains is primary.infos[base].chains and info.tables is primary.infos[base].tables


def test_the_whole_is_sent_where_a_delta_cannot_be() -> None:
    primary = Primary(10)
    base = primary.version
    primary.change(("targets", 3, 7))
    assert primary.ask(base).delta is not None
    assert primary.ask(base, deltas=False).delta is None, "it does not understand them"
    assert primary.ask(0).delta is None, "it knows nothing"
    assert primary.ask(base + 5).delta is None, "it knows another cluster's"
    assert primary.ask(-3).delta is None
    fresh = Deltas(primary.version)
    assert decode(GetRoutingReply, fresh.reply(primary.state.routing, base, True, 0.0)).delta is None, "too old"


def test_the_whole_is_sent_where_it_is_shorter() -> None:
    primary = Primary(10)
    base = primary.version
    primary.change(*[("targets", number, None) for number in range(1, 9)])
    assert primary.ask(base).delta is None and primary.told(base) == primary.state.routing


def test_old_changes_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHANGES_MAX", 3)
    primary = Primary(10)
    base = primary.version
    for value in range(1, 4):
        primary.change(("targets", 1, value))
    assert primary.ask(base).delta is not None
    primary.change(("targets", 1, 9))
    assert primary.ask(base).delta is None and primary.ask(base + 1).delta is not None


def test_answers_are_encoded_once() -> None:
    primary = Primary(10)
    base = primary.version
    primary.change(("targets", 3, 7))
    routing = primary.state.routing
    assert primary.deltas.reply(routing, base, True, 0.0) is primary.deltas.reply(routing, base, True, 9.0)
    whole = primary.deltas.reply(routing, 0, True, 0.0)
    assert primary.deltas.reply(routing, 0, True, 5 * AGE_S_PER_ENTRY) is whole
    assert primary.deltas.reply(routing, 0, True, 1.0) is not whole, "levels and local states are to be fresh"
    primary.change(("targets", 3, 8))
    assert primary.ask(0, now=1.0).routing is not None
    assert decode(GetRoutingReply, primary.deltas.reply(primary.state.routing, 0, True, 1.0)).routing is not None
    assert primary.told(base).targets[3].used == 8, "bytes of the version before are not sent again"


def test_a_delta_upon_something_else_is_not_applied() -> None:
    delta = RoutingDelta(3, 4, "c")
    for wrong in (RoutingInfo(2, "c"), RoutingInfo(3, "other")):
        with pytest.raises(AssertionError):
            delta.apply(wrong)
    assert decode(GetRoutingReply, encode(GetRoutingReply(None, delta))).delta == delta
