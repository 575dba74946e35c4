"""Removes the chunks of a file on a chain, once for each tag.

Several processes may ask for one removal, by its tag, while others write to the file again. So nobody may be told that it
is done as long as another target, as head of the chain, could do it once more: the head tells all targets of the chain
first, by LEARN_DONE, and then answers. What a head that dies before has removed, its successor may remove again, on the
same request and before anybody had an answer to it: chunks that were written meanwhile, by writes concurrent with the
removal, are then removed too, as by a removal that came a little later.
"""

from __future__ import annotations

import trio

from fs3.api.storage import WRITE_UPDATES_MAX, DoneRequest, RemoveFileReply, RemoveFileRequest, UpdateResult
from fs3.errors import Code, FS3Error
from fs3.ids import RequestTag
from fs3.routing import PublicState

from .channels import Admission
from .local import LocalTarget, StorageNode
from .recovery import tell_done
from .targets import Role
from .update import remove_chunks

REMOVE_AT_ONCE = 64
UNTOLD_MAX = 1000
"""Removals remembered that were done, and that nobody came back for."""


async def remove_file(node: StorageNode, request: RemoveFileRequest, deadline: float) -> RemoveFileReply:
    """Do as the request says, or answer what was done. Raises what for_update() raises, STALE_WRITE, CHUNK_PENDING (the
    same request is being worked on), and whatever stopped it half way."""
    role = node.map.for_update(request.chain, request.chain_version, request.target, True)
    target = node.target(role)
    tag = request.tag
    admission, result = target.channels.admit(tag, node.env.monotonic())
    if admission is Admission.REPLAY and result is not None:
        return RemoveFileReply(result.version, False)
    if admission is not Admission.NEW:
        code = Code.STALE_WRITE if admission is Admission.STALE else Code.CHUNK_PENDING
        raise FS3Error(code, f"removal {tag.sequence} of channel {tag.channel}")
    try:
        removed = target.removals.get(tag)
        if removed is None:
            removed, more = await _remove(node, target, role, request, deadline)
            if more:
                return RemoveFileReply(removed, True)
            target.removals[tag] = removed  # from now on it is not to be done again here
            if len(target.removals) > UNTOLD_MAX:
                del target.removals[next(iter(target.removals))]
        await _tell(node, target, role, tag, removed, deadline)
        done = UpdateResult(0, removed, 0, 0)
        target.engine.remember(tag, done)
        target.finish(tag, done, node.env.monotonic())
        target.removals.pop(tag, None)
        return RemoveFileReply(removed, False)
    except FS3Error as error:
        if error.code is Code.DISK_FAILED:
            node.disk_failed(target, error)
        raise
    finally:
        target.channels.abandon(tag)


async def _remove(
    node: StorageNode, target: LocalTarget, role: Role, request: RemoveFileRequest, deadline: float
) -> tuple[int, bool]:
    """How many chunks were removed, and whether some are left."""
    limit = max(1, min(request.limit, WRITE_UPDATES_MAX))
    inode, first = request.inode, request.first_index
    # A chunk that is only pending here may be committed, and read, at the tail already.
    pending = [chunk for chunk in target.engine.pending() if chunk.inode == inode and chunk.index >= first]
    found = sorted({*pending, *[chunk for chunk, _ in target.engine.chunks_of(inode, first)]})
    chunks = found[:limit]
    for at in range(0, len(chunks), REMOVE_AT_ONCE):
        await remove_chunks(node, role, chunks[at : at + REMOVE_AT_ONCE], deadline)
    return len(chunks), len(found) > limit


async def _tell(node: StorageNode, target: LocalTarget, role: Role, tag: RequestTag, removed: int, deadline: float) -> None:
    """Have all others of the chain know that it is done. Raises CHAIN_VERSION where the chain has changed: ask again."""
    chain = node.mgmtd.routing.chains[role.chain]
    others = [
        entry.target
        for entry in chain.targets
        if entry.state in (PublicState.SERVING, PublicState.SYNCING) and entry.target != target.id
    ]
    done = (DoneRequest(tag, removed, 0, 0),)
    if others:
        try:
            async with trio.open_nursery() as nursery:
                for other in others:
                    nursery.start_soon(tell_done, node, role, other, done, deadline)
        except* FS3Error as group:
            first: BaseException = group
            while isinstance(first, BaseExceptionGroup):
                first = first.exceptions[0]
            code = first.code if isinstance(first, FS3Error) else Code.INTERNAL
            # DISK_FAILED would stand for our own disk.
            raise FS3Error(Code.NOT_SERVING if code is Code.DISK_FAILED else code, str(first)) from None
    if target.role is not role:
        raise FS3Error(Code.CHAIN_VERSION, f"chain {role.chain} changed during a removal")
