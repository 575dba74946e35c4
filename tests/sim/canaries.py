"""Bugs to plant, each of which a few seeds must find: if they do not, the simulator does not see what it should.

Planted by replacing functions while a simulation runs, so that the product has no switches for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import fs3.client.lease
import meta.idempotent
import storage.chunk_engine
import storage.forward
import storage.local
import storage.read
import storage.recovery
import storage.targets
import storage.update
from fs3.api.storage import WRITE, WriteRequest
from fs3.checksum import piece_checksums
from fs3.errors import Code, FS3Error
from fs3.ids import ChunkId
from storage.channels import Admission, Channels
from storage.engine import ReadData
from storage.replica import Decision
from tests.sim.canaries_files import FILE_CANARIES
from tests.sim.canaries_media import MEDIA_CANARIES
from tests.sim.canaries_office import OFFICE_CANARIES
from tests.sim.canaries_operators import OPERATOR_CANARIES
from tests.sim.canaries_rdma import RDMA_CANARIES
from tests.sim.disk import Platter

Plant = tuple[Any, str, Any]


def _commit_before_forward() -> list[Plant]:
    async def put(node: Any, target: Any, role: Any, item: Any, decision: Decision) -> bool:
        update = item.update
        successor = role.successor
        chain_version = update.commit_chain_version or role.chain_version
        remember = update.tag.client != 0 and not item.stale
        made = await target.engine.put(update, decision.version, chain_version, item.data, commit=True, remember=remember)
        if successor is not None:
            onward = replace(update, chain_version=role.chain_version, target=successor.target, version=decision.version)
            request = WriteRequest((onward,), False)
            try:
                await node.rpc.call(
                    successor.address, WRITE, request, deadline=node.env.monotonic() + 1, payload=(item.data,)
                )
            except FS3Error:
                node.env.metrics.count("canary.forward_failed")
        item.result = made.result()
        storage.update._finish(node, target, item)
        return False

    return [(storage.update, "_put", put)]


def _no_chain_version_check() -> list[Plant]:
    """Nobody compares versions, on which a receiver may even lead the chain. Leases fence too, so they must not hold."""

    def role(self: storage.targets.TargetMap, chain: int, chain_version: int, target: int) -> storage.targets.Role:
        found = self.roles.get(target)
        if found is None or found.chain != chain:
            raise FS3Error(Code.UNKNOWN_TARGET, f"target {target} of chain {chain} is not here")
        return found

    def for_update(self: Any, chain: int, chain_version: int, target: int, from_client: bool) -> storage.targets.Role:
        return role(self, chain, chain_version, target)

    real = storage.update._admit

    def admit(node: Any, target: Any, role: Any, item: Any, from_client: bool) -> bool:
        item.update = replace(item.update, chain_version=role.chain_version)
        return real(node, target, role, item, from_client)

    targets = storage.targets.TargetMap
    fences = [(targets, "role", role), (targets, "for_update", for_update), (storage.update, "_admit", admit)]
    return [*fences, *_lease_not_checked()]


def _replay_not_recognised() -> list[Plant]:
    real = Channels.admit

    def admit(self: Channels, tag: Any, now: float) -> tuple[Admission, Any]:
        real(self, tag, now)
        return Admission.NEW, None

    def confirm(self: Channels, tag: Any) -> tuple[Admission, Any]:
        return Admission.NEW, None

    return [(Channels, "admit", admit), (Channels, "confirm", confirm)]


def _read_of_pending() -> list[Plant]:
    engine = storage.chunk_engine.ChunkEngine
    real, real_now = engine.read_into, engine.read_now

    def pending(self: Any, chunk: ChunkId) -> Any:
        record = self.get(chunk)
        return record.pending if record is not None and record.pending and not record.pending.removed else None

    def read_now(self: Any, chunk: ChunkId, offset: int, into: memoryview) -> ReadData | None:
        return real_now(self, chunk, offset, into) if pending(self, chunk) is None else None

    async def read_into(self: Any, chunk: ChunkId, offset: int, into: memoryview) -> ReadData:
        version = pending(self, chunk)
        if version is None:
            return await real(self, chunk, offset, into)
        data = (await self.read_whole(chunk, pending=True))[offset : offset + len(into)]
        into[: len(data)] = data
        return ReadData(into[: len(data)], piece_checksums(data, offset), version.length, version.number)

    return [
        (storage.read, "readable", lambda chunk: True),
        (engine, "read_now", read_now),
        (engine, "read_into", read_into),
    ]


def _lease_not_checked() -> list[Plant]:
    lease = fs3.client.lease.Lease
    real = lease._heartbeat

    async def heartbeat(self: Any, give_up_at: float) -> None:
        while True:
            try:
                await real(self, self._env.monotonic() + 1.0)
                return
            except FS3Error as error:
                if "no heartbeat" not in str(error):
                    raise

    return [(lease, "_heartbeat", heartbeat), (lease, "holds", lambda self: True)]


def _no_successor_check() -> list[Plant]:
    """The head takes its own word for that of the whole chain."""

    real = storage.forward.forward

    async def forward(node: Any, target: Any, items: list[Any], deadline: float) -> None:
        try:
            await real(node, target, items, min(deadline, node.env.monotonic() + 0.05))
        except FS3Error:
            node.env.metrics.count("canary.forward_failed")

    return [(storage.update, "forward", forward)]


def _meta_replay_not_recognised() -> list[Plant]:
    return [(meta.idempotent, "_replay", lambda method, tag, record: None)]


def _fsync_that_does_not() -> list[Plant]:
    return [(Platter, "fsync_lies", True)]


def _resync_skips_newer() -> list[Plant]:
    """A returning target is taken for complete without being compared."""
    return [(storage.recovery, "plan", lambda local, remote: iter(()))]


CANARIES: dict[str, tuple[Callable[[], list[Plant]], str]] = {
    "commit-before-forward": (_commit_before_forward, "hot"),
    "no-chain-version-check": (_no_chain_version_check, "fence"),
    "replay-not-recognised": (_replay_not_recognised, "again"),
    "read-of-pending": (_read_of_pending, "sprint"),
    "lease-not-checked": (_lease_not_checked, "apart"),
    "acknowledge-without-successor": (_no_successor_check, "hot"),
    "meta-replay-not-recognised": (_meta_replay_not_recognised, "files-meta"),
    "resync-compares-nothing": (_resync_skips_newer, "crash"),
    "fsync-that-does-not": (_fsync_that_does_not, "fsync"),
    **FILE_CANARIES,
    **MEDIA_CANARIES,
    **OPERATOR_CANARIES,
    **OFFICE_CANARIES,
    **RDMA_CANARIES,
}
"""Name -> what to replace, and the shape whose seeds find it soonest."""


@contextmanager
def planted(name: str) -> Iterator[None]:
    """While this lasts, the bug of this name is in the code; none for ""."""
    if not name:
        yield
        return
    plants = CANARIES[name][0]()
    saved = [(owner, attribute, getattr(owner, attribute)) for owner, attribute, _ in plants]
    for owner, attribute, value in plants:
        setattr(owner, attribute, value)
    try:
        yield
    finally:
        for owner, attribute, value in saved:
            setattr(owner, attribute, value)
