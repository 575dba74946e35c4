"""What operators ask of the primary: operations, chain tables, targets, nodes; its status."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from fs3.api.admin import (
    CONTROL,
    CREATE_TABLE,
    GET_MOVES,
    LIST_OPERATIONS,
    NODE_ACTION,
    REMOVE_TABLE,
    SUBMIT,
    TARGET_ACTION,
    ControlRequest,
    CreateTableReply,
    CreateTableRequest,
    GetMovesReply,
    GetMovesRequest,
    ListOperationsReply,
    ListOperationsRequest,
    MoveState,
    NodeActionRequest,
    OperationReply,
    OperationState,
    RemoveTableRequest,
    SubmitRequest,
    TargetActionRequest,
)
from fs3.api.common import Empty
from fs3.env import Env
from fs3.rpc.server import Call, RpcServer

from .cluster import Cluster
from .draft import Draft
from .operations import Plan
from .state import Change
from .submit import control, submit
from .tables import act_on_node, act_on_target, create_table, remove_table

logger = logging.getLogger("fs3.mgmtd.admin")

T = TypeVar("T")

MOVES_LIMIT = 2_000
OPERATIONS_LIMIT = 1_000


class Changer(Protocol):
    """MgmtdService._change."""

    def __call__(self, make: Callable[[Cluster, float], tuple[Change, T]]) -> Awaitable[T]: ...


def tell_moves(change: Change) -> None:
    """The log lines of moves and operations."""
    for move in change.moves.values():
        if move is None or move.state is MoveState.WAITING:
            continue
        log = logger.warning if move.state is MoveState.FAILED else logger.info
        m = move.move
        what = f"operation {move.operation}, move {move.index} (chain {m.chain}, add {m.add}, drop {m.drop}, head {m.head})"
        log("%s: %s", what, f"{move.state.name.lower()} {move.note}".rstrip())
    for operation in change.operations.values():
        if operation is not None and operation.state is not OperationState.RUNNING:
            logger.info("operation %d is %s", operation.id, operation.state.name.lower())


class AdminService:
    """The handlers. change: makes a change, commits and applies it. primary: the cluster, or NOT_PRIMARY."""

    def __init__(self, env: Env, change: Changer, primary: Callable[[], Cluster]) -> None:
        self._env = env
        self._change = change
        self._primary = primary

    def bind(self, server: RpcServer) -> None:
        server.handle(SUBMIT, self._submit)
        server.handle(LIST_OPERATIONS, self._list)
        server.handle(GET_MOVES, self._get_moves)
        server.handle(CONTROL, self._control)
        server.handle(CREATE_TABLE, self._create_table)
        server.handle(REMOVE_TABLE, self._remove_table)
        server.handle(TARGET_ACTION, self._target_action)
        server.handle(NODE_ACTION, self._node_action)

    async def _draft(self, act: Callable[[Draft], T]) -> T:
        """Commit what `act` makes of a draft."""

        def make(cluster: Cluster, now: float) -> tuple[Change, T]:
            draft = Draft(cluster.state)
            result = act(draft)
            return draft.done(), result

        return await self._change(make)

    def _wall_ms(self) -> int:
        return self._env.wall_ns() // 1_000_000

    def _plan(self, number: int) -> Plan:
        return self._primary().state.operations.get(number)

    async def _submit(self, request: SubmitRequest, call: Call) -> OperationReply:
        number = await self._draft(lambda draft: submit(draft, request, self._wall_ms()))
        operation = self._plan(number).operation()
        logger.info("operation %d (%s) of %d moves: %s", number, operation.kind, operation.moves, operation.title)
        return OperationReply(operation)

    async def _list(self, request: ListOperationsRequest, call: Call) -> ListOperationsReply:
        plans = self._primary().state.operations.plans
        newest = sorted(plans, reverse=True)[: max(1, min(request.limit, OPERATIONS_LIMIT))]
        return ListOperationsReply(tuple([plans[number].operation() for number in newest]))

    async def _get_moves(self, request: GetMovesRequest, call: Call) -> GetMovesReply:
        cluster = self._primary()
        plan = cluster.state.operations.get(request.operation)
        limit = max(1, min(request.limit, MOVES_LIMIT))
        rest = plan.moves[max(0, request.first) :]
        found = [move for move in rest if not request.states or move.state in request.states]
        moves = cluster.explain(plan, found[:limit], self._env.monotonic())
        return GetMovesReply(plan.operation(), tuple(moves), len(found) > limit)

    async def _control(self, request: ControlRequest, call: Call) -> OperationReply:
        await self._draft(lambda draft: control(draft, request, self._wall_ms()))
        return OperationReply(self._plan(request.operation).operation())

    async def _create_table(self, request: CreateTableRequest, call: Call) -> CreateTableReply:
        reply = await self._draft(lambda draft: create_table(draft, request))
        logger.info("chain table %d has version %d, with %d new chains", reply.table, reply.version, len(request.chains))
        return reply

    async def _remove_table(self, request: RemoveTableRequest, call: Call) -> Empty:
        await self._draft(lambda draft: remove_table(draft, request))
        logger.info("chain table %d is removed", request.table)
        return Empty()

    async def _target_action(self, request: TargetActionRequest, call: Call) -> Empty:
        await self._draft(lambda draft: act_on_target(draft, request))
        logger.warning("target %d: %s, as an operator asked", request.target, request.action.name.lower())
        return Empty()

    async def _node_action(self, request: NodeActionRequest, call: Call) -> Empty:
        await self._draft(lambda draft: act_on_node(draft, request))
        logger.info("node %d: %s, as an operator asked", request.node, request.action.name.lower())
        return Empty()
