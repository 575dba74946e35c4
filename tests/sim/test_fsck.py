"""Damage planted in chunks: fsck finds each kind, repairs what it can, names the rest, and finds nothing the second time."""

from __future__ import annotations

import os
import random
from collections import Counter

import pytest
import trio

from fs3.api.storage import SUSPECT, WRITE, SuspectRequest, Update, UpdateKind, WriteRequest
from fs3.checksum import piece_checksums
from fs3.client.storage import StorageClient
from fs3.ids import ROOT_INODE, ChunkId, RequestTag
from fs3.layout import file_chains
from fs3.routing import Chain
from fuse.fs import FileSystem
from meta.fsck import Fault
from tests.sim.cluster import Shape, World, simulate
from tests.sim.fscked import fsck
from tests.sim.rest import janitor
from tests.sim.tree import ROOT

CHUNK = 64 * 1024
SHAPE = Shape("planted", metas=1, storages=3, replicas=3, targets=2, rare=False)
NO_TAG = RequestTag(0, 0, 0)
PAUSE_S = 0.004
INODE = 2
"""The first file's."""


class Planter:
    """A cluster at rest with a file of four chunks, and ways to spoil it."""

    def __init__(self, world: World, fs: FileSystem) -> None:
        assert world.env is not None and world.rpc is not None and world.mgmtd is not None
        self.world, self.fs = world, fs
        self.env, self.rpc, self.mgmtd = world.env, world.rpc, world.mgmtd
        self.storage = StorageClient(self.env, self.rpc, self.mgmtd, self.env.client_id())
        self.chains: tuple[int, ...] = ()

    async def prepare(self) -> None:
        opened, attr = await self.fs.create(ROOT, ROOT_INODE, b"file", 0o644, os.O_RDWR | os.O_CREAT)
        await self.fs.write(opened.handle, 0, random.Random(1).randbytes(4 * CHUNK))
        await self.fs.flush(opened.handle)
        await self.fs.release(opened.handle)
        await trio.sleep(1)
        assert attr.inode == INODE and attr.layout is not None
        self.chains = file_chains(attr.layout, self.mgmtd.routing.tables[attr.layout.table].chains)
        assert len(self.chains) > 1

    def chain(self, index: int) -> Chain:
        return self.mgmtd.routing.chains[self.chains[index % len(self.chains)]]

    async def write(self, chain: int, inode: int, index: int, length: int = 100) -> None:
        """As a client writes that knows of no file."""
        data = b"x" * length
        await self.storage.write(chain, ChunkId(inode, index), 0, data, CHUNK, deadline=self.env.monotonic() + 5)

    async def write_behind_chain(self, targets: tuple[int, ...], index: int, data: bytes, version: int) -> None:
        """What a predecessor would tell each of these targets; all but the last of the chain are bypassed."""
        chain = self.chain(index)
        for target in targets:
            kind = UpdateKind.REPLACE if data else UpdateKind.REMOVE
            update = Update(
                NO_TAG, chain.id, chain.version, target, ChunkId(INODE, index), kind, 0, len(data), CHUNK,
                piece_checksums(data, 0), version,
            )  # fmt: skip
            node = self.mgmtd.routing.node_of(target)
            assert node is not None
            deadline = self.env.monotonic() + 5
            request = WriteRequest((update,), False)
            reply = await self.rpc.call(node.address, WRITE, request, deadline=deadline, payload=(data,) if data else ())
            assert reply.results[0].code == 0, reply

    async def suspect(self, target: int, index: int) -> None:
        node = self.mgmtd.routing.node_of(target)
        assert node is not None
        request = SuspectRequest(target, (ChunkId(INODE, index),))
        await self.rpc.call(node.address, SUSPECT, request, deadline=self.env.monotonic() + 5)

    async def overwrite(self, index: int) -> None:
        """One chunk, until cancelled."""
        while True:
            await self.write(self.chain(index).id, INODE, index, 1000)
            await trio.sleep(PAUSE_S)

    async def come_and_go(self, name: bytes) -> None:
        """One file after the other, until cancelled."""
        while True:
            opened, _ = await self.fs.create(ROOT, ROOT_INODE, name, 0o644, os.O_RDWR | os.O_CREAT)
            await self.fs.write(opened.handle, 0, b"x" * 2 * CHUNK)
            await self.fs.flush(opened.handle)
            await self.fs.release(opened.handle)
            await self.fs.unlink(ROOT, ROOT_INODE, name)
            await trio.sleep(PAUSE_S)

    async def restart_meta(self) -> None:
        """So that its unused ids are given up."""
        (meta,) = self.world.of_kind("meta")
        meta.crash()
        meta.start()
        await meta.ready.wait()
        await trio.sleep(2)


