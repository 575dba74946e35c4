"""Frames: bytes in, frames out. Pure.

A frame is a 32-byte header, a msgpack body and a bulk payload. All integers are little-endian.

    magic "f3" | version u8 | kind u8 | method u16 | flags u16 | request id u64 | timeout_ms u32
    body length u32 | payload length u32 | CRC32C u32 of the 28 bytes before it and of the body

The payload carries its own checksums (see the storage messages). `Framer` is fed by a transport: `buffer()` says where the
next bytes go, `received(n)` takes them in and returns the frames that are complete. A large payload is received straight
into the buffer that `allocate` gave for it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

from ..checksum import crc32c
from ..errors import ProtocolError

HEADER = struct.Struct("<2sBBHHQIII")
HEADER_CRC = struct.Struct("<I")
HEADER_SIZE = HEADER.size + HEADER_CRC.size
_HEAD = struct.Struct(HEADER.format + HEADER_CRC.format[1:])
MAGIC = b"f3"
VERSION = 1

FLAG_SHARED = 0x8000
"""The payload is no bulk data, but says where in shared memory that is; for transports that have such, others ignore it."""

BODY_SIZE_MAX = 8 * 1024 * 1024
PAYLOAD_SIZE_MAX = 64 * 1024 * 1024

_STAGING_SIZE = 64 * 1024
_FIRST_SIZE = 4 * 1024
"""Of the buffer until a read fills it: most of mgmtd's connections, of which there are thousands, never do."""
_ROOM_SIZE_MIN = 4 * 1024
_BUFFERS_MAX = 255


class Kind(IntEnum):
    REQUEST = 1
    REPLY = 2
    ERROR = 3
    """A reply whose body is an ErrorBody."""


_KINDS = {kind.value: kind for kind in Kind}


@dataclass(slots=True)
class Frame:
    """One frame. timeout_ms: how long the sender of a request waits for its reply, from when it was sent."""

    kind: Kind
    method: int
    flags: int
    request_id: int
    timeout_ms: int
    body: bytes
    payload: memoryview | None = None
    payload_length: int = 0


Allocate = Callable[[Frame], "memoryview | Sequence[memoryview]"]
"""Gives a frame's payload its place: a buffer, or several that it fills one after the other (frame.payload stays None)."""


def encode_head(
    kind: int, method: int, flags: int, request_id: int, timeout_ms: int, body: bytes, payload_length: int
) -> bytes:
    """Header and body as bytes; the payload follows them on the wire."""
    assert len(body) <= BODY_SIZE_MAX and payload_length <= PAYLOAD_SIZE_MAX
    header = HEADER.pack(MAGIC, VERSION, kind, method, flags, request_id, timeout_ms, len(body), payload_length)
    return header + HEADER_CRC.pack(crc32c(body, crc32c(header))) + body


def fresh_payload(frame: Frame) -> memoryview:
    """The allocator for those who have no buffer of their own waiting."""
    return memoryview(bytearray(frame.payload_length))


