"""A small routing and a scripted RPC for the clients' tests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import trio

from fs3.api.packed import PackedReadRequest
from fs3.env import Env
from fs3.errors import Code, FS3Error
from fs3.ids import NodeKind
from fs3.routing import Chain, ChainTarget, LocalState, Node, PublicState, RoutingInfo, Target


def routing(
    version: int = 1, states: Sequence[PublicState] = (PublicState.SERVING,) * 3, hosts: Sequence[str] = ("a", "b", "c")
) -> RoutingInfo:
    """One chain 1, whose version is the routing's, of targets 11, 12, ... on nodes 1, 2, ... at mem://1, mem://2, ..."""
    targets = [ChainTarget(11 + i, state) for i, state in enumerate(states)]
    nodes = [Node(1 + i, NodeKind.STORAGE, f"mem://{1 + i}", host, True, 1) for i, host in enumerate(hosts)]
    return RoutingInfo(
        version,
        "test",
        {1: Chain(1, version, tuple(targets))},
        {},
        {t.target: Target(t.target, 1 + i, 1, 1, LocalState.UPTODATE, 1 << 30, 0) for i, t in enumerate(targets)},
        {node.id: node for node in nodes},
    )


class FakeMgmtd:
    def __init__(self, info: RoutingInfo) -> None:
        self.routing = info
        self._changed = trio.Event()

    def set(self, info: RoutingInfo) -> None:
        self.routing = info
        self._changed.set()
        self._changed = trio.Event()

    async def wait_change(self, version: int) -> RoutingInfo:
        while self.routing.version == version:
            await self._changed.wait()
        return self.routing


Answer = Callable[[str, Any, bytes], Awaitable[tuple[Any, bytes]]]


class FakeRpc:
    """Hands every request to `answer(address, request, payload)`, which returns the reply and its payload.

    scatters: as a connection that can put a payload into several buffers. hanging: addresses that do not answer.
    """

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.scatters = False
        self.hanging: set[str] = set()
        self.sent: list[tuple[str, Any]] = []

    async def call(self, address: str, method: Any, request: Any, *, deadline: float, payload: Any = ()) -> Any:
        reply, _ = await self.call_bulk(address, method, request, deadline=deadline, payload=payload)
        return reply

    async def call_bulk(
        self, address: str, method: Any, request: Any, *, deadline: float, payload: Any = (), into: Any = None
    ) -> Any:
        if isinstance(request, PackedReadRequest):
            raise FS3Error(Code.UNKNOWN_METHOD, "these daemons are older")
        self.sent.append((address, request))
        if address in self.hanging:
            await trio.sleep_until(deadline)
            raise FS3Error(Code.DEADLINE_EXCEEDED, f"{address} did not answer")
        reply, data = await self._answer(address, request, b"".join(bytes(p) for p in payload))
        if isinstance(into, list):
            if not self.scatters:
                return reply, memoryview(data)
            for buffer in into:
                piece, data = data[: len(buffer)], data[len(buffer) :]
                buffer[: len(piece)] = piece
            assert not data
            return reply, memoryview(b"")
        if into is not None and len(data) <= len(into):
            into[: len(data)] = data
            return reply, into[: len(data)]
        return reply, memoryview(data)


class NoTransport:
    async def connect(self, address: str) -> Any:
        raise AssertionError

    async def listen(self, address: str) -> Any:
        raise AssertionError


def make_env() -> Env:
    return Env(NoTransport())  # type: ignore[arg-type]


def fails(error: FS3Error) -> Answer:
    async def answer(address: str, request: Any, payload: bytes) -> tuple[Any, bytes]:
        raise error

    return answer
