"""The storage client against scripted daemons."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from fs3.api.storage import (
    QueryReply,
    ReadReply,
    ReadRequest,
    ReadResult,
    RemoveFileReply,
    RemoveFileRequest,
    SyncReply,
    SyncRequest,
    UpdateKind,
    UpdateResult,
    WriteReply,
    WriteRequest,
)
from fs3.checksum import BLOCK_SIZE, piece_checksums
from fs3.client.reading import ATTEMPT_S, FIRST_READ_ATTEMPT_S, ChunkRead
from fs3.client.storage import IN_PLACE_BYTES, REQUEST_BYTES, StorageClient
from fs3.errors import Code, FS3Error
from fs3.ids import ChunkId
from fs3.routing import PublicState
from tests.unit.client.cluster import FakeMgmtd, FakeRpc, make_env, routing

CHUNK = ChunkId(5, 0)


class Daemons:
    """Storage daemons that share their chunks; `trouble(address, request)` may answer or raise in their place."""

    def __init__(self) -> None:
        self.chunks: dict[ChunkId, bytes] = {}
        self.trouble: Any = lambda address, request: None
        self.rpc = FakeRpc(self.answer)
        self.mgmtd = FakeMgmtd(routing())
        self.client = StorageClient(make_env(), self.rpc, self.mgmtd, 77, "b")

    async def answer(self, address: str, request: Any, payload: bytes) -> tuple[Any, bytes]:
        wrong = self.trouble(address, request)
        if wrong is not None:
            return wrong  # type: ignore[no-any-return]
        if isinstance(request, ReadRequest):
            return self._read(request)
        if isinstance(request, WriteRequest):
            return WriteReply((self._write(request, payload),)), b""
        if isinstance(request, RemoveFileRequest):
            return RemoveFileReply(2, request.tag.sequence < 2), b""
        if isinstance(request, SyncRequest):
            return SyncReply(), b""
        return QueryReply(len(self.chunks), 0, 10, 10), b""

    def _read(self, request: ReadRequest) -> tuple[Any, bytes]:
        results, out = [], b""
        for r in request.ranges:
            content = self.chunks.get(r.chunk, b"")
            data = content[r.offset : r.offset + r.length]
            results.append(ReadResult(0, len(data), len(content), 1, piece_checksums(data, r.offset)))
            out += data
        return ReadReply(tuple(results)), out

    def _write(self, request: WriteRequest, payload: bytes) -> UpdateResult:
        update = request.updates[0]
        assert update.kind is not UpdateKind.WRITE or update.checksums == piece_checksums(payload, update.offset)
        old = self.chunks.get(update.chunk, b"").ljust(update.offset, b"\0")
        self.chunks[update.chunk] = old[: update.offset] + payload + old[update.offset + len(payload) :]
        return UpdateResult(0, 1, len(self.chunks[update.chunk]), 0)

    async def read(self, length: int, offset: int = 0, chunk: ChunkId = CHUNK) -> bytes:
        into = bytearray(b"x" * length)
        await self.client.read([ChunkRead(1, chunk, offset, memoryview(into))], deadline=trio.current_time() + 30)
        return bytes(into)

    async def write(self, data: bytes, offset: int = 0) -> UpdateResult:
        return await self.client.write(1, CHUNK, offset, data, 1 << 20, deadline=trio.current_time() + 30)


def answer_with(code: Code) -> Any:
    return ReadReply((ReadResult(int(code), 0, 0, 0, (), "no"),)), b""


async def test_what_was_written_is_read(autojump_clock: trio.abc.Clock) -> None:
    daemons = Daemons()
    data = bytes(range(256)) * 1000
    await daemons.write(data, offset=100)
    assert await daemons.read(len(data), offset=100) == data


async def test_a_short_chunk_reads_as_zeros_and_tells_its_length(autojump_clock: trio.abc.Clock) -> None:
    daemons = Daemons()
    daemons.chunks[CHUNK] = b"abc"
    into = bytearray(b"x" * 10)
    absent = bytearray(b"x" * 4)
    lengths = await daemons.client.read(
        [ChunkRead(1, CHUNK, 0, memoryview(into)), ChunkRead(1, ChunkId(5, 9), 0, memoryview(absent))],
        deadline=trio.current_time() + 1,
    )
    assert (lengths, bytes(into), bytes(absent)) == ([3, 0], b"abc" + bytes(7), bytes(4))


@pytest.mark.parametrize("scatters", [False, True])
async def test_reads_share_requests_by_size(autojump_clock: trio.abc.Clock, scatters: bool) -> None:
    daemons = Daemons()
    daemons.rpc.scatters = scatters
    sizes = [100] * 5 + [REQUEST_BYTES] + [IN_PLACE_BYTES] * 3 + [REQUEST_BYTES - 2 * IN_PLACE_BYTES, REQUEST_BYTES + 1]
    buffers = [bytearray(b"x" * size) for size in sizes]
    for index, buffer in enumerate(buffers):
        daemons.chunks[ChunkId(5, index)] = bytes([index]) * len(buffer)
    reads = [ChunkRead(1, ChunkId(5, index), 0, memoryview(b)) for index, b in enumerate(buffers)]
    await daemons.client.read(reads, deadline=trio.current_time() + 1)
    assert [bytes(b) for b in buffers] == [daemons.chunks[ChunkId(5, i)] for i in range(len(sizes))]
    assert sorted(len(request.ranges) for _, request in daemons.rpc.sent) == [1, 1, 1, 3, 5]


@pytest.mark.parametrize("scatters", [False, True])
async def test_large_reads_at_the_ends_of_chunks(autojump_clock: trio.abc.Clock, scatters: bool) -> None:
    daemons = Daemons()
    daemons.rpc.scatters = scatters
    there = [0, IN_PLACE_BYTES, 17, IN_PLACE_BYTES, 0, IN_PLACE_BYTES - 1]
    for index, length in enumerate(there):
        daemons.chunks[ChunkId(5, index)] = bytes([index]) * length
    buffers = [bytearray(b"x" * IN_PLACE_BYTES) for _ in there]
    reads = [ChunkRead(1, ChunkId(5, index), 0, memoryview(b)) for index, b in enumerate(buffers)]
    assert await daemons.client.read(reads, deadline=trio.current_time() + 1) == there
    for index, (buffer, length) in enumerate(zip(buffers, there, strict=True)):
        assert bytes(buffer) == bytes([index]) * length + bytes(IN_PLACE_BYTES - length)
    assert len(daemons.rpc.sent) == 1


async def test_a_dead_replica_sends_the_reader_to_another_at_once(autojump_clock: trio.abc.Clock) -> None:
    daemons = Daemons()
    daemons.chunks[CHUNK] = b"data"

    def trouble(address: str, request: Any) -> None:
        if address == "mem://2":
            raise FS3Error(Code.CONNECTION_LOST, "gone")

    daemons.trouble = trouble
    start = trio.current_time()
    assert await daemons.read(4) == b"data"
    assert trio.current_time() == start
    assert daemons.rpc.sent[0][0] == "mem://2"
    daemons.rpc.sent.clear()
    await daemons.read(4)
    assert "mem://2" not in [address for address, _ in daemons.rpc.sent], "it was not avoided afterwards"


@pytest.mark.expects_error_log
async def test_a_replica_that_hangs_delays_a_reader_little_and_the_last_one_gets_time(
    autojump_clock: trio.abc.Clock,
) -> None:
    daemons = Daemons()
    daemons.chunks[CHUNK] = b"data"
    daemons.rpc.hanging = {"mem://2"}
    start = trio.current_time()
    assert await daemons.read(4) == b"data"
    assert trio.current_time() - start < 1.5 * FIRST_READ_ATTEMPT_S
    daemons.rpc.sent.clear()
    daemons.rpc.hanging = {"mem://1", "mem://2", "mem://3"}
    daemons.mgmtd.set(routing(2, (PublicState.SERVING, PublicState.OFFLINE, PublicState.OFFLINE)))
    start = trio.current_time()
    with pytest.raises(FS3Error):
        await daemons.client.read([ChunkRead(1, CHUNK, 0, memoryview(bytearray(4)))], deadline=start + ATTEMPT_S - 0.1)
    assert [address for address, _ in daemons.rpc.sent].count("mem://1") == 1


async def test_bytes_that_do_not_match_their_checksum_come_from_another_replica(
    autojump_clock: trio.abc.Clock, caplog: pytest.LogCaptureFixture
) -> None:
    daemons = Daemons()
    daemons.chunks[CHUNK] = b"data"

    def trouble(address: str, request: Any) -> Any:
        if address == "mem://2":
            return ReadReply((ReadResult(0, 4, 4, 1, piece_checksums(b"data", 0)),)), b"dAta"
        return None

    daemons.trouble = trouble
    assert await daemons.read(4) == b"data"
    assert "do not match their checksums" in caplog.text


async def test_a_pending_chunk_is_read_from_the_tail(autojump_clock: trio.abc.Clock) -> None:
    daemons = Daemons()
    daemons.chunks[CHUNK] = b"data"
    daemons.trouble = lambda address, request: answer_with(Code.CHUNK_PENDING) if address != "mem://3" else None
    assert await daemons.read(4) == b"data"
    assert [address for address, _ in daemons.rpc.sent] == ["mem://2", "mem://3"]


async def test_a_pending_tail_is_asked_again_a_little_later(autojump_clock: trio.abc.Clock) -> None:
    daemons = Daemons()
    daemons.chunks[CHUNK] = b"data"
    start = trio.current_time()
    daemons.trouble = lambda *_: answer_with(Code.CHUNK_PENDING) if trio.current_time() < start + 0.1 else None
    assert await daemons.read(4) == b"data"
    assert trio.current_time() < start + 0.5


async def test_a_reader_without_replicas_waits_for_routing(autojump_clock: trio.abc.Clock) -> None:
    daemons = Daemons()
    daemons.chunks[CHUNK] = b"data"
    daemons.mgmtd.set(routing(2, (PublicState.LASTSRV,)))
    async with trio.open_nursery() as nursery:

        async def come_back() -> None:
            await trio.sleep(7)
            daemons.mgmtd.set(routing(3, (PublicState.SERVING,)))

        nursery.start_soon(come_back)
        start = trio.current_time()
        assert await daemons.read(4) == b"data"
        assert trio.current_time() == pytest.approx(start + 7)


async def test_a_read_gives_up_at_its_deadline_and_says_why(autojump_clock: trio.abc.Clock) -> None:
    daemons = Daemons()
    daemons.mgmtd.set(routing(2, ()))
    start = trio.current_time()
    with pytest.raises(FS3Error, match="chain 1 has no serving target") as caught:
        await daemons.read(4)
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    assert 29 < trio.current_time() - start <= 30


async def test_what_cannot_succeed_is_raised_at_once(autojump_clock: trio.abc.Clock) -> None:
    daemons = Daemons()
    daemons.trouble = lambda *_: answer_with(Code.INVALID)
    with pytest.raises(FS3Error) as caught:
        await daemons.read(4)
    assert caught.value.code is Code.INVALID


async def test_single_reads_fail_alone_where_that_is_asked_for(autojump_clock: trio.abc.Clock) -> None:
    daemons = Daemons()
    daemons.chunks = {ChunkId(5, index): bytes([index]) * 8 for index in range(3)}

    def trouble(address: str, request: Any) -> Any:
        reply, data = daemons._read(request)
        lost = [index for index, entry in enumerate(request.ranges) if entry.chunk.index == 1]
        results = list(reply.results)
        for index in lost:
            results[index] = ReadResult(int(Code.DATA_LOST), 0, 0, 0, (), "gone")
            data = data[: index * 8] + data[index * 8 + 8 :]
        return ReadReply(tuple(results)), data

    daemons.trouble = trouble
    into = bytearray(24)
    reads = [ChunkRead(1, ChunkId(5, index), 0, memoryview(into)[index * 8 : index * 8 + 8]) for index in range(3)]
    reads[2].chain = 9  # which there is not
    errors: dict[int, FS3Error] = {}
    lengths = await daemons.client.read(reads, deadline=trio.current_time() + 1, errors=errors)
    assert lengths[0] == 8
    assert {position: error.code for position, error in errors.items()} == {1: Code.DATA_LOST, 2: Code.DEADLINE_EXCEEDED}


async def test_a_write_keeps_its_tag_when_the_head_changes(autojump_clock: trio.abc.Clock) -> None:
    daemons = Daemons()
    tags = []

    def trouble(address: str, request: Any) -> None:
        tags.append((address, request.updates[0].tag, request.updates[0].chain_version))
        if address == "mem://1":
            daemons.mgmtd.set(
                routing(2, (PublicState.SERVING, PublicState.SERVING), hosts=("a", "b"))
            )  # the next attempt sees this
            daemons.mgmtd.routing.nodes[1] = daemons.mgmtd.routing.nodes[2]  # type: ignore[index]
            raise FS3Error(Code.CONNECTION_LOST, "killed")

    daemons.trouble = trouble
    result = await daemons.write(b"hello")
    assert result.chunk_length == 5
    assert [(address, version) for address, _, version in tags] == [("mem://1", 1), ("mem://2", 2)]
    assert tags[0][1] == tags[1][1]


async def test_writes_on_a_channel_count_up(autojump_clock: trio.abc.Clock) -> None:
    daemons = Daemons()
    await daemons.write(b"a")
    await daemons.write(b"b")
    tags = [request.updates[0].tag for _, request in daemons.rpc.sent]
    assert [(tag.client, tag.channel, tag.sequence) for tag in tags] == [(77, 1, 1), (77, 1, 2)]


async def test_a_full_disk_is_told_at_once_and_its_channel_dropped(autojump_clock: trio.abc.Clock) -> None:
    daemons = Daemons()
    daemons.trouble = lambda *_: (WriteReply((UpdateResult(int(Code.NO_SPACE), 0, 0, 0, "full"),)), b"")
    with pytest.raises(FS3Error, match="full") as caught:
        await daemons.write(b"a")
    assert caught.value.code is Code.NO_SPACE
    daemons.trouble = lambda *_: None
    await daemons.write(b"a")
    assert daemons.rpc.sent[-1][1].updates[0].tag.channel == 2


async def test_removal_goes_on_while_there_is_more(autojump_clock: trio.abc.Clock) -> None:
    daemons = Daemons()
    assert await daemons.client.remove_file(1, 5, 0, deadline=trio.current_time() + 5) == 4
    assert [request.tag.sequence for _, request in daemons.rpc.sent] == [1, 2]


async def test_sync_and_query_go_to_the_head(autojump_clock: trio.abc.Clock) -> None:
    daemons = Daemons()
    await daemons.client.sync(1, [CHUNK], deadline=trio.current_time() + 5)
    reply = await daemons.client.query(1, 5, deadline=trio.current_time() + 5)
    assert reply.last_length == 10
    assert [address for address, _ in daemons.rpc.sent] == ["mem://1", "mem://1"]


async def test_a_long_write_spans_blocks(autojump_clock: trio.abc.Clock) -> None:
    daemons = Daemons()
    data = b"z" * (BLOCK_SIZE * 2)
    await daemons.write(data, offset=1000)
    assert len(daemons.rpc.sent[0][1].updates[0].checksums) == 3
