"""What a namespace may answer: the model file system of tests/model as states of the search of tests/sim/linear.

Each inode has a mark, which its maker chose: inode numbers are the service's choice, and those of operations of unknown
outcome are known to nobody. The marks are the inodes' groups, so every reply that has attributes shows one.
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import lru_cache
from typing import Any

from fs3.api.meta import Attr, Caller, FileKind, RenameFlags
from fs3.errors import Code
from fs3.ids import ROOT_INODE
from tests.model.namespace_tree import Node, Refused, Tree
from tests.sim.env import EPOCH_NS
from tests.sim.linear import Model, Operation, Verdict, check

ROOT_MARK = 0
ROOT = Caller(0, 0, (0,))
NOW = 0
"""A time that the service set."""
STEPS_MAX = 150_000

View = tuple[int, ...]
"""Of an inode: mark, kind, mode, links, length, mtime. links are 0 for a directory in the reply to a change, which tells
the count of a moment before."""
State = tuple[tuple[Any, ...], ...]
"""(mark, kind, mode, length, mtime, entries) of each inode, entries being (name, mark)."""


def view(attr: Attr, changed: bool = False) -> View:
    """What a reply told of an inode. changed: in the reply to a change."""
    links = 0 if changed and attr.kind is FileKind.DIRECTORY else attr.nlink
    mtime = NOW if attr.mtime_ns >= EPOCH_NS // 2 else attr.mtime_ns
    mark = ROOT_MARK if attr.inode == ROOT_INODE else attr.gid
    length = 0 if attr.kind is FileKind.DIRECTORY else attr.length
    return (mark, int(attr.kind), attr.mode, links, length, mtime)


EMPTY: State = ((ROOT_MARK, int(FileKind.DIRECTORY), 0o755, 0, NOW, ()),)


class _World:
    """A state that operations work on."""

    def __init__(self, state: State) -> None:
        self.tree = Tree()
        self.nodes: dict[int, Node] = {}
        self.times: dict[int, int] = {}
        for mark, kind, mode, length, mtime, _ in state:
            node = Node(FileKind(kind), mode, 0, mark, mark, names=0, length=length)
            self.nodes[mark] = node
            self.times[mark] = mtime
        self.tree.root = root = self.nodes[ROOT_MARK]
        root.parent = root
        for mark, *_, entries in state:
            directory = self.nodes[mark]
            for name, below in entries:
                node = directory.entries[name] = self.nodes[below]
                node.names += 1
                node.parent = directory if node.kind is FileKind.DIRECTORY else None

    def freeze(self) -> State:
        rows: dict[int, tuple[Any, ...]] = {}
        for node in self.tree.root.walk():
            if node.inode not in rows:
                entries = tuple(sorted([(name, below.inode) for name, below in node.entries.items()]))
                rows[node.inode] = (
                    node.inode, int(node.kind), node.mode, node.length, self.times.get(node.inode, NOW), entries,
                )  # fmt: skip
        return tuple([rows[mark] for mark in sorted(rows)])

    def node(self, mark: int, missing: Code) -> Node:
        found = self.nodes.get(mark)
        if found is None:
            raise Refused(missing)
        return found

    def directory(self, mark: int) -> Node:
        return self.node(mark, Code.NOT_FOUND)

    def named(self, parent: Node, name: bytes) -> Node:
        found = parent.parent if name == b".." else parent.entries.get(name)
        if found is None:
            raise Refused(Code.NOT_FOUND)
        return found

    def view(self, node: Node, changed: bool = False) -> View:
        links = 0 if changed and node.kind is FileKind.DIRECTORY else node.nlink()
        return (node.inode, int(node.kind), node.mode, links, node.length, self.times.get(node.inode, NOW))

    def touched(self, *directories: Node) -> None:
        for each in directories:
            self.times[each.inode] = NOW

    # Operations: each returns its answer, or raises Refused.

    def make(self, at: int, name: bytes, kind: int, mark: int, mode: int) -> View:
        parent = self.directory(at)
        target = b"%d" % mark if kind == FileKind.SYMLINK else b""
        node = self.tree.make(Caller(0, mark, (mark,)), parent, name, FileKind(kind), mode, target)
        node.inode = mark
        self.touched(parent)
        return self.view(node, True)

    def create(self, at: int, name: bytes, mark: int, mode: int, exclusive: bool) -> View:
        parent = self.directory(at)
        found = parent.entries.get(name)
        if found is None or exclusive:
            return self.make(at, name, int(FileKind.FILE), mark, mode)
        if found.kind is FileKind.DIRECTORY:
            raise Refused(Code.IS_DIRECTORY)
        if found.kind is not FileKind.FILE:
            raise Refused(Code.STALE_HANDLE)
        return self.view(found)

    def remove(self, at: int, name: bytes, directory: bool) -> str:
        parent = self.directory(at)
        self.tree.remove(ROOT, parent, name, directory)
        self.touched(parent)
        return "ok"

    def link(self, mark: int, at: int, name: bytes) -> View:
        parent = self.directory(at)
        if name in parent.entries:
            raise Refused(Code.EXISTS)
        node = self.tree.link(ROOT, self.node(mark, Code.STALE_HANDLE), parent, name)
        self.touched(parent)
        return self.view(node, True)

    def rename(self, at: int, name: bytes, to: int, new_name: bytes, flags: int) -> str:
        old, new = self.directory(at), self.directory(to)
        same = old.entries.get(name) is new.entries.get(new_name)
        self.tree.rename(ROOT, old, name, new, new_name, RenameFlags(flags))
        if not same:
            self.touched(old, new)
        return "ok"

    def set(self, mark: int, what: str, value: int) -> Any:
        node = self.node(mark, Code.STALE_HANDLE)
        if what == "length":
            self.tree.truncate(ROOT, node, value)
            self.times[mark] = NOW
            return "ok"  # the attributes of the reply are of a later moment, when the chunks were in order
        if what == "mode":
            node.mode = value
        else:
            self.times[mark] = value
        return self.view(node, True)

    def lookup(self, at: int, name: bytes) -> View:
        return self.view(self.named(self.directory(at), name))

    def stat(self, mark: int) -> View:
        return self.view(self.node(mark, Code.STALE_HANDLE))

    def readlink(self, mark: int) -> bytes:
        node = self.node(mark, Code.STALE_HANDLE)
        if node.kind is not FileKind.SYMLINK:
            raise Refused(Code.INVALID)
        return b"%d" % mark

    def list(self, mark: int) -> tuple[tuple[bytes, View], ...]:
        directory = self.node(mark, Code.STALE_HANDLE)
        return tuple(sorted([(name, self.view(node)) for name, node in directory.entries.items()]))


READS = frozenset({"lookup", "stat", "readlink", "list"})


@lru_cache(maxsize=20_000)
def apply(state: State, request: tuple[Any, ...]) -> tuple[State, Any]:
    """The state after an operation, and what it answers: the name of an error's code where it is refused."""
    world = _World(state)
    try:
        answer = getattr(world, request[0])(*request[1:])
    except Refused as refused:
        return state, refused.code.name
    return (state if request[0] in READS else world.freeze()), answer


