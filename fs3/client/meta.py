"""The metadata client: one living meta daemon at a time, another one when it fails, with the same RequestTag."""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from ..api.common import Method, Rep, Req
from ..api.meta import RELEASE
from ..env import Env
from ..errors import Code, FS3Error
from ..ids import NodeKind, RequestTag
from .channels import Channel, ChannelPool
from .reading import Caller
from .retry import Action, Backoff, action_for
from .storage import RoutingSource

logger = logging.getLogger("fs3.client.meta")

ATTEMPT_S = 5.0
COMPLAIN_AFTER_S = 2.0
BACKOFF = Backoff()


class MetaClient:
    """Calls meta's methods. Every call retries until its deadline (`call_s` from now unless given), then raises
    DEADLINE_EXCEEDED; what the daemon itself refuses is raised as it is.

    client_id: the random id of this process incarnation, for request tags.
    """

    def __init__(self, env: Env, rpc: Caller, mgmtd: RoutingSource, client_id: int) -> None:
        self._env = env
        self._rpc = rpc
        self._mgmtd = mgmtd
        self._channels = ChannelPool(client_id)
        self._routing_version = -1
        self._addresses: tuple[str, ...] = ()
        self._current = ""
        self._turn = client_id
        self.call_s = 30.0
        self.changes = 0
        """Grows when a change begins and when it ends: what was read from meta in between may be out of date."""

    async def call(self, method: Method[Req, Rep], request: Req, *, deadline: float | None = None) -> Rep:
        """Send a request that changes nothing, or that carries its own tag already."""
        now = self._env.monotonic()
        if deadline is None:
            deadline = now + self.call_s
        attempt = 0
        tried: set[str] = set()
        while True:
            address = self._address(tried)
            try:
                if not address:
                    raise FS3Error(Code.NO_ROUTING, "no meta daemon is alive")
                attempt_s = 0.001 if self._env.rare("client.meta.impatient") else ATTEMPT_S
                return await self._rpc.call(
                    address, method, request, deadline=min(deadline, self._env.monotonic() + attempt_s)
                )
            except FS3Error as error:
                action = action_for(error)
                if action is Action.GIVE_UP:
                    raise
                if action is Action.ELSEWHERE:
                    tried.add(address)
                    if not tried.issuperset(self._addresses):
                        continue
                tried.clear()
                attempt += 1
                await self._pause(method.name, error, attempt, now, deadline)

    async def change(
        self, method: Method[Req, Rep], make: Callable[[RequestTag], Req], *, deadline: float | None = None
    ) -> Rep:
        """Send the request that `make` builds around a fresh tag: done once, however often it has to be sent."""
        channel = self._channels.take()
        settled = False
        seen = 0 if method is RELEASE else 1  # what it does shows nowhere
        self.changes += seen
        try:
            reply = await self.call(method, make(channel.next_tag()), deadline=deadline)
            settled = True
            return reply
        except FS3Error as error:
            settled = action_for(error) is Action.GIVE_UP  # the daemon's answer, not our deadline
            raise
        finally:
            self.changes += seen
            self._channels.give_back(channel, settled)

    def lane(self) -> Channel:
        """A channel for requests that are sent by call(): once a later one is answered, an earlier one whose outcome is not
        known will not be done any more."""
        return self._channels.take()

    def end_lane(self, channel: Channel) -> None:
        """Give back a lane whose last request was answered."""
        self._channels.give_back(channel, True)

    def _address(self, tried: set[str]) -> str:
        """The daemon to ask: the one that answered last, as long as it lives and was not tried; "" when there is none."""
        routing = self._mgmtd.routing
        if routing.version != self._routing_version:
            self._routing_version = routing.version
            self._addresses = tuple([node.address for node in routing.nodes_of(NodeKind.META)])
        if self._current in self._addresses and self._current not in tried:
            return self._current
        left = [address for address in self._addresses if address not in tried]
        if not left:
            return ""
        self._current = left[self._turn % len(left)]  # clients spread by their ids
        return self._current

    async def _pause(self, name: str, error: FS3Error, attempt: int, started: float, deadline: float) -> None:
        now = self._env.monotonic()
        delay = BACKOFF.delay_s(attempt, self._env.random.random)
        if now + delay >= deadline:
            raise FS3Error(Code.DEADLINE_EXCEEDED, f"{name}: {error}")
        if now - started > COMPLAIN_AFTER_S and attempt % 16 == 0:
            logger.warning("%s: retrying for %.0f s now: %s", name, now - started, error)
        self._env.metrics.count("client.meta_retries")
        with trio.move_on_after(delay):
            await self._mgmtd.wait_change(self._routing_version)
