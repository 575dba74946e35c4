"""Repairs chunks whose content this target cannot read, with the bytes that another one has.

The record of a chunk says what its content must be: version, length, checksums. So whatever bytes match them are right,
wherever they come from, and the chunk's own lock is all that a repair needs: no update changes the record meanwhile. The
one that gives the bytes holds no lock for it, hence nobody waits in a ring.

A content that no target has is lost: it is refused with DATA_LOST until something replaces all of it, or until a target
comes back that has it.
"""

from __future__ import annotations

import logging
from enum import Enum, auto

import trio

from fs3.api.storage import FETCH, FetchRequest, Update, UpdateKind
from fs3.checksum import piece_checksums
from fs3.errors import Code, FS3Error
from fs3.ids import ChunkId, RequestTag
from fs3.layout import CHUNK_SIZE_MAX
from fs3.routing import PublicState

from . import blocks
from .local import DAMAGE, LocalTarget, StorageNode
from .replica import ChunkVersion

logger = logging.getLogger("fs3.storage.repair")

RETRY_S = 10.0
"""What could not be repaired is tried again after so long, and whenever the chain changes."""
REPAIR_TIMEOUT_S = 30.0
ASK_TIMEOUT_S = 10.0
PENDING_WAIT_S = 2.0

_NO_TAG = RequestTag(0, 0, 0)


class Outcome(Enum):
    WHOLE = auto()
    """It can be read."""
    LOST = auto()
    """No target of the chain that could be asked has it, and all that serve were asked."""
    LATER = auto()
    """Not now: a target did not answer, or an update of the chunk is pending."""


async def repair_suspects(node: StorageNode, target: LocalTarget) -> None:
    """Look at what is suspected to be damaged and repair what is. Runs until cancelled."""
    target.suspects.update(dict.fromkeys(target.engine.damaged()))
    while True:
        target.suspected = trio.Event()
        role = target.role
        if role is not None and role.state in (PublicState.SERVING, PublicState.LASTSRV) and not target.failed:
            await _round(node, target)
        with trio.move_on_after(RETRY_S if target.suspects else float("inf")):
            await target.suspected.wait()


async def _round(node: StorageNode, target: LocalTarget) -> None:
    """Each suspect once."""
    again = []
    for chunk in list(target.suspects):
        del target.suspects[chunk]
        await target.locks.acquire(chunk)
        try:
            outcome = await repair(node, target, chunk, node.env.monotonic() + REPAIR_TIMEOUT_S)
        except FS3Error as error:
            if error.code is Code.DISK_FAILED:
                node.disk_failed(target, error)
                return
            logger.warning("target %d: chunk %s is not repaired yet: %s", target.id, chunk, error)
            outcome = Outcome.LATER
        finally:
            target.locks.release(chunk)
        if outcome is not Outcome.WHOLE:
            again.append(chunk)
    target.suspects.update(dict.fromkeys(again))


async def repair(node: StorageNode, target: LocalTarget, chunk: ChunkId, deadline: float) -> Outcome:
    """Make the committed content readable again, if it is not. The chunk's lock is held.

    Raises what the engine raises.
    """
    engine = target.engine
    if await engine.verify(chunk):
        target.lost.discard(chunk)
        return Outcome.WHOLE
    state = engine.get(chunk)
    assert state is not None and state.committed is not None
    metrics = node.env.metrics
    if chunk not in target.damaged:
        target.damaged.add(chunk)
        metrics.count("storage.damaged_chunks")
        logger.warning("target %d: chunk %s is damaged", target.id, chunk)
    if state.pending is not None:
        return Outcome.LATER
    wanted = state.committed
    data, certain = await _fetch(node, target, chunk, wanted, deadline)
    if data is not None:
        update = _replacement(target, chunk, wanted, wanted.tag, data)
        await engine.put(update, wanted.number, wanted.chain_version, data, commit=True, remember=False)
        target.lost.discard(chunk)
        target.damaged.discard(chunk)
        metrics.count("storage.repaired_chunks")
        metrics.count("storage.repaired_bytes", len(data))
        logger.info("target %d: chunk %s is repaired", target.id, chunk)
        return Outcome.WHOLE
    if not certain:
        return Outcome.LATER
    if chunk not in target.lost:
        target.lost.add(chunk)
        metrics.count("storage.lost_chunks")
        logger.error("target %d: chunk %s cannot be read, and no other target of its chain has it", target.id, chunk)
    return Outcome.LOST


