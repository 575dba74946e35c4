"""`fs3 admin checksum PATH`: the CRC32C of a file as each replica has it, and whether they are the same."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field

import click
from rich.console import RenderableType

from ...api.meta import Attr
from ...api.storage import READ, ReadRange, ReadRequest
from ...api.storage_admin import LIST_CHUNKS, ListChunksRequest
from ...checksum import combine, crc32c, of_zeros, piece_checksums
from ...client.each import each
from ...daemon import EXIT_ERROR, EXIT_OK
from ...errors import Code, FS3Error
from ...ids import U64_MAX, ChunkId
from ...routing import Chain
from .common import Admin, Cluster, command, rows_table
from .files import Files
from .rows import Row

CHAINS_AT_ONCE = 8
CALL_S = 30.0
ATTEMPTS_MAX = 4
DIFFERENCES_MAX = 100
"""Chunks that differ, shown."""


@dataclass(frozen=True, slots=True)
class Copy:
    """A chunk at one target. crc: of its content, -1 where that could not be read. problem: what is wrong with it."""

    version: int
    length: int
    crc: int
    problem: str = ""


@dataclass(slots=True)
class Replicas:
    """What the serving targets of one chain have of a file: target -> chunk index -> copy. Head first."""

    chain: int
    targets: dict[int, dict[int, Copy]] = field(default_factory=dict)


@click.group()
def _top() -> None:
    """Holds the command until it joins `fs3 admin`."""


@command(_top, "checksum")
@click.argument("path", metavar="PATH")
@click.option("--read", "reads", is_flag=True, help="Read every replica from its disk, instead of its stored checksums.")
def checksum(go: Admin, path: str, reads: bool) -> None:
    """Show the CRC32C of a file, made of each replica by itself, and the chunks in which replicas differ.

    Exit code: 0 where all replicas are the same, else 1.
    """
    found = go.visit(lambda cluster: gather(cluster, path, reads))
    go.show(found, lambda: view(found))
    sys.exit(EXIT_OK if found["same"] else EXIT_ERROR)


async def gather(cluster: Cluster, path: str, reads: bool) -> Row:
    """All that --json prints. A file that is being written is looked at again, a few times."""
    files = Files(cluster)
    for attempt in range(ATTEMPTS_MAX):
        attr = await files.file(path)
        seen = await _all_replicas(cluster, files.chains(attr), attr, reads)
        row = report(path, attr, files.chains(attr), seen, reads)
        if row["same"] or attempt + 1 == ATTEMPTS_MAX or not _moved(await files.file(path), attr):
            break
    return row


def _moved(now: Attr, before: Attr) -> bool:
    return (now.length, now.data_version) != (before.length, before.data_version)


async def _all_replicas(cluster: Cluster, chains: Iterable[int], attr: Attr, reads: bool) -> dict[int, Replicas]:
    found: dict[int, Replicas] = {}

    async def one(number: int) -> None:
        for attempt in range(ATTEMPTS_MAX):
            try:
                found[number] = await _replicas(cluster, number, attr, reads)
                if attempt + 1 == ATTEMPTS_MAX or not list(differing(found[number])):
                    return
            except FS3Error as error:
                if attempt + 1 == ATTEMPTS_MAX or not error.retryable:
                    raise FS3Error(error.code, f"chain {number}: {error}") from None
            await cluster.mgmtd.refresh(cluster.routing.version, timeout_ms=300)

    await each(chains, one, CHAINS_AT_ONCE)
    return found


async def _replicas(cluster: Cluster, number: int, attr: Attr, reads: bool) -> Replicas:
    chain = cluster.routing.chains.get(number)
    if chain is None or not chain.serving():
        raise FS3Error(Code.CHAIN_UNAVAILABLE, "no target serves")
    found = Replicas(number)
    for target in chain.serving():
        found.targets[target] = await _copies(cluster, chain, target, attr, reads)
    return found


async def _copies(cluster: Cluster, chain: Chain, target: int, attr: Attr, reads: bool) -> dict[int, Copy]:
    """The chunks of a file at one target, those behind its end left out."""
    assert attr.layout is not None
    node = cluster.routing.node_of(target)
    if node is None:
        raise FS3Error(Code.NO_ROUTING, f"nobody knows where target {target} is")
    size = attr.layout.chunk_size
    copies: dict[int, Copy] = {}
    after, until = ChunkId(attr.inode - 1, U64_MAX), ChunkId(attr.inode, U64_MAX)
    more = True
    while more:
        request = ListChunksRequest(target, after, until, contents=True)
        reply = await cluster.ask(node, LIST_CHUNKS, request, CALL_S)
        for meta, crc in zip(reply.chunks, reply.crcs, strict=True):
            after = meta.chunk
            room = min(size, attr.length - meta.chunk.index * size)
            if not meta.version or room <= 0:
                continue
            copy = Copy(meta.version, meta.length, crc, "damaged" if meta.damaged else "")
            if reads or meta.length > room:
                copy = await _read(cluster, chain, target, node.address, meta.chunk, min(room, meta.length), meta.version)
            copies[meta.chunk.index] = copy
        more = reply.more
    return copies


async def _read(
    cluster: Cluster, chain: Chain, target: int, address: str, chunk: ChunkId, length: int, version: int
) -> Copy:
    wanted = ReadRange(chain.id, chain.version, target, chunk, 0, length)
    deadline = cluster.env.monotonic() + CALL_S
    reply, data = await cluster.rpc.call_bulk(address, READ, ReadRequest((wanted,)), deadline=deadline)
    result = reply.results[0]
    if result.code:
        error = FS3Error(Code(result.code) if result.code in Code._value2member_map_ else Code.INTERNAL, result.message)
        if error.code in (Code.CHAIN_VERSION, Code.CHUNK_PENDING, Code.NOT_SERVING):
            raise error  # look again
        return Copy(version, 0, -1, str(error))
    if piece_checksums(data, 0) != result.checksums:
        return Copy(result.version, result.length, -1, "its bytes do not match their checksums")
    return Copy(result.version, result.length, crc32c(data))


def differing(found: Replicas) -> Iterable[int]:
    """The chunks of a chain that not all of its targets have alike."""
    lists = list(found.targets.values())
    for index in sorted(set().union(*lists)):
        copies = [copies.get(index) for copies in lists]
        if any(copy is None or copy.problem for copy in copies) or len(set(copies)) > 1:
            yield index


def whole_crc(length: int, size: int, chains: tuple[int, ...], copies: list[dict[int, Copy]]) -> int | None:
    """The CRC32C of a file of `length` bytes in chunks of `size`, given the chunks of each of its chains; None where one
    cannot be read. What is absent is zeros."""
    crc, at = 0, 0
    indexes = sorted({index for each in copies for index in each})
    for index in indexes:
        copy = copies[index % len(chains)].get(index)
        if copy is None or index * size >= length:
            continue
        if copy.crc < 0 or copy.problem:
            return None
        gap = index * size - at
        crc = combine(combine(crc, of_zeros(gap), gap), copy.crc, copy.length)
        at = index * size + copy.length
    return combine(crc, of_zeros(length - at), length - at)


def report(path: str, attr: Attr, chains: tuple[int, ...], seen: dict[int, Replicas], reads: bool) -> Row:
    """What was found, for --json. replicas: one for each place in the chains; a shorter chain counts with its last."""
    assert attr.layout is not None
    count = max([len(replicas.targets) for replicas in seen.values()])
    rows = []
    for place in range(count):
        targets = [list(seen[chain].targets)[min(place, len(seen[chain].targets) - 1)] for chain in chains]
        copies = [seen[chain].targets[target] for chain, target in zip(chains, targets, strict=True)]
        crc = whole_crc(attr.length, attr.layout.chunk_size, chains, copies)
        rows.append({"replica": place + 1, "crc32c": None if crc is None else f"{crc:08x}", "targets": sorted(set(targets))})
    differences = [
        {
            "chunk": index,
            "chain": number,
            "target": target,
            "version": copy.version if copy is not None else 0,
            "length": copy.length if copy is not None else 0,
            "crc32c": f"{copy.crc:08x}" if copy is not None and copy.crc >= 0 else None,
            "problem": copy.problem if copy is not None else "absent",
        }
        for number, replicas in sorted(seen.items())
        for index in differing(replicas)
        for target, copy in [(target, copies.get(index)) for target, copies in replicas.targets.items()]
    ]
    same = not differences
    return {
        "path": path,
        "inode": attr.inode,
        "length": attr.length,
        "read": reads,
        "same": same,
        "crc32c": rows[0]["crc32c"] if same else None,
        "replicas": rows,
        "differences": differences,
    }


def view(found: Row) -> list[RenderableType]:
    if found["same"]:
        count = len(found["replicas"])
        how = "read from each" if found["read"] else "by their stored checksums"
        alike = "of its one replica" if count == 1 else f"the same in all {count} replicas"
        return [f"{found['crc32c']}  {found['path']}  ({found['length']} bytes, {alike}, {how})"]
    shown = found["differences"][:DIFFERENCES_MAX]
    parts: list[RenderableType] = [
        f"{found['path']}: replicas differ",
        rows_table(found["replicas"], "replica crc32c targets"),
        "",
        rows_table(shown, "chunk chain target version length crc32c problem"),
    ]
    if len(shown) < len(found["differences"]):
        parts.append(f"... and {len(found['differences']) - len(shown)} more; --json has all")
    return parts


commands = tuple(_top.commands.values())
