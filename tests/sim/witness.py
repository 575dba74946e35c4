"""Watches every replica and every answer of storage while a simulation runs, at the engines' and the clients' boundary.

- What a replica has committed never goes back: (chain version, number) grows, but for the chunk's removal; and what was
  committed is there when the target is opened again after a crash of its process.
- The versions that clients are told of a chunk never go back.
- One target numbers updates for a version of a chain: nobody else accepts them from clients.

Nothing in the product knows of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import trio

from fs3.api.storage import READ, REMOVE_FILE, WRITE, UpdateKind
from fs3.ids import ChunkId, RequestTag
from fs3.rpc.client import RpcClient
from storage.chunk_engine import ChunkEngine

Order = tuple[int, int]
"""(chain version, number) of a committed version."""


class BrokenRuleError(Exception):
    """Somebody did what the protocol forbids."""


_BY_CLIENTS = (UpdateKind.WRITE, UpdateKind.TRUNCATE, UpdateKind.PUNCH)
"""Without a version they come from clients; a removal may come from a resync too."""


@dataclass(slots=True)
class Answer:
    """What one request told of a chunk. version: 0 where the chunk is absent. removes: it may have removed the chunk."""

    called: float
    returned: float
    version: int
    removes: bool
    what: str


class Rules:
    """What was seen, and the rules about it. Pure: whoever watches says what happened."""

    def __init__(self) -> None:
        self.heads: dict[tuple[int, int], str] = {}  # (chain, its version) -> the target that numbered updates
        self.committed: dict[str, dict[ChunkId, Order]] = {}  # target -> what it holds
        self.answers: dict[tuple[int, ChunkId], list[Answer]] = {}
        self.removals: dict[tuple[int, int], list[Answer]] = {}  # (chain, inode) -> removals of its chunks

    def numbered(self, chain: int, chain_version: int, target: str) -> None:
        """A target took an update from a client."""
        head = self.heads.setdefault((chain, chain_version), target)
        if head != target:
            raise BrokenRuleError(
                f"chain {chain} version {chain_version}: both {head} and {target} take updates from clients"
            )

    def holds(self, target: str, chunk: ChunkId, order: Order | None) -> None:
        """A target committed a version, or the chunk's removal (None)."""
        known = self.committed.setdefault(target, {})
        if order is None:
            known.pop(chunk, None)
            return
        before = known.get(chunk)
        if before is not None and order < before:
            raise BrokenRuleError(f"{target} goes back from {before} to {order} of chunk {chunk}")
        known[chunk] = order

    def opened(self, target: str, found: dict[ChunkId, Order]) -> None:
        """A target was opened again after its process had ended: nothing that it had committed may be missing."""
        for chunk, order in self.committed.get(target, {}).items():
            if chunk not in found or found[chunk] < order:
                raise BrokenRuleError(
                    f"{target} had committed {order} of chunk {chunk}, and has {found.get(chunk)} after a crash"
                )
        self.committed[target] = dict(found)

    def forget(self, disk: str) -> None:
        """What was not synced on this disk may be lost now."""
        for target in self.committed:
            if target.startswith(f"{disk}/"):
                self.committed[target] = {}

    def check_answers(self) -> None:
        """Versions that were told in requests one after the other do not go back, unless the chunk may have been removed."""
        for (chain, chunk), answers in self.answers.items():
            removals = [answer for answer in answers if answer.removes] + self.removals.get((chain, chunk.inode), [])
            highest: Answer | None = None
            begun = sorted((answer for answer in answers if answer.returned < math.inf), key=lambda answer: answer.called)
            ended = sorted(begun, key=lambda answer: answer.returned)
            at = 0
            for answer in begun:
                while ended[at].returned < answer.called:
                    if highest is None or ended[at].version >= highest.version:
                        highest = ended[at]
                    at += 1
                if highest is None or answer.removes or highest.removes or answer.version >= highest.version:
                    continue
                since, until = highest.called, answer.returned
                if any(removal.called <= until and removal.returned >= since for removal in removals):
                    highest = None
                    continue
                raise BrokenRuleError(
                    f"chain {chain}, chunk {chunk}: {answer.what} tells version {answer.version} at {answer.returned:.6f},"
                    f" {highest.what} told {highest.version} at {highest.returned:.6f}"
                )


