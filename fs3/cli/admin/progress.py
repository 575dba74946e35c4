"""How far an operation is: counted from its moves and what their sources tell, shown as a bar, or as lines in a pipe."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import trio
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from ...api.admin import (
    GET_MOVES,
    LIST_OPERATIONS,
    GetMovesReply,
    GetMovesRequest,
    ListOperationsRequest,
    Move,
    MoveState,
    MoveStatus,
    Operation,
    OperationState,
)
from ...api.common import STATUS, Empty
from ...errors import Code, ConfigError, FS3Error
from ...routing import RoutingInfo
from ..status import human
from .common import Cluster, lasting
from .rows import Row, counted
from .shows import progress as resync_progress

OVER = (OperationState.DONE, OperationState.FAILED, OperationState.CANCELLED)

_POLL_S = 1.0
_LOOK_PART = 5
_RATE_WINDOW_S = 30.0
_PATIENCE_S = 120.0
"""How long a watcher goes on asking while no mgmtd answers."""
_PAGE = 1000
_BAR_WIDTH = 16
"""So that all that is known beside it fits into 80 columns."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How far an operation is. Bytes are those that its moves copy, as far as is known; of moves done all."""

    done: int
    moves: int
    failed: int
    filling: int
    done_bytes: int
    total_bytes: int

    @property
    def part(self) -> float:
        """0 to 1: by bytes where there are any, else by moves."""
        if self.total_bytes:
            return min(1.0, self.done_bytes / self.total_bytes)
        return self.done / self.moves if self.moves else 1.0


def standing(moves: Iterable[MoveStatus], routing: RoutingInfo, filled: Mapping[int, float]) -> Standing:
    """Count an operation's moves. filled: chain -> how much of the target that is being filled there is done, 0 to 1."""
    done = failed = filling = number = done_bytes = total_bytes = 0
    for status in moves:
        number += 1
        size = move_bytes(routing, status.move)
        total_bytes += size
        if status.state is MoveState.DONE:
            done += 1
            done_bytes += size
        elif status.state is MoveState.FILLING:
            filling += 1
            done_bytes += int(size * min(1.0, filled.get(status.move.chain, 0.0)))
        elif status.state is MoveState.FAILED:
            failed += 1
    return Standing(done, number, failed, filling, done_bytes, total_bytes)


def move_bytes(routing: RoutingInfo, move: Move) -> int:
    """What a move copies: as much as the fullest target of its chain holds; nothing where it adds none."""
    chain = routing.chains.get(move.chain)
    if not move.add or chain is None:
        return 0
    return max([routing.targets[entry.target].used for entry in chain.targets if entry.target in routing.targets], default=0)


