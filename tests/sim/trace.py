"""What happened in a run: a hash of all of it, the last of it in words, and on demand all of it, every message decoded."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import struct
from collections import deque
from collections.abc import Iterator, Sequence
from enum import Enum
from functools import cache
from types import ModuleType
from typing import Any

import trio

import fs3.api.common
import fs3.api.meta
import fs3.api.mgmtd
import fs3.api.storage
from fs3.api.common import ErrorBody, Method
from fs3.errors import Code, ProtocolError
from fs3.ids import ChunkId, RequestTag
from fs3.wire.codec import decode
from fs3.wire.frame import Frame, Kind

LOG_LINES = 400
ITEMS_MAX = 6
_EVENT = struct.Struct("<dBHQII")
_APIS: tuple[ModuleType, ...] = (fs3.api.common, fs3.api.meta, fs3.api.mgmtd, fs3.api.storage)
_METHODS: dict[int, Method[Any, Any]] = {
    method.id: method for api in _APIS for method in vars(api).values() if isinstance(method, Method)
}
_SILENT = ("checksums", "chunk_size", "message")
"""Fields that say little."""
_INODE_OF_REPLY = re.compile(r"answers \(attr=\(inode=(\d+)")
_OPERATION = re.compile(r" *[\d.]+ (client|mount)\d+ (?!starts|is |exits|ended|loses)")


HASHED_TOGETHER = 1000


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    """One event in words. exchange: of a message, what it shares with its reply; None for all others."""

    text: str
    exchange: tuple[str, str, int] | None = None


class Trace:
    """A hash of all that happened, and the last of it in words. full: all of it, where somebody asked for that."""

    def __init__(self, *, verbose: bool = False) -> None:
        self._hash = hashlib.blake2b(digest_size=16)
        self._hashed: list[bytes] = []  # what comes next; of messages their bodies, which hold checksums of all bulk data
        self.lines: deque[Line] = deque(maxlen=None if verbose else LOG_LINES)
        self.verbose = verbose

    def message(self, what: str, source: str, destination: str, frame: Frame | None, data: bytes) -> None:
        if frame is None:
            return
        body = frame.body
        self._hashed += (
            _EVENT.pack(trio.current_time(), frame.kind, frame.method, frame.request_id, len(body), len(data)),
            body,
        )
        if len(self._hashed) > HASHED_TOGETHER:
            self._flush()
        if self.verbose:
            asks = frame.kind is Kind.REQUEST
            exchange = (source, destination, frame.request_id) if asks else (destination, source, frame.request_id)
            text = f"{trio.current_time():10.6f} {source} -> {destination}: {words(frame, data)}"
            self.lines.append(Line(text, exchange))

    def note(self, text: str) -> None:
        """An event, for the hash and for people."""
        line = f"{trio.current_time():10.6f} {text}"
        self._hashed.append(line.encode())
        self.lines.append(Line(line))

    def say(self, text: str) -> None:
        """For people only."""
        self.lines.append(Line(f"{trio.current_time():10.6f} {text}"))

    def digest(self) -> str:
        self._flush()
        return self._hash.hexdigest()

    def _flush(self) -> None:
        self._hash.update(b"".join(self._hashed))
        self._hashed.clear()


def words(frame: Frame, data: bytes) -> str:
    """A message in words."""
    method = _METHODS.get(frame.method)
    if method is None:
        return f"{frame.kind.name.lower()} of method {frame.method}"
    number = frame.request_id & 0xFFFF
    size = f" with {len(data)} bytes" if data else ""
    try:
        if frame.kind is Kind.ERROR:
            error = decode(ErrorBody, frame.body)
            return f"{method.name} #{number} fails: {error.to_error().code.name}: {error.message}"
        body = decode(method.request if frame.kind is Kind.REQUEST else method.reply, frame.body)
    except ProtocolError as error:
        return f"{method.name} #{number} is damaged: {error}"
    return f"{method.name} #{number}{'' if frame.kind is Kind.REQUEST else ' answers'} {compact(body)}{size}"


@cache
def _fields(cls: type[Any]) -> tuple[str, ...]:
    return tuple([field.name for field in dataclasses.fields(cls) if field.name not in _SILENT])


def compact(value: Any) -> str:
    """A message's value in few words."""
    if isinstance(value, ChunkId):
        return f"{value.inode}.{value.index}"
    if isinstance(value, RequestTag):
        return f"{value.client & 0xFFFF:04x}/{value.channel}.{value.sequence}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = []
        for name in _fields(type(value)):
            inner = getattr(value, name)
            if inner or name in ("offset", "length", "version"):
                parts.append(f"{name}={_code(inner) if name == 'code' else compact(inner)}")
        return "(" + " ".join(parts) + ")"
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, (tuple, list)):
        shown = " ".join([compact(each) for each in value[:ITEMS_MAX]])
        return f"[{shown}{' ...' if len(value) > ITEMS_MAX else ''}]"
    if isinstance(value, dict):
        return f"{{{len(value)}}}"
    if isinstance(value, bytes) and len(value) > 40:
        return f"{value[:40]!r}..."
    return repr(value)


def _code(code: int) -> str:
    try:
        return Code(code).name
    except ValueError:
        return str(code)


def about(reason: str) -> tuple[str, ...]:
    """The objects that a failure's reason speaks of: inodes and names of files, as they stand in the lines of a trace."""
    found = re.findall(r"\b(?:object|chunk|inode|file) (\w+)", reason) + re.findall(r"ChunkId\(inode=(\d+)", reason)
    return tuple(dict.fromkeys([word for word in found if word != "ChunkId" and any(c.isdigit() for c in word)]))


def concerning(lines: Sequence[Line], objects: Sequence[str]) -> Iterator[str]:
    """The lines that tell what became of these objects: their messages and operations, and all else that is neither."""
    named = _words(objects)
    messages = _in_messages(objects)
    exchanges: set[tuple[str, str, int]] = set()
    some = any(named.search(line.text) for line in lines if _OPERATION.match(line.text))
    for line in lines:
        if line.exchange is not None:
            if messages.search(line.text):
                exchanges.add(line.exchange)
            elif f" {line.exchange[0]} -> " in line.text:
                exchanges.discard(line.exchange)  # a request; connections number theirs each by itself
                continue
            elif line.exchange not in exchanges:
                continue
            made = _INODE_OF_REPLY.search(line.text)
            if made is not None and made[1] not in objects:  # a name was given: go on with its inode
                objects = (*objects, made[1])
                named, messages = _words(objects), _in_messages(objects)
        elif some and _OPERATION.match(line.text) and not named.search(line.text):
            continue
        yield line.text


def _words(objects: Sequence[str]) -> re.Pattern[str]:
    return re.compile(r"\b(" + "|".join([re.escape(each) for each in objects] or ["(?!)"]) + r")\b")


def _in_messages(objects: Sequence[str]) -> re.Pattern[str]:
    """Inodes, which are numbers like others, by the fields that they stand in."""
    inodes = [each for each in objects if each.isdigit()]
    fields = [rf"(?:inode|parent|directory)={each}\b|[= \[]{each}\.\d" for each in inodes]
    return re.compile("|".join([*fields, *[rf"\b{re.escape(each)}\b" for each in objects if not each.isdigit()]]) or "(?!)")
