"""Any split of the bytes, any damage: exactly the frames, or ProtocolError, and never memory that a peer only claims."""

from __future__ import annotations

from itertools import cycle

from hypothesis import given, settings
from hypothesis import strategies as st

from fs3.errors import ProtocolError
from fs3.wire.frame import PAYLOAD_SIZE_MAX, Frame, Framer, Kind, encode_head

PLAIN = tuple[int, int, int, int, int, bytes, bytes]
DRAWN = tuple[int, int, int, int, int, tuple[bytes, int], tuple[bytes, int]]

blobs = st.tuples(st.binary(max_size=8), st.one_of(st.integers(0, 20), st.integers(0, 30_000)))  # bytes, how often
frames = st.tuples(
    st.sampled_from([int(kind) for kind in Kind]),
    st.integers(0, 0xFFFF),
    st.integers(0, 0xFFFF),
    st.integers(0, (1 << 64) - 1),
    st.integers(0, (1 << 32) - 1),
    blobs,
    blobs,
)
sizes = st.lists(st.one_of(st.integers(1, 40), st.integers(1, 70_000)), min_size=1, max_size=20)


def expand(drawn: list[DRAWN]) -> list[PLAIN]:
    return [(*numbers, body[0] * body[1], payload[0] * payload[1]) for *numbers, body, payload in drawn]  # type: ignore[misc]


def stream(plain: list[PLAIN]) -> bytes:
    return b"".join(
        encode_head(Kind(kind), method, flags, number, timeout, body, len(payload)) + payload
        for kind, method, flags, number, timeout, body, payload in plain
    )


def plain_of(frame: Frame) -> PLAIN:
    payload = bytes(frame.payload) if frame.payload is not None else b""
    assert len(payload) == frame.payload_length
    return (int(frame.kind), frame.method, frame.flags, frame.request_id, frame.timeout_ms, frame.body, payload)


