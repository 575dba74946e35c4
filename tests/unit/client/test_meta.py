"""The metadata client against scripted daemons."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import trio

from fs3.api.common import Empty
from fs3.api.meta import SETXATTR, STATFS, SetxattrRequest, StatfsReply
from fs3.client.meta import MetaClient
from fs3.errors import Code, FS3Error
from fs3.ids import NodeKind, RequestTag
from fs3.routing import RoutingInfo
from tests.unit.client.cluster import FakeMgmtd, FakeRpc, make_env, routing


def metas(version: int = 1, alive: tuple[bool, ...] = (True, True)) -> RoutingInfo:
    base = routing(version)
    nodes = {
        i + 1: replace(base.nodes[1], id=i + 1, kind=NodeKind.META, address=f"mem://{i + 1}", alive=up)
        for i, up in enumerate(alive)
    }
    return RoutingInfo(version, "test", {}, {}, {}, nodes)


class Metas:
    def __init__(self) -> None:
        self.down: set[str] = set()
        self.error: FS3Error | None = None
        self.rpc = FakeRpc(self.answer)
        self.mgmtd = FakeMgmtd(metas())
        self.client = MetaClient(make_env(), self.rpc, self.mgmtd, 70)

    async def answer(self, address: str, request: Any, payload: bytes) -> tuple[Any, bytes]:
        if address in self.down:
            raise FS3Error(Code.CONNECTION_LOST, "killed")
        if self.error is not None:
            raise self.error
        return (StatfsReply(3) if isinstance(request, Empty) else Empty()), b""

    def addresses(self) -> list[str]:
        return [address for address, _ in self.rpc.sent]


def request(tag: RequestTag) -> SetxattrRequest:
    from fs3.api.meta import Caller

    return SetxattrRequest(tag, Caller(0, 0, (0,)), 1, b"user.x", b"")


async def test_calls_stick_to_one_daemon(autojump_clock: trio.abc.Clock) -> None:
    cluster = Metas()
    for _ in range(3):
        assert (await cluster.client.call(STATFS, Empty())).files == 3
    assert len(set(cluster.addresses())) == 1


async def test_another_daemon_takes_over_with_the_same_tag(autojump_clock: trio.abc.Clock) -> None:
    cluster = Metas()
    await cluster.client.change(SETXATTR, request)
    first = cluster.addresses()[0]
    cluster.down.add(first)
    await cluster.client.change(SETXATTR, request)
    (_, a), (_, b), (address, c) = cluster.rpc.sent
    assert a.tag.sequence == 1
    assert b.tag == c.tag == replace(a.tag, sequence=2)
    await cluster.client.change(SETXATTR, request)
    assert cluster.addresses()[-1] == address != first


async def test_it_waits_until_a_daemon_lives(autojump_clock: trio.abc.Clock) -> None:
    cluster = Metas()
    cluster.mgmtd.set(metas(2, (False, False)))
    async with trio.open_nursery() as nursery:

        async def start() -> None:
            await trio.sleep(5)
            cluster.mgmtd.set(metas(3, (False, True)))

        nursery.start_soon(start)
        await cluster.client.call(STATFS, Empty())
    assert cluster.addresses() == ["mem://2"]


async def test_what_meta_refuses_is_raised_and_the_channel_kept(autojump_clock: trio.abc.Clock) -> None:
    cluster = Metas()
    cluster.error = FS3Error(Code.EXISTS)
    with pytest.raises(FS3Error) as caught:
        await cluster.client.change(SETXATTR, request)
    assert caught.value.code is Code.EXISTS
    cluster.error = None
    await cluster.client.change(SETXATTR, request)
    assert cluster.rpc.sent[-1][1].tag.channel == 1


async def test_past_the_deadline_it_gives_up_and_drops_the_channel(autojump_clock: trio.abc.Clock) -> None:
    cluster = Metas()
    cluster.down = {"mem://1", "mem://2"}
    start = trio.current_time()
    with pytest.raises(FS3Error, match="killed") as caught:
        await cluster.client.change(SETXATTR, request, deadline=start + 3)
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    assert trio.current_time() - start < 3.1
    cluster.down.clear()
    await cluster.client.change(SETXATTR, request)
    assert cluster.rpc.sent[-1][1].tag.channel == 2
