"""The shared KV store as simulated daemons see it: slow, refusing, cut off, and late at the worst moment."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import trio

from fs3.errors import Code, FS3Error
from fs3.kv.base import KVEngine, Txn
from fs3.kv.memory import MemoryEngine
from fs3.wire.codec import decode
from mgmtd.lease import Owner
from mgmtd.store import HEAD, OWNER

if TYPE_CHECKING:
    from tests.sim.cluster import World


def lose_power(kv: MemoryEngine, version: int, tags: tuple[bytes, ...]) -> int:
    """Forget the keys' values of these tags that were committed after a version; returns how many. Nobody is at work."""
    lost = 0
    for key, history in list(kv._history.items()):
        if key[:4] not in tags:
            continue
        kept = [entry for entry in history if entry[0] <= version]
        lost += len(history) - len(kept)
        if kept:
            kv._history[key] = kept
        else:
            del kv._history[key]
    return lost


class KVPort(KVEngine):
    """The store as one incarnation of a process sees it."""

    def __init__(self, world: World, name: str, chance: random.Random) -> None:
        self.engine = world.kv
        self.world = world
        self.name = name
        self.chance = chance
        self.unplugged = False
        self.held: trio.Event | None = None  # set while all of this process's requests are held up

    def transaction(self) -> Txn:
        return _PortTxn(self, self.engine.transaction())

    async def step(self) -> None:
        """What every request goes through."""
        if self.unplugged:
            await trio.sleep(0.5)
            raise FS3Error(Code.KV_UNAVAILABLE, "unplugged")
        if self.held is not None:
            await self.held.wait()
        slow_s = self.world.kv_slow_s.get(self.name, 0.0)
        if slow_s:
            await trio.sleep(self.chance.random() * slow_s)
        if self.chance.random() < 0.2:
            await trio.sleep(self.chance.expovariate(2000))
            if self.unplugged:
                raise FS3Error(Code.KV_UNAVAILABLE, "unplugged")

    def fails(self) -> bool:
        """Whether a commit meets an error."""
        return self.world.stormy and self.chance.random() < self.world.shape.kv_faults

    async def wait_deposed(self, epoch: int) -> None:
        """Hold up all that this process asks of the store, until another mgmtd has taken over from it."""
        world = self.world
        within_s, world.depose_within_s = world.depose_within_s, 0.0
        self.held = trio.Event()
        world.trace.note(f"fault: {self.name} is held up in a commit at epoch {epoch}")
        try:
            for _ in range(int(within_s / 0.05)):
                await trio.sleep(0.05)
                if await self._epoch() != epoch:
                    world.faults["deposed"] = world.faults.get("deposed", 0) + 1
                    break
        finally:
            self.held.set()
            self.held = None
            world.trace.note(f"fault over: {self.name} was held up in a commit")

    async def _epoch(self) -> int:
        raw = await self.engine.transaction().get(OWNER)
        return decode(Owner, raw).epoch if raw is not None else 0

    async def sync(self) -> None:
        version = self.engine._version
        await self.step()
        self.world.kv_synced = max(self.world.kv_synced, version)

    async def aclose(self) -> None:
        pass


class _PortTxn(Txn):
    def __init__(self, port: KVPort, inner: Txn) -> None:
        self._port = port
        self._inner = inner
        self._epoch = 0  # of the mgmtd lease that it has checked
        self._changes = False  # of mgmtd's state
        self.set = inner.set  # type: ignore[method-assign]
        self.clear = inner.clear  # type: ignore[method-assign]
        self.clear_range = inner.clear_range  # type: ignore[method-assign]
        self.atomic_add = inner.atomic_add  # type: ignore[method-assign]
        self.add_read_conflict_range = inner.add_read_conflict_range  # type: ignore[method-assign]
        self.add_write_conflict_range = inner.add_write_conflict_range  # type: ignore[method-assign]
        self.reset = inner.reset  # type: ignore[method-assign]

    async def get(self, key: bytes, *, snapshot: bool = False) -> bytes | None:
        await self._port.step()
        value = await self._inner.get(key, snapshot=snapshot)
        if key == OWNER and value is not None:
            self._epoch = decode(Owner, value).epoch
        elif key == HEAD:
            self._changes = True
        return value

    async def get_range(
        self, begin: bytes, end: bytes, *, limit: int = 0, reverse: bool = False, snapshot: bool = False
    ) -> list[tuple[bytes, bytes]]:
        await self._port.step()
        return await self._inner.get_range(begin, end, limit=limit, reverse=reverse, snapshot=snapshot)

    def set(self, key: bytes, value: bytes) -> None: ...
    def clear(self, key: bytes) -> None: ...
    def clear_range(self, begin: bytes, end: bytes) -> None: ...
    def atomic_add(self, key: bytes, delta: int) -> None: ...
    def add_read_conflict_range(self, begin: bytes, end: bytes) -> None: ...
    def add_write_conflict_range(self, begin: bytes, end: bytes) -> None: ...
    def reset(self) -> None: ...

    async def commit(self) -> None:
        port = self._port
        if port.world.depose_within_s and self._changes and self._epoch:
            await port.wait_deposed(self._epoch)
        await port.step()
        if port.fails():
            kind = port.chance.randrange(3)
            if kind == 0:
                raise FS3Error(Code.CONFLICT, "injected")
            if kind == 1:
                raise FS3Error(Code.COMMIT_UNKNOWN, "injected, not applied")
            await self._inner.commit()
            raise FS3Error(Code.COMMIT_UNKNOWN, "injected, applied")
        await self._inner.commit()
        await port.step()  # a crash here: it is done, and nobody was told
