from __future__ import annotations

import json
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from fs3 import control
from fs3.cli.mounts import FILE_SYSTEM_TYPE, Mount
from fs3.cli.watched import WatchedMount, chosen_mount
from fs3.env import Env
from fs3.errors import ConfigError, FS3Error
from fs3.metrics import Operation
from fs3.transport.registry import Transports
from fs3.watching import AWAY_S, KEPT_MAX, Listener, figures


@asynccontextmanager
async def served() -> AsyncIterator[tuple[Env, str]]:
    """A mount's door, on a name that no mount has."""
    env = Env(Transports())
    device = f"test-{os.getpid()}-{env.client_id()}"
    async with trio.open_nursery() as nursery:
        await nursery.start(control.serve, env, device, lambda: {"mount": "/m", **figures(env)})
        yield env, device
        nursery.cancel_scope.cancel()


async def visit(device: str) -> trio.SocketStream:
    sock = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    await sock.connect(control.door(device))
    return trio.SocketStream(sock)


def operation(number: int) -> Operation:
    return Operation("fuse.read", number, "1:0", "", 7, "/x", "off=0")


async def test_descriptors_that_are_sent_are_not_taken() -> None:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.setsockopt(socket.SOL_SOCKET, 83, 0)
        except OSError:
            pytest.skip("it takes Linux 6.16 (SO_PASSRIGHTS)")
    async with served() as (_, device):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(control.door(device))
            with pytest.raises(PermissionError):
                socket.send_fds(sock, [b"{}"], [0])


async def test_figures_and_operations_go_through_the_door() -> None:
    async with served() as (env, device), await visit(device) as stream:
        env.metrics.timing("fuse.read").observe(5000)
        watched = WatchedMount("/m", stream)
        found = await watched.figures()
        assert found["mount"] == "/m" and found["timings"]["fuse.read"][0] == 5000 and found["memory_bytes"] > 1 << 20
        assert not env.metrics.listeners, "who asks for figures only costs nothing"
        assert await watched.operations() == ([], 0)
        env.metrics.tell(operation(1))
        env.metrics.tell(operation(2))
        rows, dropped = await watched.operations()
        assert [row[2] for row in rows] == [1, 2] and rows[0][1:] == ["fuse.read", 1, "1:0", "", 7, "/x", "off=0"]
        assert dropped == 0 and (await watched.operations())[0] == []
        await stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert not env.metrics.listeners


async def test_nonsense_is_answered_with_what_was_meant_and_long_lines_end_it() -> None:
    async with served() as (_, device):
        async with await visit(device) as stream:
            for line in (b"[1, 2\n", b"[" * 4000 + b"\n", b"\xff\n", b'{"ask": []}\n'):
                await stream.send_all(line)
                assert b"expected" in await stream.receive_some(4096)
            with pytest.raises(FS3Error, match="expected"):
                await WatchedMount("/m", stream)._ask("the time")
        async with await visit(device) as stream:
            await stream.send_all(b"x" * (control.LINE_MAX + 1))
            assert await stream.receive_some(10) == b""
        async with await visit(device) as stream:
            with pytest.raises(FS3Error, match="its daemon has ended"):
                await stream.send_eof()
                await WatchedMount("/m", stream).figures()


async def test_other_users_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "peer_uid", lambda sock: 4242)
    async with served() as (_, device), await visit(device) as stream:
        await stream.send_all(b'{"ask": "metrics"}\n')
        assert "only root" in json.loads(await stream.receive_some(4096))["error"]
        assert await stream.receive_some(10) == b""


async def test_only_so_many_are_answered_at_once() -> None:
    async with served() as (_, device):
        streams = [await visit(device) for _ in range(control.CONNECTIONS_MAX + 1)]
        for stream in streams[:-1]:
            await stream.send_all(b'{"ask": "nothing"}\n')
            assert b"expected" in await stream.receive_some(4096)
        assert await streams[-1].receive_some(4096) == b""
        for stream in streams:
            await stream.aclose()


async def test_a_taken_door_is_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async with served() as (env, device):
        await control.serve(env, device, dict)
        assert "cannot be had" in caplog.text


async def test_what_nobody_takes_is_counted_and_who_is_gone_is_forgotten(autojump_clock: trio.testing.MockClock) -> None:
    env = Env(Transports())
    listener = Listener(env)
    for number in range(KEPT_MAX + 3):
        env.metrics.tell(operation(number))
    rows, dropped = listener.take()
    assert rows[0][2] == 0 and dropped == 3
    await trio.sleep(AWAY_S + 1)
    env.metrics.tell(operation(1))
    assert listener.away and not env.metrics.listeners


def test_which_mount_is_meant(tmp_path: Any) -> None:
    inner = Mount(tmp_path / "a" / "b", FILE_SYSTEM_TYPE, "fs3:x", "0:2")
    outer = Mount(tmp_path / "a", FILE_SYSTEM_TYPE, "fs3:x", "0:1")
    other = Mount(tmp_path, "ext4", "/dev/vda", "8:1")
    assert chosen_mount(str(tmp_path / "a" / "b" / "c"), [other, outer, inner]) is inner
    assert chosen_mount(None, [other, outer]) is outer
    for target, known, words in (
        (None, [other], "no fs3 file system is mounted"),
        (None, [inner, outer], "name one"),
        (str(tmp_path), [other, outer], f"expected an fs3 mount.*{outer.path}"),
    ):
        with pytest.raises(ConfigError, match=words):
            chosen_mount(target, known)
