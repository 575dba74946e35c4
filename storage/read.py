"""The read path: ranges of committed chunks, with checksums, in one reply."""

from __future__ import annotations

from fs3.api.storage import READ_RANGES_MAX, ReadRange, ReadReply, ReadRequest, ReadResult
from fs3.errors import Code, FS3Error
from fs3.rpc.server import Call
from fs3.transport.base import Part
from fs3.wire.frame import PAYLOAD_SIZE_MAX

from .local import DAMAGE, StorageNode
from .replica import readable

_ABSENT = ReadResult(0, 0, 0, 0, ())


async def read(node: StorageNode, request: ReadRequest, call: Call) -> ReadReply:
    """Answer all ranges. Raises INVALID on a request that is too large or makes no sense."""
    ranges = request.ranges
    if len(ranges) > READ_RANGES_MAX or sum([item.length for item in ranges]) > PAYLOAD_SIZE_MAX:
        raise FS3Error(Code.INVALID, f"{len(ranges)} ranges, or too many bytes, in one request")
    parts: list[Part] = []
    results = [await _read_range(node, item, parts) for item in ranges]
    if parts:
        call.reply_payload(parts)
    return ReadReply(tuple(results))


async def _read_range(node: StorageNode, item: ReadRange, parts: list[Part]) -> ReadResult:
    try:
        if item.offset < 0 or item.length < 0:
            raise FS3Error(Code.INVALID, f"{item.length} bytes at {item.offset}")
        role = node.map.for_read(item.chain, item.chain_version, item.target)
        target = node.target(role)
        chunk = target.engine.get(item.chunk)
        if chunk is None:
            return _ABSENT
        if not readable(chunk):
            raise FS3Error(Code.CHUNK_PENDING, "an update of this chunk is being committed")
        try:
            found = await target.engine.read(item.chunk, item.offset, item.length)
        except FS3Error as error:
            if error.code is Code.DISK_FAILED:
                node.disk_failed(target, error)
            elif error.code in DAMAGE:
                raise node.unreadable(target, item.chunk, error) from None
            raise
    except FS3Error as error:
        return ReadResult(int(error.code), 0, 0, 0, (), error.message)
    if len(found.data):
        parts.append(found.data)
        node.env.metrics.count("storage.read_bytes", len(found.data))
    node.env.metrics.count("storage.reads")
    return ReadResult(0, len(found.data), found.chunk_length, found.version, found.checksums)