class Pace:
    """Bytes a second over the last half minute, and when it will be over."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def note(self, now: float, done_bytes: int) -> None:
        self._seen.append((now, done_bytes))
        while now - self._seen[0][0] > _RATE_WINDOW_S:
            self._seen.popleft()

    def rate(self) -> float:
        """Bytes a second; 0 where nothing is known."""
        (start, first), (end, last) = self._seen[0], self._seen[-1]
        return max(0.0, (last - first) / (end - start)) if end > start else 0.0

    def left_s(self, total_bytes: int) -> float | None:
        rate = self.rate()
        return (total_bytes - self._seen[-1][1]) / rate if rate else None


def operation_row(operation: Operation) -> Row:
    """An operation as --json prints it. moves: by state."""
    counts = {state.name.lower(): count for state, count in zip(MoveState, operation.counts, strict=False)}
    return {
        "operation": operation.id,
        "kind": operation.kind,
        "title": operation.title,
        "state": operation.state.name.lower(),
        "created_ms": operation.created_ms,
        "ended_ms": operation.ended_ms,
        "at_once": operation.at_once,
        "moves": operation.moves,
        **{state.name.lower(): counts.get(state.name.lower(), 0) for state in MoveState},
    }


def move_row(routing: RoutingInfo, move: Move, status: MoveStatus | None = None) -> Row:
    """A move for people and for --json: who comes and goes, where they are, how much is copied."""
    row: Row = {
        "chain": move.chain,
        "from": place(routing, move.drop),
        "to": place(routing, move.add),
        "add": move.add,
        "drop": move.drop,
        "head": move.head,
        "copied_bytes": move_bytes(routing, move),
    }
    if status is not None:
        row = {"move": status.index, "state": status.state.name.lower(), **row, "note": status.note}
    return row


def place(routing: RoutingInfo, target: int) -> str:
    """TARGET@NODE/DISK; "" for none."""
    known = routing.targets.get(target)
    return "" if not target else f"{target}@{known.node}/{known.disk}" if known is not None else f"{target}@?"


async def find_operation(cluster: Cluster, number: int) -> Operation:
    """Raises CONFIG where there is none of that number."""
    return (await _page(cluster, number, 0, 1)).operation


async def moves_of(cluster: Cluster, number: int, states: tuple[MoveState, ...] = ()) -> tuple[Operation, list[MoveStatus]]:
    """An operation and its moves, all or those in some states."""
    found: list[MoveStatus] = []
    first = 0
    while True:
        reply = await _page(cluster, number, first, _PAGE, tuple(int(state) for state in states))
        found += reply.moves
        if not reply.more or not reply.moves:
            return reply.operation, found
        first = reply.moves[-1].index + 1


async def _page(cluster: Cluster, number: int, first: int, limit: int, states: tuple[int, ...] = ()) -> GetMovesReply:
    try:
        return await cluster.call(GET_MOVES, GetMovesRequest(number, first, limit, states))
    except FS3Error as error:
        if error.code not in (Code.NOT_FOUND, Code.BAD_PLAN):
            raise
        raise ConfigError(f"operation {number}: there is none; `fs3 admin operation list` shows those there are") from None


async def pending_moves(cluster: Cluster) -> list[Move]:
    """Moves of operations under way that are not over, which a new plan must respect."""
    reply = await cluster.call(LIST_OPERATIONS, ListOperationsRequest())
    found: list[Move] = []
    for operation in reply.operations:
        if operation.state not in OVER:
            _, moves = await moves_of(cluster, operation.id, (MoveState.WAITING, MoveState.FILLING))
            found += [status.move for status in moves]
    return found


async def filled_parts(cluster: Cluster, moves: Iterable[MoveStatus]) -> dict[int, float]:
    """Chain -> how much of the target that is being filled there is done, as the sources tell."""
    chains = [status.move.chain for status in moves if status.state is MoveState.FILLING]
    routing = cluster.routing
    nodes = {}
    for chain in chains:
        for target in routing.chains[chain].serving() if chain in routing.chains else ():
            node = routing.node_of(target)
            if node is not None and node.alive:
                nodes[node.id] = node
    parts: dict[int, float] = {}
    for reply in (await cluster.ask_all(nodes.values(), STATUS, Empty())).values():
        if isinstance(reply, FS3Error):
            continue
        metrics = json.loads(reply.metrics)
        for chain in chains:
            found = resync_progress(metrics, chain)
            if found is not None and found["total_bytes"]:
                parts[chain] = found["compared_bytes"] / found["total_bytes"]
    return parts


class Watcher:
    """Shows an operation until it is over. say: one line, in pipes; None: nothing is shown but the bar of a terminal."""

    def __init__(self, cluster: Cluster, number: int, console: Console, say: Callable[[str], None] | None) -> None:
        self._cluster = cluster
        self._number = number
        self._console = console
        self._say = say
        self._pace = Pace()
        self._states: dict[int, MoveState] = {}
        self._last = ""

    async def run(self) -> Operation:
        """Raises FS3Error where no mgmtd answers for long."""
        if self._say is None or not self._console.is_terminal:
            return await self._watch(lambda operation, now: None)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=_BAR_WIDTH),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[words]}"),
        )
        with Progress(*columns, console=self._console) as bar:
            task = bar.add_task(f"{self._number}:", total=1.0, words="")

            def shown(operation: Operation, now: Standing) -> None:
                bar.update(task, completed=now.part, words=self._words(operation, now))

            return await self._watch(shown)

    async def _watch(self, shown: Callable[[Operation, Standing], None]) -> Operation:
        silent_since: float | None = None
        while True:
            began_at = self._cluster.env.monotonic()
            try:
                operation, now, moves = await self._look()
            except FS3Error as error:
                clock = self._cluster.env.monotonic()
                if not (error.retryable or error.code is Code.DEADLINE_EXCEEDED):
                    raise
                silent_since = silent_since if silent_since is not None else clock
                if clock - silent_since > _PATIENCE_S:
                    raise
                self._tell("no mgmtd answers; asking on")
            else:
                silent_since = None
                shown(operation, now)
                self._report(operation, now, moves)
                if operation.state in OVER:
                    return operation
            # A look at thousands of moves costs mgmtd something: it is to be a small part of the time.
            await trio.sleep(max(_POLL_S, _LOOK_PART * (self._cluster.env.monotonic() - began_at)))

    async def _look(self) -> tuple[Operation, Standing, list[MoveStatus]]:
        await self._cluster.reload()
        operation, moves = await moves_of(self._cluster, self._number)
        now = standing(moves, self._cluster.routing, await filled_parts(self._cluster, moves))
        self._pace.note(self._cluster.env.monotonic(), now.done_bytes)
        return operation, now, moves

    def _report(self, operation: Operation, now: Standing, moves: list[MoveStatus]) -> None:
        for status in moves:
            before = self._states.get(status.index, MoveState.WAITING)
            if status.state is not before:
                self._states[status.index] = status.state
                note = f": {status.note}" if status.note else ""
                move = move_row(self._cluster.routing, status.move)
                way = f"{move['from'] or 'nothing'} -> {move['to'] or 'nothing'}"
                if not (status.move.add or status.move.drop):
                    way = f"led by {status.move.head}"
                self._tell(f"chain {status.move.chain}, {way}: {status.state.name.lower()}{note}")
        self._tell(f"operation {operation.id} {operation.state.name.lower()}: {self._words(operation, now)}")

    def _words(self, operation: Operation, now: Standing) -> str:
        parts = [f"{now.done} of {counted(now.moves, 'move')}"]
        if now.failed:
            parts.append(f"{now.failed} failed")
        if now.total_bytes:
            done, total = human(now.done_bytes).split(), human(now.total_bytes).split()
            parts.append(f"{' '.join(done[:1] if done[1] == total[1] else done)} of {' '.join(total)}")
        if operation.state is OperationState.PAUSED:
            parts.append("paused")
        elif operation.state is OperationState.RUNNING:
            left = self._pace.left_s(now.total_bytes)
            if left is not None:
                parts += [f"{human(self._pace.rate())}/s", f"{lasting(left)} left"]
        return ", ".join(parts)

    def _tell(self, line: str) -> None:
        """A line, unless it is the last one again; on a terminal the bar says it."""
        if self._say is not None and not self._console.is_terminal and line != self._last:
            self._last = line
            self._say(line)
