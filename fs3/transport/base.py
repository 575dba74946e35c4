"""The transport port: connections that carry frames and bulk data.

Bulk data ("payload") belongs to a request or its reply. Over TCP it travels inline behind the frame; over RDMA the server
reads from, or writes to, the client's registered memory. Code above does not know which: a client hands its buffers to
`send` and `expose`, a server calls `fetch` to get a request's bulk and passes a reply's bulk to `send`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass

from ..wire.frame import Frame
from .registered import Registered, Registration, Use


@dataclass(frozen=True, slots=True)
class FileSlice:
    """Bytes of an open file, to be sent without passing through Python. offset and length in bytes."""

    fd: int
    offset: int
    length: int

    def __len__(self) -> int:
        return self.length


Part = bytes | bytearray | memoryview | FileSlice
"""A piece of bulk data. Views are of single bytes (format "B") and contiguous, so that len() counts bytes."""


class Loan(ABC):
    """Memory that a client registered, lent to a server for the bulk data of one reply. The client may take it back at any
    time, so it is written to only between `begin` and `end`, with all in between done without giving way to other tasks."""

    views: list[memoryview]
    """The places of it, in order. The list itself is to be sent as the reply's payload, once all are filled."""
    fragile: bool
    """The client may cut the memory off: to touch the views would kill this process, so only system calls may (EFAULT)."""

    @abstractmethod
    def begin(self) -> bool:
        """False: the client has taken it back; nobody waits for this reply."""

    @abstractmethod
    def end(self) -> None: ...

    @abstractmethod
    def put(self, at: int, data: memoryview) -> bool:
        """Between `begin` and `end`, whatever the memory: copy bytes to `at` bytes behind its start. False where that cannot
        be."""

    @abstractmethod
    def get(self, at: int, length: int) -> bytes:
        """What stands there, as far as it is there still."""


class Connection(ABC):
    """One connection to a peer. Every method raises FS3Error(CONNECTION_LOST) once it is broken or closed."""

    peer: str
    """The other side's address, for log lines."""
    gathers = False
    """Whether `start_send` does anything with `more`."""
    scatters = False
    """Whether `expose` takes several buffers."""
    use: Use | None = None
    """Set by the sender of a request, right before: the registered memory in which its buffers are, if all of them are."""

    @abstractmethod
    async def send(self, frame: Frame, payload: Sequence[Part] = ()) -> None:
        """Send a frame and its bulk payload, whole. Any number of tasks may call it at once.

        Cancelled before the first byte left, nothing was sent; cancelled later, the connection is closed, since the
        peer could not make sense of what follows. Buffers may be reused once this returned.
        """

    def start_send(self, frame: Frame, payload: Sequence[Part] = (), more: bool = False) -> Awaitable[None] | None:
        """As `send`, for hot paths: None when all left at once, else what the caller must await (or cancel) to go on.

        more: others follow soon. Small frames may then wait for them, to leave in one piece: with the next one sent without
        `more`, with `flush`, or when `receive` is about to wait.
        """
        return self.send(frame, payload)

    def flush(self) -> Awaitable[None] | None:
        """Send what waits for more. None when all left at once, else what the caller must await; cancelled, it closes."""
        return None

    @abstractmethod
    async def receive(self) -> Frame:
        """The next frame. One task at a time. Raises ProtocolError, after closing, on bytes that are no frame."""

    def ready(self) -> Frame | None:
        """What `receive` would return without waiting, if anything; may be None always."""
        return None

    def any_ready(self) -> bool:
        """Whether `receive` would return without waiting; may be False always."""
        return False

    def fileno(self) -> int:
        """A descriptor that is readable when `take` may find something; -1 where `take` cannot be used."""
        return -1

    def take(self) -> Sequence[Frame]:
        """The frames that are there, without waiting, even while a task waits in `receive`. Raises as `receive` does."""
        return ()

    def expect(self) -> None:
        """Let the next `receive` look at once for what has come, since `fileno` is readable."""
        return

    @abstractmethod
    def expose(self, request_id: int, into: memoryview | Sequence[memoryview]) -> None:
        """Client side, before sending a request: its reply's payload, if it fits, lands in `into`.

        Several buffers, where the connection scatters, are filled one after the other; the frame has no payload then.
        """

    @abstractmethod
    async def withdraw(self, request_id: int) -> None:
        """Client side: when this returns nothing will write to the buffer exposed for this request any more.

        Called after the reply too, and in a shielded scope when the caller gives up.
        """

    def withdraw_now(self, request_id: int) -> bool:
        """Do what `withdraw` does if that takes no waiting; else False."""
        return False

    @abstractmethod
    async def fetch(self, frame: Frame) -> memoryview:
        """Server side: the bulk payload of a received request; empty where it has none."""

    def room(self, frame: Frame, size: int) -> memoryview | None:
        """Server side: the client's own memory for the reply to a request, `size` bytes of it, where it can be written to.

        To send it as the reply's only payload moves nothing. It is the client's again once the request is answered or
        settled.
        """
        return None

    def lend(self, frame: Frame, size: int) -> Loan | None:
        """Server side: `size` bytes of the memory that the client registered for this reply, where `room` has none and this
        side can write to them."""
        return None

    def settle(self, frame: Frame) -> None:
        """Server side: nobody here will touch a request's payload, or the room for its reply's, any more. To be called in
        the end for each request whose frame has FLAG_SHARED, answered or not."""
        return

    @abstractmethod
    async def aclose(self) -> None:
        """Close at once; pending sends and receives fail. Never raises, may run twice."""


class Listener(ABC):
    """Accepts connections."""

    address: str
    """Where clients connect to, with the port that was really bound."""

    @abstractmethod
    async def accept(self) -> Connection:
        """The next connection. Raises FS3Error(CONNECTION_LOST) once closed."""

    @abstractmethod
    async def aclose(self) -> None:
        """Stop listening. Accepted connections live on."""


class Transport(ABC):
    """Makes connections and listeners for addresses `scheme://host:port`."""

    registered: Registered | None = None
    """The memory that was registered, once there was any."""

    def register(self, memory: memoryview, fd: int = -1) -> Registration:
        """Let bulk data of calls go straight to and from this memory, by the connections that can do that. The calls are the
        same; what they cost is not. fd: of shared memory (a memfd, POSIX) of which `memory` is a mapping; found by itself
        where the process has it open.

        Raises ValueError on memory that is not writable, contiguous and of single bytes, or not of this descriptor.
        """
        registration = Registration(memory, fd)
        self.attach(registration)
        return registration

    def attach(self, registration: Registration) -> None:
        """Use what was registered here or elsewhere, until it is closed."""
        if self.registered is None:
            self.registered = Registered()
        self.registered.add(registration)

    @abstractmethod
    async def connect(self, address: str) -> Connection:
        """Raises FS3Error(CONNECT_FAILED)."""

    @abstractmethod
    async def listen(self, address: str) -> Listener:
        """Port 0 picks a free one. Raises FS3Error(CONFIG) where the address cannot be had, saying why."""

    async def listen_locally(self, address: str) -> Listener | None:
        """A shorter way for processes of this host that know us by this address; they find it by themselves. None where
        there is no such way."""
        return None