def feed(framer: Framer, data: bytes, pieces: list[int]) -> list[PLAIN]:
    """Hand over the data cut into pieces of these sizes, again and again (long data in larger ones, to be quick)."""
    pieces = [max(piece, len(data) // 500) for piece in pieces]
    result = []
    at = turn = 0
    while at < len(data):
        buffer = framer.buffer()
        assert len(buffer) > 0
        count = min(pieces[turn % len(pieces)], len(buffer), len(data) - at)
        buffer[:count] = data[at : at + count]
        at += count
        turn += 1
        result += [plain_of(frame) for frame in framer.received(count)]
    return result


def put(buffers: list[memoryview], data: bytes) -> None:
    """As recvmsg_into."""
    for buffer in buffers:
        count = min(len(buffer), len(data))
        buffer[:count] = data[:count]
        data = data[count:]
    assert not data


@given(st.lists(frames, max_size=6), sizes)
def test_any_split_gives_exactly_the_frames(drawn: list[DRAWN], pieces: list[int]) -> None:
    plain = expand(drawn)
    assert feed(Framer(), stream(plain), pieces) == plain


@given(st.lists(frames, min_size=1, max_size=4), sizes, st.data())
def test_damage_is_a_protocol_error_or_in_a_payload(drawn: list[DRAWN], pieces: list[int], data: st.DataObject) -> None:
    """The framer answers for headers and bodies; payloads carry their own checksums."""
    plain = expand(drawn)
    good = stream(plain)
    at = data.draw(st.integers(0, len(good) - 1))
    bad = bytearray(good)
    bad[at] ^= data.draw(st.integers(1, 255))
    framer = Framer()
    try:
        got = feed(framer, bytes(bad), pieces)
    except ProtocolError:
        return
    # Nothing false came out: what is there is what was sent, but for one payload; a length that grew shows as silence.
    assert len(got) <= len(plain)
    for mine, sent in zip(got, plain, strict=False):
        assert mine[:6] == sent[:6] and len(mine[6]) == len(sent[6])
    assert len(got) < len(plain) or sum(mine != sent for mine, sent in zip(got, plain, strict=True)) <= 1


@given(st.binary(max_size=2000), sizes)
def test_garbage_raises_protocol_error_or_waits(garbage: bytes, pieces: list[int]) -> None:
    try:
        assert feed(Framer(), garbage, pieces) == []
    except ProtocolError:
        pass


@settings(max_examples=50)
@given(st.integers(0, 0xFFFFFFFF), st.integers(0, 0xFFFFFFFF), st.binary(max_size=100))
def test_a_claim_alone_allocates_nothing(body_length: int, payload_length: int, rest: bytes) -> None:
    """A header may claim any lengths; unless its checksum (which covers the body) is right, nothing is allocated."""
    asked: list[int] = []

    def allocate(frame: Frame) -> memoryview:
        asked.append(frame.payload_length)
        return memoryview(bytearray(frame.payload_length))

    head = bytearray(encode_head(Kind.REQUEST, 1, 0, 1, 0, b"", 0))
    head[20:24] = body_length.to_bytes(4, "little")
    head[24:28] = payload_length.to_bytes(4, "little")
    framer = Framer(allocate)
    try:
        feed(framer, bytes(head) + rest, [1000])
    except ProtocolError:
        pass
    assert all(size <= PAYLOAD_SIZE_MAX for size in asked)
    assert not asked or (body_length, payload_length) == (0, 0)
    assert len(framer.buffer()) <= 128 * 1024


@given(st.lists(frames, max_size=4), sizes, st.lists(st.integers(0, 20_000), max_size=8), st.data())
def test_payloads_are_scattered_in_order(
    drawn: list[DRAWN], pieces: list[int], rooms: list[int], data: st.DataObject
) -> None:
    plain = expand(drawn)
    abandoned = data.draw(st.sampled_from([0, *[number for _, _, _, number, _, _, _ in plain]]))
    places: list[list[memoryview]] = []

    def allocate(frame: Frame) -> list[memoryview]:
        missing = max(0, frame.payload_length - sum(rooms))
        places.append([memoryview(bytearray(size)) for size in (*rooms, missing)])
        return places[-1]

    framer = Framer(allocate)
    raw = stream(plain)
    at = 0
    got: list[Frame] = []
    cut = data.draw(st.integers(0, len(raw)))
    turns = cycle(data.draw(st.lists(st.booleans(), min_size=1, max_size=5)))
    mosts = cycle(data.draw(st.sampled_from([[None], [100, None], [4096]])))
    frozen: list[bytes] | None = None
    while at < len(raw):
        if at >= cut and frozen is None:
            framer.abandon(abandoned)
            frozen = [bytes(buffer) for buffer in places[-1]] if places else []
            begun = len(places)
        buffers = (next(turns) and framer.buffers()) or [framer.buffer(next(mosts))]
        count = min(pieces[len(got) % len(pieces)] + len(raw) // 300, sum(map(len, buffers)), len(raw) - at)
        put(buffers, raw[at : at + count])
        at += count
        got += framer.received(count)
    assert [(frame.request_id, frame.body) for frame in got] == [(one[3], one[5]) for one in plain]
    filled = iter(places)
    for number, (frame, (*_, payload)) in enumerate(zip(got, plain, strict=True)):
        if payload:
            buffers = next(filled)
            if frame.payload is None:
                assert b"".join(buffers)[: len(payload)] == payload, number
            else:
                assert frame.request_id == abandoned and frozen == [bytes(buffer) for buffer in places[begun - 1]]


@given(st.lists(frames, min_size=1, max_size=4), sizes, st.data())
def test_abandoned_payloads_do_not_disturb_the_stream(drawn: list[DRAWN], pieces: list[int], data: st.DataObject) -> None:
    plain = expand(drawn)
    raw = stream(plain)
    cut = data.draw(st.integers(0, len(raw)))
    abandoned = data.draw(st.sampled_from([number for _, _, _, number, _, _, _ in plain]))
    given_buffers: list[memoryview] = []

    def allocate(frame: Frame) -> memoryview:
        given_buffers.append(memoryview(bytearray(frame.payload_length)))
        return given_buffers[-1]

    framer = Framer(allocate)
    before = feed(framer, raw[:cut], pieces)
    framer.abandon(abandoned)
    kept = [bytes(buffer) for buffer in given_buffers]
    half = len(given_buffers) > sum(1 for one in before if one[6])
    after = feed(framer, raw[cut:], pieces)
    got = before + after
    assert [one[:6] for one in got] == [one[:6] for one in plain]
    if half and plain[len(before)][3] == abandoned:
        assert bytes(given_buffers[len(kept) - 1]) == kept[-1], "an abandoned buffer was written to"
