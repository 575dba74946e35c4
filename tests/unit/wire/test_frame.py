"""The framer by example; tests/model/test_framer.py has the rest."""

from __future__ import annotations

import pytest

from fs3.errors import ProtocolError
from fs3.wire.frame import BODY_SIZE_MAX, HEADER_SIZE, PAYLOAD_SIZE_MAX, Frame, Framer, Kind, encode_head


def feed(framer: Framer, data: bytes) -> list[Frame]:
    """Give all of it, in pieces as large as the framer takes them."""
    frames = []
    while data:
        buffer = framer.buffer()
        count = min(len(buffer), len(data))
        buffer[:count] = data[:count]
        data = data[count:]
        frames += framer.received(count)
    return frames


def test_header_is_pinned() -> None:
    head = encode_head(Kind.REQUEST, 0x0102, 0x0304, 0x05060708090A0B0C, 0x0D0E0F10, b"body", 0x121314)
    assert head.hex(" ", -4) == "66330101 02010403 0c0b0a09 08070605 100f0e0d 04000000 14131200 a5ab4146 626f6479"


def test_a_frame_comes_back() -> None:
    head = encode_head(Kind.REPLY, 300, 1, 1 << 63, 0, b"body", 3)
    (frame,) = feed(Framer(), head + b"abc")
    assert frame == Frame(Kind.REPLY, 300, 1, 1 << 63, 0, b"body", memoryview(b"abc"), 3)


def test_large_payload_lands_in_the_given_buffer() -> None:
    given = memoryview(bytearray(200_000))
    payload = bytes(range(256)) * 700
    framer = Framer(lambda frame: given if frame.request_id == 9 else memoryview(bytearray(frame.payload_length)))
    (frame,) = feed(framer, encode_head(Kind.REPLY, 1, 0, 9, 0, b"", len(payload)) + payload)
    assert frame.payload == given[: len(payload)] and given[: len(payload)] == payload


def test_abandoned_buffer_is_not_touched_any_more() -> None:
    given = memoryview(bytearray(200_000))
    framer = Framer(lambda frame: given)
    payload = b"x" * 200_000
    assert feed(framer, encode_head(Kind.REPLY, 1, 0, 9, 0, b"", len(payload)) + payload[:100_000]) == []
    framer.abandon(8)  # another's
    framer.abandon(9)
    given[:] = bytes(200_000)
    (frame,) = feed(framer, payload[100_000:])
    assert frame.request_id == 9 and bytes(given) == bytes(200_000)


def test_a_long_body_grows_the_staging_and_gives_it_back() -> None:
    framer = Framer()
    body = b"b" * 3_000_000
    (frame,) = feed(framer, encode_head(Kind.REQUEST, 1, 0, 1, 0, body, 0))
    assert frame.body == body
    assert len(framer.buffer()) <= 64 * 1024


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (0, b"GE", "not an fs3 frame"),
        (2, b"\x09", "version 9"),
        (3, b"\x00", "kind 0"),
        (20, (BODY_SIZE_MAX + 1).to_bytes(4, "little"), "too large"),
        (24, (PAYLOAD_SIZE_MAX + 1).to_bytes(4, "little"), "too large"),
        (12, b"\xff", "damaged"),
        (HEADER_SIZE, b"B", "damaged"),
    ],
)
def test_damage_is_named(at: int, value: bytes, message: str) -> None:
    data = bytearray(encode_head(Kind.REQUEST, 1, 0, 1, 0, b"body", 0))
    data[at : at + len(value)] = value
    with pytest.raises(ProtocolError, match=message):
        feed(Framer(), bytes(data))


def test_our_own_too_large_frame_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        encode_head(Kind.REQUEST, 1, 0, 1, 0, bytes(BODY_SIZE_MAX + 1), 0)
    with pytest.raises(AssertionError):
        encode_head(Kind.REQUEST, 1, 0, 1, 0, b"", PAYLOAD_SIZE_MAX + 1)


def test_idle_connection_takes_little_memory() -> None:
    framer = Framer()
    small = encode_head(Kind.REQUEST, 1, 0, 1, 1, b"x", 0)
    for _ in range(3):
        framer.buffer()[: len(small)] = small
        assert len(framer.received(len(small))) == 1
        assert len(framer.buffer()) <= 4 * 1024
    many = small * (len(framer.buffer()) // len(small) + 1)
    got = 0
    while many:
        buffer = framer.buffer()
        count = min(len(buffer), len(many))
        buffer[:count], many = many[:count], many[count:]
        got += len(framer.received(count))
    assert got > 100 and len(framer.buffer()) == 64 * 1024, "one that carries much gets room for it"
