"""The shared KV store as simulated daemons see it: slow, refusing, cut off, and late at the worst moment."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import trio

from fs3.errors import Code, FS3Error
from fs3.kv.base import KVEngine, Txn
from fs3.kv.memory import MemoryEngine
from mgmtd.store import HEAD
from tests.sim.office import cut_off, in_flight, stopped_in_commit, wait_until_deposed

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
        self.life = f"{name}.{world.processes[name].lives}"
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
        if self.name in self.world.kv_cut:
            await cut_off(self.world.kv_cut[self.name])
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

    def committed(self, epoch: int) -> None:
        """A transaction has been committed that began at this epoch."""
        if self.name.startswith("mgmtd"):
            try:
                self.world.office.committed(self.life, epoch)
            except Exception as error:
                self.world.fail(error)

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
        self._epoch = port.world.office.epoch  # of the mgmtd lease, as it is stored now
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
        if key == HEAD:
            self._changes = True
        return await self._inner.get(key, snapshot=snapshot)

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
        if self._changes and await self._goes_wrong():
            return
        await port.step()
        if port.fails():
            kind = port.chance.randrange(3)
            if kind == 0:
                raise FS3Error(Code.CONFLICT, "injected")
            if kind == 1:
                raise FS3Error(Code.COMMIT_UNKNOWN, "injected, not applied")
            await self.apply()
            raise FS3Error(Code.COMMIT_UNKNOWN, "injected, applied")
        await self.apply()
        await port.step()  # a crash here: it is done, and nobody was told

    async def apply(self) -> None:
        await self._inner.commit()
        self._port.committed(self._epoch)

    async def _goes_wrong(self) -> bool:
        """Whether a fault of the plan has met this change of mgmtd's state, which is through then."""
        port, world = self._port, self._port.world
        within_s, world.depose_within_s = world.depose_within_s, 0.0
        if within_s:
            await in_flight(world, self.apply, lambda: wait_until_deposed(port, within_s))
            return True
        stop_s, world.stop_in_commit_s = world.stop_in_commit_s, 0.0
        if stop_s:
            await stopped_in_commit(port, self.apply, stop_s)
            return True
        return False