class Witness:
    """Tells the rules what happens in a world. fail: called with the first rule that was broken, out of any task."""

    def __init__(self, fail: Callable[[Exception], None]) -> None:
        self.rules = Rules()
        self._fail = fail
        self._called: dict[RequestTag, float] = {}  # when a request was sent for the first time
        self._engines: dict[ChunkEngine, tuple[Any, str]] = {}  # -> its disk, the target's name

    def opens(self, engine: ChunkEngine, disk: Any, folder: str) -> None:
        target = f"{disk.name}/{folder}"
        self._engines[engine] = disk, target
        found = {}
        for chunk in self.rules.committed.get(target, {}):
            order = _order(engine, chunk)
            if order is not None:
                found[chunk] = order
        self._tell(self.rules.opened, target, found)

    def settled(self, engine: ChunkEngine, chunk: ChunkId) -> None:
        """The chunk's committed version may be another one now."""
        disk, target = self._engines[engine]
        if not disk.closed:  # else its process is dead, and what it still does counts for nothing
            self._tell(self.rules.holds, target, chunk, _order(engine, chunk))

    def took(self, engine: ChunkEngine, update: Any, chain_version: int) -> None:
        disk, target = self._engines[engine]
        if not disk.closed and update.version == 0 and update.kind in _BY_CLIENTS:
            self._tell(self.rules.numbered, update.chain, chain_version, target)

    def _tell(self, rule: Callable[..., None], *what: Any) -> None:
        try:
            rule(*what)
        except BrokenRuleError as error:
            self._fail(error)

    def asks(self, method: Any, request: Any) -> list[Answer]:
        """A client asks: one answer to come for each chunk, or for the whole removal."""
        now, answers = trio.current_time(), []
        if method is REMOVE_FILE:
            removal = Answer(now, math.inf, 0, True, f"{method.name} of target {request.target}")
            self.rules.removals.setdefault((request.chain, request.inode), []).append(removal)
            return [removal]
        items = request.updates if method is WRITE else request.ranges
        for item in items:
            removes = method is WRITE and item.kind is UpdateKind.REMOVE
            called = self._called.setdefault(item.tag, now) if method is WRITE else now  # the answer may be that of a retry
            answer = Answer(called, math.inf, 0, removes, f"{method.name} of target {item.target}")
            answers.append(answer)
            self.rules.answers.setdefault((item.chain, item.chunk), []).append(answer)
        return answers

    def answered(self, answers: list[Answer], method: Any, reply: Any) -> None:
        now = trio.current_time()
        if method is REMOVE_FILE:
            answers[0].returned = now
            return
        for answer, result in zip(answers, reply.results, strict=True):
            if not result.code:
                answer.returned, answer.version = now, result.version


def _order(engine: ChunkEngine, chunk: ChunkId) -> Order | None:
    record = engine.get(chunk)
    version = record.committed if record is not None else None
    return (version.chain_version, version.number) if version is not None else None


@contextmanager
def witnessed(witness: Witness) -> Iterator[None]:
    """While this lasts, the witness sees all engines and all clients of storage."""
    init, put, commit = ChunkEngine.__init__, ChunkEngine.put, ChunkEngine.commit
    call: Any = RpcClient.call_bulk

    def watched_init(self: ChunkEngine, disk: Any, folder: str, *rest: Any, **named: Any) -> None:
        init(self, disk, folder, *rest, **named)
        witness.opens(self, disk, folder)

    async def watched_put(self: ChunkEngine, update: Any, version: int, chain_version: int, *rest: Any, **named: Any) -> Any:
        witness.took(self, update, chain_version)
        made = await put(self, update, version, chain_version, *rest, **named)
        witness.settled(self, update.chunk)
        return made

    def watched_commit(self: ChunkEngine, chunk: ChunkId, chain_version: int, **named: Any) -> Any:
        made = commit(self, chunk, chain_version, **named)
        witness.settled(self, chunk)
        return made

    async def watched_call(self: RpcClient, address: str, method: Any, request: Any, **named: Any) -> Any:
        if method is not READ and method is not REMOVE_FILE and not (method is WRITE and request.from_client):
            return await call(self, address, method, request, **named)
        answers = witness.asks(method, request)
        reply = await call(self, address, method, request, **named)
        witness.answered(answers, method, reply[0])
        return reply

    patches: list[tuple[Any, str, Any, Any]] = [
        (ChunkEngine, "__init__", watched_init, init),
        (ChunkEngine, "put", watched_put, put),
        (ChunkEngine, "commit", watched_commit, commit),
        (RpcClient, "call_bulk", watched_call, call),
    ]
    for owner, name, watched, _ in patches:
        setattr(owner, name, watched)
    try:
        yield
    finally:
        for owner, name, _, real in patches:
            setattr(owner, name, real)
