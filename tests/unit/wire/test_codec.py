"""Messages on the wire: strictly typed, and open to neighbouring versions."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, dataclass, field
from enum import IntEnum

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fs3.api import meta, mgmtd, storage
from fs3.errors import ProtocolError
from fs3.wire.codec import decode, encode


class Colour(IntEnum):
    RED = 1
    BLUE = 2


@dataclass(frozen=True, slots=True)
class Inner:
    number: int
    text: str = "x"


@dataclass(frozen=True, slots=True)
class Message:
    number: int
    flag: bool
    text: str
    data: bytes
    ratio: float
    colour: Colour
    inner: Inner
    maybe: Inner | None
    many: tuple[Inner, ...]
    numbers: tuple[int, ...]
    table: dict[int, Inner]
    late: int = 7
    later: tuple[str, ...] = field(default_factory=tuple)


GOOD = Message(
    -5, True, "ä", b"\x00\xff", 0.5, Colour.BLUE, Inner(1), None, (Inner(2, "y"),), (1, 2**63), {9: Inner(3)}, 8, ("a",)
)

messages = st.builds(
    Message,
    st.integers(-(2**63), 2**64 - 1),
    st.booleans(),
    st.text(),
    st.binary(),
    st.floats(allow_nan=False),
    st.sampled_from(Colour),
    st.builds(Inner, st.integers(0, 9), st.text()),
    st.none() | st.builds(Inner, st.integers(0, 9)),
    st.lists(st.builds(Inner, st.integers(0, 9))).map(tuple),
    st.lists(st.integers(0, 2**64 - 1)).map(tuple),
    st.dictionaries(st.integers(0, 2**64 - 1), st.builds(Inner, st.integers(0, 9))),
    st.integers(0, 9),
    st.lists(st.text()).map(tuple),
)


@given(messages)
def test_what_is_encoded_is_decoded(message: Message) -> None:
    assert decode(Message, encode(message)) == message


@dataclass(frozen=True)
class Roomy:
    """Has a __dict__."""

    number: int


@dataclass(frozen=True, slots=True)
class Checked:
    number: int

    def __post_init__(self) -> None:
        assert self.number < 10


def test_decoded_messages_are_what_their_class_makes() -> None:
    inner = decode(Inner, encode(Inner(1)))
    assert type(inner) is Inner and repr(inner) == repr(Inner(1)) and hash(inner) == hash(Inner(1))
    with pytest.raises(FrozenInstanceError):
        inner.number = 2  # type: ignore[misc]
    assert decode(Roomy, encode(Roomy(3))) == Roomy(3)
    assert decode(Checked, encode(Checked(3))) == Checked(3)
    with pytest.raises(AssertionError):
        decode(Checked, b"\x91\x0b")


def test_bytes_are_pinned() -> None:
    assert encode(Inner(1, "ab")).hex() == "9201a26162"


def test_missing_trailing_fields_take_their_defaults() -> None:
    raw = msgpack.unpackb(encode(GOOD), strict_map_key=False)
    older = decode(Message, msgpack.packb(raw[:11]))
    assert (older.late, older.later) == (7, ()) and older.table == GOOD.table


def test_unknown_trailing_fields_are_ignored() -> None:
    raw = msgpack.unpackb(encode(GOOD), strict_map_key=False)
    assert decode(Message, msgpack.packb([*raw, "new", {1: 2}])) == GOOD


def test_missing_required_fields_are_refused() -> None:
    with pytest.raises(ProtocolError, match="too short"):
        decode(Message, msgpack.packb(msgpack.unpackb(encode(GOOD), strict_map_key=False)[:10]))


@pytest.mark.parametrize(
    ("position", "value"),
    [
        (0, "5"), (0, True), (0, None), (0, 1.0), (1, 1), (2, b"bytes"), (3, "text"), (4, 1), (5, 3), (5, True), (6, 1),
        (6, None), (7, 0), (8, None), (8, [1]), (9, ["1"]), (10, []), (10, {"a": [1]}), (10, {1: 1}), (12, [1]),
    ],
)  # fmt: skip
def test_wrong_types_are_refused(position: int, value: object) -> None:
    raw = msgpack.unpackb(encode(GOOD), strict_map_key=False)
    raw[position] = value
    with pytest.raises(ProtocolError):
        decode(Message, msgpack.packb(raw))


REAL = [
    Message, meta.SetattrRequest, meta.Attr, mgmtd.GetRoutingReply, mgmtd.RegisterRequest, storage.WriteRequest,
    storage.ReadReply,
]  # fmt: skip

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.binary(max_size=9) | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=12) | st.dictionaries(st.integers(0, 99) | st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=40,
)


@given(st.sampled_from(REAL), st.binary(max_size=200))
def test_random_bytes_are_a_protocol_error_or_a_message(cls: type, data: bytes) -> None:
    try:
        message = decode(cls, data)
    except ProtocolError:
        return
    assert isinstance(message, cls)


@given(st.sampled_from(REAL), values)
def test_any_msgpack_is_a_protocol_error_or_a_message(cls: type, value: object) -> None:
    try:
        message = decode(cls, msgpack.packb(value))
    except ProtocolError:
        return
    assert decode(cls, encode(message)) == message or math.isnan(getattr(message, "ratio", 0.0))


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\xc1", b"\x90\x90", b"\x91" * 5000, b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff",
        b"\xa1\xff", b"\x81\x90\x01", b"\x81\x80\x01",
    ],
)  # fmt: skip
def test_hostile_msgpack_is_a_protocol_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(Inner, data)
