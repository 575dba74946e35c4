"""Takes new operations, and what operators do with those there are. A plan that cannot be is refused as a whole. Pure."""

from __future__ import annotations

from dataclasses import replace

from fs3.api.admin import Control, ControlRequest, Move, MoveState, OperationState, SubmitRequest
from fs3.errors import Code, FS3Error
from fs3.ids import NodeKind
from fs3.routing import LocalState, PublicState, Target

from .draft import Draft
from .operations import MoveRecord, OperationRecord, Plan
from .state import IdKind

MOVES_MAX = 20_000
AT_ONCE_MAX = 1_000
TEXT_MAX = 400


def submit(draft: Draft, request: SubmitRequest, now_ms: int) -> int:
    """Store a plan, to be begun at the next step; returns the operation's id. now_ms: wall clock. Raises BAD_PLAN."""
    operations = draft.base.operations
    known = operations.by_token(request.token)
    if known is not None:
        return known.record.id
    _check_request(request)
    _Checker(draft, set(request.drain)).check(request.moves)
    for node in request.drain:
        set_drained(draft, node, True)
    if request.table:
        set_replicas(draft, request.table, request.replicas)
    number = draft.take_id(IdKind.OPERATION)
    for old in operations.surplus():
        draft.operations[old] = None
        draft.moves.update({(old, index): None for index in range(len(operations.plans[old].moves))})
    kind, title = request.kind[:TEXT_MAX], request.title[:TEXT_MAX]
    state = OperationState.RUNNING if request.moves else OperationState.DONE
    ended_ms = 0 if request.moves else now_ms
    draft.operations[number] = OperationRecord(
        number, request.token, kind, title, state, now_ms, ended_ms, request.at_once, len(request.moves)
    )
    for index, move in enumerate(request.moves):
        draft.moves[number, index] = MoveRecord(number, index, move)
    return number


def control(draft: Draft, request: ControlRequest, now_ms: int) -> None:
    """Pause, resume, cancel, retry an operation. Raises NOT_FOUND, BAD_PLAN."""
    plan = draft.base.operations.get(request.operation)
    record = plan.record
    if request.at_once:
        _check_at_once(request.at_once)
        record = replace(record, at_once=request.at_once)
    state = record.state
    if request.control == Control.PAUSE:
        _expect(plan, state is OperationState.RUNNING or state is OperationState.PAUSED, "paused")
        record = replace(record, state=OperationState.PAUSED)
    elif request.control == Control.RESUME:
        _expect(plan, state is OperationState.RUNNING or state is OperationState.PAUSED, "resumed")
        record = replace(record, state=OperationState.RUNNING)
    elif request.control == Control.CANCEL:
        _expect(plan, state is not OperationState.DONE, "cancelled")
        record = replace(record, state=OperationState.CANCELLED, ended_ms=record.ended_ms or now_ms)
        for move in plan.open_moves():
            _cancel(draft, move)
    elif request.control == Control.RETRY:
        record = _retry(draft, plan, record)
    elif request.control != 0:
        raise _bad(f"control {request.control} is not known")
    if record != plan.record:
        draft.operations[record.id] = record


def set_drained(draft: Draft, number: int, drained: bool) -> None:
    """Raises UNKNOWN_NODE, BAD_PLAN."""
    node = draft.node(number)
    if node is None:
        raise FS3Error(Code.UNKNOWN_NODE, f"there is no node {number}")
    if node.kind != NodeKind.STORAGE:
        raise _bad(f"node {number} is a {NodeKind(node.kind).name.lower()} daemon and has no targets: name a storage node")
    if node.drained != drained:
        draft.nodes[number] = replace(node, drained=drained)


def set_replicas(draft: Draft, number: int, replicas: int) -> None:
    """Raises BAD_PLAN."""
    table = draft.base.tables.get(number)
    if table is None:
        raise _bad(f"there is no chain table {number}")
    if replicas < 1:
        raise _bad(f"chain table {number}: {replicas} replicas; expected at least 1")
    if table.replicas != replicas:
        draft.tables[number] = replace(table, replicas=replicas)


def _cancel(draft: Draft, record: MoveRecord) -> None:
    """End a move that is not over; one whose target serves already, and only has others to leave, goes on to its end."""
    move = record.move
    if record.state is MoveState.FILLING:
        chain = draft.chain(move.chain)
        added = chain.state_of(move.add) if chain is not None and move.add else None
        if added is PublicState.SERVING and move.drop and chain is not None and chain.state_of(move.drop) is not None:
            return
        if added is not None and added is not PublicState.SERVING and added is not PublicState.LASTSRV:
            draft.take_out(move.chain, move.add)
        for target in (move.drop, chain.head() if chain is not None and move.head else 0):
            if target:
                draft.stay(target)
    draft.moves[record.operation, record.index] = replace(record, state=MoveState.CANCELLED, note="cancelled")


def _retry(draft: Draft, plan: Plan, record: OperationRecord) -> OperationRecord:
    again = [move for move in plan.moves if move.state in (MoveState.FAILED, MoveState.CANCELLED)]
    _expect(plan, bool(again), "retried")
    others = draft.base.operations.concerning()
    for move in again:
        other = others.get(move.move.chain, record.id)
        if other != record.id:
            raise _bad(f"move {move.index}: operation {other} concerns chain {move.move.chain} now; wait for its end")
        draft.moves[record.id, move.index] = replace(move, state=MoveState.WAITING, before=0, note="")
    return replace(record, state=OperationState.RUNNING, ended_ms=0)


