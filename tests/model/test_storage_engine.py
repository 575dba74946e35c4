"""The chunk engine against a dict: any order of operations, with a crash at any step of any of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fs3.api.storage import Update, UpdateKind
from fs3.checksum import BLOCK_SIZE, piece_checksums
from fs3.ids import ChunkId
from storage.chunk_engine import ChunkEngine
from storage.space import SpaceBudget
from tests.unit.storage.memory_disk import Crash, MemoryDisk
from tests.unit.storage.support import other_update, write_update

CHUNK_SIZE = 4 * BLOCK_SIZE
CHUNKS = st.sampled_from([ChunkId(1, 0), ChunkId(1, 1), ChunkId(2, 0)])
EDGES = st.builds(lambda block, off: block * BLOCK_SIZE + off, st.integers(0, 3), st.integers(0, 3))
OFFSETS = st.one_of(EDGES, st.integers(0, CHUNK_SIZE - 1))
SIZES = st.one_of(st.integers(1, 2000), EDGES.filter(bool), st.just(CHUNK_SIZE))


@dataclass(frozen=True)
class Version:
    """content None: removed."""

    number: int
    content: bytes | None


State = tuple[Version | None, Version | None]  # committed, pending


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that never has to wait."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waits for something")


class EngineMachine(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.disk = MemoryDisk()
        self.model: dict[ChunkId, State] = {}
        self.filler = 0
        self.open()

    def open(self) -> None:
        self.engine = ChunkEngine(self.disk.reopen(), "target", SpaceBudget(self.disk, 0))

    def state(self, chunk: ChunkId) -> State:
        return self.model.get(chunk, (None, None))

    def found(self, chunk: ChunkId) -> State:
        """What the engine has."""
        record = self.engine.get(chunk)
        versions: list[Version | None] = []
        for pending in (False, True):
            version = None if record is None else record.pending if pending else record.committed
            if version is None:
                versions.append(None)
            else:
                content = None if version.removed else bytes(run(self.engine.read_whole(chunk, pending=pending)))
                versions.append(Version(version.number, content))
        return versions[0], versions[1]

    def attempt(
        self,
        chunk: ChunkId,
        after: State,
        operation: Callable[[], Awaitable[object] | object],
        crash: tuple[int, float] | None,
    ) -> None:
        """Run an operation; after a crash the chunk is as before or as after it."""
        before = self.state(chunk)
        if crash is not None:
            self.disk.crash_after, self.disk.torn = crash
        try:
            result = operation()
            if isinstance(result, Coroutine):
                run(result)
        except Crash:
            self.open()
            found = self.found(chunk)
            assert found in (before, after), "a crash left neither the old nor the new"
            self.model[chunk] = found
        else:
            self.disk.crash_after = None
            self.model[chunk] = after

    def put(self, update: Update, data: bytes, content: bytes | None, commit: bool, crash: tuple[int, float] | None) -> None:
        committed, _ = self.state(update.chunk)
        version = Version(committed.number + 1 if committed is not None else 1, content)
        if commit:
            after: State = (version if content is not None else None, None)
        else:
            after = (committed, version)
        self.attempt(
            update.chunk,
            after,
            lambda: self.engine.put(update, version.number, 1, memoryview(data), commit=commit, remember=commit),
            crash,
        )

    def fill(self, size: int) -> bytes:
        self.filler = self.filler % 250 + 1
        return bytes([self.filler]) * size

    CRASHES = st.one_of(st.none(), st.tuples(st.integers(0, 3), st.sampled_from([0.0, 0.5, 0.99])))

    @rule(chunk=CHUNKS, offset=OFFSETS, size=SIZES, commit=st.booleans(), crash=CRASHES)
    def write(self, chunk: ChunkId, offset: int, size: int, commit: bool, crash: tuple[int, float] | None) -> None:
        committed, _ = self.state(chunk)
        old = (committed.content or b"") if committed is not None else b""
        data = self.fill(min(size, CHUNK_SIZE - offset))
        content = old[:offset].ljust(offset, b"\0") + data + old[offset + len(data) :]
        self.put(write_update(chunk, offset, data, chunk_size=CHUNK_SIZE), data, content, commit, crash)

    @rule(chunk=CHUNKS, size=SIZES, commit=st.booleans(), crash=CRASHES)
    def append(self, chunk: ChunkId, size: int, commit: bool, crash: tuple[int, float] | None) -> None:
        committed, _ = self.state(chunk)
        length = len(committed.content or b"") if committed is not None else 0
        if length < CHUNK_SIZE:
            self.write(chunk, length, size, commit, crash)

    @rule(chunk=CHUNKS, size=SIZES, commit=st.booleans(), crash=CRASHES)
    def replace(self, chunk: ChunkId, size: int, commit: bool, crash: tuple[int, float] | None) -> None:
        data = self.fill(size)
        self.put(write_update(chunk, 0, data, kind=UpdateKind.REPLACE), data, data, commit, crash)

    @rule(chunk=CHUNKS, length=st.one_of(st.just(0), OFFSETS), commit=st.booleans(), crash=CRASHES)
    def truncate(self, chunk: ChunkId, length: int, commit: bool, crash: tuple[int, float] | None) -> None:
        committed, _ = self.state(chunk)
        if committed is None and length == 0:
            return
        old = (committed.content or b"") if committed is not None else b""
        content = old[:length].ljust(length, b"\0")
        update = other_update(chunk, UpdateKind.TRUNCATE, length, chunk_size=CHUNK_SIZE)
        self.put(update, b"", content, commit, crash)

    @rule(chunk=CHUNKS, commit=st.booleans(), crash=CRASHES)
    def remove(self, chunk: ChunkId, commit: bool, crash: tuple[int, float] | None) -> None:
        if self.state(chunk)[0] is not None:
            self.put(other_update(chunk, UpdateKind.REMOVE), b"", None, commit, crash)

    @rule(chunk=CHUNKS, crash=CRASHES)
    def commit(self, chunk: ChunkId, crash: tuple[int, float] | None) -> None:
        pending = self.state(chunk)[1]
        if pending is not None:
            after: State = (pending if pending.content is not None else None, None)
            self.attempt(chunk, after, lambda: self.engine.commit(chunk, 1, remember=True), crash)

    @rule(chunk=CHUNKS, crash=CRASHES)
    def drop(self, chunk: ChunkId, crash: tuple[int, float] | None) -> None:
        self.attempt(chunk, (self.state(chunk)[0], None), lambda: self.engine.drop_pending(chunk), crash)

    @rule()
    def reopen(self) -> None:
        self.engine.close()
        self.open()

    @precondition(lambda self: hasattr(self, "engine"))
    @invariant()
    def same(self) -> None:
        for chunk in (ChunkId(1, 0), ChunkId(1, 1), ChunkId(2, 0)):
            state = self.state(chunk)
            assert self.found(chunk) == state, chunk
            content = state[0].content if state[0] is not None and state[0].content is not None else b""
            for offset, length in ((0, CHUNK_SIZE), (BLOCK_SIZE - 1, 3), (len(content) // 2, BLOCK_SIZE)):
                read = run(self.engine.read(chunk, offset, length))
                assert read.data == content[offset : offset + length]
                assert read.checksums == piece_checksums(read.data, offset)

    @precondition(lambda self: hasattr(self, "engine"))
    @invariant()
    def space_is_accounted_for(self) -> None:
        slots = set()
        live = {chunk: state for chunk, state in self.model.items() if state != (None, None)}
        for chunk in live:
            record = self.engine.get(chunk)
            assert record is not None
            for version in (record.committed, record.pending):
                if version is not None and version.slot is not None:
                    assert version.length <= version.slot.size
                    slots.add((version.slot.shift, version.slot.number))
        assert self.engine.used_bytes() == sum(1 << shift for shift, _ in slots)
        assert [meta.chunk for meta in self.engine.dump(None, None, 10)[0]] == sorted(live)
        assert self.engine.pending() == sorted(chunk for chunk, state in live.items() if state[1] is not None)


TestEngine = EngineMachine.TestCase
TestEngine.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