class Framer:
    """Cuts a byte stream into frames. Raises ProtocolError on damage; the stream is then unusable."""

    def __init__(self, allocate: Allocate = fresh_payload, body_max: int = BODY_SIZE_MAX) -> None:
        self._allocate = allocate
        self._body_max = body_max
        self._staging = memoryview(bytearray(_FIRST_SIZE))
        self._size = _FIRST_SIZE  # what it is to have when it is empty
        self._start = 0
        self._end = 0
        self._frame: Frame | None = None  # whose payload is being received
        self._payload = memoryview(b"")  # where the next bytes of it go, and in _rest where those after them go
        self._rest: list[memoryview] = []
        self._filled = 0
        # Invariant: 0 <= _start <= _end <= len(_staging); _frame is None, or _filled < len(_payload).

    def buffer(self, most: int | None = None) -> memoryview:
        """Where the transport is to put the next bytes; never empty. most: how many it may put there of what is not yet
        known to be a payload, and would be moved then."""
        if self._frame is not None:
            return self._payload[self._filled :]
        if self._start == self._end:
            self._start = self._end = 0
            if len(self._staging) != self._size:
                self._staging = memoryview(bytearray(self._size))  # it grew for one long body, or is to grow for good
        elif len(self._staging) - self._end < _ROOM_SIZE_MIN:
            self._make_room()
        return self._staging[self._end :] if most is None else self._staging[self._end : self._end + most]

    def buffers(self) -> list[memoryview] | None:
        """Where the next bytes may go in place of buffer(), one place after the other, where there are several."""
        if not self._rest or self._frame is None:
            return None
        return [self._payload[self._filled :], *self._rest[:_BUFFERS_MAX]]

    def received(self, count: int) -> list[Frame]:
        """Take in `count` bytes that the transport put there; return the frames that are complete now."""
        assert count > 0
        frames: list[Frame] = []
        if self._frame is not None:
            self._filled += count
            while (over := self._filled - len(self._payload)) >= 0:
                if not self._next_buffer():
                    assert not over
                    break
                self._filled = over
            else:
                return frames
            frames.append(self._finish())
        else:
            self._end += count
            if self._end == len(self._staging):
                self._size = _STAGING_SIZE
        while self._end - self._start >= HEADER_SIZE and (frame := self._parse()) is not None:
            frames.append(frame)
        return frames

    def abandon(self, request_id: int) -> None:
        """Never touch again the buffer allocated for this request's payload, should it be half received."""
        frame = self._frame
        if frame is not None and frame.request_id == request_id:
            left = len(self._payload) - self._filled + sum([len(buffer) for buffer in self._rest])
            frame.payload = memoryview(bytearray(frame.payload_length))
            self._payload, self._rest, self._filled = frame.payload[frame.payload_length - left :], [], 0

    def _next_buffer(self) -> bool:
        """Go on with the next place of the payload, if there is one."""
        if not self._rest:
            return False
        self._payload, self._filled = self._rest.pop(0), 0
        return True

    def _make_room(self) -> None:
        pending = self._end - self._start
        size = len(self._staging)
        # Grows only as bytes really arrive: a peer's claim alone allocates nothing.
        fresh = memoryview(bytearray(size * 2)) if pending > size // 2 else self._staging
        data = bytes(self._staging[self._start : self._end])
        fresh[:pending] = data
        self._staging, self._start, self._end = fresh, 0, pending

    def _parse(self) -> Frame | None:
        """The next frame that lies whole in the staging buffer, which holds a header at least. Starts on a payload that does
        not."""
        start = self._start
        available = self._end - start
        head = bytes(self._staging[start : start + HEADER_SIZE])
        magic, version, kind, method, flags, request_id, timeout_ms, body_length, payload_length, crc = _HEAD.unpack(head)
        if magic != MAGIC:
            raise ProtocolError(f"not an fs3 frame (starts with {magic!r})")
        if version != VERSION:
            raise ProtocolError(f"frame version {version}, this program speaks {VERSION}")
        if kind not in _KINDS:
            raise ProtocolError(f"unknown frame kind {kind}")
        if body_length > self._body_max or payload_length > PAYLOAD_SIZE_MAX:
            raise ProtocolError(f"frame too large (body {body_length}, payload {payload_length} bytes)")
        body_at = start + HEADER_SIZE
        if available < HEADER_SIZE + body_length:
            return None
        body = bytes(self._staging[body_at : body_at + body_length])
        if crc32c(body, crc32c(head[: HEADER.size])) != crc:
            raise ProtocolError("frame damaged (checksum of header and body)")
        frame = Frame(_KINDS[kind], method, flags, request_id, timeout_ms, body, None, payload_length)
        self._start = body_at + body_length
        if payload_length == 0:
            return frame
        self._place(frame)
        while (ready := min(len(self._payload) - self._filled, self._end - self._start)) > 0:
            self._payload[self._filled : self._filled + ready] = self._staging[self._start : self._start + ready]
            self._start += ready
            self._filled += ready
            if self._filled == len(self._payload) and not self._next_buffer():
                self._payload = memoryview(b"")
                return frame
        self._frame = frame
        return None

    def _place(self, frame: Frame) -> None:
        """Ask where a payload is to go."""
        place = self._allocate(frame)
        left = frame.payload_length
        if isinstance(place, memoryview):
            self._payload = frame.payload = place[:left]
            left -= len(self._payload)
        else:
            buffers = []
            for buffer in place:
                if left and len(buffer):
                    buffers.append(buffer[:left])
                    left -= len(buffers[-1])
            self._payload, *self._rest = buffers
        assert left == 0, "allocate() gave too small a buffer"
        self._filled = 0

    def _finish(self) -> Frame:
        frame = self._frame
        assert frame is not None
        self._frame, self._payload = None, memoryview(b"")
        return frame
