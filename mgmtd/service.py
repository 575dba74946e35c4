"""The management service: who is primary, the requests, the passing of time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import trio

from fs3.api.common import Empty
from fs3.api.mgmtd import (
    CLUSTER_CONFIG,
    FORMAT,
    GET_ROUTING,
    HEARTBEAT,
    LIST_CLIENTS,
    REGISTER,
    UNREGISTER,
    ClusterConfigReply,
    FormatReply,
    FormatRequest,
    GetRoutingRequest,
    HeartbeatReply,
    HeartbeatRequest,
    ListClientsReply,
    RegisterReply,
    RegisterRequest,
    UnregisterRequest,
    not_primary,
)
from fs3.env import Env
from fs3.errors import Code, FS3Error
from fs3.ids import NodeKind
from fs3.placement.place import place
from fs3.routing import Node
from fs3.rpc.server import Call, Encoded, Later, RpcServer
from fs3.settings import MgmtdSettings

from .admin import AdminService, tell_moves
from .cluster import Cluster
from .config_service import ConfigService
from .configs import Configs
from .lease import RENEWALS_PER_LEASE, PrimaryLease, held_s
from .lease import lease_ms as primary_lease_ms
from .publisher import Publisher
from .registration import TOGETHER_MAX
from .state import Change, Saved
from .store import Store

logger = logging.getLogger("fs3.mgmtd.service")

T = TypeVar("T")

PLACE_APART_FROM = 2_000
"""So many targets are placed in a thread: it takes up to seconds, longer than we may be without renewing our lease."""
COMMIT_MS_MAX = 10_000
"""A commit that takes longer counts as lost."""


@dataclass(frozen=True, slots=True)
class Me:
    """This mgmtd. exclusive: no other process can have its store open."""

    node: int
    address: str
    host: str
    incarnation: int
    exclusive: bool


class Outage:
    """The store does not work: said at once, and as an error when it lasts for `error_after_s`."""

    def __init__(self, error_after_s: float) -> None:
        self._error_after_s = error_after_s
        self._since: float | None = None
        self._told = False

    def goes_on(self, error: FS3Error, now: float) -> None:
        if self._since is None:
            self._since = now
            logger.warning("cannot reach the store, trying on: %s", error)
        elif not self._told and now - self._since >= self._error_after_s:
            self._told = True
            logger.error("the store cannot be reached for %.0f s, nothing can change: %s", now - self._since, error)

    def over(self) -> None:
        if self._since is not None:
            logger.warning("the store works again")
        self._since, self._told = None, False


@dataclass(slots=True, eq=False)
class _Registration:
    """A request that waits for its turn."""

    request: RegisterRequest
    reply: RegisterReply | FS3Error | None = None
    done: trio.Event = field(default_factory=trio.Event)


class MgmtdService:
    """One mgmtd daemon's service. `bind` its handlers to a server, and keep `run` running."""

    def __init__(self, env: Env, store: Store, me: Me, own: MgmtdSettings, lease_ms: int) -> None:
        """own: this daemon's configuration, of which the settings are used. lease_ms: of daemons."""
        self._env = env
        self._store = store
        self._me = me
        self._configs = ConfigService(env, me.node, own, lease_ms, self._change, self._primary)
        self._lease_ms = primary_lease_ms(lease_ms, me.exclusive)
        self._lease = PrimaryLease(me.node, me.incarnation, me.address, self._lease_ms, me.exclusive)
        self._cluster: Cluster | None = None  # while we are primary
        self._epoch = 0  # of the lease under which it was loaded
        self._lock = trio.Lock()  # held from making a change to applying it
        self._publisher = Publisher(env)
        self._committing: Change | None = None
        self._registrations: list[_Registration] = []
        self._registration_came = trio.Event()
        self._wake = trio.Event()  # the lease must be seen to at once

    @property
    def is_primary(self) -> bool:
        # At another epoch the lease ran out and was taken again, and what is stored has not been loaded yet.
        here = self._cluster is not None and self._epoch == self._lease.epoch
        return here and self._lease.holds(self._env.monotonic())

    def bind(self, server: RpcServer) -> None:
        server.handle(REGISTER, self._register)
        server.handle(HEARTBEAT, self._heartbeat)
        server.handle(UNREGISTER, self._unregister)
        server.handle(GET_ROUTING, self._get_routing)
        server.handle(FORMAT, self._format)
        server.handle(LIST_CLIENTS, self._list_clients)
        server.handle(CLUSTER_CONFIG, self._cluster_config)
        self._configs.bind(server)
        AdminService(self._env, self._change, self._primary).bind(server)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Be primary or wait for it, until cancelled. Started once we are it, or know who is.

        Raises CONFIG where our node id is that of another daemon.
        """
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch_time)
                nursery.start_soon(self._register_waiting)
                nursery.start_soon(self._publisher.run)
                await self._hold_office(task_status)
        finally:
            self._step_down()
            with trio.CancelScope(shield=True), trio.move_on_after(1):
                try:
                    await self._store.release(self._lease)
                except FS3Error as error:
                    logger.info("the lease was not released and will run out: %s", error)

    # -- who is primary

    async def _hold_office(self, task_status: trio.TaskStatus[None]) -> None:
        """Renew the lease or try to get it, for ever."""
        interval_s = self._lease_ms / 1000 / RENEWALS_PER_LEASE
        outage = Outage(self._configs.timing.lease_ms / 1000)
        started = False
        while True:
            self._wake = trio.Event()
            try:
                await self._contend()
                outage.over()
            except FS3Error as error:
                if error.code is Code.CONFIG or not error.retryable:
                    raise
                if error.code not in (Code.CONFLICT, Code.NOT_PRIMARY):
                    outage.goes_on(error, self._env.monotonic())
            if not started and (self.is_primary or self._address_of_primary()):
                started = True
                task_status.started()
            await trio.sleep(interval_s / 4)  # at most so often, however urgent
            free_in_s = max(0.0, self._lease.free_at() - self._env.monotonic())
            with trio.move_on_after(min(interval_s * 3 / 4, free_in_s)):
                await self._wake.wait()

    async def _contend(self) -> None:
        """One try to get or keep the lease; and to take or leave office by its outcome."""
        try:
            with trio.fail_after(held_s(self._lease_ms)):
                await self._store.contend(self._lease, self._env.monotonic)
        except trio.TooSlowError:
            raise FS3Error(Code.KV_UNAVAILABLE, "the store does not answer in time") from None
        finally:
            if self._cluster is not None and not self._lease.holds(self._env.monotonic()):
                logger.warning("no longer primary (epoch %d)", self._epoch)
                self._step_down()
        if self._lease.holds(self._env.monotonic()) and (self._cluster is None or self._epoch != self._lease.epoch):
            await self._take_office()

    async def _take_office(self) -> None:
        """Load everything and begin to answer."""
        async with self._lock:
            self._cluster = None  # not _step_down(): the lease just taken is to be kept
            self._publisher.end(not_primary(""))
            epoch = self._lease.epoch
            try:
                with trio.fail_after(COMMIT_MS_MAX / 1000):
                    saved = await self._load(epoch)
                    timing = self._configs.use(Configs(saved.configs).latest("mgmtd"))
                    cluster = Cluster(saved, timing, self._env.monotonic())
                    me = self._me
                    node = Node(me.node, NodeKind.MGMTD, me.address, me.host, True, me.incarnation)
                    change = cluster.take_office(node)
                    with trio.fail_after(min(COMMIT_MS_MAX, self._lease_ms) / 1000):
                        await self._store.commit(change, epoch, cluster.head.revision)
            except (FS3Error, trio.TooSlowError) as error:
                self._lease.give_up()
                if isinstance(error, FS3Error):
                    raise
                raise FS3Error(Code.KV_UNAVAILABLE, "the store takes too long") from None
            before = cluster.version
            cluster.apply(change)
            self._cluster, self._epoch = cluster, epoch
            self._publisher.begin(cluster, change, before)
            logger.info("primary of cluster %s at epoch %d, routing version %d", saved.head.cluster, epoch, cluster.version)

    async def _load(self, epoch: int) -> Saved:
        """All that is stored, while the lease is renewed: of a big cluster that takes longer than a lease.

        Given up when one answer takes as long: the store may never give it, and another request gets through.
        """
        saved: Saved | FS3Error = FS3Error(Code.KV_UNAVAILABLE, "the store does not answer in time")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._renew)

            def heard() -> None:
                nursery.cancel_scope.deadline = trio.current_time() + self._lease_ms / 1000

            heard()
            try:
                saved = await self._store.load(epoch, f"{self._env.random.getrandbits(64):016x}", heard)
            except FS3Error as error:
                saved = error
            nursery.cancel_scope.cancel()
        if isinstance(saved, FS3Error):
            raise saved
        return saved

    async def _renew(self) -> None:
        """For ever. Where it does not succeed the first commit will tell."""
        while True:
            await trio.sleep(self._lease_ms / 1000 / RENEWALS_PER_LEASE)
            try:
                with trio.move_on_after(held_s(self._lease_ms)):
                    await self._store.contend(self._lease, self._env.monotonic)
            except FS3Error as error:
                logger.debug("not renewed: %s", error)

    def _step_down(self) -> None:
        self._cluster = None
        self._lease.give_up()
        self._publisher.end(not_primary(self._address_of_primary()))

    def _primary(self) -> Cluster:
        """The cluster, for those who ask the primary. Raises NOT_PRIMARY."""
        if self._cluster is None or not self.is_primary:
            raise not_primary(self._address_of_primary())
        return self._cluster

    def _address_of_primary(self) -> str:
        return self._lease.primary_address(self._env.monotonic())

    # -- changes

    async def _change(self, make: Callable[[Cluster, float], tuple[Change, T]]) -> T:
        """Make a change, commit it if it has to last, apply it; one at a time.

        Where it is not certain that a commit has (or has not) happened we are no longer primary, until what is really
        stored was loaded. The caller may be cancelled, the commit is not.
        """
        async with self._lock:
            cluster = self._primary()
            change, reply = make(cluster, self._env.monotonic())
            if change.head is None:
                cluster.apply(change)
                return reply
            self._committing = change
            try:
                with trio.CancelScope(shield=True):
                    if self._env.rare("mgmtd.commit.late"):
                        await trio.sleep(self._lease_ms / 1000)
                    # One that takes as long as a lease is of no use: another one may be primary by then.
                    with trio.fail_after(min(COMMIT_MS_MAX, self._lease_ms) / 1000):
                        await self._store.commit(change, self._epoch, cluster.head.revision)
            except (FS3Error, trio.TooSlowError) as error:
                why = str(error) or "the store does not answer in time"
                logger.warning("a change could not be committed, loading the stored state again: %s", why)
                self._step_down()
                self._wake.set()
                if isinstance(error, FS3Error) and not error.retryable:
                    raise
                raise not_primary("") from error
            finally:
                self._committing = None
            before = cluster.version
            cluster.apply(change)
            self._publisher.applied(change)
            tell_moves(change)
            if cluster.version != before:
                self._tell(change, cluster)
            return reply

    def _tell(self, change: Change, cluster: Cluster) -> None:
        """The log lines that an operator looks for."""
        for number, node in change.nodes.items():
            if node is not None:
                kind = NodeKind(node.kind).name.lower()
                logger.info("%s node %d at %s is %s", kind, number, node.address, "alive" if node.alive else "dead")
        for chain in change.chains.values():
            if chain is None:
                continue
            states = " ".join([f"{t.target}:{t.state.name.lower()}" for t in chain.targets])
            logger.info("chain %d version %d: %s", chain.id, chain.version, states)
            if chain.head() is None:
                logger.warning("chain %d cannot be used until target %d returns", chain.id, chain.targets[0].target)
        logger.debug("routing version %d", cluster.version)

    async def _register_waiting(self) -> None:
        """Those that come while a change is being committed are registered by the next one together."""
        while True:
            await self._registration_came.wait()
            self._registration_came = trio.Event()
            while self._registrations:
                batch = self._registrations[:TOGETHER_MAX]
                for waiting, reply in zip(batch, await self._register_some(batch), strict=False):
                    waiting.reply = reply
                    waiting.done.set()
                self._registrations = [waiting for waiting in self._registrations if waiting.reply is None]

    async def _register_some(self, batch: Sequence[_Registration]) -> Sequence[RegisterReply | FS3Error]:
        """Register as many of the first ones as can together; returns what became of them."""
        count = len(batch)

        def make(cluster: Cluster, now: float) -> tuple[Change, list[RegisterReply]]:
            nonlocal count
            count = 1
            change, replies = cluster.register_all([waiting.request for waiting in batch], now)
            count = len(replies)
            return change, replies

        try:
            return await self._change(make)
        except FS3Error as error:
            return [FS3Error(error.code, error.message) for _ in range(count)]

    async def _watch_time(self) -> None:
        """Find the leases that ran out."""
        while True:
            await trio.sleep(min(0.5, self._configs.timing.lease_ms / 20_000))
            if not self.is_primary:
                continue
            try:
                await self._change(lambda cluster, now: (cluster.tick(now, self._env.wall_ns() // 1_000_000), None))
            except FS3Error as error:
                logger.debug("leases not looked at: %s", error)

    # -- requests

    async def _register(self, request: RegisterRequest, call: Call) -> RegisterReply:
        waiting = _Registration(request)
        self._registrations.append(waiting)
        self._registration_came.set()
        try:
            await waiting.done.wait()
        finally:
            if waiting.reply is None and waiting in self._registrations:
                self._registrations.remove(waiting)
        if isinstance(waiting.reply, FS3Error):
            raise waiting.reply
        assert waiting.reply is not None
        reply = waiting.reply
        self._lose_reply("mgmtd.register.reply-lost")
        return reply

    async def _heartbeat(self, request: HeartbeatRequest, call: Call) -> HeartbeatReply:
        cluster = self._primary()
        reply = None
        if self._committing is None or request.node not in self._committing.leases:
            reply = cluster.renew(request, self._env.monotonic())
        if reply is None:
            reply = await self._change(lambda cluster, now: cluster.heartbeat(request, now))
        self._lose_reply("mgmtd.heartbeat.reply-lost")
        return reply

    def _lose_reply(self, point: str) -> None:
        if self._env.rare(point):
            raise not_primary("")

    async def _unregister(self, request: UnregisterRequest, call: Call) -> Empty:
        return await self._change(lambda cluster, now: (cluster.unregister(request, now), Empty()))

    async def _format(self, request: FormatRequest, call: Call) -> FormatReply:
        cluster = self._primary()
        free = cluster.free_targets()
        chains = None
        if len(free) >= PLACE_APART_FROM and not cluster.config().version:
            chains = await trio.to_thread.run_sync(place, free, request.replicas, cluster.routing.nodes)
        reply = await self._change(lambda cluster, now: cluster.format(request, chains))
        logger.info("formatted: %d chains of %d replicas", reply.chains, request.replicas)
        return reply

    async def _get_routing(self, request: GetRoutingRequest, call: Call) -> Encoded | Later:
        self._primary()
        return self._publisher.answer(request, call)

    async def _list_clients(self, request: Empty, call: Call) -> ListClientsReply:
        return ListClientsReply(self._primary().client_list())

    async def _cluster_config(self, request: Empty, call: Call) -> ClusterConfigReply:
        return self._primary().config()
