from __future__ import annotations

import pytest

from fs3.errors import ConfigError
from fs3.transport.memory import MemoryTransport
from fs3.transport.registry import Transports


async def test_the_scheme_picks_the_transport() -> None:
    transports = Transports({"mem": MemoryTransport()})
    listener = await transports.listen("mem://x")
    connection = await transports.connect("mem://x")
    assert (listener.address, connection.peer) == ("mem://x", "mem://x")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("quic://a:1", "no transport for scheme 'quic', known are: local, rdma, tcp"),
        ("127.0.0.1:7000", "expected scheme://host:port"),
        ("tcp://", "expected scheme://host:port"),
        ("", "expected scheme://host:port"),
    ],
)
async def test_bad_addresses_are_named(address: str, message: str) -> None:
    for use in (Transports().connect, Transports().listen):
        with pytest.raises(ConfigError, match=message):
            await use(address)
