"""Random operations of several users on the metadata service and on a plain tree in memory: same results, same errors.

Each step is done by a daemon of its own, over a store whose commits conflict or are lost from sight as hypothesis likes, and
may be sent a second time, which must change nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import trio
import trio.testing
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fs3.api import meta as api
from fs3.api.common import Method
from fs3.api.meta import Access, Attr, Caller, FileKind, RenameFlags
from fs3.errors import Code, FS3Error
from fs3.ids import ROOT_INODE, RequestTag
from fs3.kv.memory import Fault, MemoryEngine, Operation
from meta.fsck import check, survey
from meta.schema import ENTRY_PREFIX, Inode, inode_of_key, span, unpack_counter, unpack_entry
from tests.model.namespace_tree import Handle, Node, Refused, Tree, clear_set_id, searched
from tests.unit.meta.world import ALICE, BOB, CHUNK, CLIENT, ROOT, FakeChunks, World, world

USERS = st.sampled_from([ROOT, ROOT, ALICE, BOB])
NAMES = st.sampled_from([b"a", b"b", b"c", b"\xff\xfe"])
MODES = st.sampled_from([0o777, 0o777, 0o777, 0o755, 0o700, 0o1777, 0o2775, 0o640, 0o4755, 0o6777, 0])
LENGTHS = st.sampled_from([0, 1, 100, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
INDEX = st.integers(0, 99)
FAULTS = st.lists(
    st.sampled_from([None, None, Fault.CONFLICT, Fault.UNKNOWN_APPLIED, Fault.UNKNOWN_NOT_APPLIED]), max_size=4
)


class Namespace(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.tree = Tree()
        self.handles: list[Handle] = []
        self.faults: list[Fault | None] = []
        self.engine = MemoryEngine(lambda: 0.0, self.hook)
        self.chunks = FakeChunks()
        self.channel = 0
        self.tree.root.mode = 0o777
        self.in_world(lambda w: w.setattr(int(ROOT_INODE), mode=0o777))

    async def hook(self, operation: Operation) -> Fault | None:
        return self.faults.pop() if operation is Operation.COMMIT and self.faults else None

    def in_world(self, act: Callable[[World], Awaitable[Any]], faults: list[Fault | None] | None = None) -> Any:
        """Let a fresh daemon over the same store do something."""

        async def main() -> Any:
            async with world(engine=self.engine, chunks=self.chunks) as w:
                self.faults = list(faults or [])
                result = await act(w)
                self.faults = []
                return result

        return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))

    def send(
        self, method: Method[Any, Any], request: Any, model: Callable[[], Any], faults: list[Fault | None], again: bool
    ) -> tuple[Any, Any]:
        """Do one thing in the model and in the service, where it may be sent twice. Returns both results, if both agree to
        have done it; (None, None) if both refused it alike."""
        self.channel += 1
        request = replace(request, tag=RequestTag(9, self.channel, 1))

        async def act(w: World) -> Any:
            try:
                return await w.call(method, request)
            except FS3Error as error:
                return error.code

        reply = self.in_world(act, faults)
        if again:
            repeated = self.in_world(act)
            if hasattr(reply, "attr") and reply.attr is not None and request_settles(request):
                repeated, expected = repeated.attr.length, reply.attr.length  # attributes are read anew
            else:
                expected = reply
            assert repeated == expected
        try:
            done = model()
        except Refused as refused:
            assert reply is refused.code, (reply, refused.code)
            return None, None
        assert not isinstance(reply, Code), reply
        return reply, done

    # Choosing

    def directories(self) -> list[Node]:
        return [each for each in self.tree.root.walk() if each.kind is FileKind.DIRECTORY]

    def directory(self, index: int) -> Node:
        found = self.directories()
        return found[index % len(found)]

    def anything(self, index: int) -> Node:
        """Files that are open more often than others."""
        found = [*self.tree.root.walk(), *self.tree.orphans, *[handle.node for handle in self.handles] * 2]
        return found[index % len(found)]

    def file(self, index: int) -> Node:
        """Mostly a file that is open for writing."""
        found = [handle.node for handle in self.handles]
        return found[index % len(found)] if found and index % 5 else self.anything(index)

    def entry(self, index: int, name: bytes) -> tuple[Node, bytes]:
        """Mostly one that exists."""
        found = [(each, known) for each in self.directories() for known in each.entries]
        return found[index % len(found)] if found and index % 8 else (self.directory(index), name)

    # Making and removing names

    @initialize()
    def begin(self) -> None:
        """Some directories to begin with, one of them sticky, one below another."""
        root = self.tree.root
        for parent, name, mode in ((root, b"a", 0o777), (root, b"b", 0o1777), (root, b"c", 0o755)):
            self.mknod(ROOT, self.directories().index(parent), name, mode, FileKind.DIRECTORY, [], False)
        inner = self.directories().index(root.entries[b"a"])
        self.mknod(ALICE, inner, b"b", 0o777, FileKind.DIRECTORY, [], False)

    @rule(user=USERS, at=INDEX, name=NAMES, mode=MODES, kind=st.sampled_from([FileKind.DIRECTORY] * 3 + [FileKind.FIFO]),
          faults=FAULTS, again=st.booleans())  # fmt: skip
    def mknod(self, user: Caller, at: int, name: bytes, mode: int, kind: FileKind, faults: Any, again: bool) -> None:
        parent = self.directory(at)
        request = api.MknodRequest(TAG, user, parent.inode, name, kind, mode)
        reply, node = self.send(api.MKNOD, request, lambda: self.tree.make(user, parent, name, kind, mode), faults, again)
        if node is not None:
            node.inode = reply.attr.inode

    @rule(user=USERS, at=INDEX, name=NAMES, faults=FAULTS)
    def symlink(self, user: Caller, at: int, name: bytes, faults: Any) -> None:
        parent = self.directory(at)
        request = api.MknodRequest(TAG, user, parent.inode, name, FileKind.SYMLINK, 0, target=b"somewhere")
        reply, node = self.send(
            api.MKNOD, request, lambda: self.tree.make(user, parent, name, FileKind.SYMLINK, 0, b"somewhere"), faults, True
        )
        if node is not None:
            node.inode = reply.attr.inode

    @rule(user=USERS, at=INDEX, name=NAMES, mode=MODES, exclusive=st.booleans(),
          truncate=st.sampled_from([False, False, False, True]), faults=FAULTS, again=st.booleans())  # fmt: skip
    def create(
        self, user: Caller, at: int, name: bytes, mode: int, exclusive: bool, truncate: bool, faults: Any, again: bool
    ) -> None:
        parent = self.directory(at)
        session = self.channel + 1000

        def model() -> Node:
            node = searched(parent, user).entries.get(name)
            if node is None:
                return self.tree.make(user, parent, name, FileKind.FILE, mode)
            if exclusive:
                raise Refused(Code.EXISTS)
            if node.kind is FileKind.DIRECTORY:
                raise Refused(Code.IS_DIRECTORY)
            if node.kind is not FileKind.FILE:
                raise Refused(Code.STALE_HANDLE)
            self.tree.open(user, node, truncate)
            return node

        request = api.CreateRequest(
            TAG, user, CLIENT, parent.inode, name, mode, Access.READ_WRITE, exclusive, truncate, session
        )
        reply, node = self.send(api.CREATE, request, model, faults, again)
        if node is not None:
            assert reply.created == (node.inode == 0)
            node.inode = reply.attr.inode
            self.opened(node, session, reply.attr)

    @rule(user=USERS, which=INDEX, at=INDEX, name=NAMES, faults=FAULTS)
    def link(self, user: Caller, which: int, at: int, name: bytes, faults: Any) -> None:
        node, parent = self.anything(which), self.directory(at)
        request = api.LinkRequest(TAG, user, node.inode, parent.inode, name)
        self.send(api.LINK, request, lambda: self.tree.link(user, node, parent, name), faults, True)

    @rule(user=USERS, at=INDEX, name=NAMES, directory=st.booleans(), faults=FAULTS, again=st.booleans())
    def remove(self, user: Caller, at: int, name: bytes, directory: bool, faults: Any, again: bool) -> None:
        parent, name = self.entry(at, name)
        directory = (
            directory
            if at % 4 == 0
            else parent.entries[name].kind is FileKind.DIRECTORY
            if name in parent.entries
            else directory
        )
        request = api.RemoveRequest(TAG, user, parent.inode, name, directory)
        reply, node = self.send(api.REMOVE, request, lambda: self.tree.remove(user, parent, name, directory), faults, again)
        if node is not None:
            assert reply.inode == node.inode
            assert (reply.attr is None) == (not directory and node.names == 0 and node.handles == 0)
            assert not directory or reply.attr.nlink == 0

    @rule(user=USERS, at=INDEX, name=NAMES, to=INDEX, new_name=NAMES, flags=st.sampled_from(RenameFlags), faults=FAULTS,
          again=st.booleans())  # fmt: skip
    def rename(
        self, user: Caller, at: int, name: bytes, to: int, new_name: bytes, flags: RenameFlags, faults: Any, again: bool
    ) -> None:
        (old, name), new = self.entry(at, name), self.directory(to)
        request = api.RenameRequest(TAG, user, old.inode, name, new.inode, new_name, flags)
        reply, replaced = self.send(
            api.RENAME, request, lambda: self.tree.rename(user, old, name, new, new_name, flags), faults, again
        )
        if reply is not None:
            assert reply.replaced == (replaced.inode if replaced is not None else 0)

    # Attributes

    @rule(user=USERS, which=INDEX, mode=MODES, faults=FAULTS)
    def chmod(self, user: Caller, which: int, mode: int, faults: Any) -> None:
        node = self.anything(which)
        request = api.SetattrRequest(TAG, user, node.inode, mode=mode)
        self.send(api.SETATTR, request, lambda: self.tree.chmod(user, node, mode), faults, True)

    @rule(user=USERS, which=INDEX, uid=st.sampled_from([0, 1000, 1001]), gid=st.sampled_from([0, 50, 1000]), faults=FAULTS)
    def chown(self, user: Caller, which: int, uid: int, gid: int, faults: Any) -> None:
        node = self.anything(which)
        request = api.SetattrRequest(TAG, user, node.inode, uid=uid, gid=gid)
        self.send(api.SETATTR, request, lambda: self.tree.chown(user, node, uid, gid), faults, True)

    @rule(user=USERS, which=INDEX, length=LENGTHS, faults=FAULTS, again=st.booleans())
    def truncate(self, user: Caller, which: int, length: int, faults: Any, again: bool) -> None:
        node = self.file(which)
        request = api.SetattrRequest(TAG, user, node.inode, length=length)
        self.send(api.SETATTR, request, lambda: self.tree.truncate(user, node, length), faults, again)

    # Open files

    def opened(self, node: Node, session: int, attr: Attr) -> None:
        if node.kind is FileKind.FILE:
            node.handles += 1
            self.handles.append(Handle(node, session, attr))

    @rule(user=USERS, which=INDEX, truncate=st.booleans(), faults=FAULTS, again=st.booleans())
    def open(self, user: Caller, which: int, truncate: bool, faults: Any, again: bool) -> None:
        node, session = self.anything(which), self.channel + 1000
        request = api.OpenRequest(TAG, user, CLIENT, node.inode, Access.READ_WRITE, truncate, session)
        reply, _ = self.send(api.OPEN, request, lambda: self.tree.open(user, node, truncate), faults, again)
        if reply is not None:
            self.opened(node, session, reply.attr)

    @precondition(lambda self: self.handles)
    @rule(which=INDEX, offset=LENGTHS, size=st.sampled_from([1, 50, CHUNK]), fill=st.sampled_from(b"xyz"))
    def write(self, which: int, offset: int, size: int, fill: int) -> None:
        handle = self.handles[which % len(self.handles)]
        data = bytes([fill]) * size
        self.chunks.write(handle.attr, offset, data)
        stored = handle.node.stored
        stored.extend(bytes(max(0, offset - len(stored))))
        stored[offset : offset + size] = data
        handle.end = max(handle.end, offset + size)

    def reported(self, handle: Handle, attr: Attr) -> None:
        """What a report did to the file, and what the client has learnt."""
        node = handle.node
        if handle.end >= 0:
            stale = handle.attr.truncate_version != attr.truncate_version
            node.length = max(node.length, len(node.stored) if stale else handle.end)
            if node.mode & 0o6000 and self.openers[handle.session]:
                clear_set_id(node)
        handle.attr, handle.end = attr, -1

    @property
    def openers(self) -> dict[int, int]:
        """Session -> uid, as the service noted it."""

        async def read(w: World) -> dict[int, int]:
            from meta.schema import Session, session_key_parts

            pairs = await self.engine.transaction().get_range(*span(b"SESS"))
            return {session_key_parts(key)[2]: Session.unpack(value).uid for key, value in pairs}

        found: dict[int, int] = self.in_world(read)
        return found

    @precondition(lambda self: self.handles)
    @rule(which=INDEX, sync=st.booleans(), faults=FAULTS, again=st.booleans())
    def report(self, which: int, sync: bool, faults: Any, again: bool) -> None:
        handle = self.handles[which % len(self.handles)]
        request = api.ReportRequest(
            TAG, CLIENT, handle.node.inode, handle.session, handle.end, handle.attr.truncate_version, handle.end >= 0, sync
        )
        reply, _ = self.send(api.REPORT, request, lambda: None, faults, again)
        self.reported(handle, reply.attr)

    @precondition(lambda self: self.handles)
    @rule(which=INDEX, faults=FAULTS, again=st.booleans())
    def close(self, which: int, faults: Any, again: bool) -> None:
        handle = self.handles.pop(which % len(self.handles))
        node = handle.node
        openers = self.openers
        request = api.CloseRequest(
            TAG, CLIENT, node.inode, handle.session, handle.end, handle.attr.truncate_version, handle.end >= 0
        )
        reply, _ = self.send(api.CLOSE, request, lambda: None, faults, again)
        node.handles -= 1
        wrote = handle.end >= 0
        uid, openers[handle.session] = openers[handle.session], 0
        handle_end_mode(node, wrote, uid)
        if wrote:
            stale = handle.attr.truncate_version != reply.attr.truncate_version
            node.length = max(node.length, len(node.stored) if stale else handle.end)
        if node.names == 0 and node.handles == 0:
            self.tree.orphans.remove(node)

    @rule()
    def collect(self) -> None:
        self.in_world(lambda w: w.service.collector.collect())

    # What must hold

    @invariant()
    def trees_are_equal(self) -> None:
        self.in_world(self.compare)

    async def compare(self, w: World) -> None:
        txn = self.engine.transaction()
        assert check(survey(await txn.get_range(b"", b"\xff"))) == []
        inodes = {inode_of_key(key): Inode.unpack(inode_of_key(key), value) for key, value in await all_of(txn, b"INOD")}
        subdirectories = {inode_of_key(key): unpack_counter(value) for key, value in await all_of(txn, b"DSUB")}
        entries: dict[int, dict[bytes, int]] = {}
        for key, value in await all_of(txn, b"DENT"):
            entries.setdefault(inode_of_key(key), {})[key[ENTRY_PREFIX:]] = unpack_entry(value)[0]
        nodes = {node.inode: node for node in [*self.tree.root.walk(), *self.tree.orphans]}
        assert inodes.keys() == nodes.keys()
        for number, node in nodes.items():
            found = inodes[number]
            assert found.flags & 1 == 0
            assert entries.get(number, {}) == {name: each.inode for name, each in node.entries.items()}
            nlink = 2 + subdirectories.get(number, 0) if node.kind is FileKind.DIRECTORY else found.nlink
            assert (found.kind, found.mode, found.uid, found.gid, nlink, found.length) == (
                node.kind, node.mode, node.uid, node.gid, node.nlink(), node.length,
            )  # fmt: skip
            assert found.target == node.target
            if node.kind is FileKind.DIRECTORY:
                assert node.parent is not None and found.parent == node.parent.inode
            elif node.kind is FileKind.FILE:
                assert self.chunks.read(found.attr()) == node.content()
                everything = replace(found.attr(), length=8 * CHUNK)
                assert self.chunks.read(everything).rstrip(b"\0") == node.stored.rstrip(b"\0")
        assert len(await all_of(txn, b"DTIM")) == sum(node.kind is FileKind.DIRECTORY for node in nodes.values())
        assert unpack_counter(await txn.get(b"STATinodes")) == len(nodes)
        assert len(await all_of(txn, b"SESS")) == len(self.handles)
        assert await all_of(txn, b"INTN") == []
        garbage = {inode_of_key(key) for key, _ in await all_of(txn, b"GCQ_")}
        assert {inode for inode, _ in self.chunks.chunks} <= nodes.keys() | garbage

    def teardown(self) -> None:
        """In the end nothing is left of what was removed."""
        self.in_world(lambda w: forget_all(w, self.handles))
        live = {node.inode for node in self.tree.root.walk()}
        assert {inode for inode, _ in self.chunks.chunks} <= live


TAG = RequestTag(9, 0, 0)


def handle_end_mode(node: Node, wrote: bool, uid: int) -> None:
    if wrote and uid != 0 and node.mode & 0o6000:
        clear_set_id(node)


def request_settles(request: Any) -> bool:
    """Whether the reply's attributes are read after the chunks were put in order."""
    return getattr(request, "length", None) is not None or getattr(request, "truncate", False) or hasattr(request, "wrote")


async def all_of(txn: Any, tag: bytes) -> list[tuple[bytes, bytes]]:
    pairs: list[tuple[bytes, bytes]] = await txn.get_range(*span(tag))
    return pairs


async def forget_all(w: World, handles: list[Handle]) -> None:
    for handle in handles:
        await w.close(handle.attr, handle.end, session=handle.session)
    await trio.sleep(6)
    for _ in range(2):
        await w.service.collector.collect()
        await trio.sleep(6)


TestNamespace = Namespace.TestCase
TestNamespace.settings = settings(max_examples=60, stateful_step_count=50, deadline=None, report_multiple_bugs=False)
