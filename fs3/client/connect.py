"""From addresses of mgmtd to a FileClient that is registered, and stays so."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

import trio

from ..api.mgmtd import RegisterReply, RegisterRequest
from ..env import Env
from ..errors import Code, FS3Error
from ..ids import NodeKind
from ..rpc.client import RpcClient
from ..settings import ClientSettings
from .file import FileClient
from .lease import Lease
from .meta import MetaClient
from .mgmtd import MgmtdClient
from .settings import CentralSettings
from .storage import StorageClient

logger = logging.getLogger("fs3.client.connect")


class Identity(Protocol):
    """Remembers a client's registration beyond its process."""

    def last(self) -> tuple[int, int]:
        """Node id and incarnation of the process before, which is gone; zeros for none."""

    def save(self, node: int, incarnation: int) -> None: ...


@asynccontextmanager
async def connect(
    env: Env,
    addresses: Sequence[str],
    host: str,
    identity: Identity | None = None,
    own: ClientSettings | None = None,
) -> AsyncIterator[FileClient]:
    """A client of the cluster whose mgmtd daemons are at `addresses`; waits for one of them, for as long as it takes.

    host: this machine's name. identity: of a client that is started again after a crash. own: the configuration of a process
    that is a client and nothing else, so that also its log follows what mgmtd has set for clients. Leaving the context
    unregisters the client (but when cancelled: then its lease runs out); close all handles before.
    """
    try:
        async with trio.open_nursery() as nursery:
            client_id = env.client_id()
            rpc = RpcClient(env, nursery)
            mgmtd = MgmtdClient(env, rpc, addresses)
            await nursery.start(mgmtd.run)
            central = CentralSettings(env, "client", own or ClientSettings(), own_log=own is not None)
            registration = Registration(env, mgmtd, host, central, identity)
            await nursery.start(registration.run)
            meta = MetaClient(env, rpc, mgmtd, client_id)
            storage = StorageClient(env, rpc, mgmtd, client_id, host)
            client = FileClient(env, meta, storage, mgmtd, registration.node)
            client.locks.sure_until = registration.sure_until

            async def renewed() -> None:
                async with trio.open_nursery() as both:
                    both.start_soon(client.reopen_sessions)
                    both.start_soon(client.locks.verify)

            registration.renewed = renewed
            await client.use_settings(central.settings)
            central.apply = client.use_settings
            nursery.start_soon(client.run_reports)
            nursery.start_soon(client.releases.run)
            nursery.start_soon(client.holds.run)
            try:
                yield client
            finally:
                if trio.current_effective_deadline() > -math.inf:  # else the connections are being cancelled as well
                    await client.releases.tell()
                    await registration.end()
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise _only(group) from None  # what the body raised, as it raised it


async def _nothing() -> None:
    pass


class Registration:
    """This client's registration with mgmtd.

    A client that was taken for dead need not stop: chain versions fence its writes. It registers again as the same node,
    and makes the sessions anew that meta may have ended meanwhile.
    """

    def __init__(
        self,
        env: Env,
        mgmtd: MgmtdClient,
        host: str,
        central: CentralSettings[ClientSettings],
        identity: Identity | None = None,
    ) -> None:
        self.node = 0
        self.renewed = _nothing
        self._env = env
        self._mgmtd = mgmtd
        self._host = host
        self._central = central
        self._lease: Lease | None = None
        self._sure_until = 0.0  # of the leases before the trusted one
        self._trusted: Lease | None = None  # under which all is known to be as it was
        self._identity = identity
        self._predecessor = identity.last() if identity is not None else (0, 0)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Stay registered until cancelled. Started once registered for the first time."""
        started = False
        while True:
            try:
                async with trio.open_nursery() as nursery:
                    self._sure_until, self._trusted = self.sure_until(), None
                    self._lease = self._new_lease()
                    reply: RegisterReply = await nursery.start(self._lease.run)
                    self.node = reply.node
                    nursery.start_soon(self._central.follow, self._mgmtd, self._lease)
                    if self._identity is not None:
                        self._identity.save(reply.node, self._lease.incarnation)
                    if started:
                        logger.warning("registered again as node %d", reply.node)
                        await self.renewed()
                    else:
                        started = True
                        task_status.started()
                    self._trusted = self._lease
            except* FS3Error as group:
                error = _only(group)
                if not isinstance(error, FS3Error) or error.code is not Code.STALE_INCARNATION:
                    raise error from None
                logger.warning("registration lost: %s", error)

    def sure_until(self) -> float:
        """Until when (env.monotonic()) nobody takes what this client has at meta, if no more heartbeat is answered. Under a
        new registration that is said only when it was found out what was taken before it."""
        return self._sure_until if self._trusted is None else max(self._sure_until, self._trusted.ends_at)

    async def end(self) -> None:
        """Tell mgmtd that this client stops."""
        if self._lease is not None:
            await self._lease.unregister()

    def _new_lease(self) -> Lease:
        incarnation = self._env.client_id()
        return Lease(
            self._env,
            self._mgmtd,
            lambda: RegisterRequest(
                self.node,
                NodeKind.CLIENT,
                "",
                self._host,
                incarnation,
                predecessor=self._predecessor[0],
                predecessor_incarnation=self._predecessor[1],
            ),
            config=self._central.use,
        )


def _only(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The exception in a group that holds one; else the group."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
