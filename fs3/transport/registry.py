"""From an address's scheme to the transport that serves it."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import ConfigError
from .base import Connection, Listener, Transport
from .tcp import TcpTransport


class Transports(Transport):
    """Hands each address to the transport of its scheme. Raises ConfigError where there is none."""

    def __init__(self, backends: Mapping[str, Transport] | None = None) -> None:
        self._backends: dict[str, Transport] = dict(backends) if backends is not None else {"tcp": TcpTransport()}

    async def connect(self, address: str) -> Connection:
        return await self._backend(address).connect(address)

    async def listen(self, address: str) -> Listener:
        return await self._backend(address).listen(address)

    def _backend(self, address: str) -> Transport:
        scheme, separator, rest = address.partition("://")
        if not separator or not rest:
            raise ConfigError(f"bad address {address!r}: expected scheme://host:port, such as tcp://127.0.0.1:7000")
        backend = self._backends.get(scheme)
        if backend is None:
            known = ", ".join(sorted(self._backends))
            raise ConfigError(f"bad address {address!r}: no transport for scheme {scheme!r}, known are: {known}")
        return backend
