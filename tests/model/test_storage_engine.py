"""The chunk engine against a dict: any order of operations, with a crash or the loss of power at any step of any of them.

After a crash of the process a chunk is as it was before the operation under way, or as after it. After the loss of power it
is as it was at its last sync, or as after any operation since then; and whole.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from dataclasses import replace as replaced
from functools import partial
from random import Random
from typing import Any

import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import storage.chunk_table
import storage.contents
import storage.data_files
import storage.durability
from fs3.api.storage import Update, UpdateKind
from fs3.checksum import BLOCK_SIZE, piece_checksums
from fs3.errors import Code, FS3Error
from fs3.ids import ChunkId
from storage.chunk_engine import ChunkEngine
from storage.space import SpaceBudget
from tests.unit.storage.memory_disk import Crash, MemoryDisk
from tests.unit.storage.support import other_update, write_update

CHUNK_SIZE = 4 * BLOCK_SIZE
ALL = (ChunkId(1, 0), ChunkId(1, 1), ChunkId(2, 0))
CHUNKS = st.sampled_from(ALL)
EDGES = st.builds(lambda block, off: block * BLOCK_SIZE + off, st.integers(0, 3), st.integers(0, 3))
OFFSETS = st.one_of(EDGES, st.integers(0, CHUNK_SIZE - 1))
SIZES = st.one_of(st.integers(1, 2000), EDGES.filter(bool), st.just(CHUNK_SIZE))


@dataclass(frozen=True)
class Version:
    """content None: removed."""

    number: int
    content: bytes | None


@dataclass(frozen=True)
class Fault:
    """after: how many steps of the disk succeed. power: the seed of what is lost, None for a crash of the process alone."""

    after: int
    torn: float
    power: int | None


FAULTS = st.one_of(
    st.none(),
    st.none(),
    st.builds(Fault, st.integers(0, 3), st.sampled_from([0.0, 0.5, 0.99]), st.one_of(st.none(), st.integers(0, 1 << 20))),
)

State = tuple[Version | None, Version | None]  # committed, pending
NONE: State = (None, None)


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that never has to wait."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waits for something")


def run_trio(operation: Callable[[], Awaitable[object] | object]) -> None:
    """Run what may use locks and tasks."""

    async def call() -> None:
        result = operation()
        if isinstance(result, Coroutine):
            await result

    try:
        trio.run(call)
    except BaseExceptionGroup as group:
        while isinstance(group.exceptions[0], BaseExceptionGroup):
            group = group.exceptions[0]
        raise group.exceptions[0] from None


class EngineMachine(RuleBasedStateMachine):
    @initialize(small=st.booleans(), patches=st.sampled_from([3, 256]), full=st.booleans())
    def begin(self, small: bool, patches: int, full: bool) -> None:
        """small: bounds that are met soon. full: a disk with hardly any space."""
        self.bounds = pytest.MonkeyPatch()
        self.bounds.setattr(storage.contents, "PATCHES_MAX", patches)
        if small:
            self.bounds.setattr(storage.chunk_table, "RECORDS_KEPT", 1)
            self.bounds.setattr(storage.data_files, "GROUP_SHIFT", 18)
            self.bounds.setattr(storage.data_files, "OPEN_FILES_MAX", 1)
            self.bounds.setattr(storage.durability, "PATCH_BYTES_MAX", 1500)
            self.bounds.setattr(storage.durability, "_FREE_BYTES_KEPT", 0)
        self.disk = MemoryDisk()
        if full:
            self.disk.free = 700_000
        self.model: dict[ChunkId, State] = {}
        self.history: dict[ChunkId, list[Version | None]] = {}  # what is allowed after the loss of power
        self.filler = 0
        self.nested = False
        self.open()

    def teardown(self) -> None:
        if hasattr(self, "bounds"):
            self.bounds.undo()

    def open(self) -> None:
        self.engine = ChunkEngine(self.disk.reopen(), "target", SpaceBudget(self.disk, 0))

    def state(self, chunk: ChunkId) -> State:
        return self.model.get(chunk, NONE)

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

    def set_state(self, chunk: ChunkId, state: State) -> None:
        before = self.state(chunk)
        self.model[chunk] = state
        history = self.history.setdefault(chunk, [None])
        if state[0] != before[0]:
            history.append(state[0])

    def lose_power(self, seed: int) -> None:
        """Each chunk is what it was at its last sync, or later; nothing else is known after that."""
        self.disk.lose_power(Random(seed))
        self.open()
        for chunk in ALL:
            found = self.found(chunk)
            allowed = self.history.get(chunk, [None])
            assert found[0] in allowed, f"{chunk}: not one of {len(allowed)} versions since the last sync"
            self.model[chunk] = found
            self.history[chunk] = [found[0]]

    def crash(self, fault: Fault | None) -> None:
        """What follows a crash that is due to a fault."""
        if fault is not None and fault.power is not None:
            self.lose_power(fault.power)
        else:
            self.open()

    def attempt(
        self, chunk: ChunkId, after: State, operation: Callable[[], Awaitable[object] | object], fault: Fault | None
    ) -> None:
        """Run an operation; after a crash the chunk is as before or as after it."""
        before = self.state(chunk)
        if fault is not None:
            self.disk.crash_after, self.disk.torn = fault.after, fault.torn
        try:
            if self.nested:
                result = operation()
                if isinstance(result, Coroutine):
                    run(result)
            else:
                run_trio(operation)
        except Crash:
            if fault is not None and fault.power is not None:
                self.history.setdefault(chunk, [None]).append(after[0])
            self.crash(fault)
            if fault is None or fault.power is None:
                found = self.found(chunk)
                assert found in (before, after), "a crash left neither the old nor the new"
                self.set_state(chunk, found)
        except FS3Error as error:
            assert error.code is Code.NO_SPACE and self.disk.free < 1 << 39
            self.disk.crash_after = None
        else:
            self.disk.crash_after = None
            self.set_state(chunk, after)

    def put(self, update: Update, data: bytes, content: bytes | None, commit: bool, fault: Fault | None) -> None:
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
            fault,
        )

    def fill(self, size: int) -> bytes:
        self.filler = self.filler % 250 + 1
        return bytes([self.filler]) * size

    def content(self, chunk: ChunkId) -> bytes:
        committed, _ = self.state(chunk)
        return (committed.content or b"") if committed is not None else b""

    @rule(chunk=CHUNKS, offset=OFFSETS, size=SIZES, commit=st.booleans(), fault=FAULTS)
    def write(self, chunk: ChunkId, offset: int, size: int, commit: bool, fault: Fault | None) -> None:
        old = self.content(chunk)
        data = self.fill(min(size, CHUNK_SIZE - offset))
        content = old[:offset].ljust(offset, b"\0") + data + old[offset + len(data) :]
        self.put(write_update(chunk, offset, data, chunk_size=CHUNK_SIZE), data, content, commit, fault)

    @rule(chunk=CHUNKS, offset=st.integers(0, CHUNK_SIZE), commit=st.booleans(), fault=FAULTS)
    def overwrite(self, chunk: ChunkId, offset: int, commit: bool, fault: Fault | None) -> None:
        """A little, inside of what is there."""
        length = len(self.content(chunk))
        if length:
            self.write(chunk, offset % length, min(1000, length - offset % length), commit, fault)

    @rule(chunk=CHUNKS, size=SIZES, commit=st.booleans(), fault=FAULTS)
    def append(self, chunk: ChunkId, size: int, commit: bool, fault: Fault | None) -> None:
        length = len(self.content(chunk))
        if length < CHUNK_SIZE:
            self.write(chunk, length, size, commit, fault)

    @rule(chunk=CHUNKS, size=SIZES, commit=st.booleans(), fault=FAULTS)
    def replace(self, chunk: ChunkId, size: int, commit: bool, fault: Fault | None) -> None:
        data = self.fill(size)
        self.put(write_update(chunk, 0, data, kind=UpdateKind.REPLACE), data, data, commit, fault)

    @rule(chunk=CHUNKS, length=st.one_of(st.just(0), OFFSETS), commit=st.booleans(), fault=FAULTS)
    def truncate(self, chunk: ChunkId, length: int, commit: bool, fault: Fault | None) -> None:
        if self.state(chunk)[0] is None and length == 0:
            return
        content = self.content(chunk)[:length].ljust(length, b"\0")
        update = other_update(chunk, UpdateKind.TRUNCATE, length, chunk_size=CHUNK_SIZE)
        self.put(update, b"", content, commit, fault)

    @rule(chunk=CHUNKS, offset=OFFSETS, length=SIZES, commit=st.booleans(), fault=FAULTS)
    def punch(self, chunk: ChunkId, offset: int, length: int, commit: bool, fault: Fault | None) -> None:
        if self.state(chunk)[0] is None:
            return
        old = self.content(chunk)
        content = old[:offset] + bytes(len(old[offset : offset + length])) + old[offset + length :]
        update = replaced(other_update(chunk, UpdateKind.PUNCH, length, chunk_size=CHUNK_SIZE), offset=offset)
        self.put(update, b"", content, commit, fault)

    @rule(chunk=CHUNKS, commit=st.booleans(), fault=FAULTS)
    def remove(self, chunk: ChunkId, commit: bool, fault: Fault | None) -> None:
        if self.state(chunk)[0] is not None:
            self.put(other_update(chunk, UpdateKind.REMOVE), b"", None, commit, fault)

    @rule(chunk=CHUNKS, fault=FAULTS)
    def commit(self, chunk: ChunkId, fault: Fault | None) -> None:
        pending = self.state(chunk)[1]
        if pending is not None:
            after: State = (pending if pending.content is not None else None, None)
            self.attempt(chunk, after, lambda: self.engine.commit(chunk, 1, remember=True), fault)

    @rule(chunk=CHUNKS, fault=FAULTS)
    def drop(self, chunk: ChunkId, fault: Fault | None) -> None:
        self.attempt(chunk, (self.state(chunk)[0], None), lambda: self.engine.drop_pending(chunk), fault)

    CHANGES = st.lists(st.tuples(st.integers(0, 5), st.sampled_from("wworatpmcd"), CHUNKS, OFFSETS), max_size=3)

    def change(self, what: str, chunk: ChunkId, offset: int) -> None:
        """Any change, while something else is under way."""
        with pytest.MonkeyPatch.context() as bounds:
            bounds.setattr(storage.durability, "PATCH_BYTES_MAX", 1 << 30)  # it must not wait for that
            bounds.setattr(self.disk, "free", 1 << 39)
            self.nested = True
            self._change(what, chunk, offset)
            self.nested = False

    def _change(self, what: str, chunk: ChunkId, offset: int) -> None:
        size = offset % 3000 + 1
        if what == "w":
            self.write(chunk, offset, size, True, None)
        elif what == "o":
            self.overwrite(chunk, offset, offset % 2 == 0, None)
        elif what == "r":
            self.replace(chunk, offset + 1, True, None)
        elif what == "a":
            self.append(chunk, size, True, None)
        elif what == "t":
            self.truncate(chunk, offset, True, None)
        elif what == "p":
            self.punch(chunk, offset, size, True, None)
        elif what == "m":
            self.remove(chunk, True, None)
        elif what == "c":
            self.commit(chunk, None)
        else:
            self.drop(chunk, None)

    @rule(chunks=st.one_of(st.none(), st.sets(CHUNKS, min_size=1)), tidy=st.booleans(), changes=CHANGES, fault=FAULTS)
    def sync(
        self,
        chunks: set[ChunkId] | None,
        tidy: bool,
        changes: list[tuple[int, str, ChunkId, int]],
        fault: Fault | None,
    ) -> None:
        """Others change things meanwhile, before some of its steps."""
        asked = sorted(chunks) if chunks is not None and not tidy else None
        marks = {chunk: len(self.history.setdefault(chunk, [None])) - 1 for chunk in asked or ALL}
        self.disk.meanwhile = {at: partial(self.change, what, chunk, offset) for at, what, chunk, offset in changes}
        if fault is not None:
            self.disk.crash_after, self.disk.torn = fault.after, fault.torn
        try:
            run_trio(self.engine.tidy if tidy else partial(self.engine.sync, asked))
        except Crash:
            self.crash(fault)
        else:
            self.disk.crash_after = None
            self.disk.meanwhile.clear()
            for chunk, mark in marks.items():
                del self.history[chunk][:mark]

    @rule()
    def reopen(self) -> None:
        self.engine.close()
        self.open()

    @rule(seed=st.integers(0, 1 << 20))
    def power(self, seed: int) -> None:
        self.lose_power(seed)

    @precondition(lambda self: hasattr(self, "engine"))
    @invariant()
    def same(self) -> None:
        for chunk in ALL:
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
        live = {chunk: state for chunk, state in self.model.items() if state != NONE}
        for chunk in live:
            record = self.engine.get(chunk)
            assert record is not None
            for version in record.versions():
                if version.slot is not None:
                    assert version.length <= version.slot.size
                    assert not version.slot.pins and not version.slot.freed
                    slots.add((version.slot.shift, version.slot.number))
        assert self.engine.used_bytes() == sum(1 << shift for shift, _ in slots)
        assert [meta.chunk for meta in self.engine.dump(None, None, 10)[0]] == sorted(live)
        assert self.engine.pending() == sorted(chunk for chunk, state in live.items() if state[1] is not None)
        assert self.engine.damaged() == []


TestEngine = EngineMachine.TestCase
TestEngine.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
