"""fs3 as a file system of fsspec: URLs fs3://HOST:PORT/PATH (of mgmtd), or fs3:///PATH of the cluster that the option
`mgmtd`, FS3_MGMTD or FS3_DATA name. What pandas, pyarrow, dask, xarray and torch read and write through.
"""

from __future__ import annotations

import datetime
import io
import os
import stat
import uuid
from collections.abc import Sequence
from typing import Any

from fsspec.spec import AbstractFileSystem

from ..api.meta import Attr, FileKind
from ..client.sync import FileSystem, shared
from ..errors import Code, FS3Error
from .cluster import addresses, split_url
from .fsspec_files import CachedFile, RawFile, ReadFile, WriteFile, os_error, os_errors

BLOCK_BYTES = 1024 * 1024
"""Of the buffers of open files, unless they are given another block_size."""
COPY_BYTES = 16 * 1024 * 1024

_TYPES = {
    FileKind.FILE: ("file", stat.S_IFREG),
    FileKind.DIRECTORY: ("directory", stat.S_IFDIR),
    FileKind.SYMLINK: ("link", stat.S_IFLNK),
    FileKind.FIFO: ("other", stat.S_IFIFO),
    FileKind.SOCKET: ("other", stat.S_IFSOCK),
    FileKind.CHARACTER_DEVICE: ("other", stat.S_IFCHR),
    FileKind.BLOCK_DEVICE: ("other", stat.S_IFBLK),
}


