"""Inode ids: 64 bits, never used twice, taken from the store in blocks so that creating a file takes none from it."""

from __future__ import annotations

import trio

from fs3.env import Env
from fs3.ids import ROOT_INODE
from fs3.kv.base import KVEngine, Txn
from fs3.kv.transact import transact

from .schema import INODE_BLOCKS

BLOCK_SIZE = 4096


class InodeIds:
    """Hands out ids of this daemon's current block. What is left of it when the daemon ends is never used."""

    def __init__(self, env: Env, engine: KVEngine) -> None:
        self._env = env
        self._engine = engine
        self._next = 0
        self._end = 0
        self._lock = trio.Lock()

    def unused(self) -> tuple[int, int]:
        """The ids [begin, end) that it may still hand out."""
        return self._next, self._end

    async def take(self) -> int:
        """A fresh id."""
        if self._env.rare("meta.inode-ids.dropped"):
            self._next = self._end
        while self._next == self._end:
            async with self._lock:
                if self._next == self._end:
                    first = await transact(self._engine, _take_block, env=self._env, idempotent=True)
                    # A power failure that forgets the block must not find chunks of its files, which would be seen again
                    # in those that are given the same ids.
                    await self._engine.sync()
                    self._next, self._end = first, first + BLOCK_SIZE
        taken = self._next
        self._next += 1
        return taken


async def _take_block(txn: Txn) -> int:
    value = await txn.get(INODE_BLOCKS)
    first = int.from_bytes(value, "little") if value is not None else ROOT_INODE + 1
    txn.set(INODE_BLOCKS, (first + BLOCK_SIZE).to_bytes(8, "little"))
    return first
