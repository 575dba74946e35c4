"""Whom `fs3 stats` and `fs3 profile` watch: a mount on this machine by its control door, or a daemon by RPC."""

from __future__ import annotations

import json
import os
import random
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from ..api.common import METRICS, TRACE, Empty, TraceRequest
from ..control import door, peer_uid
from ..env import Env
from ..errors import Code, ConfigError, FS3Error
from ..rpc.client import RpcClient
from .access import visiting
from .mounts import FILE_SYSTEM_TYPE, Mount, mounts

ANSWER_S = 5.0
_PIECE = 65536
_ANSWER_MAX = 64 * 1024 * 1024

Rows = Sequence[Sequence[Any]]
"""Operations, as fs3.watching has them."""


class Watched(ABC):
    """A process that is asked now and then. Raises FS3Error when it cannot be reached any more."""

    name: str
    """For people."""

    @abstractmethod
    async def figures(self) -> dict[str, Any]:
        """See fs3.watching."""

    @abstractmethod
    async def operations(self) -> tuple[Rows, int]:
        """What has ended since the last time, and how many found no room."""


class WatchedMount(Watched):
    """A mount."""

    def __init__(self, name: str, stream: trio.SocketStream) -> None:
        self.name = name
        self._stream = stream
        self._rest = bytearray()

    async def figures(self) -> dict[str, Any]:
        return await self._ask("metrics")

    async def operations(self) -> tuple[Rows, int]:
        answer = await self._ask("trace")
        return answer["operations"], answer["dropped"]

    async def _ask(self, what: str) -> dict[str, Any]:
        try:
            with trio.fail_after(ANSWER_S):
                await self._stream.send_all(json.dumps({"ask": what}).encode() + b"\n")
                line = await self._line()
        except trio.TooSlowError:
            raise FS3Error(Code.DEADLINE_EXCEEDED, f"{self.name}: no answer from its daemon") from None
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            line = b""
        if not line:
            raise FS3Error(Code.CONNECTION_LOST, f"{self.name}: its daemon has ended")
        answer = json.loads(line)
        if not isinstance(answer, dict) or "error" in answer:
            raise FS3Error(Code.NOT_PERMITTED, f"{self.name}: {answer.get('error')}")
        return answer

    async def _line(self) -> bytes:
        while (at := self._rest.find(b"\n")) < 0:
            more = await self._stream.receive_some(_PIECE)
            if not more or len(self._rest) > _ANSWER_MAX:
                return b""
            self._rest += more
        line = bytes(self._rest[:at])
        del self._rest[: at + 1]
        return line


class WatchedDaemon(Watched):
    """A daemon at an address."""

    def __init__(self, env: Env, rpc: RpcClient, address: str) -> None:
        self.name = address
        self._env = env
        self._rpc = rpc
        self._listener = random.getrandbits(62)

    async def figures(self) -> dict[str, Any]:
        reply = await self._rpc.call(self.name, METRICS, Empty(), deadline=self._env.monotonic() + ANSWER_S)
        found: dict[str, Any] = json.loads(reply.figures)
        return found

    async def operations(self) -> tuple[Rows, int]:
        request = TraceRequest(self._listener)
        reply = await self._rpc.call(self.name, TRACE, request, deadline=self._env.monotonic() + ANSWER_S)
        return json.loads(reply.operations), reply.dropped


@asynccontextmanager
async def watching(target: str | None) -> AsyncIterator[Watched]:
    """Reach what an operator means: a daemon's address, a path on a mount, or nothing for the only mount here.

    Raises FS3Error.
    """
    if target is not None and "://" in target:
        async with visiting() as (env, rpc):
            yield WatchedDaemon(env, rpc, target)
        return
    mount = chosen_mount(target, mounts())
    with trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM) as sock:
        try:
            await sock.connect(door(mount.device))
        except OSError as error:
            text = "its daemon is gone, or older than this fs3, or in another network namespace"
            raise FS3Error(Code.CONNECT_FAILED, f"{mount.path}: {text} ({error.strerror})") from None
        if peer_uid(sock) not in (0, mount.user):
            raise FS3Error(Code.NOT_PERMITTED, f"{mount.path}: somebody else's program answers for its daemon")
        yield WatchedMount(str(mount.path), trio.SocketStream(sock))


def chosen_mount(target: str | None, known: Sequence[Mount]) -> Mount:
    """Raises CONFIG where it is not clear which."""
    ours = [mount for mount in known if mount.type == FILE_SYSTEM_TYPE]
    if target is not None:
        path = Path(os.path.abspath(target))
        above = [mount for mount in ours if path.is_relative_to(mount.path)]
        if above:
            return max(above, key=lambda mount: len(mount.path.parts))
        there = f"; mounted here: {', '.join([str(mount.path) for mount in ours])}" if ours else ""
        raise ConfigError(f"{target}: expected an fs3 mount, or a daemon's address such as tcp://127.0.0.1:7001{there}")
    if len(ours) == 1:
        return ours[0]
    if not ours:
        raise ConfigError("no fs3 file system is mounted here; name a daemon, such as tcp://127.0.0.1:7001")
    raise ConfigError(f"several fs3 file systems are mounted here, name one: {', '.join([str(m.path) for m in ours])}")
