"""Damaged chunks are repaired from whichever replica has them; what nobody has is refused, and stops nothing else."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from fs3.api.storage import FETCH, SUSPECT, FetchRequest, SuspectRequest, UpdateKind
from fs3.errors import Code, FS3Error
from fs3.ids import ChunkId
from tests.unit.storage.support import (
    MIB,
    OFFLINE,
    SERVING,
    SYNCING,
    Cluster,
    cluster,
    other_update,
    until,
    write_update,
)

C1 = ChunkId(5, 0)
C2 = ChunkId(5, 1)
DATA = Random(7).randbytes(200_000)


def damage(c: Cluster, number: int, share: float = 1.0) -> None:
    """Change the bytes of all chunks of one replica, or of the first part of each file."""
    for path in (c.path / f"disk{number}").rglob("data-*"):
        content = bytearray(path.read_bytes())
        end = int(len(content) * share)
        content[:end] = bytes([byte ^ 0xFF for byte in content[:end]])
        with path.open("r+b") as file:
            file.write(content)


def count(c: Cluster, number: int, name: str) -> int:
    service = c.replicas[number - 1].service
    assert service is not None
    return service.node.env.metrics.counters[f"storage.{name}"]


async def code_of_read(c: Cluster, number: int, offset: int = 10, length: int = 100, chunk: ChunkId = C1) -> Code | None:
    """What a read that the server itself has to verify is answered."""
    try:
        await c.read(chunk, offset, length, target=number)
    except FS3Error as error:
        return error.code
    return None


@pytest.mark.parametrize("victim", [1, 2, 3])
async def test_a_read_that_finds_damage_has_it_repaired(tmp_path: Path, victim: int) -> None:
    async with cluster(tmp_path, 3) as c:
        await c.write(C1, 0, DATA)
        damage(c, victim)
        assert await code_of_read(c, victim) is Code.CHECKSUM
        await until(lambda: count(c, victim, "repaired_chunks") == 1)
        for number in (1, 2, 3):
            assert await c.read(C1, 0, MIB, target=number) == DATA
        assert c.contents(C1).count(c.contents(C1)[0]) == 3
        assert count(c, victim, "damaged_chunks") == 1 and count(c, victim, "lost_chunks") == 0


async def test_a_client_tells_of_damage_that_only_it_could_see(tmp_path: Path) -> None:
    async with cluster(tmp_path, 2) as c:
        await c.write(C1, 0, DATA)
        damage(c, 2)
        await c.rpc.call(c.replicas[1].address, SUSPECT, SuspectRequest(2, (C1, C2)), deadline=c.deadline())
        await until(lambda: count(c, 2, "repaired_chunks") == 1)
        assert await c.read(C1, 0, MIB, target=2) == DATA


async def test_what_is_not_damaged_is_left_alone(tmp_path: Path) -> None:
    async with cluster(tmp_path, 2) as c:
        await c.write(C1, 0, DATA)
        await c.rpc.call(c.replicas[0].address, SUSPECT, SuspectRequest(1, (C1, C2)), deadline=c.deadline())
        target = c.replicas[0].target
        assert target is not None
        await until(lambda: not target.suspects and not target.locks.held())
        assert count(c, 1, "suspected_chunks") == 2 and count(c, 1, "damaged_chunks") == 0


@pytest.mark.parametrize("victim", [1, 2, 3])
async def test_an_update_of_a_damaged_chunk_succeeds(tmp_path: Path, victim: int) -> None:
    """The head repairs it first; another one is sent the whole chunk."""
    async with cluster(tmp_path, 3) as c:
        await c.write(C1, 0, DATA)
        damage(c, victim)
        target = c.replicas[victim - 1].target
        assert target is not None
        assert not await target.engine.verify(C1)
        await c.write(C1, 1000, b"x" * 10)
        expected = DATA[:1000] + b"x" * 10 + DATA[1010:]
        for number in (1, 2, 3):
            assert await c.read(C1, 0, MIB, target=number) == expected
        assert c.contents(C1).count(c.contents(C1)[0]) == 3


@pytest.mark.expects_error_log
async def test_what_no_replica_can_read_is_refused_until_it_is_replaced(tmp_path: Path) -> None:
    async with cluster(tmp_path, 2) as c:
        await c.write(C1, 0, DATA)
        damage(c, 1)
        damage(c, 2)
        await c.write(C2, 0, DATA)
        assert await code_of_read(c, 1) is Code.CHECKSUM
        assert await code_of_read(c, 2) is Code.CHECKSUM
        await until(lambda: count(c, 1, "lost_chunks") == 1 and count(c, 2, "lost_chunks") == 1)
        for number in (1, 2):
            assert await code_of_read(c, number) is Code.DATA_LOST
            assert await c.read(C2, 0, MIB, target=number) == DATA
        update = write_update(C1, 5, b"part", tag=c.tag())
        assert (await c.send([update], b"part"))[0].code == Code.DATA_LOST
        await c.write(C1, 0, DATA[::-1])
        for number in (1, 2):
            assert await c.read(C1, 0, MIB, target=number) == DATA[::-1]


@pytest.mark.expects_error_log
async def test_a_lost_chunk_does_not_stop_a_recovery(tmp_path: Path) -> None:
    async with cluster(tmp_path, 2) as c:
        await c.write(C1, 0, b"older" * 1000)
        c.chain((1, SERVING), (2, OFFLINE))
        await c.write(C1, 0, DATA)
        damage(c, 1)
        await c.write(C2, 0, DATA)
        c.chain((1, SERVING), (2, SYNCING))
        filled = c.replicas[1].target
        assert filled is not None
        await until(lambda: filled.synced_version == c.version)
        c.chain((1, SERVING), (2, SERVING))
        assert await c.read(C2, 0, MIB, target=2) == DATA
        assert filled.engine.damaged() == [C1]  # and not its older content
        assert await code_of_read(c, 2) in (Code.CHECKSUM, Code.DATA_LOST)
        assert count(c, 1, "lost_chunks") == 1
        c.chain((2, SERVING), (1, OFFLINE))
        await c.write(C1, 0, DATA)
        assert await c.read(C1, 0, MIB, target=2) == DATA


async def test_a_damaged_source_is_repaired_from_the_target_that_it_fills(tmp_path: Path) -> None:
    async with cluster(tmp_path, 2) as c:
        await c.write(C1, 0, DATA)
        c.chain((1, SERVING), (2, OFFLINE))
        await c.write(C2, 0, DATA)
        damage(c, 1, 0.5)  # the slot that was written first
        source, filled = c.replicas[0].target, c.replicas[1].target
        assert source is not None and filled is not None
        assert not await source.engine.verify(C1)
        c.chain((1, SERVING), (2, SYNCING))
        await until(lambda: filled.synced_version == c.version and not source.engine.damaged())
        assert await c.read(C1, 0, MIB, target=1) == DATA


async def test_a_pending_update_that_cannot_be_read_is_taken_from_the_successor(tmp_path: Path) -> None:
    async with cluster(tmp_path, 2) as c:
        await c.write(C1, 0, b"before")
        update = write_update(C1, 0, DATA, tag=c.tag(), version=2, target=2)
        head, tail = c.replicas[0].target, c.replicas[1].target
        assert head is not None and tail is not None
        await head.engine.put(update, 2, 1, memoryview(DATA), commit=False, remember=False)
        assert (await c.send([update], DATA, to=2, from_client=False))[0].version == 2
        damage(c, 1)
        head.orphaned.set()
        await until(lambda: not head.engine.pending())
        assert await c.read(C1, 0, MIB, target=1) == DATA
        assert c.contents(C1)[0] == c.contents(C1)[1]


async def test_a_pending_update_that_nobody_can_read_is_dropped_everywhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with cluster(tmp_path, 3) as c:
        await c.write(C1, 0, b"before")
        update = write_update(C1, 0, DATA, tag=c.tag(), version=2)
        targets = [replica.target for replica in c.replicas]
        for target in targets[:2]:  # it did not get to the tail
            assert target is not None
            await target.engine.put(update, 2, 1, memoryview(DATA), commit=False, remember=False)
        damage_pending(c, 1)
        damage_pending(c, 2)
        head = targets[0]
        assert head is not None
        with caplog.at_level(logging.WARNING):
            head.orphaned.set()
            await until(lambda: not any(target is None or target.engine.pending() for target in targets))
        assert "dropped a pending update" in caplog.text
        for number in (1, 2, 3):
            assert await c.read(C1, 0, MIB, target=number) == b"before"
        assert c.contents(C1).count(c.contents(C1)[0]) == 3


def damage_pending(c: Cluster, number: int) -> None:
    """Change what DATA's pending version holds, and not the small one before it."""
    for path in (c.path / f"disk{number}").rglob("data-18-*"):
        with path.open("r+b") as file:
            file.write(bytes(1000))