def _step(state: Any, request: Any, output: Any, known: bool) -> Hashable | None:
    after, answer = apply(state, request)
    wrong = known and answer != output and not (answer == Code.STALE_HANDLE.name and _of_removed(request, output))
    return None if wrong else after


def _of_removed(request: Any, output: Any) -> bool:
    """Whether this is what a mount tells of a directory that it has removed itself, which may be open there."""
    shown = isinstance(output, tuple) and len(output) == 6
    return request[0] in ("stat", "set") and shown and output[1] == FileKind.DIRECTORY and output[3] == 0


TREE = Model(lambda key: EMPTY, _step)
"""A whole namespace. Inputs: the name of a method of _World and its arguments; outputs: what that returns."""


def _marks(output: Any) -> set[int]:
    """The inodes that an answer shows."""
    if not isinstance(output, tuple) or not output:
        return set()
    if isinstance(output[0], int):
        return {output[0]}
    return {shown[0] for _, shown in output}


def _mark_made(request: tuple[Any, ...]) -> int | None:
    if request[0] == "make":
        return int(request[4])
    return int(request[3]) if request[0] == "create" else None


def check_namespace(operations: list[Operation]) -> Verdict:
    """Whether one order of all operations explains every answer.

    Operations of unknown outcome make the search long, and most of them were done at once or never: those whose inode
    nobody saw are left out at first, then only what failed to be explained is searched with all of them.
    """
    relevant = [op for op in operations if op.known or op.input[0] not in READS]
    seen = set().union(*[_marks(op.output) for op in relevant if op.known])
    likely = [op for op in relevant if op.known or _mark_made(op.input) in seen]
    try:
        verdict = check(likely, TREE, steps_max=STEPS_MAX // 4)
        if not verdict.ok and len(likely) < len(relevant):
            verdict = check(relevant, TREE, steps_max=STEPS_MAX)
    finally:
        apply.cache_clear()  # states are large
    return verdict
