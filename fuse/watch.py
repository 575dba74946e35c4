"""What a mount counts of its operations, and how it describes a single one to those who listen."""

from __future__ import annotations

import errno
import logging
from typing import Any

from fs3.ids import ROOT_INODE
from fs3.metrics import Histogram, Metrics, Operation

from .handles import InodeTable

logger = logging.getLogger("fs3.fuse.watch")

PATH_DEPTH_MAX = 64
_NAME_MAX = 80
"""Characters of a name or value in the description of an operation."""

_INODES = ("inode", "parent_inode", "parent_inode_old")
"""The parameters that say what an operation is about: the first of them that it has."""
_NAMES = ("name", "name_old")

Opener = tuple[str, int]
"""`pid:uid` of who opened a handle, and its inode."""


class _Timings(dict[str, Histogram]):
    """Histograms by the names of operations."""

    def __init__(self, metrics: Metrics) -> None:
        super().__init__()
        self._metrics = metrics

    def __missing__(self, name: str) -> Histogram:
        found = self[name] = self._metrics.timing(f"fuse.{name}")
        return found


class Watch:
    """Follows the operations of one mount. in_flight: those that have begun and not ended. read_bytes, written_bytes: by
    programs, as far as the kernel had to ask."""

    def __init__(self, metrics: Metrics, inodes: InodeTable) -> None:
        self.metrics = metrics
        self.in_flight = 0
        self.read_bytes = 0
        self.written_bytes = 0
        self.timings = _Timings(metrics)
        self._inodes = inodes
        metrics.sources.append(self._values)
        # The kernel tells who it is only when something is opened. Directories by the negative of their handles, since those
        # are counted by themselves.
        self._openers: dict[int, Opener] = {}
        self._closing: dict[int, Opener] = {}

    def _values(self) -> dict[str, float]:
        self.metrics.counters["fuse.read_bytes"] = self.read_bytes
        self.metrics.counters["fuse.written_bytes"] = self.written_bytes
        return {
            "fuse.in_flight": self.in_flight,
            "fuse.open_handles": len(self._openers),
            "fuse.known_inodes": len(self._inodes),
        }

    def opened(self, handle: int, pid: int, uid: int, inode: int) -> None:
        self._openers[handle] = (f"{pid}:{uid}", inode)

    def closed(self, handle: int) -> None:
        opener = self._openers.pop(handle, None)
        if opener is not None and self.metrics.listeners:
            self._closing[handle] = opener  # until this operation has been described

    def tell(self, name: str, took_ns: int, error: int, parameters: tuple[str, ...], arguments: tuple[Any, ...]) -> None:
        """Describe an operation to those who listen. arguments: of its handler, parameters: their names."""
        try:
            told = self._described(name, took_ns, error, parameters, arguments)
        except Exception:
            logger.exception("%s could not be described", name)  # a bug, which must not reach the program
            return
        self.metrics.tell(told)

    def _described(
        self, name: str, took_ns: int, error: int, parameters: tuple[str, ...], arguments: tuple[Any, ...]
    ) -> Operation:
        given = dict(zip(parameters, arguments, strict=False))
        caller, inode = "", 0
        handle = given.pop("fh", None)
        if handle is not None:
            key = -handle if name.endswith("dir") else handle
            closing = self._closing.pop(key, None)
            caller, inode = closing if closing is not None else self._openers.get(key, ("", 0))
        ctx = given.pop("ctx", None)
        if ctx is not None:
            caller = f"{ctx.pid}:{ctx.uid}"
        for parameter in _INODES:
            if parameter in given:
                inode = given.pop(parameter)
                break
        path = path_of(self._inodes, inode) if inode else ""
        in_directory = any(parameter.startswith("parent") for parameter in parameters)
        for parameter in _NAMES:
            if parameter in given and in_directory:
                path = f"{path.rstrip('/')}/{_text(given.pop(parameter))}"
        words = " ".join([word for key, value in given.items() if (word := _word(key, value))])
        code = errno.errorcode.get(error, str(error)) if error else ""
        return Operation(f"fuse.{name}", took_ns, caller, code, inode, path, words)


def path_of(inodes: InodeTable, inode: int) -> str:
    """The path of an inode in the mount, by the names that the kernel knows: one of them, where there are several.
    Begins with #INODE where they do not lead to the root."""
    parts: list[str] = []
    for _ in range(PATH_DEPTH_MAX):
        if inode == ROOT_INODE:
            return "/" + "/".join(reversed(parts))
        known = inodes.get(inode)
        if known is None or not known.names:
            break
        inode, name = known.names[-1]
        parts.append(_text(name))
    return "/".join([f"#{inode}", *reversed(parts)])


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


def _word(key: str, value: Any) -> str:
    """An argument in words; nothing for what would tell nobody anything."""
    if isinstance(value, bool):
        return key if value else ""
    if isinstance(value, int):
        return f"{key}={value}"
    if key == "buf":
        return f"size={len(value)}"
    if isinstance(value, bytes):
        return f"{key}={_text(value[:_NAME_MAX])}"
    return f"{len(value)} inodes" if key == "inode_list" else ""
