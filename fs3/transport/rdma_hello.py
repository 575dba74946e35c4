"""What two sides tell each other, over TCP, before they use a queue pair. Pure.

    magic "f3rdma" 0 1 | length u16 | msgpack array

The client begins. A server that cannot, or will not, answers with its reason in place of its ends; then the socket serves
for frames, as any TCP connection does. No frame begins with these bytes.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import astuple, dataclass

import msgpack

from ..errors import ProtocolError
from .rdma_flow import Limits
from .rdma_port import MESSAGE_SIZE, Ends

MAGIC = b"f3rdma\x00\x01"
_LENGTH = struct.Struct("<H")
HEAD_SIZE = len(MAGIC) + _LENGTH.size
HELLO_SIZE_MAX = 1024
_16_BITS = (1 << 16) - 1
_24_BITS = (1 << 24) - 1
_MTU_MAX = 5


@dataclass(frozen=True, slots=True)
class Hello:
    """ends, limits: None in a refusal, of which reason says why."""

    ends: Ends | None
    limits: Limits | None
    reason: str = ""


def encode(hello: Hello) -> bytes:
    ends = astuple(hello.ends) if hello.ends is not None else None
    limits = astuple(hello.limits) if hello.limits is not None else None
    body: bytes = msgpack.packb([MESSAGE_SIZE, ends, limits, hello.reason[:200]])
    return MAGIC + _LENGTH.pack(len(body)) + body


def size_of(data: bytes) -> int | None:
    """How long the hello is that begins with `data`; None where more bytes are needed to tell. Raises ProtocolError where
    it is none."""
    if not MAGIC.startswith(data[: len(MAGIC)]):
        raise ProtocolError("no hello of an RDMA client")
    if len(data) < HEAD_SIZE:
        return None
    (length,) = _LENGTH.unpack_from(data, len(MAGIC))
    if length > HELLO_SIZE_MAX:
        raise ProtocolError(f"a hello of {length} bytes")
    return HEAD_SIZE + int(length)


def decode(data: bytes) -> Hello:
    """Raises ProtocolError."""
    try:
        message_size, ends, limits, reason = msgpack.unpackb(data[HEAD_SIZE:])
        if ends is None:
            return Hello(None, None, str(reason))
        if message_size != MESSAGE_SIZE:
            raise ProtocolError(f"the peer's RDMA messages have {message_size} bytes, ours {MESSAGE_SIZE}")
        number, sequence, gid, mtu, lid = ends
        told = Ends(
            _number(number, 0, _24_BITS),
            _number(sequence, 0, _24_BITS),
            ipaddress.IPv6Address(str(gid)).exploded,
            _number(mtu, 1, _MTU_MAX),
            _number(lid, 0, _16_BITS),
        )
        return Hello(told, Limits(*[_number(value, 0, _16_BITS) for value in limits]))
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise ProtocolError(f"a hello that cannot be read: {error}") from None


def _number(value: object, least: int, most: int) -> int:
    """The device would not take others, and there they would be no peer's mistake."""
    if not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{value!r} is not between {least} and {most}")
    return value
