"""RDMA connections without a cluster: calls that move bulk data both ways, under faults, and given up at any moment.

What the specification of 3FS's RDMA sockets checks, of both directions at once: whatever was sent arrives once, whole and
in order, nobody waits for ever, no buffer is posted twice, and no message meets a peer without a receive (the device sees to
the last two, tests/sim/nic.py). And of one-sided transfers: they move what they should, they touch what a caller has again
no more, and in the end all memory is back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import trio

from fs3.api.common import Method
from fs3.checksum import crc32c
from fs3.errors import Code, FS3Error
from fs3.rpc.client import RpcClient
from fs3.rpc.server import Call, RpcServer, ServerLimits
from tests.sim.cluster import Body, Process, Shape, SimEnv, SimulationError, World
from tests.sim.faults import Faults
from tests.sim.load import Load

SHAPES = (
    Shape(
        "wires",
        load_s=0.8,
        storages=2,
        clients=3,
        think_s=0.004,
        transport="rdma",
        workload="wires",
        faults=("slow", "slow", "cut", "partition", "stop", "crash", "crash_client"),
        fault_every_s=0.2,
        rare=False,
    ),
)
SIZES = (0, 100, 3000, 20_000, 100_000, 300_000)
PATIENCE_S = (0.002, 0.02, 0.2, 2.0, 60.0)
LIMITS = ServerLimits(requests_max=6, bytes_max=400_000, reply_timeout_ms=3000)
MARK = 0xA5


@dataclass(frozen=True, slots=True)
class EchoRequest:
    """number: unlike all others. size: of the bulk data; crc: its checksum. wanted: bytes of the reply. pause_ms: before the
    answer."""

    number: int
    size: int
    crc: int
    wanted: int
    pause_ms: int


@dataclass(frozen=True, slots=True)
class EchoReply:
    number: int
    crc: int


ECHO = Method(0xEC40, "wires.echo", EchoRequest, EchoReply)


def pattern(number: int, size: int) -> bytes:
    return (number.to_bytes(4, "big") * (size // 4 + 1))[:size]


def server_body(number: int) -> Body:
    async def body(process: Process, env: SimEnv, started: Callable[[str], None]) -> None:
        async def echo(request: EchoRequest, call: Call) -> EchoReply:
            data = await call.payload()
            if len(data) != request.size or crc32c(data) != request.crc:  # as it may be where the caller has it again
                raise FS3Error(Code.CHECKSUM, f"request {request.number} came with other data")
            if request.pause_ms:
                await trio.sleep(request.pause_ms / 1000)
            room = call.room(request.wanted)
            if room is None:
                room = memoryview(bytearray(request.wanted))
            room[:] = pattern(request.number, request.wanted)
            call.reply_payload([room])
            return EchoReply(request.number, crc32c(room))

        server = RpcServer(env, LIMITS)
        server.handle(ECHO, echo)
        listener = await env.transport.listen(_address(number))
        started(listener.address)
        await server.serve(listener)

    return body


def _address(number: int) -> str:
    return f"sim://storage{number}:7002"


class WireLoad(Load):
    """Calls of all sizes, many at once."""

    workers = 6

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.failed = 0

    async def live(self, process: Process, env: SimEnv, number: int, started: Callable[[str], None]) -> None:
        async with trio.open_nursery() as nursery:
            rpc = RpcClient(env, nursery)
            started("")

            async def operate() -> None:
                await self.call(rpc, env, number, env.random.choice(PATIENCE_S), nursery)

            await self.work(env, operate)
            nursery.cancel_scope.cancel()

    async def call(self, rpc: RpcClient, env: SimEnv, number: int, patience_s: float, nursery: trio.Nursery) -> bool:
        """One call, and whether it succeeded."""
        chance = env.random
        unique = self.unique()
        data = bytearray(pattern(unique, chance.choice(SIZES)))
        wanted = chance.choice(SIZES)
        into = memoryview(bytearray([MARK]) * wanted)
        pause_ms = chance.choice((0, 0, 1, 30, 300))
        request = EchoRequest(unique, len(data), crc32c(data), wanted, pause_ms)
        server = 1 + chance.randrange(self.world.shape.storages)
        parts = [data] if data else []
        try:
            reply, got = await rpc.call_bulk(
                _address(server), ECHO, request, deadline=env.monotonic() + patience_s, payload=parts, into=into
            )
        except FS3Error as error:
            if error.code not in (Code.CONNECTION_LOST, Code.CONNECT_FAILED, Code.DEADLINE_EXCEEDED, Code.OVERLOADED):
                raise
            self.failed += 1
            into[:] = bytes([MARK]) * wanted  # it is ours again, and so is the data
            data[:] = bytes([MARK]) * len(data)
            nursery.start_soon(self._leave_alone, unique, into, chance)
            return False
        if reply.number != unique or len(got) != wanted or got != pattern(unique, wanted):
            raise SimulationError(f"call {unique} got the answer to {reply.number}, or other data than that says")
        self.did(number, f"call {unique} of server {server}: {len(data)} there, {wanted} back")
        return True

    async def _leave_alone(self, unique: int, into: memoryview, chance: Random) -> None:
        await trio.sleep(chance.choice((0.001, 0.1, 3.0)))
        if into != bytes([MARK]) * len(into):
            raise SimulationError(f"the buffer of call {unique} was written to after that had failed")


async def wires(world: World) -> None:
    for number in range(1, world.shape.storages + 1):
        world.add(f"storage{number}", server_body(number)).start()
    load = WireLoad(world)
    load.start()
    faults = Faults(world)
    world.nursery.start_soon(faults.run)
    world.nursery.start_soon(_quit_some, world)
    await trio.sleep(world.shape.load_s)
    faults.heal()
    with trio.move_on_after(world.shape.settle_s) as scope:
        await load.finished()
    if scope.cancelled_caught:
        raise SimulationError("calls are under way for ever")
    await trio.sleep(1)  # who was told to end while it was stopped has ended, and is back
    await _all_work(world, load)
    async with trio.open_nursery() as nursery:
        for process in world.processes.values():
            process.supervised = False
            nursery.start_soon(_quit, process)


async def _quit_some(world: World) -> None:
    """Now and then a process ends, in the middle of everything."""
    chance = Random(f"{world.seed}/quit")
    for _ in range(6):
        await trio.sleep(world.shape.load_s * chance.uniform(0.05, 0.2))
        world.nursery.start_soon(_quit, chance.choice(list(world.processes.values())))


async def _quit(process: Process) -> None:
    """End a process. It closes its connections, and then nobody holds any of its memory."""
    transport, exits = process.transport, process.exits
    if transport is None or not process.alive:
        return
    process.world.trace.note(f"{process.name} is told to end")
    process.quit()
    await trio.sleep(0.5)
    fabric = process.world.fabric
    assert fabric is not None
    nic = fabric.nics.get(transport)
    if process.exits > exits and nic is not None and (nic.leases or nic.registered):
        raise SimulationError(f"{process.name} did not get back {list(nic.leases.values())}, {nic.registered}")


async def _all_work(world: World, load: WireLoad) -> None:
    """Once all is healed, no call fails but for connections that broke before: the second try has a new one."""
    env = SimEnv(world.network.host("operator"), Random(f"{world.seed}/operator"))
    async with trio.open_nursery() as nursery:
        rpc = RpcClient(env, nursery)
        for _ in range(10):
            if not any([await load.call(rpc, env, 0, 20.0, nursery) for _ in range(3)]):
                raise SimulationError("calls fail though all is healed")
        nursery.cancel_scope.cancel()


SCENARIOS = {"wires": wires}
