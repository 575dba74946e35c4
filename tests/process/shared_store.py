"""One embedded store for several processes, for tests: a server that runs their transactions, and the engine that asks it.

The server (programs/store_server.py) holds an embedded engine and listens on a Unix socket. A `SharedEngine` keeps what its
transactions write until they read or commit, so that every operation of a transaction is done by the embedded engine's own
transaction, in the order in which it was asked for. A transaction lives in the server under an id that its maker drew.

Frames both ways: length (8 bytes, little-endian), then msgpack. A request is (id, whether the server must know of it,
operations, question), the answer (0, result) or (code, message). What breaks the connection while a commit is asked for
leaves its outcome unknown.
"""

from __future__ import annotations

import secrets
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgpack
import trio

from fs3.errors import Code, FS3Error
from fs3.kv.base import KVEngine, Txn
from fs3.kv.limits import KEY_END, check_key, check_value

IDLE_S = 15.0
"""A transaction that nobody asked anything of for so long is forgotten: it is too old by then."""

TIMEOUT_S = 10.0
"""A store that does not answer for so long is lost."""

_LENGTH = struct.Struct("<Q")
Question = tuple[Any, ...]


class Channel:
    """Messages over one connection."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._buffer = bytearray()

    async def send(self, message: Any) -> None:
        body = msgpack.packb(message)
        await self._stream.send_all(_LENGTH.pack(len(body)) + body)

    async def receive(self) -> Any:
        """Raises EOFError where the other end has gone, BrokenResourceError."""
        (length,) = _LENGTH.unpack(await self._exactly(_LENGTH.size))
        return msgpack.unpackb(await self._exactly(length), use_list=False)

    async def _exactly(self, count: int) -> bytes:
        while len(self._buffer) < count:
            data = await self._stream.receive_some()
            if not data:
                raise EOFError
            self._buffer += data
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self._stream)


class StoreServer:
    """Transactions of other processes on one engine."""

    def __init__(self, engine: KVEngine) -> None:
        self._engine = engine
        self._open: dict[bytes, tuple[Txn, float]] = {}

    async def serve(self, path: Path, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled."""
        with trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM) as sock:
            await sock.bind(str(path))
            sock.listen(100)
            listener = trio.SocketListener(sock)
            async with trio.open_nursery() as nursery:
                await nursery.start(trio.serve_listeners, self._talk, [listener])
                task_status.started()
                while True:
                    await trio.sleep(IDLE_S / 3)
                    self._forget_idle()

    def _forget_idle(self) -> None:
        horizon = trio.current_time() - IDLE_S
        for key in [key for key, (_, used_at) in self._open.items() if used_at < horizon]:
            del self._open[key]

    async def _talk(self, stream: trio.SocketStream) -> None:
        channel = Channel(stream)
        with suppress(EOFError, trio.BrokenResourceError):
            while True:
                key, known, operations, question = await channel.receive()
                try:
                    answer = (0, await self._do(key, known, operations, question))
                except FS3Error as error:
                    answer = (error.code.value, error.message)
                await channel.send(answer)

    async def _do(self, key: bytes, known: bool, operations: tuple[Question, ...], question: Question) -> Any:
        if question[0] == "sync":
            await self._engine.sync()
            return None
        if known and key not in self._open:  # what it has read is not known any more, hence no conflict either
            raise FS3Error(Code.TRANSACTION_TOO_OLD, "nobody knows of this transaction any more")
        txn = self._open[key][0] if key in self._open else self._engine.transaction()
        self._open[key] = txn, trio.current_time()
        for name, *arguments in operations:
            getattr(txn, name)(*arguments)
        match question:
            case ("get", wanted, snapshot):
                return await txn.get(wanted, snapshot=snapshot)
            case ("get_range", begin, end, limit, reverse, snapshot):
                return await txn.get_range(begin, end, limit=limit, reverse=reverse, snapshot=snapshot)
            case ("commit",):
                del self._open[key]
                await txn.commit()
                return None
        raise AssertionError(question)


