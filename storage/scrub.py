"""Walks over all chunks of a target, again and again, so that damage is found while another replica is whole.

Each chunk is verified once in a period, evenly spread over it, later when the daemon is busy. Where the walk stands is kept
over restarts. What is damaged goes to repair.py. On the way the records are compared with those of the successor: replicas
that differ are reported, and left as they are, since nothing says which of them is right.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import trio

from fs3.api.storage import DUMP, ChunkMeta, DumpRequest
from fs3.errors import Code, FS3Error
from fs3.ids import U64_MAX, ChunkId
from fs3.routing import PublicState

from .local import LocalTarget, StorageNode
from .resync import content

logger = logging.getLogger("fs3.storage.scrub")

PAGE = 64
SAVE_S = 600.0
"""How often the place of the walk is stored."""
SETTLE_S = 10.0
"""A daemon that has just started has other things to do."""
BUSY_PER_S = 200.0
"""Requests a second from which on it waits, at most as long again as it would without."""
BUSY_WAIT_S = 0.5
BYTES_MIN = 4096
"""What a chunk counts for at least."""
_CALL_TIMEOUT_S = 10.0


class Scrubber:
    """The walk over one target."""

    def __init__(self, node: StorageNode, target: LocalTarget) -> None:
        self._node = node
        self._target = target
        self._after = target.scrubbed_to
        self._saved_at = node.env.monotonic()
        self._seen = 0
        self._seen_at = self._saved_at

    async def run(self) -> None:
        """Until cancelled, or until the disk fails."""
        await trio.sleep(SETTLE_S)
        while not self._target.failed:
            role, changed = self._target.role, self._target.changed
            if role is None or role.state is not PublicState.SERVING:
                await changed.wait()
                continue
            if not self._node.settings.scrub_period_ms:
                await self._node.retuned.wait()
                continue
            try:
                await self._page()
            except FS3Error as error:
                if error.code is not Code.DISK_FAILED:
                    raise
                self._node.disk_failed(self._target, error)

    async def _page(self) -> None:
        """The next chunks."""
        node, target = self._node, self._target
        metas, more = target.engine.dump(self._after, None, PAGE)
        total = max(1, target.engine.used_bytes())
        for meta in metas:
            if meta.version:
                await self._check(meta)
            await self._pause(max(meta.length, BYTES_MIN), total)
        await self._compare(metas)
        self._after = metas[-1].chunk if more else None
        now = node.env.monotonic()
        if not more:
            node.env.metrics.count("storage.scrub_passes")
        if not more or now >= self._saved_at + SAVE_S:
            self._saved_at = now
            target.save_scrubbed(self._after)
        if not metas:
            await self._pause(total, total)  # nothing here

    async def _check(self, meta: ChunkMeta) -> None:
        node, target = self._node, self._target
        good = await target.engine.verify(meta.chunk)
        node.env.metrics.count("storage.scrubbed_chunks")
        node.env.metrics.count("storage.scrubbed_bytes", meta.length)
        if not good and meta.chunk not in target.lost:
            node.suspect(target, meta.chunk)

    async def _pause(self, length: int, total: int) -> None:
        """Wait for this chunk's share of the period, and longer while there is much to do."""
        settings = self._node.settings
        share_s = settings.scrub_period_ms / 1000 * min(1.0, length / total)
        if settings.scrub_rate_bytes:
            share_s = max(share_s, length / settings.scrub_rate_bytes)
        with trio.move_on_after(share_s):
            await self._node.retuned.wait()
            return
        waited_s = 0.0
        while waited_s < share_s and self._busy():
            await trio.sleep(min(BUSY_WAIT_S, share_s))
            waited_s += BUSY_WAIT_S

    def _busy(self) -> bool:
        counters = self._node.env.metrics.counters
        seen, now = counters["storage.reads"] + counters["storage.updates"], self._node.env.monotonic()
        rate = (seen - self._seen) / max(BUSY_WAIT_S, now - self._seen_at)
        self._seen, self._seen_at = seen, now
        return rate > BUSY_PER_S

    async def _compare(self, local: Sequence[ChunkMeta]) -> None:
        """Look for chunks of which the successor holds something else at the same version."""
        target = self._target
        role = target.role
        successor = role.successor if role is not None else None
        if role is None or successor is None or successor.syncing or not successor.address or not local:
            return
        try:
            remote = await self._dump(self._after, len(local))
            end = min(local[-1].chunk, remote[-1].chunk if remote else local[-1].chunk)
            mine = target.engine.dump(self._after, end, PAGE)[0]
            theirs = [meta for meta in remote if meta.chunk <= end]
            for chunk in sorted({entry[0] for entry in set(content(mine)) ^ set(content(theirs))}):
                await self._look_closer(chunk)
        except FS3Error as error:
            if error.code is Code.DISK_FAILED:
                return  # the successor's
            logger.debug("target %d: records are not compared: %s", target.id, error)

    async def _look_closer(self, chunk: ChunkId) -> None:
        """With the chunk locked no update of it is between us and the successor."""
        target = self._target
        await target.locks.acquire(chunk)
        try:
            mine = target.engine.dump(_before(chunk), chunk, 1)[0]
            theirs = [meta for meta in await self._dump(_before(chunk), 1) if meta.chunk == chunk]
        finally:
            target.locks.release(chunk)
        if content(mine) == content(theirs) or any(meta.pending for meta in (*mine, *theirs)):
            return
        self._node.env.metrics.count("storage.replicas_differ")
        logger.error("chunk %s: target %d and its successor differ: %s and %s", chunk, target.id, mine, theirs)

    async def _dump(self, after: ChunkId | None, limit: int) -> tuple[ChunkMeta, ...]:
        role = self._target.role
        if role is None or role.successor is None:
            raise FS3Error(Code.NOT_SERVING, "the chain has changed")
        request = DumpRequest(role.chain, role.chain_version, role.successor.target, after, limit)
        deadline = self._node.env.monotonic() + _CALL_TIMEOUT_S
        return (await self._node.rpc.call(role.successor.address, DUMP, request, deadline=deadline)).chunks


def _before(chunk: ChunkId) -> ChunkId | None:
    """The chunk id just before this one."""
    if chunk.index:
        return ChunkId(chunk.inode, chunk.index - 1)
    return ChunkId(chunk.inode - 1, U64_MAX) if chunk.inode else None
