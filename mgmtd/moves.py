"""Carries out the moves of operations, as the state of their chains allows. Pure.

Where a move is follows from its chain alone, so that there is nothing to resume after a crash: its target comes in at the
end and is filled; when it serves, the one to be dropped is asked to leave, and is dropped once it serves no more; then the
head leaves and comes back, until the target wanted leads. A move never leaves a chain with fewer targets that serve than
it had before: it waits for those that are missing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import islice

from fs3.api.admin import MoveState, MoveStatus, OperationState
from fs3.errors import FS3Error
from fs3.routing import Chain, LocalState, PublicState

from .draft import Draft
from .operations import MoveRecord, Plan
from .state import State
from .submit import check_apart, check_free

PATIENCE_S = 600.0
"""A move fails when its target was offline for so long."""
FORGIVEN_S = 60.0
"""One that is offline again within so long was never back, such as one whose full disk stops its filling again and again."""
LOOKED_AT_MAX = 2_000
"""Waiting moves of an operation that are looked at in one step."""

Disk = tuple[int, int]
"""(node, disk)"""
Absences = dict[int, tuple[float, float]]
"""Target of a move -> since when it is offline, and when it was so last."""


class Mover:
    """Takes the steps. Remembers nothing that must last."""

    def __init__(self) -> None:
        self._missing: Absences = {}

    def step(self, draft: Draft, now: float, wall_ms: int = 0) -> None:
        """Do what can be done now. now: monotonic seconds. wall_ms: 0 where the time of day is not known; what ends, ends
        at the next step that knows it. The draft itself changes no operation otherwise."""
        active = draft.base.operations.active
        if not active:
            self._missing.clear()
            return
        step = _Step(draft, now, self._missing)
        for plan in list(active.values()):
            step.advance_filling(plan)
        for plan in list(active.values()):
            step.begin_waiting(plan)
            if wall_ms:
                _end(draft, plan, wall_ms)
        self._missing = step.missing

    def explain(self, state: State, plan: Plan, moves: Iterable[MoveRecord], now: float) -> list[MoveStatus]:
        """Moves as operators are told of them."""
        disks = _Step(Draft(state), now, self._missing).receiving()
        return [self._explain(_Step(Draft(state), now, self._missing, disks), plan, move) for move in moves]

    def _explain(self, step: _Step, plan: Plan, record: MoveRecord) -> MoveStatus:
        note = record.note
        if record.state is MoveState.FILLING:
            note = step.advance(record).note
        elif record.state is MoveState.WAITING:
            note = step.obstacle(plan, record).note
            if not note:
                note = "paused" if plan.record.state is OperationState.PAUSED else "waits for its turn"
        return MoveStatus(record.index, record.move, record.state, note)


class _Outcome:
    """What became of a try. note: what it waits for, or why it failed. busy: it is not only waiting for others."""

    __slots__ = ("busy", "note", "state")

    def __init__(self, state: MoveState, note: str = "", busy: bool = True) -> None:
        self.state = state
        self.note = note
        self.busy = busy


class _Step:
    """One look at all that is under way."""

    def __init__(self, draft: Draft, now: float, missing: Absences, disks: frozenset[Disk] = frozenset()) -> None:
        self._draft = draft
        self._now = now
        self._known_missing = missing
        self.missing: Absences = {}
        self._disks = set(disks)  # that receive
        self._busy: dict[int, int] = {}  # operation -> moves under way that wait for nobody else

    def receiving(self) -> frozenset[Disk]:
        """The disks that are being filled."""
        for plan in self._draft.base.operations.active.values():
            for index in plan.filling:
                self._receive(plan.moves[index])
        return frozenset(self._disks)

    def advance_filling(self, plan: Plan) -> None:
        """Go on with moves that were begun."""
        busy = 0
        for index in list(plan.filling):
            record = plan.moves[index]
            outcome = self.advance(record)
            if outcome.state is not record.state:
                self._put(replace(record, state=outcome.state, note=outcome.note))
            else:
                busy += outcome.busy
                self._receive(record)
        self._busy[plan.record.id] = busy

    def begin_waiting(self, plan: Plan) -> None:
        """Begin as many moves as there may be."""
        if plan.record.state is not OperationState.RUNNING:
            return
        busy = self._busy.get(plan.record.id, 0)
        for index in list(islice(plan.waiting, LOOKED_AT_MAX)):
            if busy >= plan.record.at_once:
                return
            record = plan.moves[index]
            outcome = self.obstacle(plan, record)
            if outcome.state is MoveState.FAILED:
                self._put(replace(record, state=MoveState.FAILED, note=outcome.note))
            elif not outcome.note:
                self._put(self._begin(record))
                busy += 1

    def obstacle(self, plan: Plan, record: MoveRecord) -> _Outcome:
        """Why a move cannot begin; no note where it can."""
        move = record.move
        former = plan.former.get(record.index)
        if former is not None:
            before = self._draft.moves.get((plan.record.id, former)) or plan.moves[former]
            if before.state in (MoveState.FAILED, MoveState.CANCELLED):
                return _failed(f"move {former}, of the same chain, has not been done")
            if before.state is not MoveState.DONE:
                return _waits(f"waits for move {former}, of the same chain")
        chain = self._draft.chain(move.chain)
        if chain is None:
            return _failed(f"chain {move.chain} is gone")
        if move.add and chain.state_of(move.add) is None:
            found = self._obstacle_to_add(record, chain)
            if found is not None:
                return found
        return _Outcome(MoveState.WAITING) if chain.serving() else _waits(f"no target serves chain {chain.id}")

    def _obstacle_to_add(self, record: MoveRecord, chain: Chain) -> _Outcome | None:
        draft, move = self._draft, record.move
        target = draft.target(move.add)
        if target is None:
            return _failed(f"target {move.add} is gone")
        if target.retired:
            return _waits(f"target {target.id} is to be emptied first")
        if self._is_missing(target.id):
            return self._missing_for(target.id)
        if (target.node, target.disk) in self._disks:
            return _waits(f"another target of disk {target.disk} of node {target.node} is being filled")
        try:
            check_free(draft, target)
            check_apart(draft, target, [t.target for t in chain.targets if t.target != move.drop])
        except FS3Error as error:
            return _failed(error.message)
        return None

    def _begin(self, record: MoveRecord) -> MoveRecord:
        """There is no obstacle."""
        draft, move = self._draft, record.move
        chain = draft.chain(move.chain)
        assert chain is not None
        before = len([target for target in chain.serving() if target != move.add])
        if move.add and chain.state_of(move.add) is None:
            draft.put_into(move.chain, move.add)
        begun = replace(record, state=MoveState.FILLING, before=before, note="")
        outcome = self.advance(begun)
        self._receive(begun)
        return replace(begun, state=outcome.state, note=outcome.note if outcome.state is not MoveState.FILLING else "")

    def advance(self, record: MoveRecord) -> _Outcome:
        """Do what comes next for a move that was begun."""
        move = record.move
        chain = self._draft.chain(move.chain)
        if chain is None:
            return _failed(f"chain {move.chain} is gone")
        if move.add:
            state = chain.state_of(move.add)
            if state is None:
                return _failed(f"target {move.add} was taken out of chain {chain.id}")
            if state is not PublicState.SERVING:
                return self._await_filling(record, chain, state)
        if move.drop and chain.state_of(move.drop) is not None:
            return self._drop(record, chain)
        return self._lead(record, chain)

    def _await_filling(self, record: MoveRecord, chain: Chain, state: PublicState) -> _Outcome:
        add = record.move.add
        if state is PublicState.LASTSRV:
            return _stuck(f"target {add} was the last that served chain {chain.id}, and is down")
        if not chain.serving():
            return _stuck(f"no target serves chain {chain.id}, to fill target {add}")
        if not self._is_missing(add):
            return _going_on(f"target {add} is {state.name.lower()}")
        outcome = self._missing_for(add)
        if outcome.state is MoveState.FAILED:
            self._draft.take_out(chain.id, add)
        return outcome

    def _drop(self, record: MoveRecord, chain: Chain) -> _Outcome:
        move = record.move
        state = chain.state_of(move.drop)
        if state is PublicState.LASTSRV:
            return _stuck(f"target {move.drop} was the last that served chain {chain.id}, and is down")
        serving = chain.serving()
        if state is PublicState.SERVING:
            lost = 0 if move.add else 1
            needed = max(1, min(record.before - lost, len(chain.targets) - 1))
            others = len(serving) - 1
            if others < needed:
                return _stuck(f"only {others} targets of chain {chain.id} would serve without target {move.drop}")
            self._draft.stop(move.drop)
            return _going_on(f"target {move.drop} is to stop serving")
        if not serving:
            return _stuck(f"no target serves chain {chain.id}")
        self._draft.take_out(chain.id, move.drop)
        after = self._draft.chain(chain.id)
        assert after is not None
        return self._lead(record, after)

    def _lead(self, record: MoveRecord, chain: Chain) -> _Outcome:
        head, wanted = chain.head(), record.move.head
        if not wanted or head == wanted:
            return _Outcome(MoveState.DONE)
        if chain.state_of(wanted) is None:
            return _failed(f"target {wanted}, to lead, is not in chain {chain.id}")
        if self._is_missing(wanted):
            return self._missing_for(wanted)
        away = [t.target for t in chain.targets if t.state is not PublicState.SERVING]
        if head is None or away:
            return _stuck(f"target {away[0]} of chain {chain.id} does not serve")
        self._draft.stop(head)
        return _going_on(f"target {head}, which leads, is to leave and to come back at the end")

    def _receive(self, record: MoveRecord) -> None:
        """Its target's disk is busy until it serves."""
        add = record.move.add
        target = self._draft.target(add)
        chain = self._draft.chain(record.move.chain)
        if target is not None and chain is not None and chain.state_of(add) not in (None, PublicState.SERVING):
            self._disks.add((target.node, target.disk))

    def _is_missing(self, target: int) -> bool:
        offline = self._draft.local(target) is LocalState.OFFLINE
        known = self._known_missing.get(target)
        if offline:
            self.missing[target] = (known[0] if known is not None else self._now, self._now)
        elif known is not None and self._now - known[1] < FORGIVEN_S:
            self.missing[target] = known
        return offline

    def _missing_for(self, target: int) -> _Outcome:
        """For a target that is missing."""
        since = self.missing[target][0]
        note = f"target {target} is offline"
        return _failed(f"{note} for {PATIENCE_S:.0f} s") if self._now - since >= PATIENCE_S else _stuck(note)

    def _put(self, record: MoveRecord) -> None:
        self._draft.moves[record.operation, record.index] = record


def _failed(note: str) -> _Outcome:
    return _Outcome(MoveState.FAILED, note)


def _waits(note: str) -> _Outcome:
    return _Outcome(MoveState.WAITING, note)


def _stuck(note: str) -> _Outcome:
    return _Outcome(MoveState.FILLING, note, busy=False)


def _going_on(note: str) -> _Outcome:
    return _Outcome(MoveState.FILLING, note)


def _end(draft: Draft, plan: Plan, wall_ms: int) -> None:
    """The operation is over when all its moves are."""
    record = draft.operations.get(plan.record.id) or plan.record
    if record.state is OperationState.CANCELLED:
        return
    changed = {index: move for (number, index), move in draft.moves.items() if number == record.id and move is not None}
    if len(plan.waiting) + len(plan.filling) > len(changed):
        return
    states = [changed.get(move.index, move).state for move in plan.moves]
    if MoveState.WAITING in states or MoveState.FILLING in states:
        return
    state = OperationState.DONE if all(state is MoveState.DONE for state in states) else OperationState.FAILED
    draft.operations[record.id] = replace(record, state=state, ended_ms=wall_ms)
