"""Identifiers that cross module and process boundaries. Pure."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import NewType

from .quick import quick

NodeId = NewType("NodeId", int)
TargetId = NewType("TargetId", int)
ChainId = NewType("ChainId", int)
TableId = NewType("TableId", int)
InodeId = NewType("InodeId", int)
ClientId = NewType("ClientId", int)

ROOT_INODE = InodeId(1)
"""The root directory. FUSE reserves the same number for it."""

U64_MAX = (1 << 64) - 1

_CHUNK_ID = struct.Struct(">QQ")


class NodeKind(IntEnum):
    """What a node of the cluster does."""

    MGMTD = 1
    META = 2
    STORAGE = 3
    CLIENT = 4


@quick
@dataclass(frozen=True, slots=True, order=True)
class ChunkId:
    """One chunk of one file: the file's inode and the chunk's index in the file (offset // chunk_size)."""

    inode: int
    index: int

    def pack(self) -> bytes:
        """16 bytes that sort as (inode, index)."""
        return _CHUNK_ID.pack(self.inode, self.index)

    @staticmethod
    def unpack(data: bytes) -> ChunkId:
        inode, index = _CHUNK_ID.unpack(data)
        return ChunkId(inode, index)


@quick
@dataclass(frozen=True, slots=True, order=True)
class RequestTag:
    """Names one mutating request for ever, so that a retry is recognised and done once.

    `client` is a random 63-bit id of one client process incarnation; `channel` is a lane on which that client has at most
    one request outstanding; `sequence` grows by one with each new request on the lane, and stays the same for its retries.
    """

    client: int
    channel: int
    sequence: int
