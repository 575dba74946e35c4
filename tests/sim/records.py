"""What must hold of the records in the store, and of the chunks that go with them, once everything is at rest."""

from __future__ import annotations

import trio

from fs3.api.meta import FileKind
from fs3.api.storage import DUMP, DumpRequest
from fs3.errors import FS3Error
from fs3.ids import ROOT_INODE, ChunkId
from fuse.fs import FileSystem
from meta.fsck import Fault, Survey, check, check_chunks, survey
from tests.sim.cluster import SimulationError, World
from tests.sim.tree import ROOT

TAGS = (
    b"DENT",
    b"DSUB",
    b"DTIM",
    b"GCQ_",
    b"IBLK",
    b"IDEM",
    b"INOD",
    b"INTN",
    b"LOCK",
    b"SESS",
    b"STAT",
    b"TDIR",
    b"TREE",
    b"XATR",
)
ATTEMPTS_MAX = 20
CHANNELS_MAX = 24
"""Records of requests that one life of a client may leave: it has few requests out at once, but each that it gave up costs
one more."""


async def read_store(world: World) -> Survey:
    """All records of the metadata service, as of one instant."""
    txn = world.kv.transaction()
    pairs = []
    for tag in TAGS:
        pairs += await txn.get_range(tag, tag + b"\xff" * 20)
    return survey(pairs)


async def chunks_of(world: World) -> list[tuple[ChunkId, int]]:
    """All chunks with their lengths, as the heads of the chains have them."""
    for _ in range(ATTEMPTS_MAX):
        try:
            return await _chunks(world)
        except FS3Error as error:
            if not error.retryable:
                raise
            await trio.sleep(1)  # our routing may be from before a restart of mgmtd
    return await _chunks(world)


async def _chunks(world: World) -> list[tuple[ChunkId, int]]:
    assert world.mgmtd is not None and world.rpc is not None and world.env is not None
    found: list[tuple[ChunkId, int]] = []
    for chain in world.mgmtd.routing.chains.values():
        head = chain.serving()[0]
        node = world.mgmtd.routing.node_of(head)
        assert node is not None
        after: ChunkId | None = None
        while True:
            request = DumpRequest(chain.id, chain.version, head, after)
            reply = await world.rpc.call(node.address, DUMP, request, deadline=world.env.monotonic() + 10)
            found += [(meta.chunk, meta.length) for meta in reply.chunks]
            if not reply.more:
                break
            after = reply.chunks[-1].chunk
    return found


async def check_store(world: World, *, chunks_may_be_longer: bool = True, orphans: bool = False) -> Survey:
    """No client is at work any more: the namespace is in order, nothing is left of what was under way, and there is no
    chunk without a file. Sessions of the dead, intents and removed files are given the time that they may take.

    chunks_may_be_longer: a write that failed may have left bytes behind the end of its file. orphans: so may files have been
    that power loss took the names of, with their chunks.
    """
    found = await read_store(world)
    with trio.move_on_after(world.shape.settle_s):
        while found.sessions or found.intents or found.garbage or found.trees:
            await trio.sleep(1)
            found = await read_store(world)
    left = {"sessions": found.sessions, "intents": found.intents, "removed files": found.garbage, "trees": found.trees}
    wrong = [f"{name} are left: {value}" for name, value in left.items() if value]
    wrong += [finding.text for finding in check(found)]
    for finding in check_chunks(found, await chunks_of(world)):
        allowed = chunks_may_be_longer if finding.fault is Fault.CHUNK_BEHIND_END else orphans
        if not allowed:
            wrong.append(finding.text)
    lives = sum(process.lives for process in world.processes.values()) + 2
    if found.records["IDEM"] > CHANNELS_MAX * lives:
        wrong.append(f"{found.records['IDEM']} records of requests of {lives} processes")
    if wrong:
        raise SimulationError("the store at rest:\n" + "\n".join(wrong))
    return found


async def empty_tree(fs: FileSystem, inode: int = ROOT_INODE) -> None:
    """rm -r."""
    while True:
        handle = await fs.opendir(ROOT, inode)
        entries = [entry for entry in await fs.readdir(handle, 0) if entry[0] not in (b".", b"..")]
        await fs.releasedir(handle)
        if not entries:
            return
        for name, attr, _ in entries:
            if attr.kind is FileKind.DIRECTORY:
                await empty_tree(fs, attr.inode)
                await fs.rmdir(ROOT, inode, name)
            else:
                await fs.unlink(ROOT, inode, name)


async def check_emptied(world: World, *, orphans: bool = False) -> None:
    """After all was removed: nothing is left but the root. orphans: as above."""
    found = await check_store(world, orphans=orphans)
    rest = {tag: count for tag, count in found.records.items() if tag not in ("IDEM", "IBLK", "STAT", "DSUB")}
    if rest != {"INOD": 1, "DTIM": 1}:
        raise SimulationError(f"records left of an empty tree: {rest}")
    if not orphans and (chunks := await chunks_of(world)):
        raise SimulationError(f"chunks of removed files are left: {chunks}")
