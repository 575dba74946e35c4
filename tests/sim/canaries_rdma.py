"""Planted bugs of RDMA connections: memory that others use while a device may still be at it, and credits that get lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fs3.transport.rdma_connection import RdmaConnection, Transfer
from fs3.transport.rdma_flow import Flow, Work
from fs3.transport.rdma_roles import RdmaClient, RdmaServer
from tests.sim.nic import SimPair

Plant = tuple[Any, str, Any]


def _do(destroy: Callable[[], bool]) -> None:
    destroy()


def _memory_back_before_destruction() -> list[Plant]:
    """A connection that has failed gives its memory back at once, and its queue pair lives on for a while."""
    real = RdmaConnection._close

    def close(self: Any, reason: str) -> None:
        pair: SimPair = self._pair
        destroy = pair.destroy

        def later() -> bool:
            pair.__dict__.pop("destroy", None)
            pair.nic.network.at(pair.nic.network.clock.now + 2.0, lambda: _do(destroy))
            return True

        if not self._closed:
            pair.destroy = later  # type: ignore[method-assign]
        real(self, reason)

    return [(RdmaConnection, "_close", close)]


def _room_back_when_given_up() -> list[Plant]:
    """Who gives up a call takes its memory along."""
    real = RdmaClient.withdraw_now

    def withdraw_now(self: Any, request_id: int) -> bool:
        real(self, request_id)
        lent = self._lent.pop(request_id, None)
        if lent is not None:
            self._let_go(lent)
        return True

    return [(RdmaClient, "withdraw_now", withdraw_now)]


def _slot_not_kept() -> list[Plant]:
    """A transfer under way does not hold its slot: only the handler that began it does."""
    real = Transfer.__init__

    def init(self: Any, region: Any, offset: int, remote: Any, slot: Any, waiter: Any = None) -> None:
        real(self, region, offset, remote, None, waiter)

    return [(Transfer, "__init__", init)]


def _reads_not_fenced() -> list[Plant]:
    """A server says that it needs a request's memory no more, and still reads it."""
    return [(Flow, "fence", lambda self: None)]


def _send_buffer_free_at_once() -> list[Plant]:
    real = Flow.message

    def message(self: Any) -> Any:
        post = real(self)
        if post is not None:
            self._posted[-1].work = Work.RETURN  # whose completion frees no buffer
            self._buffers.append(post.buffer)
        return post

    return [(Flow, "message", message)]


def _credits_not_returned() -> list[Plant]:
    return [(Flow, "taken", lambda self: None)]


def _receive_not_posted() -> list[Plant]:
    def read(self: Any, completion: Any) -> None:
        self._take_in(self._pair.received(completion.number, completion.length))
        self._flow.taken()

    return [(RdmaConnection, "_read", read)]


def _settled_before_written() -> list[Plant]:
    """A server answers by a way that overtakes what it still writes for the same request."""
    real = RdmaServer._write

    def write(self: Any, borrowed: Any) -> None:
        before = len(self._outgoing)
        real(self, borrowed)
        while len(self._outgoing) > before:
            self._reads.append(self._outgoing.pop())

    def post(self: Any, transfer: Any, read: bool) -> bool:
        return bool(real_post(self, transfer, read and transfer.waiter is not None))

    real_post = RdmaConnection._post_transfer
    late: dict[int, int] = {}

    def pump(self: Any) -> None:
        kept = [each for each in self._reads if each.waiter is None and late.setdefault(id(each), 0) < 1]
        for each in kept:
            late[id(each)] += 1
            self._reads.remove(each)
        real_pump(self)
        self._reads.extend(kept)

    real_pump = RdmaConnection._pump
    return [(RdmaServer, "_write", write), (RdmaConnection, "_post_transfer", post), (RdmaConnection, "_pump", pump)]


RDMA_CANARIES: dict[str, tuple[Callable[[], list[Plant]], str]] = {
    "rdma-memory-back-before-destruction": (_memory_back_before_destruction, "wires"),
    "rdma-room-back-when-given-up": (_room_back_when_given_up, "wires"),
    "rdma-slot-not-kept": (_slot_not_kept, "wires"),
    "rdma-reads-not-fenced": (_reads_not_fenced, "wires"),
    "rdma-send-buffer-free-at-once": (_send_buffer_free_at_once, "wires"),
    "rdma-credits-not-returned": (_credits_not_returned, "wires"),
    "rdma-receive-not-posted": (_receive_not_posted, "wires"),
    "rdma-reply-overtakes-write": (_settled_before_written, "wires"),
}
