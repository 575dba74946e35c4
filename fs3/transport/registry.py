"""From an address's scheme to the transport that serves it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from ..errors import ConfigError
from .base import Connection, Listener, Transport
from .local import LocalTransport
from .rdma_port import Device
from .rdma_transport import POOL_SIZE_MAX, RdmaTransport
from .registered import Registration
from .tcp import TcpTransport

logger = logging.getLogger("fs3.transport.registry")


class Transports(Transport):
    """Hands each address to the transport of its scheme. Raises ConfigError where there is none.

    short_circuit: go by shared memory where the daemon at an address offers that on this host. rdma_devices: names of those
    to use in turn for addresses rdma://; none for that of a connection's address, or all that work. rdma_gid: index of the
    GID; -1 chooses. rdma_pool: bytes of memory registered with each.
    """

    def __init__(
        self,
        backends: Mapping[str, Transport] | None = None,
        *,
        short_circuit: bool = True,
        rdma_devices: Sequence[str] = (),
        rdma_gid: int = -1,
        rdma_pool: int = POOL_SIZE_MAX,
    ) -> None:
        self._local = LocalTransport() if short_circuit and backends is None else None
        named = bool(rdma_devices)
        known: dict[str, Transport] = {
            "tcp": TcpTransport(),
            "local": self._local or LocalTransport(),
            "rdma": RdmaTransport(lambda: _open_devices(rdma_devices, rdma_gid), rdma_pool, named or rdma_gid >= 0, named),
        }
        self._backends: dict[str, Transport] = dict(backends if backends is not None else known)

    async def connect(self, address: str) -> Connection:
        backend = self._backend(address)
        connection = self._local.find(address) if self._local is not None else None
        if connection is not None:
            return connection
        return await backend.connect(address)

    async def listen_locally(self, address: str) -> Listener | None:
        if self._local is None:
            return None
        try:
            return self._local.listen_as(address)
        except OSError as error:
            logger.warning("%s: no shared memory for processes of this host: %s", address, error)
            return None

    async def listen(self, address: str) -> Listener:
        return await self._backend(address).listen(address)

    def attach(self, registration: Registration) -> None:
        super().attach(registration)
        for backend in {self._local, *self._backends.values()} - {None}:
            assert backend is not None
            backend.attach(registration)

    def _backend(self, address: str) -> Transport:
        scheme, separator, rest = address.partition("://")
        if not separator or not rest:
            raise ConfigError(f"bad address {address!r}: expected scheme://host:port, such as tcp://127.0.0.1:7000")
        backend = self._backends.get(scheme)
        if backend is None:
            known = ", ".join(sorted(self._backends))
            raise ConfigError(f"bad address {address!r}: no transport for scheme {scheme!r}, known are: {known}")
        return backend


def _open_devices(names: Sequence[str], gid_index: int) -> Sequence[Device]:
    from .rdma import open_devices  # with pyverbs, for those who have addresses rdma://

    return open_devices(names, gid_index)
