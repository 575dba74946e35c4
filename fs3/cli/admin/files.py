"""Files of the cluster, by path and without a mount: for operators, who have all rights, unless told otherwise."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from ...api.meta import GETATTR, LOOKUP, READLINK, Attr, Caller, FileKind, GetattrRequest, LookupRequest, ReadlinkRequest
from ...client.meta import MetaClient
from ...errors import Code, ConfigError, FS3Error
from ...ids import ROOT_INODE, NodeKind
from ...layout import file_chains
from ..mounts import FILE_SYSTEM_TYPE, Mount, mounts
from .common import Cluster

SYMLINKS_MAX = 40
META_TIMEOUT_S = 10.0

_OPERATOR = Caller(0, 0, (0,))
_WORDS = {
    Code.NOT_FOUND: "there is no such file or directory in the cluster",
    Code.NOT_DIRECTORY: "a part of it is no directory",
    Code.LOOP: "too many symbolic links",
    Code.NAME_TOO_LONG: "a name is too long",
    Code.PERMISSION_DENIED: "permission denied",
}


class Files:
    """What a cluster's metadata service says of files. Raises CONNECT_FAILED where there is none."""

    def __init__(self, cluster: Cluster, caller: Caller = _OPERATOR) -> None:
        """caller: whose rights count on the way to a file."""
        self._cluster = cluster
        self._caller = caller
        cluster.living(NodeKind.META)
        self.meta = MetaClient(cluster.env, cluster.rpc, cluster.mgmtd, cluster.env.client_id())

    @property
    def deadline(self) -> float:
        """For one call from now on."""
        return self._cluster.env.monotonic() + META_TIMEOUT_S

    async def find(self, text: str, *, follow: bool = True) -> Attr:
        """What a path stands for: one of the cluster, or of a mount of it on this machine. Raises FS3Error, with the path in
        its message."""
        path = in_cluster(text, self._cluster.routing.cluster, mounts())
        try:
            return await self._walk(_parts(path), follow)
        except FS3Error as error:
            raise _about(text, error) from None

    async def find_name(self, text: str) -> tuple[int, bytes, Attr]:
        """The directory that a path's last part is in, that part, and what it stands for, a symbolic link too. Raises as
        find(), and INVALID where the path has no last name, as that of the root."""
        parts = _parts(in_cluster(text, self._cluster.routing.cluster, mounts()))
        if not parts or parts[-1] == b"..":
            raise FS3Error(Code.INVALID, f"{text}: expected the path of something in the cluster that has a name")
        try:
            parent = (await self._walk(parts[:-1], True)).inode
            return parent, parts[-1], await self._lookup(parent, parts[-1])
        except FS3Error as error:
            raise _about(text, error) from None

    async def file(self, text: str) -> Attr:
        """A regular file. Raises INVALID for anything else."""
        attr = await self.find(text)
        if attr.kind is not FileKind.FILE:
            raise FS3Error(Code.INVALID, f"{text}: expected a file, this is a {kind_name(attr.kind)}")
        return attr

    def chains(self, attr: Attr) -> tuple[int, ...]:
        """The chains of a file: chunk i lies on the i-th of them, modulo their number. Raises NO_ROUTING."""
        layout = attr.layout
        assert layout is not None
        table = self._cluster.routing.tables.get(layout.table)
        found = table.chains_at(layout.table_version) if table is not None else None
        if not found:
            what = f"version {layout.table_version} of chain table {layout.table}"
            raise FS3Error(Code.NO_ROUTING, f"inode {attr.inode}: {what} does not exist; see `fs3 admin fsck`")
        return file_chains(layout, found)

    async def _walk(self, parts: list[bytes], follow: bool) -> Attr:
        attr = await self._getattr(ROOT_INODE)
        left = parts[::-1]
        links = 0
        while left:
            name, above = left.pop(), attr.inode
            attr = await self._lookup(above, name)
            if attr.kind is FileKind.SYMLINK and (left or follow):
                links += 1
                if links > SYMLINKS_MAX:
                    raise FS3Error(Code.LOOP)
                target = (await self.meta.call(READLINK, ReadlinkRequest(attr.inode), deadline=self.deadline)).target
                left.extend(_parts(target)[::-1])
                attr = await self._getattr(ROOT_INODE if target.startswith(b"/") else above)
        return attr

    async def _lookup(self, parent: int, name: bytes) -> Attr:
        request = LookupRequest(self._caller, parent, name)
        return (await self.meta.call(LOOKUP, request, deadline=self.deadline)).attr

    async def _getattr(self, inode: int) -> Attr:
        return (await self.meta.call(GETATTR, GetattrRequest(inode), deadline=self.deadline)).attr


def _about(text: str, error: FS3Error) -> FS3Error:
    """An error with the path that it is about."""
    return FS3Error(error.code, f"{text}: {_WORDS.get(error.code, error)}", retryable=error.retryable)


def in_cluster(text: str, cluster: str, known: Iterable[Mount]) -> bytes:
    """The path in the cluster that an operator means: below a mount of it on this machine, else as it stands."""
    path = Path(os.path.abspath(text))
    below = [
        mount.path
        for mount in known
        if mount.type == FILE_SYSTEM_TYPE and mount.source == f"fs3:{cluster}" and path.is_relative_to(mount.path)
    ]
    if below:
        return os.fsencode(path.relative_to(max(below, key=lambda mount: len(mount.parts))))
    if not text.startswith("/"):
        raise ConfigError(
            f"{text}: expected a path of the cluster, such as /a/b, or one below a mount of it on this machine"
        )
    return os.fsencode(text)


def kind_name(kind: FileKind) -> str:
    return kind.name.lower().replace("_", " ")


def mode_text(attr: Attr) -> str:
    """As ls shows it: -rw-r--r--."""
    kinds = {
        FileKind.FILE: stat.S_IFREG,
        FileKind.DIRECTORY: stat.S_IFDIR,
        FileKind.SYMLINK: stat.S_IFLNK,
        FileKind.FIFO: stat.S_IFIFO,
        FileKind.SOCKET: stat.S_IFSOCK,
        FileKind.CHARACTER_DEVICE: stat.S_IFCHR,
        FileKind.BLOCK_DEVICE: stat.S_IFBLK,
    }
    return stat.filemode(kinds[attr.kind] | attr.mode)


def _parts(path: bytes) -> list[bytes]:
    return [part for part in path.split(b"/") if part not in (b"", b".")]
