"""What every transport must do with memory that users registered; a part of the kit in fs3.testing.transport."""

from __future__ import annotations

import mmap
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio
import trio.testing

from ..api.common import Method
from ..env import Env
from ..errors import Code, FS3Error
from ..memory import Memory
from ..rpc.client import RpcClient
from ..rpc.server import Call, RpcServer
from ..transport.base import Part

if TYPE_CHECKING:
    from .transport import Subject

MIB = 1024 * 1024
SIZE = 4 * MIB


@dataclass(frozen=True, slots=True)
class Wanted:
    """`size` bytes made of `seed`. held: the handler waits until the test lets it go, whatever becomes of its caller."""

    seed: int
    size: int
    held: bool = False


READ = Method(7, "test.read", Wanted, Wanted)


def made(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


@dataclass(slots=True)
class _World:
    """A server that gives and takes bulk data, and a client of it."""

    subject: Subject
    client: RpcClient
    address: str
    env: Env
    started: trio.Event = field(default_factory=trio.Event)
    release: trio.Event = field(default_factory=trio.Event)
    ended: trio.Event = field(default_factory=trio.Event)

    async def read(self, wanted: Wanted, into: memoryview | list[memoryview], payload: tuple[Part, ...] = ()) -> None:
        deadline = self.env.monotonic() + 15
        reply, _ = await self.client.call_bulk(self.address, READ, wanted, deadline=deadline, into=into, payload=payload)
        assert reply == wanted

    async def answer(self, wanted: Wanted, call: Call) -> Wanted:
        """By the memory of the caller where it can be had, as a storage daemon does."""
        came = bytes(await call.payload())
        assert came == made(wanted.seed, len(came)), "a request's bulk data is not what was sent"
        data = made(wanted.seed, wanted.size)
        if wanted.held:
            with trio.CancelScope(shield=True):
                self.started.set()
                await self.release.wait()
        room = call.room(wanted.size)
        loan = call.lend(wanted.size) if room is None else None
        parts: list[Part] = [data]
        if room is not None:
            room[:] = data
            parts = [room]
        elif loan is not None and wanted.seed % 2 and loan.begin():
            at = 0
            for view in loan.views:
                view[:] = data[at : at + len(view)]
                at += len(view)
            loan.end()
            parts = loan.views  # type: ignore[assignment]
        call.reply_payload(parts)
        if wanted.held:
            self.ended.set()
        return wanted


@asynccontextmanager
async def _world(subject: Subject) -> AsyncIterator[_World]:
    with trio.fail_after(40):
        async with trio.open_nursery() as nursery:
            env = Env(subject.transport)
            listener = await subject.transport.listen(subject.address)
            server = RpcServer(env)
            world = _World(subject, RpcClient(env, nursery), listener.address, env)
            server.handle(READ, world.answer)
            await nursery.start(server.serve, listener)
            yield world
            world.release.set()
            nursery.cancel_scope.cancel()


@contextmanager
def _private() -> Iterator[memoryview]:
    yield memoryview(bytearray(SIZE))


@contextmanager
def _sealed() -> Iterator[memoryview]:
    with Memory(SIZE) as memory:
        yield memory.view


@contextmanager
def _unsealed() -> Iterator[memoryview]:
    """As POSIX shared memory is, which its owner may cut off at any time."""
    fd = os.memfd_create("fs3-test")
    os.ftruncate(fd, SIZE)
    try:
        yield memoryview(mmap.mmap(fd, SIZE))
    finally:
        os.close(fd)


KINDS = (_private, _sealed, _unsealed)


async def registered_memory_takes_replies(subject: Subject) -> None:
    for kind in KINDS:
        with kind() as memory:
            async with _world(subject) as world, subject.transport.register(memory):
                for seed in range(8):  # what both sides must know first may come with the first replies
                    memory[:] = bytes(SIZE)
                    size = (MIB, 40_000, 2 * MIB, 70_001)[seed // 2]
                    await world.read(Wanted(seed, size), memory[1000 : 1000 + size])
                    assert memory[1000 : 1000 + size] == made(seed, size)
                    assert not any(memory[:1000]) and not any(memory[1000 + size : 1000 + size + 100])


async def registered_memory_takes_replies_in_many_places(subject: Subject) -> None:
    for kind in KINDS:
        with kind() as memory:
            async with _world(subject) as world, subject.transport.register(memory):
                for seed in range(4):
                    memory[:] = bytes(SIZE)
                    views = [memory[at * 100_000 : at * 100_000 + 65_536 + at] for at in range(20)][:: -1 if seed % 2 else 1]
                    await world.read(Wanted(seed, 64), views[0])  # the connection is there
                    if not all(link.connection.scatters for link in world.client.links.values()):
                        return
                    size = sum([len(view) for view in views])
                    await world.read(Wanted(seed, size), views)
                    assert b"".join(views) == made(seed, size)
                    assert not any(memory[65_536:100_000]) and not any(memory[20 * 100_000 :])


async def registered_memory_gives_bulk_data(subject: Subject) -> None:
    for kind in KINDS:
        with kind() as memory:
            async with _world(subject) as world, subject.transport.register(memory):
                for seed in range(6):
                    data = made(seed, MIB)
                    memory[5000 : 5000 + MIB] = data
                    parts: list[Part] = [memory[5000:6000], memory[6000 : 6000 + 200_000], memory[206_000 : 5000 + MIB]]
                    into = memory[2 * MIB : 2 * MIB + 100_000]
                    await world.read(Wanted(seed, 100_000), into, tuple(parts))  # the server compares
                    assert into == made(seed, 100_000)


async def closing_waits_for_what_is_under_way(subject: Subject) -> None:
    for kind in KINDS:
        with kind() as memory:
            async with _world(subject) as world, trio.open_nursery() as nursery:
                registration = subject.transport.register(memory)
                for seed in range(3):
                    await world.read(Wanted(seed, MIB), memory[:MIB])
                closed = trio.Event()

                async def close(registration=registration, closed=closed) -> None:  # type: ignore[no-untyped-def]
                    await registration.close()
                    closed.set()

                nursery.start_soon(world.read, Wanted(5, MIB, True), memory[MIB : 2 * MIB])
                await world.started.wait()
                nursery.start_soon(close)
                await trio.testing.wait_all_tasks_blocked(0.01)
                assert not closed.is_set(), "closed while the server may write there"
                world.release.set()
                await closed.wait()
                assert memory[MIB : 2 * MIB] == made(5, MIB)
                await registration.close()
                await world.read(Wanted(6, MIB), memory[:MIB])  # as any other memory
                assert memory[:MIB] == made(6, MIB)


async def memory_of_calls_that_were_given_up_is_left_alone(subject: Subject) -> None:
    """The classic mistake: a caller gives up, its memory is used for other things, and then the reply is written there."""
    for kind, seed in ((_private, 10), (_sealed, 10), (_sealed, 11), (_unsealed, 11)):
        with kind() as memory:
            async with _world(subject) as world:
                registration = subject.transport.register(memory)
                for warm in range(3):
                    await world.read(Wanted(warm, MIB), memory[:MIB])
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(world.read, Wanted(seed, MIB, True), memory[MIB : 2 * MIB])
                    await world.started.wait()
                    nursery.cancel_scope.cancel()
                memory[:] = b"\xaa" * SIZE
                if seed == 11:
                    await registration.close()
                world.release.set()
                await world.ended.wait()
                try:
                    await world.read(Wanted(3, MIB), memory[:MIB])  # whatever came late has come
                except FS3Error as error:  # it took the end of the connection to get the memory back
                    assert error.code is Code.CONNECTION_LOST, error
                    await trio.testing.wait_all_tasks_blocked()  # until that is known
                    await world.read(Wanted(3, MIB), memory[:MIB])
                assert memory[:MIB] == made(3, MIB)
                assert memory[MIB:] == b"\xaa" * (SIZE - MIB), "written to after its call"
                await registration.close()


async def memory_comes_back_with_the_end_of_its_connection(subject: Subject) -> None:
    for kind in KINDS:
        with kind() as memory:
            async with _world(subject) as world:
                registration = subject.transport.register(memory)
                for seed in range(3):
                    await world.read(Wanted(seed, MIB), memory[:MIB])
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(world.read, Wanted(21, MIB, True), memory[MIB : 2 * MIB])
                    await world.started.wait()
                    for link in world.client.links.values():
                        await link.connection.aclose()
                    nursery.cancel_scope.cancel()
                memory[:] = b"\xaa" * SIZE
                await registration.close()
                world.release.set()
                await world.ended.wait()
                await trio.testing.wait_all_tasks_blocked(0.01)
                assert memory == b"\xaa" * SIZE, "written to after its connection"


async def memory_is_registered_more_than_once(subject: Subject) -> None:
    with _sealed() as memory:
        async with _world(subject) as world:
            whole, again = subject.transport.register(memory), subject.transport.register(memory)
            part = subject.transport.register(memory[MIB : 2 * MIB])
            for number, registration in enumerate((None, whole, part, again)):
                if registration is not None:
                    await registration.close()
                for seed in range(3):
                    await world.read(Wanted(seed, MIB), memory[MIB + number : 2 * MIB + number])
                    assert memory[MIB + number : 2 * MIB + number] == made(seed, MIB)


CHECKS: tuple[Callable[[Subject], Awaitable[None]], ...] = (
    registered_memory_takes_replies,
    registered_memory_takes_replies_in_many_places,
    registered_memory_gives_bulk_data,
    closing_waits_for_what_is_under_way,
    memory_of_calls_that_were_given_up_is_left_alone,
    memory_comes_back_with_the_end_of_its_connection,
    memory_is_registered_more_than_once,
)
