"""Operators' requests over the wire, to a whole mgmtd."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from fs3.api.admin import (
    CONTROL,
    CREATE_TABLE,
    GET_MOVES,
    LIST_OPERATIONS,
    NODE_ACTION,
    REMOVE_TABLE,
    SUBMIT,
    TARGET_ACTION,
    Control,
    ControlRequest,
    CreateTableRequest,
    GetMovesRequest,
    ListOperationsRequest,
    Move,
    MoveState,
    NodeAction,
    NodeActionRequest,
    OperationState,
    RemoveTableRequest,
    SubmitRequest,
    TargetAction,
    TargetActionRequest,
)
from fs3.api.common import STATUS, Empty
from fs3.errors import Code
from tests.unit.mgmtd.test_service import ONE, refused, world


async def test_an_operation_is_submitted_watched_and_paused(autojump_clock: MockClock) -> None:
    async with world() as w:
        await w.formatted(3)
        for node in (104, 105):
            await w.start_storage(node, node * 100)
        request = SubmitRequest(9, "replace", "a plan", (Move(1, 104, 101), Move(1, 105)), drain=(101,))
        begun = (await w.client.call(SUBMIT, request)).operation
        assert (begun.state, begun.moves, begun.counts) == (OperationState.RUNNING, 2, (2, 0, 0, 0, 0))
        assert (await w.client.call(SUBMIT, request)).operation.id == begun.id
        await refused(Code.BAD_PLAN, w.client.call(SUBMIT, SubmitRequest(10, "x", "y", (Move(1, drop=102),))))
        await w.until(lambda r: r.chains[1].state_of(104) is not None, 5)
        reply = await w.client.call(GET_MOVES, GetMovesRequest(begun.id))
        assert [move.state for move in reply.moves] == [MoveState.FILLING, MoveState.WAITING]
        assert reply.moves[0].note and "waits for move 0" in reply.moves[1].note and not reply.more
        only = await w.client.call(GET_MOVES, GetMovesRequest(begun.id, 0, 1, (MoveState.WAITING,)))
        assert [move.index for move in only.moves] == [1]
        await w.until(lambda r: r.targets[101].leaving, 5)  # these storages never leave: it stays so
        reply = await w.client.call(GET_MOVES, GetMovesRequest(begun.id))
        assert reply.moves[0].note == "target 101 is to stop serving"
        paused = (await w.client.call(CONTROL, ControlRequest(begun.id, Control.PAUSE, 7))).operation
        assert (paused.state, paused.at_once) == (OperationState.PAUSED, 7)
        assert (await w.client.call(LIST_OPERATIONS, ListOperationsRequest())).operations == (paused,)
        await refused(Code.NOT_FOUND, w.client.call(CONTROL, ControlRequest(77, Control.PAUSE)))
        assert w.client.routing.nodes[101].drained


async def test_tables_targets_and_nodes(autojump_clock: MockClock) -> None:
    async with world() as w:
        await w.formatted(2, 2)
        for node in (103, 104):
            await w.start_storage(node, node * 100)
        made = await w.client.call(CREATE_TABLE, CreateTableRequest(((103, 104),), 2))
        assert made.table == 2
        await w.client.call(REMOVE_TABLE, RemoveTableRequest(2))
        routing = await w.until(lambda r: 103 in r.targets and r.targets[103].retired, 5)
        assert 2 not in routing.chains and 2 not in routing.tables
        await w.client.call(NODE_ACTION, NodeActionRequest(103, NodeAction.DRAIN))
        await w.until(lambda r: r.nodes[103].drained, 5)
        await refused(Code.BAD_PLAN, w.client.call(TARGET_ACTION, TargetActionRequest(101, TargetAction.FORGET)))
        await w.client.call(TARGET_ACTION, TargetActionRequest(101, TargetAction.RESYNC))
        await w.until(lambda r: r.targets[101].leaving, 5)
        status = await w.rpc.call(ONE, STATUS, Empty(), deadline=trio.current_time() + 1)
        assert status.name == "mgmtd" and status.metrics.startswith("{")
