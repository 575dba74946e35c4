"""The kit of all transports, over real verbs."""

from __future__ import annotations

import pytest

from fs3.testing.transport import CHECKS, Check, Subject, connected
from fs3.transport.rdma_port import Device
from fs3.transport.rdma_roles import RdmaClient, RdmaServer
from fs3.transport.rdma_transport import RdmaTransport
from tests.conformance.test_rdma_transport import send_raw
from tests.transports import LISTEN

POOL_SIZE = 8 * 1024 * 1024


def subject(device: Device) -> Subject:
    return Subject(RdmaTransport(lambda: [device], POOL_SIZE), f"{LISTEN}:0", send_raw)


async def test_it_is_rdma(device: Device) -> None:
    async with connected(subject(device)) as (client, server, _):
        assert isinstance(client, RdmaClient) and isinstance(server, RdmaServer)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_transport(check: Check, device: Device) -> None:
    await check(subject(device))
