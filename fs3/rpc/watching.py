"""How a server tells of itself: the methods `metrics` and `trace`, and requests in words."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

from ..api.common import METRICS, TRACE, Empty, ErrorBody, Method, MetricsReply, TraceReply, TraceRequest
from ..errors import Code, FS3Error
from ..ids import ChunkId
from ..metrics import Operation
from ..watching import LISTENERS_MAX, Listener, figures
from ..wire.codec import decode
from ..wire.frame import Kind

if TYPE_CHECKING:
    from .server import Call, RpcServer

DETAIL_MAX = 160
"""Characters."""
_INODE_FIELDS = ("inode", "parent", "chunk")


def watch(server: RpcServer) -> None:
    """Answer `metrics` and `trace`."""
    env = server.env
    listeners: dict[int, Listener] = {}

    async def metrics(request: Empty, call: Call) -> MetricsReply:
        return MetricsReply(json.dumps(figures(env)))

    async def trace(request: TraceRequest, call: Call) -> TraceReply:
        for number in [number for number, each in listeners.items() if each.away]:
            listeners.pop(number).close()
        found = listeners.get(request.listener)
        if found is None:
            if len(listeners) >= LISTENERS_MAX:
                raise FS3Error(Code.BUSY, f"{LISTENERS_MAX} others trace this daemon already")
            found = listeners[request.listener] = Listener(env)
        rows, dropped = found.take()
        return TraceReply(json.dumps(rows), dropped)

    server.handle(METRICS, metrics)
    server.handle(TRACE, trace)


def described(method: Method[Any, Any], request: bytes, kind: Kind, reply: bytes, peer: str, took_ns: int) -> Operation:
    """A request that was answered."""
    error = Code(decode(ErrorBody, reply).to_error().code).name if kind is Kind.ERROR else ""
    inode, words = 0, ""
    try:
        found = decode(method.request, request)
        inode, words = inode_of(found), in_words(found)
    except FS3Error as bad:
        words = str(bad)
    return Operation(f"rpc.{method.name}", took_ns, peer, error, inode, "", words)


def inode_of(request: Any) -> int:
    """The inode that a request is about, as far as its fields tell; 0 for none. A request of many: the first."""
    for name in _INODE_FIELDS:
        value = getattr(request, name, 0)
        if isinstance(value, ChunkId):
            return value.inode
        if isinstance(value, int) and value:
            return value
    for field in dataclasses.fields(request):
        value = getattr(request, field.name)
        if isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
            return inode_of(value[0])
    return 0


def in_words(request: Any) -> str:
    """The fields of a request that are simple; of lists their length."""
    words = []
    for field in dataclasses.fields(request):
        value = getattr(request, field.name)
        if isinstance(value, bytes):
            words.append(f"{field.name}={value[:40].decode(errors='replace')}")
        elif isinstance(value, (int, str)):
            words.append(f"{field.name}={value}")
        elif isinstance(value, tuple):
            words.append(f"{len(value)} {field.name}")
    return " ".join(words)[:DETAIL_MAX]
