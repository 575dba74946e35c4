from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fs3.errors import Code, FS3Error
from fs3.layout import FileLayout
from meta import schema
from meta.schema import Garbage, Inode, Intent, Session

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
I64 = st.integers(-(2**63), 2**63 - 1)
LAYOUTS = st.builds(FileLayout, U32, U32, U32, U32, U64)


@st.composite
def inodes(draw: st.DrawFn) -> Inode:
    inode = Inode(
        draw(U64), draw(st.integers(1, 7)), draw(st.integers(0, 3)), draw(st.integers(0, 0o7777)), draw(U32), draw(U32),
        draw(U32), draw(st.integers(0, 2**63 - 1)), draw(I64), draw(I64), draw(I64), draw(U64), draw(U64), draw(U64),
        draw(U64), draw(U32), draw(U32), draw(U32), draw(U32), draw(U64),
    )  # fmt: skip
    if draw(st.booleans()):
        inode.set_acls(draw(st.binary(max_size=4095)), draw(st.binary(max_size=4095)))
    else:
        inode.target = draw(st.binary(max_size=4095))
    return inode


@given(inodes())
def test_an_inode_comes_back_as_it_was(inode: Inode) -> None:
    assert Inode.unpack(inode.id, inode.pack()) == inode


@given(inodes())
def test_attributes_are_those_of_the_inode(inode: Inode) -> None:
    attr = inode.attr()
    assert (attr.inode, int(attr.kind), attr.length, attr.data_version) == (
        inode.id,
        inode.kind,
        inode.length,
        inode.data_version,
    )
    assert (attr.layout is not None) == (inode.kind in (schema.FILE, schema.DIRECTORY))


@given(st.builds(Session, U32, st.booleans(), I64))
def test_a_session_comes_back_as_it_was(session: Session) -> None:
    assert Session.unpack(session.pack()) == session


@given(st.builds(Intent, st.sampled_from([1, 2]), I64, I64, U64, U64))
def test_an_intent_comes_back_as_it_was(intent: Intent) -> None:
    assert Intent.unpack(intent.pack()) == intent


@given(st.builds(Garbage, I64, LAYOUTS, I64))
def test_garbage_comes_back_as_it_was(garbage: Garbage) -> None:
    assert Garbage.unpack(garbage.pack()) == garbage


@given(U64, st.integers(0, 2**16 - 1), U64, st.booleans(), st.binary())
def test_a_record_comes_back_as_it_was(sequence: int, method: int, second: int, error: bool, body: bytes) -> None:
    packed = schema.pack_record(sequence, method, second, error, body)
    assert schema.unpack_record(packed) == (sequence, method, second, error, body)


@given(U64, U64, st.binary(min_size=1, max_size=255), st.binary(min_size=1, max_size=255))
def test_entries_sort_by_directory_then_name(first: int, second: int, one: bytes, other: bytes) -> None:
    assert (schema.entry_key(first, one) < schema.entry_key(second, other)) == ((first, one) < (second, other))


@given(U64, U64, st.binary(max_size=255))
def test_the_span_of_a_directory_holds_its_entries_alone(directory: int, other: int, name: bytes) -> None:
    if directory == 2**64 - 1:
        return  # the number after it has no 8 bytes; no inode gets so far
    begin, end = schema.span(schema.entry_key(directory, b""))
    assert (begin <= schema.entry_key(other, name) < end) == (directory == other)


@given(U64, U64, U64)
def test_a_session_key_tells_its_parts(inode: int, client: int, session: int) -> None:
    assert schema.session_key_parts(schema.session_key(inode, client, session)) == (inode, client, session)


@pytest.mark.parametrize("unpack", [lambda v: Inode.unpack(1, v), Session.unpack, Intent.unpack, Garbage.unpack])
def test_a_record_of_a_newer_version_is_refused(unpack: object) -> None:
    layout = FileLayout(1, 1, 65536, 1, 5)
    values = {
        Session.unpack: Session(0, False, 0).pack(),
        Intent.unpack: Intent(1, 0, 0, 0, 0).pack(),
        Garbage.unpack: Garbage(0, layout).pack(),
    }
    inode = Inode(1, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0).pack()
    value = bytearray(values.get(unpack, inode))  # type: ignore[call-overload]
    value[0] = schema.FORMAT_ACL + 1
    with pytest.raises(FS3Error) as caught:
        unpack(bytes(value))  # type: ignore[operator]
    assert caught.value.code is Code.FORMAT_VERSION and not caught.value.retryable
