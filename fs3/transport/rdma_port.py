"""The port between RDMA connections and a device: registered memory, queue pairs, completions.

fs3.transport.rdma has the adapter over verbs; tests have one whose device is a few lists.
"""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from .rdma_flow import Limits, Post

MESSAGE_SIZE = 8 * 1024
"""Of a send or receive buffer: longer frames take several messages."""


@dataclass(frozen=True, slots=True)
class Remote:
    """Bytes of the peer's registered memory."""

    address: int
    length: int
    key: int


@dataclass(frozen=True, slots=True)
class Ends:
    """What one side's queue pair tells the other's; as verbs have it. gid: as text. mtu: the code of verbs."""

    number: int
    sequence: int
    gid: str
    mtu: int
    lid: int


@dataclass(frozen=True, slots=True)
class Completion:
    """What the device is done with. number: of the work request, or the index of the receive buffer. length: bytes received;
    immediate: as the message had it. error: why it failed, and with it the queue pair; empty if it did not."""

    receive: bool
    number: int
    length: int
    immediate: int
    error: str


class Region(ABC):
    """Registered memory. The device may touch it until the queue pairs that know of it are destroyed."""

    view: memoryview
    address: int
    key: int
    """What the peer names to reach it."""

    @abstractmethod
    def close(self) -> None:
        """Registered no more. May run twice."""


class QueuePair(ABC):
    """A reliable connection. Buffers are numbered; those of sends and receives are the port's own.

    Messages and transfers that are posted may wait for `ring`, which gives all of them to the device at once.
    """

    ends: Ends

    @abstractmethod
    def connect(self, peer: Ends) -> None:
        """Both sides, before anything is sent; receives may be posted before. Raises OSError."""

    @abstractmethod
    def received(self, index: int, length: int) -> memoryview:
        """What stands in a receive buffer; good until it is posted again."""

    @abstractmethod
    def sending(self, index: int) -> memoryview:
        """A send buffer, to be filled before its message is posted."""

    @abstractmethod
    def post_receive(self, index: int) -> None:
        """Raises OSError, as all that post."""

    @abstractmethod
    def post_message(self, post: Post, length: int) -> None:
        """A message out of its send buffer, or an empty one."""

    @abstractmethod
    def post_transfer(self, post: Post, region: Region, offset: int, remote: Remote) -> None:
        """READ into, or WRITE out of, `remote.length` bytes of a region."""

    @abstractmethod
    def ring(self) -> None:
        """Let the device begin with what was posted."""

    @abstractmethod
    def poll(self) -> list[Completion]:
        """What was completed since; may be empty. Raises OSError once destroyed."""

    @abstractmethod
    async def wait(self) -> None:
        """Return when `poll` may have something, or the socket given to `queue_pair` does. One task at a time. Raises
        OSError once destroyed."""

    @abstractmethod
    def destroy(self) -> bool:
        """When this returned True the device touches no memory on behalf of this connection any more, neither for what we
        posted nor for what the peer does. False: it would not be stopped, and may go on for ever. May run twice."""


class Device(ABC):
    """An opened device."""

    name: str

    @abstractmethod
    def allocate(self, size: int) -> Region:
        """Fresh registered memory. Raises ConfigError where the system does not allow it, saying what to do."""

    @abstractmethod
    def register(self, memory: Any) -> Region:
        """A writable buffer that exists already. Raises ConfigError."""

    @abstractmethod
    def active(self) -> bool:
        """Whether its port is up now."""

    def has(self, local: str) -> bool:
        """Whether this address of the host is the port's own."""
        return False

    @abstractmethod
    def queue_pair(self, ours: Limits, receives: int, fd: int, local: str, lends: bool) -> QueuePair:
        """receives: of buffers, those for the peer's empty messages included. fd, local: of the socket over which it was
        agreed upon, and its address here: where the device has that address too, it is used. lends: the peer may read and
        write our registered memory; else the device refuses that, whatever key the peer names. Raises ConfigError."""

    def address_of(self, view: memoryview) -> int:
        """Of a writable buffer, as regions and peers have it."""
        return ctypes.addressof(ctypes.c_char.from_buffer(view))
