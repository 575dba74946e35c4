"""The write path: what happens to updates from their arrival to their result.

For each update: its target's role is looked up, its tag admitted (exactly once), its payload verified, its chunk locked;
then the role is looked up again, the pending version is made here, forwarded, compared, committed here, its result recorded.
Every replica holds the pending version before the tail commits it. At the tail pending and commit are one step.

An update may end half way: its deadline passes, or its caller vanishes. What it left pending is completed by roll_forward():
before the next update of the chunk, and by a task that looks for such chunks (recovery.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import trio

from fs3.api.storage import Update, UpdateKind, UpdateResult, WriteReply, WriteRequest
from fs3.checksum import piece_checksums
from fs3.errors import Code, FS3Error
from fs3.ids import ChunkId
from fs3.layout import CHUNK_SIZE_MAX, valid_chunk_size
from fs3.routing import PublicState

from .channels import Admission
from .forward import Forward, PendingDamaged, forward, read_pending
from .local import DAMAGE, LocalTarget, StorageNode
from .repair import Outcome, recover_pending, repair
from .replica import Action, Decision, prepare_first, prepare_next
from .targets import Role

_WHOLE = (UpdateKind.REPLACE, UpdateKind.LOST)
_RANGED = (UpdateKind.WRITE, UpdateKind.PUNCH)
_NOTHING_DONE = UpdateResult(0, 0, 0, 0)


@dataclass(slots=True)
class _Item:
    """One update on its way. admitted: its channel waits for a result. stale: its channel has gone on."""

    update: Update
    data: memoryview
    result: UpdateResult | None = None
    admitted: bool = False
    stale: bool = False


def refusal(error: FS3Error) -> UpdateResult:
    return UpdateResult(int(error.code), 0, 0, 0, error.message)


async def write(node: StorageNode, request: WriteRequest, payload: memoryview, deadline: float) -> WriteReply:
    """Run the updates of a request. Raises INVALID on a request that makes no sense; all else goes into the results."""
    items: list[_Item] = []
    at = 0
    for update in request.updates:
        length = update.length if update.kind in (UpdateKind.WRITE, UpdateKind.REPLACE) else 0
        item = _Item(update, payload[at : at + length])
        at += length
        _validate(update, request.from_client)
        if len(item.data) == length and piece_checksums(item.data, update.offset) != update.checksums and length:
            item.result = UpdateResult(int(Code.CHECKSUM), 0, 0, 0, "the payload does not match its checksums")
        items.append(item)
    if at != len(payload):
        raise FS3Error(Code.INVALID, f"payload of {len(payload)} bytes for updates of {at}")
    for group in _groups([item for item in items if item.result is None]):
        await _run(node, group, request.from_client, deadline)
    results = []
    for item in items:
        assert item.result is not None
        results.append(item.result)
    return WriteReply(tuple(results))


def _validate(update: Update, from_client: bool) -> None:
    kind = update.kind
    end = update.offset + update.length
    if update.offset < 0 or update.length < 0 or end > update.chunk_size or update.chunk_size > CHUNK_SIZE_MAX:
        raise FS3Error(Code.INVALID, f"update of {update.length} bytes at {update.offset} in {update.chunk_size}")
    if from_client:
        if kind in _WHOLE or update.version or not valid_chunk_size(update.chunk_size):
            raise FS3Error(Code.INVALID, "no update that a client may send")
    elif update.version <= 0 and kind is not UpdateKind.REMOVE:
        raise FS3Error(Code.INVALID, "an update between replicas needs a version")
    if (kind in _RANGED and not update.length) or (kind in _WHOLE and update.offset):
        raise FS3Error(Code.INVALID, "an empty range, or a replacement in the middle")


def _groups(items: Sequence[_Item]) -> list[list[_Item]]:
    """The items by target; those of one group touch different chunks, and the groups run one after the other."""
    if len(items) <= 1:
        return [list(items)] if items else []
    groups: list[tuple[int, set[ChunkId], list[_Item]]] = []
    for item in items:
        update = item.update
        for target, chunks, group in groups:
            if target == update.target and update.chunk not in chunks:
                chunks.add(update.chunk)
                group.append(item)
                break
        else:
            groups.append((update.target, {update.chunk}, [item]))
    return [sorted(group, key=lambda item: item.update.chunk) for _, _, group in groups]


async def _run(node: StorageNode, items: list[_Item], from_client: bool, deadline: float) -> None:
    """Run updates of different chunks of one target; gives each its result."""
    first = items[0].update
    try:
        role = node.map.for_update(first.chain, first.chain_version, first.target, from_client)
        target = node.target(role)
    except FS3Error as error:
        for item in items:
            item.result = refusal(error)
        return
    work = [item for item in items if _admit(node, target, role, item, from_client)]
    locked: list[ChunkId] = []
    try:
        for item in work:  # in order of chunks, so that no two requests wait for each other
            await target.locks.acquire(item.update.chunk)
            locked.append(item.update.chunk)
        if work:
            await _locked(node, target, work, from_client, deadline)
    except FS3Error as error:
        if error.code is Code.DISK_FAILED:
            node.disk_failed(target, error)
        for item in work:
            if item.result is None:
                item.result = refusal(error)
    finally:
        for item in work:
            if item.admitted:
                target.channels.abandon(item.update.tag)
        for chunk in locked:
            left = target.engine.get(chunk)
            if left is not None and left.pending is not None:
                target.orphaned.set()
            target.locks.release(chunk)


def _admit(node: StorageNode, target: LocalTarget, role: Role, item: _Item, from_client: bool) -> bool:
    """Whether to go on with an update; it has its result otherwise."""
    update = item.update
    if update.chain != role.chain or update.chain_version != role.chain_version:
        item.result = UpdateResult(int(Code.CHAIN_VERSION), 0, 0, 0, f"chain {role.chain} is at {role.chain_version}")
        return False
    if update.tag.client == 0:
        return True
    admission, result = target.channels.admit(update.tag, node.env.monotonic())
    if admission is Admission.NEW:
        item.admitted = True
        return True
    if admission is Admission.IN_PROGRESS:
        item.result = UpdateResult(int(Code.CHUNK_PENDING), 0, 0, 0, "this very update is being worked on")
        return False
    if not from_client:
        # The version decides: a predecessor completes what clients have given up, and that may be long ago.
        item.stale = True
        return True
    item.result = result if admission is Admission.REPLAY else _stale(update)
    return False


def _stale(update: Update) -> UpdateResult:
    return UpdateResult(int(Code.STALE_WRITE), 0, 0, 0, f"channel {update.tag.channel} has gone on")


async def _locked(node: StorageNode, target: LocalTarget, work: list[_Item], from_client: bool, deadline: float) -> None:
    """With the chunks locked: make the pending versions, forward them, commit them."""
    engine = target.engine
    if from_client:
        for item in work:
            chunk = engine.get(item.update.chunk)
            if chunk is not None and chunk.pending is not None and chunk.pending.tag != item.update.tag:
                await roll_forward(node, target, item.update.chunk, item.update.chunk_size, deadline)
    first = work[0].update
    role = node.map.for_update(first.chain, first.chain_version, first.target, from_client)
    node.target(role)  # the lease may have run out while the locks were waited for
    forwards: list[tuple[_Item, Forward]] = []
    for item in work:
        try:
            if await _prepare_or_repair(node, target, role, item, from_client, deadline):
                update = item.update
                forwards.append((item, Forward(update.chunk, update.chunk_size, update, item.data)))
        except FS3Error as error:
            if error.code is Code.DISK_FAILED:
                raise
            item.result = refusal(error)
            if error.code is Code.NO_SPACE and role.state is PublicState.SYNCING:
                item.result = refusal(node.cannot_fill(target, error))
            elif error.code is Code.NO_SPACE:
                _finish(node, target, item)
            elif error.code in DAMAGE and not from_client:  # the predecessor then sends the whole chunk, which repairs it
                item.result = UpdateResult(int(Code.VERSION_GAP), 0, 0, 0, error.message)
    if not forwards:
        return
    try:
        await forward(node, target, [entry for _, entry in forwards], deadline)
    except PendingDamaged as error:
        if not from_client:
            # The predecessor has it too, and sends all of it. The head has nobody to ask: see roll_forward().
            engine.drop_pending(error.chunk)
            _refuse_pending(forwards, error)
        raise
    for item, entry in forwards:
        if entry.refused is not None:
            engine.drop_pending(item.update.chunk)
            item.result = entry.refused
        else:
            item.result = _commit(target, item.update.chunk)
        _finish(node, target, item)


def _refuse_pending(forwards: Sequence[tuple[_Item, Forward]], error: PendingDamaged) -> None:
    """Have the whole chunk sent to us, as to one that lacks it."""
    for item, entry in forwards:
        if entry.chunk == error.chunk:
            item.result = UpdateResult(int(Code.VERSION_GAP), 0, 0, 0, error.message)


async def _prepare_or_repair(
    node: StorageNode, target: LocalTarget, role: Role, item: _Item, from_client: bool, deadline: float
) -> bool:
    """As _prepare. The head repairs a chunk first that it cannot read. Raises DATA_LOST where that cannot be done."""
    chunk = item.update.chunk
    try:
        return await _prepare(node, target, role, item, from_client)
    except FS3Error as error:
        if error.code not in DAMAGE:
            raise
        node.suspect(target, chunk, error)
        if not from_client:
            raise
        outcome = await repair(node, target, chunk, deadline)
        if outcome is not Outcome.WHOLE:
            raise node.unreadable(target, chunk, error) from None
    return await _prepare(node, target, role, item, from_client)


def _commit(target: LocalTarget, chunk: ChunkId) -> UpdateResult:
    role = target.role
    state = target.engine.get(chunk)
    assert state is not None and state.pending is not None
    tag = state.pending.tag
    chain_version = role.chain_version if role is not None else state.pending.chain_version
    remember = tag.client != 0 and target.channels.confirm(tag)[0] is Admission.NEW
    return target.engine.commit(chunk, chain_version, remember=remember).result()


async def _prepare(node: StorageNode, target: LocalTarget, role: Role, item: _Item, from_client: bool) -> bool:
    """Decide on an update and make its pending version; whether it is to be forwarded (else it has its result)."""
    update = item.update
    engine = target.engine
    if update.tag.client:
        admission, result = target.channels.confirm(update.tag)
        # Others have finished it, or overtaken it, while it waited for the lock.
        if admission is Admission.REPLAY and result is not None and (from_client or result.version == update.version):
            item.result = result
            return False
        if admission is Admission.STALE:
            if from_client:
                item.result = _stale(update)
                return False
            item.stale = True
    syncing = role.state is PublicState.SYNCING
    chunk = engine.get(update.chunk)
    decision = prepare_first(chunk, update) if from_client else prepare_next(chunk, update, syncing)
    action = decision.action
    committed = chunk.committed if chunk is not None else None
    number = committed.number if committed is not None else 0
    # What a target that is being filled holds from before is no reason to refuse.
    newer = committed is not None and (not syncing or committed.chain_version >= update.chain_version)
    if item.stale and action is Action.APPLY and newer and update.version <= number:
        action = Action.STALE  # a copy that was held back
    if action is Action.APPLY:
        return await _put(node, target, role, item, decision)
    if action is Action.RESUME:
        return True
    if action is Action.REPLAY:
        assert committed is not None
        item.result = committed.result()
    elif action is Action.NOTHING:
        item.result = _NOTHING_DONE
        _finish(node, target, item)
    elif action is Action.GAP:
        item.result = UpdateResult(int(Code.VERSION_GAP), number, 0, 0, f"version {number} here, {update.version} comes")
    else:
        item.result = UpdateResult(int(Code.STALE_WRITE), number, 0, 0, f"version {number} is committed")
    return False


async def _put(node: StorageNode, target: LocalTarget, role: Role, item: _Item, decision: Decision) -> bool:
    """Make the version; at the tail it is committed at once. Whether it is to be forwarded."""
    update = item.update
    last = role.successor is None
    if len(item.data) and node.env.rare("storage.put.no-space"):
        raise FS3Error(Code.NO_SPACE, "storage.put.no-space")
    chain_version = update.commit_chain_version or role.chain_version
    remember = last and update.tag.client != 0 and not item.stale
    made = await target.engine.put(update, decision.version, chain_version, item.data, commit=last, remember=remember)
    node.env.metrics.count("storage.updates")
    node.env.metrics.count("storage.written_bytes", len(item.data))
    if last:
        item.result = made.result()
        _finish(node, target, item)
    return not last


def _finish(node: StorageNode, target: LocalTarget, item: _Item) -> None:
    assert item.result is not None
    item.admitted = False
    target.finish(item.update.tag, item.result, node.env.monotonic())


async def roll_forward(node: StorageNode, target: LocalTarget, chunk: ChunkId, chunk_size: int, deadline: float) -> None:
    """Complete a chunk's pending version, whose update nobody works on any more. The chunk's lock is held.

    Raises what forward() and recover_pending() raise. Does nothing where nothing is pending.
    """
    if target.stopped:
        raise FS3Error(Code.NOT_SERVING, f"target {target.id} is leaving its chain")
    state = target.engine.get(chunk)
    if state is None or state.pending is None:
        return
    try:
        if not state.pending.removed:
            await read_pending(target, chunk)  # at the end of a chain nobody else verifies it
    except PendingDamaged:
        await recover_pending(node, target, chunk, deadline)
        state = target.engine.get(chunk)
    assert state is not None and state.pending is not None
    tag = state.pending.tag
    entry = Forward(chunk, max(chunk_size, state.pending.length))
    await forward(node, target, [entry], deadline)
    if entry.refused is not None:
        target.engine.drop_pending(chunk)
        return
    result = _commit(target, chunk)
    target.finish(tag, result, node.env.monotonic())
    node.env.metrics.count("storage.rolled_forward")


async def remove_chunks(node: StorageNode, role: Role, chunks: Sequence[ChunkId], deadline: float) -> None:
    """Remove chunks from a chain that this node's target leads. Raises the first error met; some may be gone then."""
    tags = [node.tags.take() for _ in chunks]
    try:
        updates = [
            Update(tag, role.chain, role.chain_version, role.target, chunk, UpdateKind.REMOVE, 0, 0, CHUNK_SIZE_MAX, ())
            for tag, chunk in zip(tags, chunks, strict=True)
        ]
        reply = await write(node, WriteRequest(tuple(updates)), memoryview(b""), deadline)
    finally:
        for tag in tags:
            node.tags.give_back(tag)
    for result in reply.results:
        if result.code:
            raise FS3Error(Code(result.code), result.message)
    await trio.lowlevel.checkpoint()
