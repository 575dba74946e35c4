"""What pyfuse3's request loop uses of trio, with less ceremony: it costs a third less for each request.

pyfuse3 takes its event loop from a module attribute (its asyncio support replaces it too). It reads requests by a pool of
tasks, of which one at a time waits for the descriptor, under a lock. Trio's lock makes everybody else run once whenever
it is taken, and its wait_readable asks the kernel for a notification even when the next request is there already.
"""

from __future__ import annotations

import select
from types import TracebackType
from typing import Any

import trio

from fs3.direct import DirectWaiter, DirectWaits

from .handshake import Handshake

IMMEDIATE_MAX = 16
"""Requests taken in a row without letting other tasks run."""
IDLE_MS = 1
"""How long the next request is waited for on the spot, where nothing else is to be done."""


class Turn(trio.abc.Instrument):
    """Whose turn it is to read requests: for pyfuse3 a lock, which it holds while it waits for one.

    Who has the turn keeps it when it lets the lock go, and so reads the next request too, without waking anybody: most are
    answered without waiting. It passes the turn on when it has to wait (blocked), or ends. Who waited last goes first: its
    memory is warm.

    Invariant: while somebody waits for the turn, somebody has it.
    """

    def __init__(self) -> None:
        self._holder: trio.lowlevel.Task | None = None
        self._waiting: list[trio.lowlevel.Task] = []

    async def __aenter__(self) -> None:
        task = trio.lowlevel.current_task()
        if self._holder is None:
            self._holder = task
        if self._holder is task:
            return
        self._waiting.append(task)

        def abort(_: Any) -> trio.lowlevel.Abort:
            self._waiting.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self._pass_on()

    def blocked(self) -> None:
        """The running task is about to wait for something else than requests."""
        if self._holder is trio.lowlevel.current_task():
            self._pass_on()

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        """Called by trio, which this is to be made an instrument of."""
        if self._holder is task:
            self._pass_on()

    def _pass_on(self) -> None:
        self._holder = self._waiting.pop() if self._waiting else None
        if self._holder is not None:
            trio.lowlevel.reschedule(self._holder)


class _Lowlevel:
    """trio.lowlevel, with another wait_readable."""

    def __init__(self, handshake: Handshake | None = None, direct: DirectWaits | None = None) -> None:
        self._handshake = handshake
        self._direct = direct
        self._waiter: DirectWaiter | None = None
        self._poll: select.poll | None = None
        self._immediate = 0

    async def wait_readable(self, descriptor: int) -> None:
        """As trio's, for one and the same descriptor; returns at once where it is readable already."""
        if self._poll is None:
            first = self._handshake
            if first is not None and not first.requested:
                await first.request()
                return
            if first is not None and not first.done:
                await first.reply()
            self._poll = select.poll()
            self._poll.register(descriptor, select.POLLIN)
            if self._direct is not None:
                self._waiter = self._direct.waiter(descriptor)
        if self._waiter is not None and self._waiter.readable(IDLE_MS):
            return
        if self._immediate < IMMEDIATE_MAX and self._poll.poll(0):
            self._immediate += 1
            return
        self._immediate = 0
        await trio.lowlevel.wait_readable(descriptor)

    def __getattr__(self, name: str) -> Any:
        return getattr(trio.lowlevel, name)


class RequestLoopTrio:
    """Stands for the module trio in pyfuse3, for one mount."""

    def __init__(self, turn: Turn, handshake: Handshake | None = None, direct: DirectWaits | None = None) -> None:
        self.lowlevel = _Lowlevel(handshake, direct)
        self._turn = turn

    def Lock(self) -> Turn:  # by the name that trio gives it
        """pyfuse3 asks once."""
        return self._turn

    def __getattr__(self, name: str) -> Any:
        return getattr(trio, name)
