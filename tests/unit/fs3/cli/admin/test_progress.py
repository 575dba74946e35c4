"""How far an operation is, how fast it goes, and what a pipe shows of it; what is left of a chain that is given up."""

from __future__ import annotations

import io
from typing import Any

import pytest
import trio.testing
from rich.console import Console

from fs3.api import admin
from fs3.api.admin import Move, MoveState, MoveStatus, Operation, OperationState
from fs3.api.common import STATUS, StatusReply
from fs3.api.storage import ChunkMeta
from fs3.cli.admin.giveup import compare
from fs3.cli.admin.progress import Pace, Watcher, filled_parts, standing
from fs3.errors import Code, FS3Error
from fs3.ids import ChunkId

from .support import GIB, FakeCluster, routing

MOVES = [Move(1, 10103, 10201), Move(2, 10104, 10301), Move(3, 0, 10102)]


def statuses(*states: MoveState) -> list[MoveStatus]:
    return [MoveStatus(index, move, state) for index, (move, state) in enumerate(zip(MOVES, states, strict=True))]


def test_moves_are_counted_by_what_they_copy() -> None:
    now = standing(statuses(MoveState.DONE, MoveState.FILLING, MoveState.WAITING), routing(), {2: 0.25})
    assert (now.done, now.filling, now.moves) == (1, 1, 3)
    assert (now.done_bytes, now.total_bytes) == (GIB + GIB // 4, 2 * GIB), "the third copies nothing"
    assert now.part == 0.625
    assert standing(statuses(*[MoveState.DONE] * 3)[2:], routing(), {}).part == 1.0


def test_pace_is_that_of_the_last_half_minute() -> None:
    pace = Pace()
    pace.note(0.0, 0)
    assert pace.rate() == 0.0 and pace.left_s(100) is None
    pace.note(10.0, 1000)
    assert pace.rate() == 100.0 and pace.left_s(2000) == 10.0
    pace.note(100.0, 1000)
    assert pace.rate() == 0.0


async def test_sources_tell_how_far_they_are() -> None:
    status = StatusReply("storage", 1, "1", 1, '{"storage.resync.2.bytes_total": 8, "storage.resync.2.bytes_compared": 2}')
    cluster = FakeCluster(routing(), {(102, STATUS): status})
    moves = statuses(MoveState.WAITING, MoveState.FILLING, MoveState.WAITING)
    assert await filled_parts(cluster, moves) == {2: 0.25}


def operation(state: OperationState, *counts: int) -> Operation:
    return Operation(7, "drain", "drain node 102", state, 1, 0, 4, 3, counts)


async def watched(replies: list[Any]) -> list[str]:
    """What a watcher says of these replies of mgmtd, one after the other."""
    left = iter(replies)
    said: list[str] = []
    cluster = FakeCluster(routing(), {admin.GET_MOVES: lambda request: next(left)})
    await Watcher(cluster, 7, Console(file=io.StringIO()), said.append).run()
    return said


async def test_a_pipe_gets_a_line_for_each_change(autojump_clock: trio.testing.MockClock) -> None:
    running = operation(OperationState.RUNNING)
    first = admin.GetMovesReply(running, tuple(statuses(MoveState.FILLING, MoveState.WAITING, MoveState.WAITING)), False)
    last = admin.GetMovesReply(operation(OperationState.DONE), tuple(statuses(*[MoveState.DONE] * 3)), False)
    away = FS3Error(Code.DEADLINE_EXCEEDED, "nobody")
    assert await watched([first, first, away, away, last]) == [
        "chain 1, 10201@102/0 -> 10103@101/0: filling",
        "operation 7 running: 0 of 3 moves, 0 B of 2.0 GiB",
        "no mgmtd answers; asking on",
        "chain 1, 10201@102/0 -> 10103@101/0: done",
        "chain 2, 10301@103/0 -> 10104@101/0: done",
        "chain 3, 10102@101/0 -> nothing: done",
        "operation 7 done: 3 of 3 moves, 2.0 of 2.0 GiB",
    ]


async def test_a_watcher_gives_up_when_nobody_answers_for_long(autojump_clock: trio.testing.MockClock) -> None:
    with pytest.raises(FS3Error, match="nobody"):
        await watched([FS3Error(Code.DEADLINE_EXCEEDED, "nobody")] * 1000)
    with pytest.raises(FS3Error, match="there is none"):
        await watched([FS3Error(Code.NOT_FOUND, "no operation")])


def meta(index: int, version: int, chain_version: int = 1, **more: Any) -> ChunkMeta:
    return ChunkMeta(ChunkId(9, index), version, chain_version, more.pop("pending", 0), 100, 0, **more)


def test_what_is_left_of_a_chain_is_compared() -> None:
    def held(*metas: ChunkMeta) -> dict[ChunkId, ChunkMeta]:
        return {found.chunk: found for found in metas}

    rows = compare(
        {1: held(meta(0, 5), meta(1, 2, 7)), 2: held(meta(0, 6), meta(1, 3, 6, pending=4), meta(2, 1, damaged=True))}
    )
    assert rows[1] == {"chunks": 2, "content_bytes": 200, "pending": 0, "damaged": 0, "behind": 1, "missing": 1}
    assert rows[2] == {"chunks": 3, "content_bytes": 300, "pending": 1, "damaged": 1, "behind": 1, "missing": 0}