async def recover_pending(node: StorageNode, target: LocalTarget, chunk: ChunkId, deadline: float) -> None:
    """Make a pending version that cannot be read readable. The chunk's lock is held, and this target leads its chain.

    What no other target has was not acknowledged by anyone, since all that serve must have it first: then the pending
    version becomes one that changes nothing, and goes down the chain as any other. Raises CHECKSUM where a target that
    may have it does not answer, or where the committed version cannot be read either: then nothing is pending any more.
    """
    engine = target.engine
    state = engine.get(chunk)
    assert state is not None and state.pending is not None
    wanted = state.pending
    data, certain = await _fetch(node, target, chunk, wanted, deadline)
    if data is not None:
        update = _replacement(target, chunk, wanted, wanted.tag, data)
        await engine.put(update, wanted.number, wanted.chain_version, data, commit=False, remember=False)
        return
    if not certain:
        raise FS3Error(Code.CHECKSUM, f"target {target.id}: chunk {chunk}: what is pending cannot be read")
    logger.warning("target %d: chunk %s: dropped a pending update that no target can read", target.id, chunk)
    node.env.metrics.count("storage.dropped_pending")
    committed = state.committed
    if committed is None:
        update = _update(target, chunk, UpdateKind.REMOVE, _NO_TAG, 0, (), wanted.number)
        await engine.put(update, wanted.number, wanted.chain_version, memoryview(b""), commit=False, remember=False)
        return
    try:
        data = await engine.read_whole(chunk, pending=False)
    except FS3Error as error:
        if error.code in DAMAGE:
            engine.drop_pending(chunk)
            node.suspect(target, chunk, error)
        raise
    update = _update(
        target, chunk, UpdateKind.REPLACE, _NO_TAG, len(data), blocks.unpack(committed.checksums), wanted.number
    )
    await engine.put(update, wanted.number, wanted.chain_version, data, commit=False, remember=False)


async def find(target: LocalTarget, request: FetchRequest, node: StorageNode) -> memoryview | None:
    """The bytes that another target asks for; None where they are not here, or not readable here."""
    engine = target.engine
    chunk = request.chunk
    state = engine.get(chunk)
    if state is None:
        return None
    try:
        if _is(state.committed, request):
            found = await engine.read(chunk, 0, request.length)
            if piece_checksums(found.data, 0) == found.checksums and len(found.data) == request.length:
                return found.data
            node.suspect(target, chunk)
        elif _is(state.pending, request):
            with trio.move_on_after(PENDING_WAIT_S) as scope:
                await target.locks.acquire(chunk)
            if scope.cancelled_caught:
                return None
            try:
                state = engine.get(chunk)
                for pending in (True, False):
                    if state is not None and _is(state.pending if pending else state.committed, request):
                        return await engine.read_whole(chunk, pending=pending)
            finally:
                target.locks.release(chunk)
    except FS3Error as error:
        if error.code not in DAMAGE:
            raise
        node.suspect(target, chunk, error)
    return None


def _is(version: ChunkVersion | None, request: FetchRequest) -> bool:
    return (
        version is not None
        and not version.removed
        and (version.number, version.length, version.checksum()) == (request.version, request.length, request.checksum)
    )


async def _fetch(
    node: StorageNode, target: LocalTarget, chunk: ChunkId, wanted: ChunkVersion, deadline: float
) -> tuple[memoryview | None, bool]:
    """The content of a version, verified, from whichever target of the chain has it; else None, and whether all the
    others that serve have said that they do not have it."""
    role = target.role
    routing = node.mgmtd.routing
    chain = routing.chains.get(role.chain) if role is not None else None
    if chain is None:
        return None, False
    certain = True
    for entry in chain.targets:  # those that serve come first
        peer = routing.node_of(entry.target)
        if entry.target == target.id or entry.state is PublicState.OFFLINE:
            continue
        data = None
        try:
            if peer is None:
                raise FS3Error(Code.UNKNOWN_TARGET, f"nobody knows where target {entry.target} is")
            request = FetchRequest(entry.target, chunk, wanted.number, wanted.length, wanted.checksum())
            limit = min(deadline, node.env.monotonic() + ASK_TIMEOUT_S)
            reply, data = await node.rpc.call_bulk(peer.address, FETCH, request, deadline=limit, relayed=True)
        except FS3Error as error:
            logger.debug("target %d cannot be asked for chunk %s: %s", entry.target, chunk, error)
            certain = certain and entry.state is not PublicState.SERVING
            continue
        if reply.found and blocks.pack(piece_checksums(data, 0)) == wanted.checksums and len(data) == wanted.length:
            return data, True
    return None, certain


def _replacement(target: LocalTarget, chunk: ChunkId, version: ChunkVersion, tag: RequestTag, data: memoryview) -> Update:
    checksums = blocks.unpack(version.checksums)
    return _update(target, chunk, UpdateKind.REPLACE, tag, len(data), checksums, version.number)


def _update(
    target: LocalTarget,
    chunk: ChunkId,
    kind: UpdateKind,
    tag: RequestTag,
    length: int,
    checksums: tuple[int, ...],
    version: int,
) -> Update:
    role = target.role
    chain, chain_version = (role.chain, role.chain_version) if role is not None else (0, 0)
    return Update(tag, chain, chain_version, target.id, chunk, kind, 0, length, CHUNK_SIZE_MAX, checksums, version)