async def orphans(p: Planter) -> None:
    await p.write(p.chains[0], 77, 0)
    await p.write(p.chains[0], 77, 5)
    await p.write(p.chains[1], 77, 1)
    report = await fsck(p.world, repair=True)
    assert {(each.fault, each.state) for each in report.findings} == {(Fault.ORPHAN_CHUNK, "left")}
    assert "restart fs3-meta node 51" in report.findings[0].action
    await p.restart_meta()


async def foreign(p: Planter) -> None:
    await p.write(p.chains[0], 1_000_000, 0)


async def too_foreign(p: Planter) -> None:
    await p.write(p.chains[0], 1 << 62, 0)


async def behind_end(p: Planter) -> None:
    await p.write(p.chain(9).id, INODE, 9)


async def misplaced(p: Planter) -> None:
    await p.write(p.chain(1).id, INODE, 0)


async def misplaced_alone(p: Planter) -> None:
    await p.fs.setattr(ROOT, INODE, length=20 * CHUNK)
    await p.write(p.chain(1).id, INODE, 10)


async def lacking(p: Planter) -> None:
    await p.write_behind_chain(p.chain(0).serving()[-1:], 0, b"", 2)


async def newer(p: Planter) -> None:
    await p.write_behind_chain(p.chain(0).serving()[-1:], 0, b"y" * 100, 7)


async def lost(p: Planter) -> None:
    """Bits flip on all disks, and somebody notices."""
    for platter in p.world.platters.values():
        for _ in range(300):
            platter.flip_bit()
    for index in range(4):
        for target in p.chain(index).serving():
            await p.suspect(target, index)
    await trio.sleep(2)


LEFT = (too_foreign, misplaced_alone, lost)


@pytest.mark.parametrize(
    ("plant", "fault"),
    [
        (orphans, Fault.ORPHAN_CHUNK),
        (foreign, Fault.FOREIGN_CHUNK),
        (too_foreign, Fault.FOREIGN_CHUNK),
        (behind_end, Fault.CHUNK_BEHIND_END),
        (misplaced, Fault.WRONG_CHAIN),
        (misplaced_alone, Fault.WRONG_CHAIN),
        (lacking, Fault.REPLICAS_DIFFER),
        (newer, Fault.REPLICAS_DIFFER),
        (lost, Fault.DAMAGED_CHUNK),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_damage_is_found_and_repaired(plant: object, fault: Fault) -> None:
    async def main(world: World) -> None:
        await world.start()
        async with janitor(world) as fs:
            planter = Planter(world, fs)
            await planter.prepare()
            clean = await fsck(world, repair=True)
            assert clean.exit_code() == 0 and (clean.chunks, clean.copies) == (4, 12), clean
            await plant(planter)  # type: ignore[operator]
            found = await fsck(world, repair=False)
            assert {each.fault for each in found.findings} == {fault} and found.exit_code() == 4, found
            again = await fsck(world, repair=False)
            assert Counter(again.findings) == Counter(found.findings), "looking changes nothing"
            repaired = await fsck(world, repair=True)
            last = await fsck(world, repair=True)
            if plant in LEFT:
                assert repaired.exit_code() == last.exit_code() == 4 and all(each.action for each in last.findings)
            else:
                assert repaired.exit_code() == 1, repaired
                assert last.exit_code() == 0, last
                await world.wait_serving()

    simulate(1, SHAPE, main)


def test_what_is_under_way_is_no_finding() -> None:
    """Chunks are overwritten, and files come and go, as fast as they can while fsck looks."""

    async def main(world: World) -> None:
        await world.start()
        async with janitor(world) as fs, trio.open_nursery() as tasks:
            planter = Planter(world, fs)
            await planter.prepare()
            for index in range(2):
                tasks.start_soon(planter.overwrite, index)
            for number in range(2):
                tasks.start_soon(planter.come_and_go, b"temporary%d" % number)
            found = [await fsck(world, repair=repair) for repair in (False, True) * 4]
            tasks.cancel_scope.cancel()
        assert not [report.findings for report in found if report.findings]
        assert sum([report.chunks for report in found]) > 4 * len(found)

    simulate(1, SHAPE, main)
