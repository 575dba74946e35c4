"""Bugs to plant in what is done to names and files. See canaries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import trio

import meta.idempotent
import meta.ops.create
import meta.ops.readdir
import meta.ops.session
import meta.ops.unlink
import meta.service
from fs3.api import meta as api
from fs3.api.meta import RenameFlags
from fs3.client.file import FileClient
from fs3.client.reading import ChunkRead
from fs3.ids import ChunkId
from fs3.layout import split
from meta.schema import entry_key, inode_key

Plant = tuple[Any, str, Any]


def _rename_in_two_steps() -> list[Plant]:
    """The new name comes with one transaction, the old one goes with another."""
    real = meta.idempotent.mutate

    async def mutate(ctx: Any, method: Any, operation: Any, request: Any, complete: Any) -> Any:
        if method is not api.RENAME or request.flags == RenameFlags.EXCHANGE:
            return await real(ctx, method, operation, request, complete)
        old = entry_key(request.parent, request.name)
        moved: bytes | None = None

        async def first(ctx: Any, txn: Any, request: Any) -> Any:
            nonlocal moved
            moved = await txn.get(old)
            reply = await operation(ctx, txn, request)
            if moved is not None and old != entry_key(request.new_parent, request.new_name):
                txn.set(old, moved)
            return reply

        reply = await real(ctx, method, first, request, complete)
        await trio.sleep(0.002)
        txn = ctx.engine.transaction()
        if moved is not None and await txn.get(old) == moved:
            txn.clear(old)
            await txn.commit()
        return reply

    return [(meta.service, "mutate", mutate)]


def _listing_of_two_moments() -> list[Plant]:
    real = meta.ops.readdir.readdir

    async def readdir(ctx: Any, txn: Any, request: Any) -> Any:
        first = await real(ctx, txn, api.ReaddirRequest(request.caller, request.inode, request.after, 2))
        if not first.more:
            return first
        await trio.sleep(0.002)
        after = first.entries[-1].name
        rest = await real(
            ctx, ctx.engine.transaction(), api.ReaddirRequest(request.caller, request.inode, after, request.limit)
        )
        return api.ReaddirReply(first.entries + rest.entries, rest.more, rest.parent)

    return [(meta.ops.readdir, "readdir", readdir)]


class _Careless:
    """A transaction that notices nothing of what others write, and takes its time."""

    def __init__(self, txn: Any) -> None:
        self._txn = txn

    async def get(self, key: bytes, *, snapshot: bool = False) -> Any:
        return await self._txn.get(key, snapshot=True)

    async def get_range(self, begin: bytes, end: bytes, *, limit: int = 0) -> Any:
        found = await self._txn.get_range(begin, end, limit=limit, snapshot=True)
        await trio.sleep(0.05)
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._txn, name)


def _rmdir_looks_too_early() -> list[Plant]:
    """What is made in a directory while it is removed does not stop the removal."""
    real = meta.ops.unlink.drop_directory

    async def drop_directory(txn: Any, parent: Any, inode: Any, now_ns: int) -> Any:
        careless: Any = _Careless(txn)
        return await real(careless, parent, inode, now_ns)

    return [(meta.ops.unlink, "drop_directory", drop_directory)]


def _created_twice() -> list[Plant]:
    real = meta.idempotent._replay

    def replay(method: Any, tag: Any, record: bytes) -> Any:
        return None if method in (api.CREATE, api.MKNOD) else real(method, tag, record)

    return [(meta.idempotent, "_replay", replay)]


def _unlinked_while_open() -> list[Plant]:
    async def has_session(txn: Any, inode: int) -> bool:
        return False

    return [(meta.ops.unlink, "has_session", has_session)]


def _append_given_twice() -> list[Plant]:
    """Two that append at once are given the same range."""
    real = meta.ops.session.append

    async def append(ctx: Any, txn: Any, request: Any) -> Any:
        blind: Any = _Blind(txn, inode_key(request.inode))
        return await real(ctx, blind, request)

    return [(meta.ops.session, "append", append)]


def _link_to_what_goes() -> list[Plant]:
    """A file that loses its last name gets another one meanwhile, and the collector does not know."""
    real = meta.ops.create.link

    async def link(ctx: Any, txn: Any, request: Any) -> Any:
        blind: Any = _Blind(txn, inode_key(request.inode))
        return await real(ctx, blind, request)

    return [(meta.ops.create, "link", link)]


def _zeros_for_the_removed() -> list[Plant]:
    async def read_chunks(self: FileClient, state: Any, offset: int, into: memoryview) -> None:
        reads = [
            ChunkRead(
                extent.chain,
                ChunkId(state.id, extent.index),
                extent.offset,
                into[extent.file_offset - offset : extent.file_offset - offset + extent.length],
            )
            for extent in split(state.layout, state.chains, offset, len(into))
        ]
        await self._storage.read(reads, deadline=self.env.monotonic() + self.settings.io_timeout / 1000)

    return [(FileClient, "read_chunks", read_chunks)]


class _Blind:
    """A transaction that does not notice who writes a key after it read it, which it does early."""

    def __init__(self, txn: Any, key: bytes) -> None:
        self._txn = txn
        self._key = key

    async def get(self, key: bytes, *, snapshot: bool = False) -> Any:
        value = await self._txn.get(key, snapshot=snapshot or key == self._key)
        if key == self._key:
            await trio.sleep(0.02)
        return value

    def __getattr__(self, name: str) -> Any:
        return getattr(self._txn, name)


FILE_CANARIES: dict[str, tuple[Callable[[], list[Plant]], str]] = {
    "rename-in-two-steps": (_rename_in_two_steps, "bank"),
    "listing-of-two-moments": (_listing_of_two_moments, "bank"),
    "rmdir-looks-too-early": (_rmdir_looks_too_early, "names"),
    "created-twice": (_created_twice, "names-meta"),
    "unlinked-while-open": (_unlinked_while_open, "shared"),
    "append-given-twice": (_append_given_twice, "shared"),
    "link-to-what-goes": (_link_to_what_goes, "names"),
    "zeros-for-the-removed": (_zeros_for_the_removed, "kvcache"),
}