async def test_a_fetch_gives_the_asked_version_only(tmp_path: Path) -> None:
    async with cluster(tmp_path, 1) as c:
        result = await c.write(C1, 0, DATA)
        request = FetchRequest(1, C1, 1, len(DATA), result.checksum)

        async def fetch(request: FetchRequest) -> bytes | None:
            address = c.replicas[0].address
            reply, data = await c.rpc.call_bulk(address, FETCH, request, deadline=c.deadline())
            return bytes(data) if reply.found else None

        assert await fetch(request) == DATA
        for other in (
            replace(request, version=2),
            replace(request, checksum=1),
            replace(request, length=5),
            replace(request, chunk=C2),
        ):
            assert await fetch(other) is None
        with pytest.raises(FS3Error, match="UNKNOWN_TARGET"):
            await fetch(replace(request, target=9))


async def test_a_hole_is_punched_on_all_replicas(tmp_path: Path) -> None:
    async with cluster(tmp_path, 3) as c:
        await c.write(C1, 0, DATA)
        update = replace(other_update(C1, UpdateKind.PUNCH, 100_000, tag=c.tag()), offset=50_000)
        done = await c.send([update])
        assert (done[0].code, done[0].version, done[0].chunk_length) == (0, 2, len(DATA))
        assert await c.send([update]) == done
        for number in (1, 2, 3):
            assert await c.read(C1, 0, MIB, target=number) == DATA[:50_000] + bytes(100_000) + DATA[150_000:]
        nothing = replace(other_update(C2, UpdateKind.PUNCH, 100, tag=c.tag(1)), offset=5)
        assert (await c.send([nothing]))[0].code == 0
        assert c.contents(C2) == [None] * 3
