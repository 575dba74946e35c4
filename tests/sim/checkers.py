"""What must hold at the end of a simulation."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fs3.api.storage import DUMP, READ, ChunkMeta, DumpRequest, ReadRange, ReadRequest
from fs3.checksum import piece_checksums
from fs3.ids import ChunkId
from fs3.routing import Chain
from tests.sim.cluster import SimulationError, World
from tests.sim.history import History
from tests.sim.linear import Model, Operation, check

STEPS_MAX = 400_000


def check_linearizable(history: History, model: Model) -> bool:
    """Every object's operations have an order that explains them. False: the search took too long to tell."""
    operations = history.relevant()
    check_origins(operations)
    # An operation of unknown outcome may never have happened. Those that nobody saw the effect of are left out at first:
    # what is in order without them is in order, and the search is much shorter.
    seen = {writer for op in operations if op.known and op.input[0] == "read" for writer in op.output}
    likely = [op for op in operations if op.known or (op.input[0] == "write" and op.input[3] in seen)]
    verdict = check(likely, model, steps_max=STEPS_MAX // 4)
    if not verdict.ok:
        verdict = check(operations, model, steps_max=STEPS_MAX)
    if not verdict.ok and not verdict.gave_up:
        raise SimulationError(verdict.explain())
    return verdict.ok


def check_origins(operations: Sequence[Operation]) -> None:
    """No read of cells serves what nobody had begun to write to that object by then. Found where the search gives up too."""
    begun = {(op.key, op.input[3]): op.called for op in operations if op.input[0] == "write"}
    for op in operations:
        if op.input[0] != "read" or not op.known:
            continue
        for writer in op.output:
            if writer and begun.get((op.key, writer), math.inf) > op.returned:
                raise SimulationError(
                    f"object {op.key}: the read {op.input[1:]} of client {op.client} at {op.returned:.6f} serves"
                    f" {op.output}; nobody had begun the write {writer} by then"
                )


async def check_replicas(world: World) -> int:
    """At rest all serving replicas of a chain hold the same, with nothing pending; returns how many chunks there are."""
    assert world.mgmtd is not None
    chunks = 0
    for chain in world.mgmtd.routing.chains.values():
        contents = {target: await _content(world, chain, target) for target in chain.serving()}
        reference = contents[chain.serving()[0]]
        chunks += len(reference)
        for target, content in contents.items():
            if content != reference:
                different = {chunk for chunk, _ in set(content.items()) ^ set(reference.items())}
                lines = [f"  {chunk}: {reference.get(chunk)} and {content.get(chunk)}" for chunk in sorted(different)]
                raise SimulationError(
                    f"chain {chain.id}: targets {chain.serving()[0]} and {target} differ\n" + "\n".join(lines)
                )
    return chunks


async def count_chunks(world: World) -> int:
    """How many chunks the heads hold, whatever is being done to them."""
    assert world.mgmtd is not None and world.rpc is not None and world.env is not None
    chunks = 0
    for chain in world.mgmtd.routing.chains.values():
        head = chain.serving()[0]
        node = world.mgmtd.routing.node_of(head)
        assert node is not None
        request = DumpRequest(chain.id, chain.version, head, None)
        chunks += len((await world.rpc.call(node.address, DUMP, request, deadline=world.env.monotonic() + 10)).chunks)
    return chunks


Content = dict[ChunkId, tuple[int, int, int, bytes]]


async def _content(world: World, chain: Chain, target: int) -> Content:
    """Version, length, checksum and bytes of a target's chunks."""
    assert world.mgmtd is not None and world.rpc is not None and world.env is not None
    node = world.mgmtd.routing.node_of(target)
    assert node is not None
    found: Content = {}
    after: ChunkId | None = None
    while True:
        reply = await world.rpc.call(
            node.address, DUMP, DumpRequest(chain.id, chain.version, target, after), deadline=world.env.monotonic() + 10
        )
        for meta in reply.chunks:
            if meta.pending:
                raise SimulationError(f"chunk {meta.chunk} of target {target} is still pending")
            found[meta.chunk] = (meta.version, meta.length, meta.checksum, await _bytes(world, chain, target, meta))
        if not reply.more:
            return found
        after = reply.chunks[-1].chunk


async def _bytes(world: World, chain: Chain, target: int, meta: ChunkMeta) -> bytes:
    assert world.mgmtd is not None and world.rpc is not None and world.env is not None
    node = world.mgmtd.routing.node_of(target)
    assert node is not None
    request = ReadRequest((ReadRange(chain.id, chain.version, target, meta.chunk, 0, meta.length),))
    reply, payload = await world.rpc.call_bulk(node.address, READ, request, deadline=world.env.monotonic() + 10)
    result = reply.results[0]
    if result.code or piece_checksums(payload, 0) != result.checksums or result.length != meta.length:
        raise SimulationError(f"chunk {meta.chunk} of target {target} cannot be read: {result.message or 'checksum'}")
    return bytes(payload)