def _expect(plan: Plan, holds: bool, what: str) -> None:
    if not holds:
        state = plan.record.state.name.lower()
        done = plan.operation().counts[MoveState.DONE - 1]
        of = f"{done} of {plan.record.moves} moves are done"
        raise _bad(f"operation {plan.record.id} is {state}, {of}: there is nothing to be {what}")


def _check_request(request: SubmitRequest) -> None:
    if request.token == 0:
        raise _bad("token 0: expected a random number, which a retry of the request repeats")
    if not request.moves and not request.drain and not request.table:
        raise _bad("there is nothing to do in it")
    if len(request.moves) > MOVES_MAX:
        raise _bad(f"{len(request.moves)} moves: at most {MOVES_MAX} are taken at once")
    _check_at_once(request.at_once)


def _check_at_once(at_once: int) -> None:
    if not 1 <= at_once <= AT_ONCE_MAX:
        raise _bad(f"{at_once} moves at once: expected 1 to {AT_ONCE_MAX}")


class _Checker:
    """Goes through a plan as it would be carried out. drain: nodes that get no targets from now on."""

    def __init__(self, draft: Draft, drain: set[int]) -> None:
        self._draft = draft
        self._drain = drain
        self._concerning = draft.base.operations.concerning()
        self._receiving = draft.base.operations.receiving()
        self._members: dict[int, list[int]] = {}  # of chains that moves concern, after those looked at
        self._added: dict[int, int] = {}  # target -> the move that adds it

    def check(self, moves: tuple[Move, ...]) -> None:
        for index, move in enumerate(moves):
            try:
                self._check(index, move)
            except FS3Error as error:
                raise FS3Error(error.code, f"move {index}: {error.message}") from None

    def _check(self, index: int, move: Move) -> None:
        chain = self._draft.chain(move.chain)
        if chain is None:
            raise _bad(f"there is no chain {move.chain}")
        if move.chain in self._concerning:
            raise _bad(f"operation {self._concerning[move.chain]} concerns chain {move.chain} already; wait for its end")
        if not (move.add or move.drop or move.head):
            raise _bad(f"it does nothing to chain {move.chain}: name a target to add, to drop, or to lead it")
        members = self._members.setdefault(move.chain, [entry.target for entry in chain.targets])
        if move.drop and move.drop not in members:
            raise _bad(f"target {move.drop}, to be dropped, is not in chain {move.chain}, which has {_list(members)}")
        if move.add:
            if move.add in self._added:
                raise _bad(f"target {move.add} is added by move {self._added[move.add]} already")
            self._check_added(move, [target for target in members if target != move.drop])
            self._added[move.add] = index
            members.append(move.add)
        if move.drop:
            if chain.state_of(move.drop) is PublicState.LASTSRV:
                help_ = f"bring its node back, or give up what it has (`fs3 admin chain give-up {move.chain}`)"
                raise _bad(f"target {move.drop} was the last that served chain {move.chain}: {help_}")
            members.remove(move.drop)
            left = [t for t in members if t in self._added or chain.state_of(t) is PublicState.SERVING]
            if not left:
                raise _bad(f"no target of chain {move.chain} would serve without target {move.drop}: add another one first")
        if move.head and move.head not in members:
            raise _bad(f"target {move.head}, to lead chain {move.chain}, is not in it then: it has {_list(members)}")

    def _check_added(self, move: Move, members: list[int]) -> None:
        target = self._draft.target(move.add)
        if target is None:
            raise _bad(f"there is no target {move.add}")
        if move.add in self._receiving:
            raise _bad(f"operation {self._receiving[move.add]} is to put target {move.add} into a chain already")
        check_free(self._draft, target)
        if target.node in self._drain:
            raise _bad(f"target {target.id} is on node {target.node}, which is to be drained")
        check_apart(self._draft, target, members)


def check_free(draft: Draft, target: Target) -> None:
    """Whether a target can come into a chain now. Raises BAD_PLAN."""
    if target.chain:
        raise _bad(f"target {target.id} is in chain {target.chain} already")
    if target.retired:
        raise _bad(f"target {target.id} has left a chain and is not emptied yet; wait for its daemon to do so")
    node = draft.node(target.node)
    if node is None or not node.alive:
        raise _bad(f"target {target.id} is on node {target.node}, which is not alive")
    if node.drained:
        raise _bad(f"target {target.id} is on node {target.node}, which is drained; undrain it first")
    if draft.local(target.id) is LocalState.OFFLINE:
        raise _bad(f"target {target.id} of node {target.node} is offline: its disk {target.disk} may have failed")
    if target.used:
        help_ = "empty it first (`fs3 admin target empty`)"
        raise _bad(f"target {target.id} holds {target.used} bytes of a former time; {help_}")


def check_apart(draft: Draft, target: Target, members: list[int]) -> None:
    """Two replicas on one node would be lost at once. Raises BAD_PLAN."""
    for member in members:
        other = draft.target(member)
        if other is not None and other.node == target.node:
            raise _bad(f"target {target.id} is on node {target.node}, as target {member} of the same chain is")


def _list(targets: list[int]) -> str:
    return ", ".join([str(target) for target in targets])


def _bad(message: str) -> FS3Error:
    return FS3Error(Code.BAD_PLAN, message)
