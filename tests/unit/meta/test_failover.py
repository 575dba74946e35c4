"""A client whose meta daemon fails in the middle of an operation asks another one: done once, with the same answer.

Every changing operation, with whatever it may find: the reply is lost, the daemon dies at each of its steps, both daemons
are at it at once, or the world has gone on when the second copy of the request arrives.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import pytest
import trio

from fs3.api import meta as api
from fs3.api.common import Empty, Method
from fs3.api.meta import Access, Attr, FileKind, RenameFlags, SessionRef, XattrMode
from fs3.api.meta_locks import LOCK, LockInfo, LockMode, LockRequest
from fs3.errors import FS3Error
from fs3.ids import RequestTag
from fs3.kv.memory import Fault, MemoryEngine, Operation
from meta.schema import session_key_parts
from tests.unit.meta.test_intents import Mortal
from tests.unit.meta.world import ALICE, CHUNK, CLIENT, ROOT, FakeChunks, R, World, world

TAG = RequestTag(77, 3, 5)
DATA = bytes(range(1, 251)) * 600  # three chunks
Prepare = Callable[[World], Awaitable[Any]]


@dataclass(frozen=True)
class Case:
    """prepare makes what the operation finds, and returns its request. settles: its reply tells attributes as they are when
    the chunks are in order, so a later copy may be told later ones."""

    method: Method[Any, Any]
    prepare: Prepare
    settles: bool = False


CASES: dict[str, Case] = {}


def case(name: str, method: Method[Any, Any], settles: bool = False) -> Callable[[Prepare], Prepare]:
    def note(prepare: Prepare) -> Prepare:
        assert name not in CASES
        CASES[name] = Case(method, prepare, settles)
        return prepare

    return note


def _mknod(kind: FileKind, mode: int = 0o755, name: bytes = b"new", target: bytes = b"") -> Prepare:
    async def prepare(w: World) -> api.MknodRequest:
        await w.mkdir(R, b"there")
        return api.MknodRequest(TAG, ROOT, R, name, kind, mode, target=target)

    return prepare


case("mkdir", api.MKNOD)(_mknod(FileKind.DIRECTORY))
case("mknod", api.MKNOD)(_mknod(FileKind.FILE))
case("mkfifo", api.MKNOD)(_mknod(FileKind.FIFO))
case("symlink", api.MKNOD)(_mknod(FileKind.SYMLINK, target=b"there"))
case("mkdir-exists", api.MKNOD)(_mknod(FileKind.DIRECTORY, name=b"there"))


def _create(there: bool, access: Access, exclusive: bool, truncate: bool, held: bool = False) -> Prepare:
    async def prepare(w: World) -> api.CreateRequest:
        if there:
            attr = await w.written(R, b"f", DATA)
            if held:
                await w.open(attr.inode, Access.WRITE, session=7)
                w.chunks.write(attr, len(DATA), b"not reported")
        return api.CreateRequest(TAG, ROOT, CLIENT, R, b"f", 0o640, access, exclusive, truncate, 5)

    return prepare


for _there in (False, True):
    _name = "create-there" if _there else "create-new"
    case(f"{_name}-read", api.CREATE)(_create(_there, Access.READ, False, False))
    case(f"{_name}-write", api.CREATE)(_create(_there, Access.WRITE, False, False))
    case(f"{_name}-both", api.CREATE)(_create(_there, Access.READ_WRITE, False, False))
    case(f"{_name}-excl", api.CREATE)(_create(_there, Access.READ_WRITE, True, False))
    case(f"{_name}-trunc", api.CREATE, _there)(_create(_there, Access.READ_WRITE, False, True))
case("create-trunc-while-written", api.CREATE, True)(_create(True, Access.READ_WRITE, False, True, held=True))


def _open(access: Access, truncate: bool) -> Prepare:
    async def prepare(w: World) -> api.OpenRequest:
        attr = await w.written(R, b"f", DATA)
        return api.OpenRequest(TAG, ROOT, CLIENT, attr.inode, access, truncate, 5)

    return prepare


case("open-write", api.OPEN)(_open(Access.WRITE, False))
case("open-trunc", api.OPEN, True)(_open(Access.READ_WRITE, True))


@case("link", api.LINK)
async def _link(w: World) -> api.LinkRequest:
    attr = await w.written(R, b"f", DATA)
    return api.LinkRequest(TAG, ROOT, attr.inode, R, b"g")


def _unlink(opened: bool = False, hold: int = 0, linked: bool = False, name: bytes = b"f") -> Prepare:
    async def prepare(w: World) -> api.RemoveRequest:
        attr = await w.written(R, b"f", DATA)
        if opened:
            await w.open(attr.inode, Access.WRITE, session=7)
        if linked:
            await w.link(attr.inode, R, b"g")
        return api.RemoveRequest(TAG, ROOT, R, name, False, CLIENT, hold)

    return prepare


case("unlink", api.REMOVE)(_unlink())
case("unlink-open", api.REMOVE)(_unlink(opened=True))
case("unlink-held", api.REMOVE)(_unlink(hold=9))
case("unlink-linked", api.REMOVE)(_unlink(linked=True))
case("unlink-missing", api.REMOVE)(_unlink(name=b"missing"))


@case("hold", api.HOLD)
async def _hold(w: World) -> api.HoldRequest:
    attr = await w.written(R, b"f", DATA)
    return api.HoldRequest(TAG, CLIENT, (SessionRef(attr.inode, 4), SessionRef(R, 5), SessionRef(12345, 6)))


def _lock(mode: LockMode, there: LockMode = LockMode.UNLOCKED) -> Prepare:
    async def prepare(w: World) -> LockRequest:
        attr = await w.written(R, b"f", DATA)
        if there is not LockMode.UNLOCKED:
            await w.call(LOCK, LockRequest(w.tag(), ROOT, CLIENT, attr.inode, 8, there))
        if mode is LockMode.UNLOCKED:
            await w.call(LOCK, LockRequest(w.tag(), ROOT, CLIENT, attr.inode, 9, LockMode.SHARED))
        return LockRequest(TAG, ROOT, CLIENT, attr.inode, 9, mode)

    return prepare


case("lock", LOCK)(_lock(LockMode.EXCLUSIVE))
case("lock-taken", LOCK)(_lock(LockMode.EXCLUSIVE, LockMode.SHARED))
case("unlock", LOCK)(_lock(LockMode.UNLOCKED, LockMode.SHARED))


@case("rmdir", api.REMOVE)
async def _rmdir(w: World) -> api.RemoveRequest:
    await w.mkdir(R, b"d")
    return api.RemoveRequest(TAG, ROOT, R, b"d", True)


@case("rmtree", api.RMTREE)
async def _rmtree(w: World) -> api.RmtreeRequest:
    top = await w.mkdir(R, b"d")
    below = await w.mkdir(top.inode, b"below")
    await w.written(below.inode, b"f", DATA)
    return api.RmtreeRequest(TAG, ROOT, R, b"d")


def _rename(flags: RenameFlags, source: str, target: str, hold: int = 0, same: bool = False) -> Prepare:
    async def make(w: World, kind: str, parent: int, name: bytes) -> None:
        if kind == "file":
            await w.written(parent, name, name + DATA)
        elif kind == "directory":
            await w.mkdir(parent, name)

    async def prepare(w: World) -> api.RenameRequest:
        one = (await w.mkdir(R, b"one")).inode
        two = one if same else (await w.mkdir(R, b"two")).inode
        await make(w, source, one, b"f")
        await make(w, target, two, b"g")
        return api.RenameRequest(TAG, ROOT, one, b"f", two, b"g", flags, CLIENT, hold)

    return prepare


case("rename", api.RENAME)(_rename(RenameFlags.NONE, "file", ""))
case("rename-in-one-directory", api.RENAME)(_rename(RenameFlags.NONE, "file", "", same=True))
case("rename-over", api.RENAME)(_rename(RenameFlags.NONE, "file", "file"))
case("rename-over-held", api.RENAME)(_rename(RenameFlags.NONE, "file", "file", hold=9))
case("rename-directory", api.RENAME)(_rename(RenameFlags.NONE, "directory", "directory"))
case("rename-missing", api.RENAME)(_rename(RenameFlags.NONE, "", "file"))
case("rename-noreplace", api.RENAME)(_rename(RenameFlags.NOREPLACE, "file", ""))
case("rename-noreplace-there", api.RENAME)(_rename(RenameFlags.NOREPLACE, "file", "file"))
case("rename-exchange", api.RENAME)(_rename(RenameFlags.EXCHANGE, "file", "directory"))
case("rename-exchange-in-one-directory", api.RENAME)(_rename(RenameFlags.EXCHANGE, "file", "file", same=True))


def _setattr(opened: bool = False, **changes: Any) -> Prepare:
    async def prepare(w: World) -> api.SetattrRequest:
        attr = await w.written(R, b"f", DATA)
        if opened:
            await w.open(attr.inode, Access.WRITE, session=7)
            w.chunks.write(attr, len(DATA), b"not reported")
        return api.SetattrRequest(TAG, ROOT, attr.inode, **changes)

    return prepare


case("chmod-chown-utimens", api.SETATTR)(_setattr(mode=0o600, uid=5, gid=6, mtime_ns=10, atime_now=True))
case("truncate", api.SETATTR, True)(_setattr(length=CHUNK + 5))
case("truncate-up", api.SETATTR, True)(_setattr(length=10 * CHUNK))
case("truncate-while-written", api.SETATTR, True)(_setattr(True, length=5))


@case("chmod-refused", api.SETATTR)
async def _chmod_refused(w: World) -> api.SetattrRequest:
    attr = await w.written(R, b"f", DATA)
    return api.SetattrRequest(TAG, ALICE, attr.inode, mode=0o777)


def _setxattr(value: bytes | None, mode: XattrMode, there: bool) -> Prepare:
    async def prepare(w: World) -> api.SetxattrRequest:
        attr = await w.file(R, b"f")
        if there:
            await w.call(api.SETXATTR, api.SetxattrRequest(w.tag(), ROOT, attr.inode, b"user.x", b"old"))
        return api.SetxattrRequest(TAG, ROOT, attr.inode, b"user.x", value, mode)

    return prepare


case("setxattr-create", api.SETXATTR)(_setxattr(b"new", XattrMode.CREATE, False))
case("setxattr-create-there", api.SETXATTR)(_setxattr(b"new", XattrMode.CREATE, True))
case("setxattr-replace", api.SETXATTR)(_setxattr(b"new", XattrMode.REPLACE, True))
case("removexattr", api.SETXATTR)(_setxattr(None, XattrMode.ANY, True))


def _writer(make: Callable[[Attr], Any], cut: bool = False, unlinked: bool = False) -> Prepare:
    """A file of which its writer has written more than it told. cut: somebody truncated it meanwhile."""

    async def prepare(w: World) -> Any:
        attr = (await w.create(R, b"f", session=5)).attr
        w.chunks.write(attr, 0, DATA)
        attr = await w.report(attr, CHUNK, session=5)
        if cut:
            await w.setattr(attr.inode, length=7)
            w.chunks.write(attr, CHUNK, b"after the cut")
        if unlinked:
            await w.unlink(R, b"f")
        return make(attr)

    return prepare


def _append(attr: Attr) -> api.AppendRequest:
    return api.AppendRequest(TAG, CLIENT, attr.inode, 5, 100, len(DATA), attr.truncate_version)


def _close(attr: Attr) -> api.CloseRequest:
    return api.CloseRequest(TAG, CLIENT, attr.inode, 5, len(DATA), attr.truncate_version, True)


def _report(attr: Attr) -> api.ReportRequest:
    return api.ReportRequest(TAG, CLIENT, attr.inode, 5, len(DATA), attr.truncate_version, True, True)


def _release(attr: Attr) -> api.ReleaseRequest:
    return api.ReleaseRequest(TAG, CLIENT, (SessionRef(attr.inode, 5), SessionRef(999, 9)), (attr.inode,))


for _method, _make in ((api.APPEND, _append), (api.CLOSE, _close), (api.REPORT, _report), (api.RELEASE, _release)):
    _name = _method.name.partition(".")[2]
    case(_name, _method)(_writer(_make))
    case(f"{_name}-unlinked", _method)(_writer(_make, unlinked=True))
    if _method is not api.RELEASE:
        case(f"{_name}-after-a-cut", _method, _method is not api.APPEND)(_writer(_make, cut=True))

CHANGES = {method for method in (*vars(api).values(), LOCK) if isinstance(method, Method) and hasattr(method.request, "tag")}


def test_no_changing_operation_is_left_out() -> None:
    assert {of.method for of in CASES.values()} == CHANGES


every_case = pytest.mark.parametrize("name", CASES)


async def outcome(w: World, method: Method[Any, Any], request: Any) -> Any:
    """The reply, or the refusal as it may be compared."""
    try:
        return await w.call(method, request)
    except FS3Error as error:
        assert not error.retryable, error
        return error.code, error.message


async def stored(w: World) -> dict[bytes, bytes]:
    """All records, but for which numbers are handed out."""
    pairs = await w.engine.transaction().get_range(b"", b"\xff")
    return {key: value for key, value in pairs if not key.startswith(b"IBLK")}


@every_case
async def test_the_reply_is_lost(name: str) -> None:
    of = CASES[name]
    async with world() as one, world(one.engine, one.chunks) as other:
        request = await of.prepare(one)
        first = await outcome(one, of.method, request)
        before = await stored(one)
        assert await outcome(other, of.method, request) == first
        assert await outcome(one, of.method, request) == first
        assert await stored(one) == before


@every_case
async def test_the_world_has_gone_on_when_the_copy_arrives(name: str) -> None:
    """What the operation made, changed or found is removed meanwhile, or made."""
    of = CASES[name]
    async with world() as one, world(one.engine, one.chunks) as other:
        request = await of.prepare(one)
        first = await outcome(one, of.method, request)
        await _clear(one, R)
        for made in (b"f", b"missing", b"d", b"new"):
            await one.file(R, made)
        before = await stored(one)
        again = await outcome(other, of.method, request)
        if of.settles and not isinstance(first, tuple):
            assert replace(again, attr=first.attr) == first and again.attr.inode == first.attr.inode
        else:
            assert again == first
        assert await stored(one) == before


async def _clear(w: World, directory: int) -> None:
    for entry in (await w.readdir(directory)).entries:
        if entry.attr.kind == FileKind.DIRECTORY:
            await _clear(w, entry.attr.inode)
            await w.rmdir(directory, entry.name)
        else:
            await w.unlink(directory, entry.name)


@every_case
async def test_both_are_at_it_at_once(name: str, autojump_clock: object) -> None:
    async def hook(operation: Operation) -> Fault | None:
        await trio.lowlevel.checkpoint()
        return None

    of = CASES[name]
    expected = await _undisturbed(of)
    outcomes: list[Any] = []
    async with world(MemoryEngine(hook=hook)) as one, world(one.engine, one.chunks) as other:
        request = await of.prepare(one)

        async def send(w: World) -> None:
            outcomes.append(await outcome(w, of.method, request))

        async with trio.open_nursery() as nursery:
            for w in (one, other, one):
                nursery.start_soon(send, w)
        assert [_plain(each) for each in outcomes] == [expected[0]] * 3
        assert await _state(other) == expected[1]


@every_case
async def test_the_daemon_dies_anywhere_in_it(name: str, autojump_clock: object) -> None:
    of = CASES[name]
    expected = await _undisturbed(of)
    for at in range(1, 200):
        mortal = Mortal(at)
        engine, chunks = mortal.engine, mortal.chunks
        async with world(engine, chunks) as first:
            request = await of.prepare(first)
        died = await mortal.run(lambda w, request=request: outcome(w, of.method, request))  # type: ignore[misc]
        async with world(engine, chunks) as other:
            reply = await outcome(other, of.method, request)
            assert (_plain(reply), await _state(other)) == expected, at
        if not died:
            assert at > 2
            return
    raise AssertionError("it never came to an end")


async def _undisturbed(of: Case) -> tuple[Any, Any]:
    """The outcome and the state after it, where nothing goes wrong."""
    async with world(MemoryEngine(), FakeChunks()) as w:
        reply = await outcome(w, of.method, await of.prepare(w))
        return _plain(reply), await _state(w)


def _plain(reply: Any) -> Any:
    """A reply without what differs from run to run: times, seeds, and numbers of inodes that were new."""
    if isinstance(reply, tuple):
        return reply
    for field in fields(reply):
        value = getattr(reply, field.name)
        if isinstance(value, Attr):
            reply = replace(reply, **{field.name: _plain_attr(value)})
        elif isinstance(value, LockInfo):
            reply = replace(reply, **{field.name: replace(value, since_ns=0)})
        elif field.name.endswith("_ns"):
            reply = replace(reply, **{field.name: 0})
    return reply


def _plain_attr(attr: Attr) -> Attr:
    """Besides, a file may have been looked at once more by a daemon that died, which counts as a change of its data."""
    return replace(attr, inode=0, parent=0, atime_ns=0, mtime_ns=0, ctime_ns=0, layout=None, data_version=0)


async def _state(w: World) -> Any:
    """All that is there, by names, once everything that was begun is completed: attributes, content, sessions, and how many
    records there are besides."""
    while await w.keys(b"INTN"):
        await w.service._intents.sweep()
        await trio.sleep(6)
    names: dict[int, list[bytes]] = {}
    attrs: dict[int, Attr] = {}

    async def walk(directory: int, path: bytes) -> None:
        for entry in (await w.readdir(directory)).entries:
            names.setdefault(entry.attr.inode, []).append(path + entry.name)
            attrs[entry.attr.inode] = entry.attr
            if entry.attr.kind == FileKind.DIRECTORY:
                await walk(entry.attr.inode, path + entry.name + b"/")

    await walk(R, b"/")
    label = {inode: tuple(sorted(found)) for inode, found in names.items()}
    sessions = [session_key_parts(key) for key in await w.keys(b"SESS")]
    for inode, _, _ in sessions:
        attrs[inode] = await w.getattr(inode)
    files = {
        label.get(inode, ()): (_plain_attr(attr), w.chunks.read(attr) if attr.kind == FileKind.FILE else b"")
        for inode, attr in attrs.items()
    }
    counts = {tag: len(await w.keys(tag)) for tag in (b"INOD", b"DENT", b"XATR", b"LOCK", b"GCQ_", b"IDEM", b"DTIM")}
    held = [(label.get(inode, ()), client, session) for inode, client, session in sessions]
    inodes = (await w.call(api.STATFS, Empty())).files
    return files, held, counts, inodes, (await w.getattr(R)).nlink, sum(map(len, w.chunks.chunks.values()))
