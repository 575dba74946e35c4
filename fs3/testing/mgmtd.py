"""A management service that tests set by hand."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import trio

from ..api.common import Method, Rep, Req
from ..client.mgmtd import MgmtdClient
from ..errors import Code, FS3Error
from ..routing import EMPTY, RoutingInfo


class StaticMgmtd(MgmtdClient):
    """MgmtdClient's interface without a daemon behind it: set `routing`, and those who wait for a change see it.

    handlers: what call() does, by method id; others raise UNKNOWN_METHOD. refreshes: how often refresh() was called.
    """

    def __init__(self, info: RoutingInfo = EMPTY) -> None:
        # Not MgmtdClient's __init__: there is nobody to talk to.
        self._routing = info
        self._changed = trio.Event()
        self.handlers: dict[int, Callable[[Any], Awaitable[Any]]] = {}
        self.refreshes = 0

    @property
    def routing(self) -> RoutingInfo:
        return self._routing

    @routing.setter
    def routing(self, info: RoutingInfo) -> None:
        self._routing = info
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        while self._routing is EMPTY:
            await self._changed.wait()
        task_status.started()
        await trio.sleep_forever()

    async def refresh(self, newer_than: int, timeout_ms: int = 1000) -> RoutingInfo:
        self.refreshes += 1
        with trio.move_on_after(timeout_ms / 1000):
            while self._routing.version <= newer_than:
                await self._changed.wait()
        return self._routing

    async def call(self, method: Method[Req, Rep], request: Req, *, timeout_ms: int = 5000) -> Rep:
        handler = self.handlers.get(method.id)
        if handler is None:
            raise FS3Error(Code.UNKNOWN_METHOD, method.name)
        with trio.move_on_after(timeout_ms / 1000):
            reply: Rep = await handler(request)
            return reply
        raise FS3Error(Code.DEADLINE_EXCEEDED, method.name)