class FS3FileSystem(AbstractFileSystem):
    """mgmtd: addresses of the management daemons, "tcp://HOST:PORT", several with commas or in a list. auto_mkdir: make the
    folders of files that are opened for writing.

    All instances for one cluster share one client in each process; it connects at its first call, and again after a fork.
    What others did is seen at once, but for folders that they moved, whose old paths may work for a second more. Files are
    read and written by this process's user and groups. Errors are the OSErrors of a local file system. Writing is as `open`
    of the operating system has it: content is on all replicas when close returns, and on stable storage after `sync` of the
    file's `raw`. Within `with fs.transaction:` files take their names at its end.
    """

    protocol = "fs3"
    root_marker = "/"

    def __init__(self, mgmtd: str | Sequence[str] | None = None, auto_mkdir: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.auto_mkdir = auto_mkdir
        self.addresses = addresses(mgmtd)

    @property
    def client(self) -> FileSystem:
        """The one of this process: another, if that one was closed."""
        return shared(self.addresses)

    # Names

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(part) for part in path]
        return split_url(os.fspath(path))[1]

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, Any]:
        found = split_url(path)[0]
        return {"mgmtd": ",".join(found)} if found else {}

    def unstrip_protocol(self, name: str) -> str:
        """A URL that says which cluster."""
        places = [address.removeprefix("tcp://") for address in self.addresses]
        return f"fs3://{','.join(places)}{self._strip_protocol(name)}"

    @property
    def fsid(self) -> str:
        return "fs3-" + self.client.call(self._cluster)

    async def _cluster(self) -> str:
        return self.client.paths.cluster

    # What is there

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """name, size, type (file, directory, link, other), mode, uid, gid, nlink, ino, created, mtime (seconds), islink.

        A symbolic link is described by what it leads to, with its destination; one that leads nowhere is of type link, and
        so are in listings those that lead to folders."""
        path = self._strip_protocol(path)
        with os_errors(path):
            return self._described(path, self.client.stat(path, follow=False))

    def _described(self, path: str, attr: Attr, listed: bool = False) -> dict[str, Any]:
        """listed: a link to a folder is no folder, so that nobody follows it in walking a tree."""
        extra: dict[str, Any] = {"islink": attr.kind is FileKind.SYMLINK}
        if attr.kind is FileKind.SYMLINK:
            extra["destination"] = self.client.readlink(path)
            try:
                attr = self.client.stat(path)
            except FS3Error as error:
                if error.code not in (Code.NOT_FOUND, Code.NOT_DIRECTORY, Code.LOOP):
                    raise
        kind, bits = _TYPES[attr.kind]
        if listed and extra["islink"] and kind == "directory":
            kind = "link"
        return {
            "name": path,
            "size": attr.length if attr.kind is not FileKind.DIRECTORY else 0,
            "type": kind,
            "created": attr.ctime_ns / 1e9,
            "mtime": attr.mtime_ns / 1e9,
            "mode": bits | attr.mode,
            "uid": attr.uid,
            "gid": attr.gid,
            "nlink": attr.nlink,
            "ino": attr.inode,
            **extra,
        }

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        path = self._strip_protocol(path)
        with os_errors(path):
            try:
                found = self.client.scan(path)
            except FS3Error as error:
                if error.code is not Code.NOT_DIRECTORY:
                    raise
                return [self.info(path)] if detail else [path]
            folder = path.rstrip("/")
            named = [(f"{folder}/{os.fsdecode(name)}", attr) for name, attr in found]
            return (
                [self._described(name, attr, listed=True) for name, attr in named] if detail else [name for name, _ in named]
            )

    def du(self, path: str, total: bool = True, maxdepth: int | None = None, withdirs: bool = False, **options: Any) -> Any:
        """Lengths of files in bytes, summed, or by their paths."""
        found = self.find(path, maxdepth=maxdepth, withdirs=withdirs, detail=True, **options)
        sizes = {name: entry["size"] for name, entry in found.items()}
        return sum(sizes.values()) if total else sizes

    def exists(self, path: str, **_: Any) -> bool:
        """Raises where that cannot be told."""
        return self._there(path, follow=True)

    def lexists(self, path: str, **_: Any) -> bool:
        return self._there(path, follow=False)

    def _there(self, path: str, follow: bool) -> bool:
        path = self._strip_protocol(path)
        try:
            with os_errors(path):
                self.client.stat(path, follow=follow)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def isdir(self, path: str) -> bool:
        return self._is(path, "directory")

    def isfile(self, path: str) -> bool:
        return self._is(path, "file")

    def islink(self, path: str) -> bool:
        """Whether it is a symbolic link."""
        try:
            return bool(self.info(path)["islink"])
        except (FileNotFoundError, NotADirectoryError):
            return False

    def _is(self, path: str, kind: str) -> bool:
        try:
            return bool(self.info(path)["type"] == kind)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def created(self, path: str) -> datetime.datetime:
        """When the inode last changed; the time of its making is not kept."""
        return datetime.datetime.fromtimestamp(self.info(path)["created"], tz=datetime.UTC)

    def modified(self, path: str) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(self.info(path)["mtime"], tz=datetime.UTC)

    # Changes

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        path = self._strip_protocol(path)
        with os_errors(path):
            if create_parents:
                self.client.makedirs(self._parent(path))
            self.client.mkdir(path)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        path = self._strip_protocol(path)
        with os_errors(path):
            if not exist_ok and self.exists(path):
                raise FS3Error(Code.EXISTS, "it exists")
            self.client.makedirs(path)
            if not self.isdir(path):
                raise FS3Error(Code.EXISTS, "it exists, and is no folder")

    def rmdir(self, path: str) -> None:
        path = self._strip_protocol(path)
        with os_errors(path):
            self.client.rmdir(path)

    def rm_file(self, path: str) -> None:
        """Remove one file, or empty folder."""
        path = self._strip_protocol(path)
        with os_errors(path):
            if self.client.stat(path, follow=False).kind is FileKind.DIRECTORY:
                self.client.rmdir(path)
            else:
                self.client.unlink(path)

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Folders go with all that is in them, at once, however much that is; its space is given back in the background."""
        if not recursive or maxdepth is not None:
            super().rm(path, recursive=recursive, maxdepth=maxdepth)
            return
        done = ""
        names = self.expand_path(path)
        if "/" in names:
            names = self.ls("/", detail=False)
        for name in sorted(names):  # what is in a folder follows it
            if done and name.startswith(done):
                continue
            with os_errors(name):
                if self.client.stat(name, follow=False).kind is FileKind.DIRECTORY:
                    self.client.rmtree(name)
                else:
                    self.client.unlink(name)
            done = name.rstrip("/") + "/"

    def mv(self, path1: Any, path2: Any, recursive: bool = False, maxdepth: int | None = None, **options: Any) -> None:
        """A single path is renamed, whatever it holds; into path2 where that is a folder."""
        if not isinstance(path1, str) or not isinstance(path2, str) or any(mark in path1 for mark in "*?["):
            super().mv(path1, path2, recursive=recursive, maxdepth=maxdepth, **options)
            return
        source, target = self._strip_protocol(path1), self._strip_protocol(path2)
        if path2.endswith("/") or self.isdir(target):
            target = f"{target.rstrip('/')}/{source.rpartition('/')[2]}"
        with os_errors(source):
            if self.auto_mkdir or path2.endswith("/"):
                self.client.makedirs(self._parent(target))
            self.client.rename(source, target)

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        """Copies through this process."""
        source, target = self._strip_protocol(path1), self._strip_protocol(path2)
        if self.isdir(source):
            self.makedirs(target, exist_ok=True)
            return
        with RawFile(self.client, source, "rb") as reading:
            self.makedirs(self._parent(target), exist_ok=True)
            buffer = memoryview(bytearray(min(COPY_BYTES, max(1, reading.opened().length))))
            with RawFile(self.client, target, "wb") as writing:
                while count := reading.readinto(buffer):
                    writing.write(buffer[:count])

    def touch(self, path: str, truncate: bool = True, **_: Any) -> None:
        """Make a file, or set its times to now. truncate: empty it."""
        path = self._strip_protocol(path)
        self._make_folder(path)
        RawFile(self.client, path, "wb" if truncate else "ab").close()
        if not truncate:
            with os_errors(path):
                self.client.utime(path)

    def chmod(self, path: str, mode: int) -> None:
        path = self._strip_protocol(path)
        with os_errors(path):
            self.client.chmod(path, mode)

    def symlink(self, target: str, path: str) -> None:
        """target: what the link holds; a path that does not begin with a slash counts from the link's folder."""
        path = self._strip_protocol(path)
        with os_errors(path):
            self.client.symlink(target, path)

    def link(self, source: str, path: str) -> None:
        """A hard link."""
        path = self._strip_protocol(path)
        with os_errors(path):
            self.client.link(self._strip_protocol(source), path)

    # Content

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        cache_options: dict[str, Any] | None = None,
        cache_type: str | None = None,
        **_: Any,
    ) -> Any:
        """A binary file. cache_type: reading goes through this cache of fsspec instead of a plain buffer."""
        size = block_size or BLOCK_BYTES
        mode = mode.replace("b", "")
        if mode == "r" and cache_type is not None:
            return CachedFile(self, path, "rb", size, cache_type=cache_type, cache_options=cache_options)
        if mode == "r":
            return ReadFile(self, RawFile(self.client, path, mode), size)
        self._make_folder(path)
        if not autocommit and mode not in ("r+", "w", "x"):
            raise NotImplementedError(f"{path}: mode {mode!r} in a transaction; files can be written anew there")
        if "+" in mode:
            return io.BufferedRandom(RawFile(self.client, path, mode), size)
        if autocommit:
            return WriteFile(self, RawFile(self.client, path, mode), path, size, autocommit)
        if mode == "x" and self.exists(path):
            raise FileExistsError(path)
        folder, _slash, name = path.rpartition("/")
        temporary = f"{folder}/.{name[:200]}.{uuid.uuid4().hex}"
        return WriteFile(self, RawFile(self.client, temporary, "x"), path, size, autocommit, exclusive=mode == "x")

    def _make_folder(self, path: str) -> None:
        if self.auto_mkdir:
            with os_errors(path):
                self.client.makedirs(self._parent(path))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        (found,) = self.cat_ranges([path], [start], [end], on_error="raise")
        assert isinstance(found, bytes)
        return found

    def cat(self, path: Any, recursive: bool = False, on_error: str = "raise", **_: Any) -> Any:
        """The content of files, read together."""
        paths = self.expand_path(path, recursive=recursive)
        if len(paths) == 1 and not isinstance(path, list) and paths[0] == self._strip_protocol(path):
            return self.cat_file(paths[0])
        if recursive:
            paths = [name for name in paths if not self.isdir(name)]
        found = self.cat_ranges(paths, None, None, on_error="raise" if on_error == "raise" else "return")
        named = zip(paths, found, strict=True)
        return {name: data for name, data in named if isinstance(data, bytes) or on_error == "return"}

    def cat_ranges(
        self,
        paths: list[str],
        starts: Any,
        ends: Any,
        max_gap: int | None = None,
        on_error: str = "return",
        **_: Any,
    ) -> list[bytes | Exception]:
        """Ranges of files, by one read_batch. Starts and ends may be None, or negative: from the file's end. max_gap is of
        no use here: ranges share requests anyway."""
        if not isinstance(paths, list):
            raise TypeError(f"paths: expected a list, found {type(paths).__name__}")
        starts = starts if isinstance(starts, list) else [starts] * len(paths)
        ends = ends if isinstance(ends, list) else [ends] * len(paths)
        if not len(paths) == len(starts) == len(ends):
            raise ValueError(f"{len(paths)} paths, {len(starts)} starts, {len(ends)} ends")
        names = [self._strip_protocol(path) for path in paths]
        lengths: dict[str, int] = {}
        items: list[tuple[str, int, int | None]] = []
        for name, start, end in zip(names, starts, ends, strict=True):
            first, last = start or 0, end
            if first < 0 or (last or 0) < 0:
                if name not in lengths:
                    lengths[name] = self.info(name)["size"] if self.exists(name) else 0
                first, last, _step = slice(start, end).indices(lengths[name])
            items.append((name, first, None if last is None else max(0, last - first)))
        found: list[bytes | Exception] = []
        for name, data in zip(names, self.client.fetch_batch(items), strict=True):
            if isinstance(data, FS3Error):
                error = os_error(data, name)
                if on_error == "raise":
                    raise error from data
                found.append(error)
            else:
                found.append(bytes(data))
        return found

    def pipe_file(self, path: str, value: Any, mode: str = "overwrite", **_: Any) -> None:
        path = self._strip_protocol(path)
        with self.open(path, "xb" if mode == "create" else "wb") as file:
            file.write(value)

    def put_file(self, lpath: Any, rpath: str, callback: Any = None, mode: str = "overwrite", **options: Any) -> None:
        if mode == "create" and self.exists(rpath):
            raise FileExistsError(rpath)
        options |= {} if callback is None else {"callback": callback}
        super().put_file(lpath, rpath, **options)
