"""What all workloads share: clients as processes, workers that know when to stop, and the history."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from random import Random

import trio

from tests.sim.cluster import Process, SimEnv, World
from tests.sim.history import History


class Load:
    """Clients that work until `stop_at`. `kind` names their processes."""

    kind = "client"
    workers = 2

    def __init__(self, world: World) -> None:
        self.world = world
        self.history = History()
        self.chance = Random(f"{world.seed}/{self.kind}/load")
        self.think_s = world.shape.think_s or self.chance.choice((0.03, 0.1, 0.3))
        self.stop_at = 0.0
        self._active = 0
        self._ended = trio.Event()
        self._unique = 0

    def unique(self) -> int:
        """A number that no other operation has."""
        self._unique += 1
        return self._unique

    def start(self) -> None:
        self.stop_at = trio.current_time() + self.world.shape.load_s
        for number in range(1, self.world.shape.clients + 1):
            self.world.add(f"{self.kind}{number}", self._life(number)).start()

    def _life(self, number: int) -> Callable[[Process, SimEnv, Callable[[str], None]], Awaitable[None]]:
        async def body(process: Process, env: SimEnv, started: Callable[[str], None]) -> None:
            await self.live(process, env, number, started)
            process.supervised = False  # it has done its work

        return body

    async def live(self, process: Process, env: SimEnv, number: int, started: Callable[[str], None]) -> None:
        """One life of a client."""
        raise NotImplementedError

    async def work(self, env: SimEnv, operate: Callable[[], Awaitable[None]]) -> None:
        """Operate again and again, by several workers, until the time is over."""

        async def worker() -> None:
            self._active += 1
            try:
                while trio.current_time() < self.stop_at:
                    await trio.sleep(env.random.expovariate(1 / self.think_s))
                    if not self.world.begin():
                        return
                    await operate()
            finally:
                self._active -= 1
                ended, self._ended = self._ended, trio.Event()
                ended.set()

        async with trio.open_nursery() as nursery:
            for _ in range(self.workers):
                nursery.start_soon(worker)

    async def finished(self) -> None:
        """Until all clients have done their work."""
        await trio.sleep_until(self.stop_at)
        while self._active:
            await self._ended.wait()

    def did(self, number: int, what: str) -> None:
        self.world.operations += 1
        self.world.trace.note(f"{self.kind}{number} {what}")
