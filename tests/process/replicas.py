"""What each replica of a running cluster holds, read past the clients: chains must agree, byte by byte."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import trio

from fs3.api.common import STATUS, Empty
from fs3.api.storage import (
    DUMP,
    READ,
    SUSPECT,
    ChunkMeta,
    DumpRequest,
    ReadRange,
    ReadRequest,
    SuspectRequest,
)
from fs3.checksum import piece_checksums
from fs3.cli.access import visiting
from fs3.client.mgmtd import MgmtdClient
from fs3.errors import FS3Error
from fs3.routing import Chain, RoutingInfo
from fs3.rpc.client import RpcClient
from tests.process.harness import PATIENCE

T = TypeVar("T")
CALL_TIMEOUT_S = 10.0 * PATIENCE


@dataclass(frozen=True, slots=True)
class Visit:
    """A connection to a cluster."""

    rpc: RpcClient
    routing: RoutingInfo
    deadline: float

    def address(self, target: int) -> str:
        node = self.routing.node_of(target)
        assert node is not None, f"target {target} has no node"
        return node.address


def visit(mgmtd: Sequence[str], function: Callable[[Visit], Awaitable[T]]) -> T:
    """Runs function(visit) with the cluster's present routing."""

    async def run() -> T:
        async with visiting() as (env, rpc):
            client = MgmtdClient(env, rpc, tuple(mgmtd))
            routing = await client.refresh(client.routing.version)
            return await function(Visit(rpc, routing, env.monotonic() + CALL_TIMEOUT_S))

    return trio.run(run)


def routing_of(mgmtd: Sequence[str]) -> RoutingInfo:
    async def get(visit: Visit) -> RoutingInfo:
        return visit.routing

    return visit(mgmtd, get)


def metrics_of(mgmtd: Sequence[str], node: int) -> dict[str, Any]:
    """The counters of a daemon, by its node id."""

    async def get(visit: Visit) -> dict[str, Any]:
        reply = await visit.rpc.call(visit.routing.nodes[node].address, STATUS, Empty(), deadline=visit.deadline)
        found = json.loads(reply.metrics)
        assert isinstance(found, dict)
        return found

    return visit(mgmtd, get)


def differences(mgmtd: Sequence[str]) -> list[str]:
    """Where the serving replicas of a chain do not hold the same chunks with the same bytes; one line each."""

    async def get(visit: Visit) -> list[str]:
        wrong: list[str] = []
        try:
            for chain in visit.routing.chains.values():
                wrong += await _compare(visit, chain)
        except FS3Error as error:
            wrong.append(f"they cannot be compared now: {error}")
        return wrong

    return visit(mgmtd, get)


async def _compare(visit: Visit, chain: Chain) -> list[str]:
    wrong: list[str] = []
    dumps = {target: await _dump(visit, chain, target) for target in chain.serving()}
    first, *others = dumps
    for chunk, meta in dumps[first].items():
        if meta.pending:
            wrong.append(f"chain {chain.id}: {chunk} has a pending version at target {first}")
    for other in others:
        for chunk in dumps[first].keys() | dumps[other].keys():
            one, two = _essence(dumps[first].get(chunk)), _essence(dumps[other].get(chunk))
            if one != two:
                wrong.append(f"chain {chain.id}: {chunk}: {one} at target {first}, {two} at target {other}")
    for meta in dumps[first].values():
        contents = {target: await _content(visit, chain, target, meta) for target in dumps}
        for target, content in contents.items():
            if isinstance(content, str):
                wrong.append(f"chain {chain.id}: {meta.chunk} at target {target}: {content}")
            elif content != contents[first]:
                wrong.append(f"chain {chain.id}: {meta.chunk} at target {target}: other bytes than at target {first}")
    return wrong


def _essence(meta: ChunkMeta | None) -> tuple[int, int, int, int] | None:
    return None if meta is None else (meta.version, meta.pending, meta.length, meta.checksum)


async def _dump(visit: Visit, chain: Chain, target: int) -> dict[Any, ChunkMeta]:
    found: dict[Any, ChunkMeta] = {}
    after = None
    while True:
        request = DumpRequest(chain.id, chain.version, target, after, 1000)
        reply = await visit.rpc.call(visit.address(target), DUMP, request, deadline=visit.deadline)
        found.update((meta.chunk, meta) for meta in reply.chunks)
        if not reply.more:
            return found
        after = reply.chunks[-1].chunk


async def _content(visit: Visit, chain: Chain, target: int, meta: ChunkMeta) -> bytes | str:
    """The bytes of a chunk at one replica, verified; or why they cannot be had."""
    wanted = ReadRange(chain.id, chain.version, target, meta.chunk, 0, meta.length)
    try:
        reply, payload = await visit.rpc.call_bulk(
            visit.address(target), READ, ReadRequest((wanted,)), deadline=visit.deadline
        )
    except FS3Error as error:
        return str(error)
    (result,) = reply.results
    data = bytes(payload)
    if result.code or result.length != meta.length or piece_checksums(data, 0) != result.checksums:
        # As every reader does: the daemon checks and repairs what readers complain of.
        suspect = SuspectRequest(target, (meta.chunk,))
        await visit.rpc.call(visit.address(target), SUSPECT, suspect, deadline=visit.deadline)
        return f"error {result.code}: {result.message} ({result.length} bytes of {meta.length})"
    return data
