"""Hands updates to the successor, through all changes of the chain, until they are committed there."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import trio

from fs3.api.storage import WRITE, Update, UpdateKind, UpdateResult, WriteRequest
from fs3.errors import Code, FS3Error
from fs3.ids import ChunkId
from fs3.routing import PublicState
from fs3.transport.base import Part
from fs3.wire.frame import PAYLOAD_SIZE_MAX

from . import blocks
from .local import DAMAGE, LocalTarget, StorageNode
from .targets import Role, Successor

logger = logging.getLogger("fs3.storage.forward")

_PAUSE_MIN_S = 0.001
_PAUSE_MAX_S = 0.1


class PendingDamaged(FS3Error):
    """A pending version of ours cannot be read, so it cannot be handed on as a whole."""

    def __init__(self, chunk: ChunkId, error: FS3Error) -> None:
        super().__init__(Code.CHECKSUM, f"pending: {error.message}")
        self.chunk = chunk


@dataclass(slots=True)
class Forward:
    """A pending version to be handed on. update: the change that made it, None when it is known only by its result.

    whole: the successor needs the whole chunk. refused: the successor's final refusal; nobody behind us has it then.
    """

    chunk: ChunkId
    chunk_size: int
    update: Update | None = None
    data: memoryview = field(default_factory=lambda: memoryview(b""))
    whole: bool = False
    refused: UpdateResult | None = None


async def forward(node: StorageNode, target: LocalTarget, items: list[Forward], deadline: float) -> None:
    """Return once every item is committed at the successor, or refused by it, or once we are the tail.

    The chunks' locks are held. Raises NOT_SERVING when this target has left the chain or its lease, DEADLINE_EXCEEDED
    (env.monotonic() seconds), PendingDamaged; the pending versions stay.
    """
    todo = items
    pause_s = _PAUSE_MIN_S
    last = "no address"
    while todo:
        role = target.role
        if role is None or role.state is not PublicState.SERVING or not node.may_serve():
            raise FS3Error(Code.NOT_SERVING, f"target {target.id} serves no more")
        successor = role.successor
        if successor is None:
            return
        if node.env.monotonic() >= deadline:
            raise FS3Error(Code.DEADLINE_EXCEEDED, f"target {successor.target} did not take an update: {last}")
        if successor.address:
            before = len(todo)
            try:
                todo = await _attempt(node, target, role, successor, todo, deadline)
                last = "it refused for now"
            except FS3Error as error:
                if error.code is Code.DISK_FAILED or isinstance(error, PendingDamaged):
                    raise  # our own: what the peer meets stands in its results
                last = str(error)
            if not todo:
                return
            if len(todo) < before:
                pause_s = _PAUSE_MIN_S
        if target.role is role:
            changed = target.changed
            with trio.move_on_after(pause_s):
                await changed.wait()
            pause_s = min(2 * pause_s, _PAUSE_MAX_S)


async def read_pending(target: LocalTarget, chunk: ChunkId) -> memoryview:
    """The content of a pending version. Raises PendingDamaged, DISK_FAILED."""
    try:
        return await target.engine.read_whole(chunk, pending=True)
    except FS3Error as error:
        if error.code in DAMAGE:
            raise PendingDamaged(chunk, error) from None
        raise


async def _attempt(
    node: StorageNode, target: LocalTarget, role: Role, successor: Successor, todo: list[Forward], deadline: float
) -> list[Forward]:
    """Send the items once, or the first of them if they are too large for one request. Returns those left to do."""
    updates: list[Update] = []
    payload: list[Part] = []
    size = 0
    for item in todo:
        item.whole |= node.env.rare("storage.forward.whole")
        update, data = await _message(target, role, successor, item)
        if updates and size + len(data) > PAYLOAD_SIZE_MAX:
            break
        size += len(data)
        updates.append(update)
        if len(data):
            payload.append(data)
    with trio.CancelScope() as scope:  # cancelled when the successor changes
        target.forwards.add(scope)
        try:
            reply = await node.rpc.call(
                successor.address,
                WRITE,
                WriteRequest(tuple(updates), False),
                deadline=deadline,
                payload=payload,
                relayed=True,
            )
            if node.env.rare("storage.forward.reply-lost"):
                raise FS3Error(Code.CONNECTION_LOST, "storage.forward.reply-lost")
        finally:
            target.forwards.discard(scope)
    if scope.cancelled_caught:
        return todo
    if len(reply.results) != len(updates):
        raise FS3Error(Code.PROTOCOL, f"{len(reply.results)} results for {len(updates)} updates")
    left = [item for item, result in zip(todo, reply.results, strict=False) if not _settled(target, item, result)]
    return left + todo[len(updates) :]


async def _message(target: LocalTarget, role: Role, successor: Successor, item: Forward) -> tuple[Update, memoryview]:
    """The update to send for an item: the original one, or what makes the whole chunk where the successor needs that."""
    chunk = target.engine.get(item.chunk)
    assert chunk is not None and chunk.pending is not None, "only pending versions are forwarded"
    pending = chunk.pending
    update, data = item.update, item.data
    kind, offset, length, checksums = UpdateKind.REMOVE, 0, 0, ()  # type: UpdateKind, int, int, tuple[int, ...]
    if not pending.removed:
        if update is None or item.whole or successor.syncing:
            data = await read_pending(target, item.chunk)
            kind, length, checksums = UpdateKind.REPLACE, len(data), blocks.unpack(pending.checksums)
        else:
            kind, offset, length, checksums = update.kind, update.offset, update.length, update.checksums
    message = Update(
        pending.tag,
        role.chain,
        role.chain_version,
        successor.target,
        item.chunk,
        kind,
        offset,
        length,
        item.chunk_size,
        checksums,
        pending.number,
    )
    return message, data


def _settled(target: LocalTarget, item: Forward, result: UpdateResult) -> bool:
    """Take in the successor's answer for one item; whether it is done."""
    if result.code == 0:
        chunk = target.engine.get(item.chunk)
        assert chunk is not None and chunk.pending is not None
        if chunk.pending.removed or result.checksum == chunk.pending.checksum():
            return True
        logger.error(
            "chunk %x.%d: target %d and its successor differ at version %d (%d and %d bytes), sending the whole chunk",
            item.chunk.inode,
            item.chunk.index,
            target.id,
            chunk.pending.number,
            chunk.pending.length,
            result.chunk_length,
        )
        item.whole = True
        return False
    if result.code == Code.VERSION_GAP:
        item.whole = True
    elif result.code == Code.NO_SPACE:
        item.refused = result
        return True
    elif result.code not in (Code.CHAIN_VERSION, Code.NOT_SERVING, Code.CHUNK_PENDING, Code.UNKNOWN_TARGET):
        logger.warning(
            "chunk %x.%d: the successor of target %d refused an update: %s (%d)",
            item.chunk.inode,
            item.chunk.index,
            target.id,
            result.message,
            result.code,
        )
    return False
