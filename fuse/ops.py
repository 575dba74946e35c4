"""The only module that knows pyfuse3: its calls become calls of FileSystem, FS3Error becomes an errno.

An exception that is no FS3Error is a bug of ours: it is logged with its traceback, and the program gets EIO.
"""

from __future__ import annotations

import errno
import functools
import inspect
import logging
import stat
from collections.abc import Callable, Coroutine, Sequence
from time import perf_counter_ns
from typing import Any, TypeVar, cast

import pyfuse3
import trio

from fs3.api.meta import Attr, Caller, FileKind, RenameFlags
from fs3.direct import DirectWaits
from fs3.drive import resume
from fs3.env import Env
from fs3.errors import Code, FS3Error

from . import handshake
from .callers import Callers
from .contents import Opened
from .fs import FileSystem
from .handshake import Handshake
from .loop import RequestLoopTrio, Turn
from .mount_state import OPAQUE
from .walks import LIFE_S
from .watch import Watch

logger = logging.getLogger("fs3.fuse.ops")

IDLE_TASKS = 16
"""Tasks kept waiting for requests; more are started, and end again, as requests come at once."""
TASKS_MAX = 256

_TYPES = {
    FileKind.FILE: stat.S_IFREG,
    FileKind.DIRECTORY: stat.S_IFDIR,
    FileKind.SYMLINK: stat.S_IFLNK,
    FileKind.FIFO: stat.S_IFIFO,
    FileKind.SOCKET: stat.S_IFSOCK,
    FileKind.CHARACTER_DEVICE: stat.S_IFCHR,
    FileKind.BLOCK_DEVICE: stat.S_IFBLK,
}
_KINDS = {number: kind for kind, number in _TYPES.items()}
_RENAME = {0: RenameFlags.NONE, 1: RenameFlags.NOREPLACE, 2: RenameFlags.EXCHANGE}

F = TypeVar("F", bound=Callable[..., Coroutine[Any, Any, Any]])


def _posix(method: F) -> F:
    """Turn what a handler raises into FUSEError, and time it."""
    name = method.__name__
    parameters = tuple(inspect.signature(method).parameters)

    @functools.wraps(method)
    async def handler(*arguments: Any) -> Any:
        watch: Watch = arguments[0].watch
        watch.in_flight += 1
        failed = 0
        started_ns = perf_counter_ns()
        try:
            coroutine = method(*arguments)
            try:
                trap = coroutine.send(None)
            except StopIteration as done:
                return done.value  # as most do: without waiting
            arguments[0].turn.blocked()
            return await resume(coroutine, trap)
        except FS3Error as error:
            if error.code in OPAQUE:
                logger.error("%s: %s", name, error)
            failed = error.errno
            raise pyfuse3.FUSEError(failed) from None
        except pyfuse3.FUSEError as error:
            failed = error.errno
            raise
        except Exception:
            logger.exception("%s%r failed", name, arguments[1:4])
            failed = errno.EIO
            raise pyfuse3.FUSEError(failed) from None
        finally:
            took_ns = perf_counter_ns() - started_ns
            watch.in_flight -= 1
            watch.timings[name].observe(took_ns)
            if watch.metrics.listeners:
                watch.tell(name, took_ns, failed, parameters, arguments)

    return cast(F, handler)


