"""A registered client of the cluster, for commands that work on files without a mount."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from ..api.meta import Attr, FileKind
from ..client.connect import connect
from ..client.file import FileClient
from ..client.paths import Paths
from ..env import Env
from ..errors import Code, FS3Error
from ..transport.registry import Transports
from .admin.common import cluster
from .admin.files import in_cluster, kind_name
from .mounts import mounts

_WORDS = {
    Code.NOT_FOUND: "there is no such file or directory in the cluster",
    Code.NOT_DIRECTORY: "a part of it is no directory",
    Code.LOOP: "too many symbolic links",
    Code.PERMISSION_DENIED: "permission denied",
    Code.IS_DIRECTORY: "this is a directory",
}


class Visitor:
    """paths: with the rights of this process."""

    def __init__(self, client: FileClient) -> None:
        self.client = client
        self.paths = Paths(client)

    def path(self, text: str) -> str:
        """The path in the cluster that a user means: one of the cluster, or below a mount of it on this machine."""
        return "/" + os.fsdecode(in_cluster(text, self.client.cluster, mounts())).lstrip("/")

    async def stat(self, text: str) -> Attr:
        """What a path stands for. Raises FS3Error, with the path in its message."""
        try:
            return await self.paths.stat(self.path(text))
        except FS3Error as error:
            raise about(text, error) from None

    async def file(self, text: str) -> Attr:
        """A regular file. Raises INVALID for anything else."""
        attr = await self.stat(text)
        if attr.kind is not FileKind.FILE:
            raise FS3Error(Code.INVALID, f"{text}: expected a file, this is a {kind_name(attr.kind)}")
        return attr


def about(text: str, error: FS3Error) -> FS3Error:
    """An error with the path that it is about."""
    return FS3Error(error.code, f"{text}: {_WORDS.get(error.code, error.message)}", retryable=error.retryable)


@asynccontextmanager
async def visitor(mgmtd: Sequence[str]) -> AsyncIterator[Visitor]:
    """A client of the cluster at these addresses. Raises CONNECT_FAILED where no mgmtd answers."""
    async with cluster(mgmtd):
        pass  # connect() would wait for as long as it takes
    async with connect(Env(Transports()), mgmtd, socket.gethostname()) as client:
        yield Visitor(client)
