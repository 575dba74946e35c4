"""The control door of a mount: a socket of this machine, by which `fs3 stats` and `fs3 profile` ask its daemon.

It has no place in the file system, so nothing is left of it when the daemon is killed: its name is made of the number
that the kernel gives the mount. Who asks sends one JSON object a line, `{"ask": "metrics"}` or `{"ask": "trace"}`, and
gets one back. Both sides make sure of each other by their user ids: a daemon answers its own user and root.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import trio

from .env import Env
from .watching import Listener

logger = logging.getLogger("fs3.control")

LINE_MAX = 4096
"""Bytes of a question."""
CONNECTIONS_MAX = 16
STRANGERS_MAX = 4
"""Connections of users who may not ask."""
ANSWER_S = 10.0
"""In which an answer must have been taken."""
_CREDENTIALS = struct.Struct("3i")
_SO_PASSRIGHTS = 83


def door(device: str) -> str:
    """The address of the door of a mount. device: the mount's `major:minor`."""
    return f"\0fs3-mount-{device}"


def peer_uid(sock: socket.socket | trio.socket.SocketType) -> int:
    """Who is at the other end."""
    uid: int = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[1]
    return uid


def refuse_descriptors(sock: socket.socket | trio.socket.SocketType) -> None:
    """Have the kernel refuse descriptors that somebody sends to this Unix socket, or to one that it accepts. Else we would
    close them, and so wait as long as that takes: minutes, with a TCP connection that lingers. It takes Linux 6.16."""
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)


async def serve(
    env: Env,
    device: str,
    figures: Callable[[], dict[str, Any]],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer at the door of the mount with this number until cancelled. figures: what `metrics` answers. A door that cannot
    be opened is missed by nobody but tools: one line in the log."""
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            refuse_descriptors(sock)
            await sock.bind(door(device))
            sock.listen(CONNECTIONS_MAX)
        except OSError as error:
            logger.warning("`fs3 stats` will not reach this mount: its control socket cannot be had: %s", error.strerror)
            task_status.started()
            return
        task_status.started()
        limits = {True: trio.CapacityLimiter(CONNECTIONS_MAX), False: trio.CapacityLimiter(STRANGERS_MAX)}
        async with trio.open_nursery() as nursery:
            while True:
                try:
                    peer, _ = await sock.accept()
                except OSError as error:
                    logger.info("control socket: %s", error.strerror)
                    await trio.sleep(1.0)
                    continue
                nursery.start_soon(_visit, env, peer, figures, limits)


async def _visit(
    env: Env, peer: trio.socket.SocketType, figures: Callable[[], dict[str, Any]], limits: dict[bool, trio.CapacityLimiter]
) -> None:
    """limits: for those who may ask, and for others, who must not keep those out."""
    with peer:
        try:
            allowed = peer_uid(peer) in (0, os.geteuid())
            async with _held(limits[allowed]):
                if allowed:
                    await _answer(env, trio.SocketStream(peer), figures)
                else:
                    await _refuse(trio.SocketStream(peer))
        except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
            logger.debug("control socket: %s", error)
        except Exception:
            logger.exception("control socket")  # a bug, of which the mount must not die


@asynccontextmanager
async def _held(limit: trio.CapacityLimiter) -> AsyncIterator[None]:
    """Raises WouldBlock where there is no room."""
    limit.acquire_nowait()
    try:
        yield
    finally:
        limit.release()


async def _answer(env: Env, stream: trio.SocketStream, figures: Callable[[], dict[str, Any]]) -> None:
    listener: Listener | None = None
    rest = b""
    try:
        while True:
            while b"\n" not in rest:
                more = await stream.receive_some(LINE_MAX)
                rest += more
                if not more or len(rest) > LINE_MAX:
                    return
            line, _, rest = rest.partition(b"\n")
            asked = _asked(line)
            if asked == "metrics":
                await _send(stream, figures())
            elif asked == "trace":
                listener = listener or Listener(env)
                rows, dropped = listener.take()
                await _send(stream, {"operations": rows, "dropped": dropped})
            else:
                await _send(stream, {"error": 'expected {"ask": "metrics"} or {"ask": "trace"}'})
    finally:
        if listener is not None:
            listener.close()


async def _refuse(stream: trio.SocketStream) -> None:
    """Answer one question, whatever it is."""
    with trio.move_on_after(ANSWER_S):
        await stream.receive_some(LINE_MAX)
        await _send(stream, {"error": f"only root and uid {os.geteuid()}, who mounted it, may ask this mount"})


def _asked(line: bytes) -> Any:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found.get("ask") if isinstance(found, dict) else None


async def _send(stream: trio.SocketStream, answer: dict[str, Any]) -> None:
    with trio.move_on_after(ANSWER_S) as scope:
        await stream.send_all(json.dumps(answer).encode() + b"\n")
    if scope.cancelled_caught:
        raise trio.BrokenResourceError("the answer was not taken")
