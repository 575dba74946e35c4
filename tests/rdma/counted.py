"""A client or a storage daemon that counts what it asks of the device, what it copies, and what CPU time it takes.

`python -m tests.rdma.counted serve FOLDER` serves one chain of one replica, prints its address, and its counts for each
line that it reads. `... call ADDRESS` does what each line says, [operation, bytes, how often], and prints the counts.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from fs3.api.storage import READ, WRITE, ReadRange, ReadRequest, WriteRequest
from fs3.env import Env
from fs3.ids import ChunkId, RequestTag
from fs3.layout import CHUNK_SIZE_MIN
from fs3.rpc.client import RpcClient
from fs3.transport import rdma
from fs3.transport.rdma_flow import Post, Work
from tests.transports import transport
from tests.unit.storage.support import CHAIN, cluster, write_update

COPIES = ("copied", "received", "sent", "file_read", "file_written")
SIZE_MAX = 4 << 20
CALL_S = 120.0


def bytes_copied() -> dict[str, int]:
    try:
        found = (ctypes.c_ulong * len(COPIES)).in_dll(ctypes.CDLL(None), "fs3_counted")
    except ValueError:
        return {}  # it was not preloaded
    return dict(zip(COPIES, found, strict=True))


class Counts:
    """What this process's queue pairs do, from now on."""

    def __init__(self) -> None:
        self.verbs: Counter[str] = Counter()
        pair = rdma.VerbsQueuePair
        self._wrap(pair, "post_message", self._message)
        self._wrap(pair, "post_transfer", lambda self, post, *_: self._posted(post))
        self._wrap(pair, "post_receive", lambda self, *_: self.verbs.update(["receives"]))
        self._wrap(pair, "_posted", lambda self, verb, _: self.verbs.update(["doorbells"] * (verb == "post_send")))
        self._wrap(pair, "_completion", lambda self, _: self.verbs.update(["completions"]))
        self._wrap(pair, "_arm", lambda self: self.verbs.update(["events"]))

    def _wrap(self, owner: Any, name: str, note: Callable[..., None]) -> None:
        inner = getattr(owner, name)

        def wrapped(pair: Any, *arguments: Any) -> Any:
            note(self, *arguments)
            return inner(pair, *arguments)

        setattr(owner, name, wrapped)

    @staticmethod
    def _message(self: Counts, post: Post, length: int) -> None:
        self._posted(post)
        self.verbs["inline"] += length <= rdma.INLINE_MAX and post.work is Work.MESSAGE

    def _posted(self, post: Post) -> None:
        self.verbs[post.work.value] += 1
        self.verbs["signaled"] += post.signaled

    def now(self) -> dict[str, float]:
        times = os.times()
        return {**self.verbs, **bytes_copied(), "cpu_us": (times.user + times.system) * 1e6}


async def lines() -> Any:
    stream = trio.lowlevel.FdStream(os.dup(0))
    data = b""
    async for part in stream:
        data += part
        *whole, data = data.split(b"\n")
        for line in whole:
            yield line


def say(value: Any) -> None:
    print(json.dumps(value), flush=True)


async def serve(folder: str) -> None:
    counts = Counts()
    async with cluster(Path(folder), 1) as made:
        say(made.replicas[0].address)
        async for _ in lines():
            say(counts.now())


class Caller:
    """The operations, each of a whole chunk: of one chunk for each size."""

    def __init__(self, address: str, env: Env, rpc: RpcClient) -> None:
        self._address = address
        self._env = env
        self._rpc = rpc
        self._sequence = 0
        self._plain = memoryview(bytearray(SIZE_MAX))
        self._registered = memoryview(mmap.mmap(-1, SIZE_MAX))
        self._registered[:] = os.urandom(SIZE_MAX)
        self._registration = env.transport.register(self._registered)

    async def run(self, operation: str, size: int) -> None:
        kind, _, memory = operation.partition("-")
        buffer = (self._registered if memory == "registered" else self._plain)[:size]
        if kind == "read":
            await self._read(buffer)
        else:
            await self._write(buffer)

    async def _read(self, into: memoryview) -> None:
        request = ReadRequest((ReadRange(CHAIN, 1, 1, ChunkId(len(into), 0), 0, len(into)),))
        reply, payload = await self._rpc.call_bulk(
            self._address, READ, request, deadline=self._env.monotonic() + CALL_S, into=into
        )
        assert reply.results[0].code == 0 and len(payload) == len(into)

    async def _write(self, data: memoryview) -> None:
        self._sequence += 1
        tag = RequestTag(99, 0, self._sequence)
        chunk, size = ChunkId(len(data), 0), max(len(data), CHUNK_SIZE_MIN)
        request = WriteRequest((write_update(chunk, 0, data, tag=tag, chunk_size=size),), True)  # type: ignore[arg-type]
        deadline = self._env.monotonic() + CALL_S
        reply = await self._rpc.call(self._address, WRITE, request, deadline=deadline, payload=[data])
        assert reply.results[0].code == 0, reply


async def call(address: str) -> None:
    counts = Counts()
    env = Env(transport())
    async with trio.open_nursery() as nursery:
        caller = Caller(address, env, RpcClient(env, nursery))
        async for line in lines():
            operation, size, times = json.loads(line)
            before = counts.now()
            for _ in range(times):
                await caller.run(operation, size)
            after = counts.now()
            say({name: value - before.get(name, 0) for name, value in after.items()})
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run({"serve": serve, "call": call}[sys.argv[1]], sys.argv[2])