class SharedEngine(KVEngine):
    """A store that another process holds."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._idle: list[Channel] = []
        self._closed = False

    def transaction(self) -> Txn:
        return _SharedTxn(self)

    async def sync(self) -> None:
        await self.ask(b"", False, [], ("sync",))

    async def aclose(self) -> None:
        self._closed = True
        while self._idle:
            await self._idle.pop().aclose()

    async def ask(self, key: bytes, known: bool, operations: list[Question], question: Question) -> Any:
        """One exchange with the server, over a connection that nobody else uses meanwhile."""
        lost = Code.KV_UNAVAILABLE
        channel = None
        try:
            if self._closed:
                raise FS3Error(lost, "the store is closed")
            channel = self._idle.pop() if self._idle else Channel(await trio.open_unix_socket(self._path))
            if question[0] == "commit":
                lost = Code.COMMIT_UNKNOWN
            with trio.fail_after(TIMEOUT_S):
                await channel.send((key, known, operations, question))
                code, result = await channel.receive()
        except (OSError, EOFError, trio.BrokenResourceError, trio.TooSlowError) as error:
            if channel is not None:
                await channel.aclose()
            raise FS3Error(lost, f"lost the store at {self._path}: {error!r}") from None
        except BaseException:
            if channel is not None:  # cancelled half way: what comes next on it would be another's answer
                with trio.CancelScope(shield=True):
                    await channel.aclose()
            raise
        if self._closed:
            await channel.aclose()
        else:
            self._idle.append(channel)
        if code:
            raise FS3Error(Code(code), result)
        return result


class _SharedTxn(Txn):
    def __init__(self, engine: SharedEngine) -> None:
        self._engine = engine
        self.reset()

    def reset(self) -> None:
        self._usable = True
        self._key = secrets.token_bytes(16)
        self._operations: list[Question] = []
        self._begun = False
        """Whether the server knows of it."""

    async def get(self, key: bytes, *, snapshot: bool = False) -> bytes | None:
        value: bytes | None = await self._ask(("get", key, snapshot))
        return value

    async def get_range(
        self, begin: bytes, end: bytes, *, limit: int = 0, reverse: bool = False, snapshot: bool = False
    ) -> list[tuple[bytes, bytes]]:
        assert limit >= 0 and end <= KEY_END
        return list(await self._ask(("get_range", begin, end, limit, reverse, snapshot)))

    def set(self, key: bytes, value: bytes) -> None:
        check_key(key)
        check_value(value)
        self._note("set", key, value)

    def clear(self, key: bytes) -> None:
        check_key(key)
        self._note("clear", key)

    def clear_range(self, begin: bytes, end: bytes) -> None:
        assert end <= KEY_END
        self._note("clear_range", begin, end)

    def atomic_add(self, key: bytes, delta: int) -> None:
        check_key(key)
        # As a counter takes it: an int of any size does not fit a message.
        self._note("atomic_add", key, (delta + (1 << 63)) % (1 << 64) - (1 << 63))

    def add_read_conflict_range(self, begin: bytes, end: bytes) -> None:
        assert end <= KEY_END
        self._note("add_read_conflict_range", begin, end)

    def add_write_conflict_range(self, begin: bytes, end: bytes) -> None:
        assert end <= KEY_END
        self._note("add_write_conflict_range", begin, end)

    async def commit(self) -> None:
        assert self._usable
        self._usable = False
        if self._begun or self._operations:
            await self._engine.ask(self._key, self._begun, self._operations, ("commit",))

    def _note(self, *operation: Any) -> None:
        assert self._usable
        self._operations.append(operation)

    async def _ask(self, question: Question) -> Any:
        assert self._usable
        operations, self._operations = self._operations, []
        known, self._begun = self._begun, True
        return await self._engine.ask(self._key, known, operations, question)
