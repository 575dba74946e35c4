"""RDMA over a device made of lists passes the kit of all transports."""

from __future__ import annotations

import pytest
import trio

from fs3.testing.transport import CHECKS, Check, Subject
from fs3.transport import rdma_roles
from fs3.transport.rdma_transport import RdmaTransport
from fs3.transport.tcp import split_address
from tests.unit.transport.listed_rdma import ListedDevice


async def send_raw(address: str, data: bytes) -> None:
    stream = await trio.open_tcp_stream(*split_address(address.replace("rdma://", "tcp://")))
    async with stream:
        try:
            await stream.send_all(data)
        except trio.BrokenResourceError:
            pass


def listed() -> Subject:
    device = ListedDevice()
    return Subject(RdmaTransport(lambda: [device], 8 * 1024 * 1024), "rdma://127.0.0.1:0", send_raw)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the server does not give back is soon taken by force."""
    monkeypatch.setattr(rdma_roles, "WITHDRAW_S", 0.05)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_transport(check: Check) -> None:
    await check(listed())
