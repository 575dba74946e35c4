"""Operations: plans of moves, as they are stored and kept in memory, and what is told of them. Pure.

moves.py carries them out; submit.py takes new ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate

from fs3.api.admin import Move, MoveState, Operation, OperationState
from fs3.errors import Code, FS3Error

KEPT_MAX = 100
"""Operations that are over and can still be asked for."""
KEPT_MOVES_MAX = 40_000
"""Moves that they have in all: a primary that takes over reads them."""


@dataclass(frozen=True, slots=True)
class OperationRecord:
    """An operation without its moves. token: of the request that submitted it. moves: how many."""

    id: int
    token: int
    kind: str
    title: str
    state: OperationState
    created_ms: int
    ended_ms: int
    at_once: int
    moves: int


@dataclass(frozen=True, slots=True)
class MoveRecord:
    """before: how many targets served its chain when it began. note: why it failed or was cancelled."""

    operation: int
    index: int
    move: Move
    state: MoveState = MoveState.WAITING
    before: int = 0
    note: str = ""


OperationChanges = Mapping[int, OperationRecord | None]
MoveChanges = Mapping[tuple[int, int], MoveRecord | None]
"""By operation and index."""

OPEN = (MoveState.WAITING, MoveState.FILLING)
_UNDER_WAY = (OperationState.RUNNING, OperationState.PAUSED)


class Plan:
    """One operation in memory."""

    def __init__(self, record: OperationRecord) -> None:
        self.record = record
        self.moves: list[MoveRecord] = []
        self.waiting: dict[int, None] = {}  # indices
        self.filling: dict[int, None] = {}
        self.former: dict[int, int] = {}  # index -> the index before it that concerns the same chain
        self._last: dict[int, int] = {}  # chain -> the last index that concerns it
        self._counts = dict.fromkeys(MoveState, 0)

    @property
    def active(self) -> bool:
        """Whether there may be something to do for it. Moves that are filling end, in whatever state it is."""
        return self.record.state in _UNDER_WAY or bool(self.filling)

    def put(self, record: MoveRecord) -> None:
        index = record.index
        if index == len(self.moves):
            self.moves.append(record)
            last = self._last.get(record.move.chain)
            if last is not None:
                self.former[index] = last
            self._last[record.move.chain] = index
        else:
            self._counts[self.moves[index].state] -= 1
        self._counts[record.state] += 1
        self.moves[index] = record
        for state, indices in ((MoveState.WAITING, self.waiting), (MoveState.FILLING, self.filling)):
            if record.state is state:
                indices[index] = None
            else:
                indices.pop(index, None)

    def open_moves(self) -> list[MoveRecord]:
        """Those that are not over."""
        return [self.moves[index] for index in sorted({*self.waiting, *self.filling})]

    def operation(self) -> Operation:
        """What operators are told."""
        r = self.record
        counts = tuple(self._counts.values())
        return Operation(r.id, r.kind, r.title, r.state, r.created_ms, r.ended_ms, r.at_once, r.moves, counts)


class Operations:
    """All operations that are kept. Changed by apply() alone."""

    def __init__(self, operations: Iterable[OperationRecord] = (), moves: Iterable[MoveRecord] = ()) -> None:
        self.plans: dict[int, Plan] = {}
        self.active: dict[int, Plan] = {}
        self.apply(
            {record.id: record for record in sorted(operations, key=lambda r: r.id)},
            {(r.operation, r.index): r for r in sorted(moves, key=lambda r: (r.operation, r.index))},
        )

    def apply(self, operations: OperationChanges, moves: MoveChanges) -> None:
        """Take in what was committed. Moves of an operation come in order where they are new."""
        for number, record in operations.items():
            if record is None:
                self.plans.pop(number, None)
                self.active.pop(number, None)
            elif number in self.plans:
                self.plans[number].record = record
            else:
                self.plans[number] = Plan(record)
        for (number, _), move in moves.items():
            if move is not None:
                self.plans[number].put(move)
        for number in {*operations, *[number for number, _ in moves]}:
            plan = self.plans.get(number)
            if plan is not None and plan.active:
                self.active[number] = plan
            else:
                self.active.pop(number, None)

    def get(self, number: int) -> Plan:
        """Raises NOT_FOUND."""
        plan = self.plans.get(number)
        if plan is None:
            raise FS3Error(Code.NOT_FOUND, f"there is no operation {number} (the newest {KEPT_MAX} that are over are kept)")
        return plan

    def by_token(self, token: int) -> Plan | None:
        return next((plan for plan in self.plans.values() if plan.record.token == token), None)

    def concerning(self) -> dict[int, int]:
        """Chain -> the operation that has a move of it that is not over."""
        return {move.move.chain: number for number, plan in self.active.items() for move in plan.open_moves()}

    def receiving(self) -> dict[int, int]:
        """Target -> the operation that is to put it into a chain, or is filling it."""
        open_moves = [(move.move.add, number) for number, plan in self.active.items() for move in plan.open_moves()]
        return {target: number for target, number in open_moves if target}

    def surplus(self) -> list[int]:
        """The oldest operations that are over, beyond what is kept, with room for one more."""
        over = [number for number in sorted(self.plans, reverse=True) if number not in self.active]
        moves = accumulate([len(self.plans[number].moves) for number in over])
        counted = zip(over, moves, strict=True)
        return [number for place, (number, sum_) in enumerate(counted, 2) if place > KEPT_MAX or sum_ > KEPT_MOVES_MAX]