class Operations(pyfuse3.Operations):
    """The handlers of one mount. entry_timeout_s, attr_timeout_s: how long the kernel may trust what it was told."""

    supports_dot_lookup = True
    enable_writeback_cache = False

    def __init__(
        self, fs: FileSystem, callers: Callers, entry_timeout_s: float, attr_timeout_s: float, xattrs: bool
    ) -> None:
        super().__init__()
        self._fs = fs
        self._callers = callers
        self.entry_timeout_s = entry_timeout_s  # both may be changed at any time
        self.attr_timeout_s = attr_timeout_s
        self._xattrs = xattrs
        self.turn = Turn()
        self.watch = fs.watch
        self.enable_acl = xattrs  # which pyfuse3 asks for

    def _caller(self, ctx: pyfuse3.RequestContext) -> Caller:
        return self._callers.caller(ctx.uid, ctx.gid, ctx.pid, ctx.umask)

    def _entry(self, attr: Attr) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = attr.inode
        entry.generation = attr.generation
        entry.entry_timeout = self.entry_timeout_s
        entry.attr_timeout = 0.0 if attr.sparse else self.attr_timeout_s  # see getattr
        entry.st_mode = _TYPES[attr.kind] | attr.mode
        entry.st_nlink = attr.nlink
        entry.st_uid = attr.uid
        entry.st_gid = attr.gid
        entry.st_rdev = attr.rdev
        entry.st_size = attr.length
        entry.st_blksize = attr.layout.chunk_size if attr.layout is not None else 4096
        entry.st_blocks = (attr.length + 511) // 512
        entry.st_atime_ns = attr.atime_ns
        entry.st_mtime_ns = attr.mtime_ns
        entry.st_ctime_ns = attr.ctime_ns
        return entry

    @_posix
    async def lookup(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        life_s = min(LIFE_S, self.entry_timeout_s, self.attr_timeout_s)
        attr, age_s = await self._fs.find(self._caller(ctx), parent_inode, name, life_s)
        entry = self._entry(attr)
        if age_s:
            entry.entry_timeout -= age_s
            if entry.attr_timeout:
                entry.attr_timeout -= age_s
        return entry

    @_posix
    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for inode, lookups in inode_list:
            self._fs.forget(inode, lookups)

    @_posix
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        folder = self._fs.folder(inode, self.attr_timeout_s)
        if folder is not None:
            entry = self._entry(folder[0])
            entry.attr_timeout = folder[1]
            return entry
        attr = await self._fs.getattr(inode)
        entry = self._entry(attr)
        if attr.sparse:
            # Only here: others than stat(2) have no use for it, and the chains must be asked.
            entry.st_blocks = (await self._fs.used(attr) + 511) // 512
            entry.attr_timeout = self.attr_timeout_s
        return entry

    @_posix
    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        return self._entry(
            await self._fs.setattr(
                self._caller(ctx),
                inode,
                mode=stat.S_IMODE(attr.st_mode) if fields.update_mode else None,
                uid=attr.st_uid if fields.update_uid else None,
                gid=attr.st_gid if fields.update_gid else None,
                length=attr.st_size if fields.update_size else None,
                atime_ns=attr.st_atime_ns if fields.update_atime else None,
                mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
                handle=fh,
            )
        )

    @_posix
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        return await self._fs.readlink(inode)

    @_posix
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        kind = _KINDS[stat.S_IFMT(mode) or stat.S_IFREG]
        return self._entry(await self._fs.mknod(self._caller(ctx), parent_inode, name, kind, stat.S_IMODE(mode), rdev))

    @_posix
    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return self._entry(
            await self._fs.mknod(self._caller(ctx), parent_inode, name, FileKind.DIRECTORY, stat.S_IMODE(mode))
        )

    @_posix
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return self._entry(
            await self._fs.mknod(self._caller(ctx), parent_inode, name, FileKind.SYMLINK, 0o777, target=target)
        )

    @_posix
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return self._entry(await self._fs.link(self._caller(ctx), inode, new_parent_inode, new_name))

    @_posix
    async def unlink(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        await self._fs.unlink(self._caller(ctx), parent_inode, name)

    @_posix
    async def rmdir(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        await self._fs.rmdir(self._caller(ctx), parent_inode, name)

    @_posix
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        kind = _RENAME.get(flags)
        if kind is None:
            raise FS3Error(Code.INVALID, f"rename flags {flags}")
        await self._fs.rename(self._caller(ctx), parent_inode_old, name_old, parent_inode_new, name_new, kind)

    @_posix
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        opened = await self._fs.open(self._caller(ctx), inode, flags)
        self.watch.opened(opened.handle, ctx.pid, ctx.uid, inode)
        return _file_info(opened)

    @_posix
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        opened, attr = await self._fs.create(self._caller(ctx), parent_inode, name, stat.S_IMODE(mode), flags)
        self.watch.opened(opened.handle, ctx.pid, ctx.uid, attr.inode)
        return _file_info(opened), self._entry(attr)

    @_posix
    async def read(self, fh: int, off: int, size: int) -> memoryview:  # type: ignore[override]  # any buffer will do
        data = await self._fs.read(fh, off, size)
        self.watch.read_bytes += len(data)
        return data

    @_posix
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        size = await self._fs.write(fh, off, buf)
        self.watch.written_bytes += size
        return size

    @_posix
    async def flush(self, fh: int) -> None:
        await self._fs.flush(fh)

    @_posix
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._fs.fsync(fh)

    @_posix
    async def release(self, fh: int) -> None:
        self.watch.closed(fh)
        await self._fs.release(fh)

    @_posix
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        handle = await self._fs.opendir(self._caller(ctx), inode)
        self.watch.opened(-handle, ctx.pid, ctx.uid, inode)
        return handle

    @_posix
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        for name, attr, following in await self._fs.readdir(fh, start_id):
            if not pyfuse3.readdir_reply(token, name, self._entry(attr), following):
                break
            if name not in (b".", b".."):
                self._fs.entry_told(fh, name, attr)

    @_posix
    async def releasedir(self, fh: int) -> None:
        self.watch.closed(-fh)
        await self._fs.releasedir(fh)

    @_posix
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._fs.fsyncdir(fh)

    @_posix
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        capacity, used, files = await self._fs.statfs()
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = 4096
        data.f_blocks = capacity // 4096
        data.f_bfree = data.f_bavail = max(0, capacity - used) // 4096
        data.f_files = files + (1 << 32)
        data.f_ffree = data.f_favail = 1 << 32
        data.f_namemax = 255
        return data

    @_posix
    async def access(self, inode: int, mode: int, ctx: pyfuse3.RequestContext) -> bool:
        try:
            await self._fs.access(self._caller(ctx), inode, mode)
        except FS3Error as error:
            if error.code is Code.PERMISSION_DENIED:
                return False
            raise
        return True

    @_posix
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext) -> None:
        self._require_xattrs()
        await self._fs.setxattr(self._caller(ctx), inode, name, value)

    @_posix
    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        self._require_xattrs()
        if self._fs.is_bare(inode, name, self.attr_timeout_s):
            raise pyfuse3.FUSEError(errno.ENODATA)
        return await self._fs.getxattr(self._caller(ctx), inode, name)

    @_posix
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        self._require_xattrs()
        return await self._fs.listxattr(self._caller(ctx), inode)

    @_posix
    async def removexattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        self._require_xattrs()
        await self._fs.setxattr(self._caller(ctx), inode, name, None)

    def _require_xattrs(self) -> None:
        """Without them the kernel is told so, and never asks again."""
        if not self._xattrs:
            raise pyfuse3.FUSEError(errno.ENOSYS)


def _file_info(opened: Opened) -> pyfuse3.FileInfo:
    return pyfuse3.FileInfo(fh=opened.handle, direct_io=opened.direct_io, keep_cache=opened.keep_cache)


def mount(operations: Operations, mountpoint: str, options: set[str], env: Env) -> None:
    """Mount; requests wait until answer() runs. Raises FS3Error(CONFIG) where the kernel refuses."""
    before = handshake.devices()
    try:
        pyfuse3.init(operations, mountpoint, options)
    except RuntimeError as error:
        raise FS3Error(Code.CONFIG, f"{mountpoint}: cannot be mounted: {error}") from None
    (descriptor,) = handshake.devices() - before
    wanted = handshake.PARALLEL_DIROPS
    if operations.enable_acl:
        wanted |= handshake.DONT_MASK | handshake.HANDLE_KILLPRIV_V2
    env.direct = DirectWaits.here(descriptor)
    vars(pyfuse3)["trio"] = RequestLoopTrio(operations.turn, Handshake(descriptor, wanted), env.direct)


async def answer(operations: Operations) -> None:
    """Answer requests until somebody unmounts, or until cancelled."""
    trio.lowlevel.add_instrument(operations.turn)
    try:
        await pyfuse3.main(min_tasks=IDLE_TASKS, max_tasks=TASKS_MAX)
    finally:
        trio.lowlevel.remove_instrument(operations.turn)


async def store(inode: int, offset: int, data: memoryview) -> None:
    """Put bytes into the kernel's page cache. In a thread: the kernel waits for pages that are being read from us."""
    try:
        await trio.to_thread.run_sync(pyfuse3.notify_store, inode, offset, cast(bytes, data), abandon_on_cancel=True)
    except OSError as error:
        logger.debug("inode %d: not stored in the page cache: %s", inode, error)  # the kernel has forgotten it


def forget_attributes(inode: int) -> None:
    """Have the kernel ask again for what it knows of an inode."""
    try:
        pyfuse3.invalidate_inode(inode, attr_only=True)
    except OSError as error:
        logger.debug("inode %d: not invalidated: %s", inode, error)  # the kernel has forgotten it


async def forget_pages(inode: int) -> None:
    """Have the kernel ask again for what it knows of an inode, its content included. In a thread, as of `store`."""
    try:
        await trio.to_thread.run_sync(pyfuse3.invalidate_inode, inode)
    except OSError as error:
        logger.debug("inode %d: not invalidated: %s", inode, error)  # the kernel has forgotten it


def detach() -> None:
    """End the connection with the kernel, and the mount, should it still be there: even with files open."""
    pyfuse3.close(unmount=True)
