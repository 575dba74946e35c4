"""Checks of key-value engines: what conflicts and what does not, counters, limits."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from ..errors import Code
from ..kv.base import KEY_SIZE_MAX, TRANSACTION_AGE_MAX_MS, TRANSACTION_SIZE_MAX, VALUE_SIZE_MAX, Txn
from .kv_kit import Check, Pairs, Store, commits, pairs_of, raises, read, read_all, write

CHECKS: list[Check] = []


# Conflicts.


async def conflicts_with(store: Store, reads: Callable[[Txn], Awaitable[object]], writes: Callable[[Txn], None]) -> bool:
    """Whether a transaction that reads conflicts with another that writes after that read."""
    txn, other = store.engine.transaction(), store.engine.transaction()
    await reads(txn)
    writes(other)
    await other.commit()
    txn.set(b"result", b"")
    return not await commits(txn)


@CHECKS.append
async def a_read_key_conflicts(store: Store) -> None:
    await write(store, (b"a", b"1"))

    def set_a(txn: Txn) -> None:
        txn.set(b"a", b"2")

    assert await conflicts_with(store, lambda txn: txn.get(b"a"), set_a)
    assert await conflicts_with(store, lambda txn: txn.get(b"a"), lambda txn: txn.set(b"a", b"2"))  # the same value
    assert await conflicts_with(store, lambda txn: txn.get(b"a"), lambda txn: txn.clear(b"a"))
    assert await conflicts_with(store, lambda txn: txn.get(b"a"), lambda txn: txn.atomic_add(b"a", 1))
    assert await conflicts_with(store, lambda txn: txn.get(b"a"), lambda txn: txn.clear_range(b"", b"b"))
    assert not await conflicts_with(store, lambda txn: txn.get(b"a"), lambda txn: txn.clear_range(b"", b"a"))
    assert not await conflicts_with(store, lambda txn: txn.get(b"a"), lambda txn: txn.set(b"a\x00", b"2"))
    assert not await conflicts_with(store, lambda txn: txn.get(b"a", snapshot=True), set_a)


@CHECKS.append
async def an_absent_key_conflicts(store: Store) -> None:
    assert await conflicts_with(store, lambda txn: txn.get(b"a"), lambda txn: txn.set(b"a", b"1"))
    assert await conflicts_with(store, lambda txn: txn.get(b"b"), lambda txn: txn.clear(b"b"))
    assert await conflicts_with(store, lambda txn: txn.get(b"b"), lambda txn: txn.clear_range(b"b", b"c"))


@CHECKS.append
async def a_read_range_conflicts(store: Store) -> None:
    await write(store, (b"b", b"1"), (b"d", b"1"))

    def b_to_d(txn: Txn) -> Awaitable[Pairs]:
        return txn.get_range(b"b", b"d")

    assert await conflicts_with(store, b_to_d, lambda txn: txn.set(b"b", b"2"))
    assert await conflicts_with(store, b_to_d, lambda txn: txn.set(b"c", b"2"))  # a phantom
    assert await conflicts_with(store, b_to_d, lambda txn: txn.clear(b"cc"))
    assert await conflicts_with(store, b_to_d, lambda txn: txn.clear_range(b"cc", b"cd"))
    assert await conflicts_with(store, b_to_d, lambda txn: txn.clear_range(b"", b"b\x00"))
    assert await conflicts_with(store, lambda txn: txn.get_range(b"x", b"y"), lambda txn: txn.set(b"x", b""))  # empty
    assert not await conflicts_with(store, b_to_d, lambda txn: txn.set(b"d", b"2"))
    assert not await conflicts_with(store, b_to_d, lambda txn: txn.set(b"a", b"2"))
    assert not await conflicts_with(store, b_to_d, lambda txn: txn.clear_range(b"d", b"e"))
    assert not await conflicts_with(store, b_to_d, lambda txn: txn.clear_range(b"a", b"b"))
    assert not await conflicts_with(
        store, lambda txn: txn.get_range(b"b", b"d", snapshot=True), lambda txn: txn.set(b"c", b"3")
    )


@CHECKS.append
async def of_a_limited_range_only_what_was_read_conflicts(store: Store) -> None:
    await write(store, *pairs_of(10))

    def first_three(txn: Txn) -> Awaitable[Pairs]:
        return txn.get_range(b"k", b"l", limit=3)

    def last_three(txn: Txn) -> Awaitable[Pairs]:
        return txn.get_range(b"k", b"l", limit=3, reverse=True)

    assert await conflicts_with(store, first_three, lambda txn: txn.set(b"k00002", b""))
    assert await conflicts_with(store, first_three, lambda txn: txn.set(b"k0", b""))
    assert not await conflicts_with(store, first_three, lambda txn: txn.set(b"k00003", b""))
    assert not await conflicts_with(store, first_three, lambda txn: txn.set(b"k00002\x01", b""))
    assert await conflicts_with(store, last_three, lambda txn: txn.set(b"k00007", b""))
    assert not await conflicts_with(store, last_three, lambda txn: txn.set(b"k00006", b""))
    assert not await conflicts_with(store, last_three, lambda txn: txn.set(b"k00006\x01", b""))
    assert await conflicts_with(store, last_three, lambda txn: txn.set(b"k9", b""))


@CHECKS.append
async def own_writes_are_no_reads(store: Store) -> None:
    async def reads_own(txn: Txn) -> None:
        await txn.get(b"elsewhere")
        txn.set(b"a", b"own")
        txn.clear_range(b"c", b"e")
        assert await txn.get(b"a") == b"own"
        assert await txn.get(b"d") is None
        assert await txn.get_range(b"a", b"a\x00") == [(b"a", b"own")]
        assert await txn.get_range(b"c", b"e") == []

    async def reads_across(txn: Txn) -> None:
        txn.clear_range(b"c", b"e")
        await txn.get_range(b"b", b"f")

    async def reads_added(txn: Txn) -> None:
        txn.atomic_add(b"n", 1)
        await txn.get(b"n")

    async def reads_range_with_added(txn: Txn) -> None:
        txn.atomic_add(b"n", 1)
        await txn.get_range(b"m", b"o")

    assert not await conflicts_with(store, reads_own, lambda txn: txn.set(b"a", b""))
    assert not await conflicts_with(store, reads_own, lambda txn: txn.set(b"d", b""))
    assert not await conflicts_with(store, reads_across, lambda txn: txn.set(b"d", b""))
    assert await conflicts_with(store, reads_across, lambda txn: txn.set(b"b", b""))
    assert await conflicts_with(store, reads_across, lambda txn: txn.set(b"e", b""))
    assert await conflicts_with(store, reads_added, lambda txn: txn.set(b"n", b""))
    assert await conflicts_with(store, reads_range_with_added, lambda txn: txn.set(b"n", b""))


@CHECKS.append
async def blind_writes_do_not_conflict(store: Store) -> None:
    first, second = store.engine.transaction(), store.engine.transaction()
    for txn, value in ((first, b"1"), (second, b"2")):
        txn.set(b"a", value)
        txn.clear(b"b")
        txn.clear_range(b"c", b"d")
    assert await commits(second)
    assert await commits(first)
    assert await read(store, b"a") == b"1"


@CHECKS.append
async def a_transaction_that_writes_nothing_commits(store: Store) -> None:
    txn = store.engine.transaction()
    await txn.get(b"a")
    await txn.get_range(b"", b"\xff")
    txn.clear_range(b"b", b"a")  # nothing
    await write(store, (b"a", b"1"))
    assert await commits(txn)


@CHECKS.append
async def write_skew_is_prevented(store: Store) -> None:
    await write(store, (b"alice", b"on call"), (b"bob", b"on call"))
    first, second = store.engine.transaction(), store.engine.transaction()
    for txn, who in ((first, b"alice"), (second, b"bob")):
        assert len(await txn.get_range(b"a", b"c")) == 2
        txn.clear(who)
    assert await commits(first)
    assert not await commits(second)
    assert await read_all(store) == [(b"bob", b"on call")]


@CHECKS.append
async def conflict_ranges_can_be_added(store: Store) -> None:
    async def declares_reads(txn: Txn) -> None:
        await txn.get(b"elsewhere")
        txn.add_read_conflict_key(b"a")
        txn.add_read_conflict_range(b"c", b"e")
        txn.add_read_conflict_range(b"z", b"y")  # inverted: nothing

    assert await conflicts_with(store, declares_reads, lambda txn: txn.set(b"a", b""))
    assert await conflicts_with(store, declares_reads, lambda txn: txn.set(b"d", b""))
    assert not await conflicts_with(store, declares_reads, lambda txn: txn.set(b"b", b""))
    assert not await conflicts_with(store, declares_reads, lambda txn: txn.set(b"e", b""))
    assert not await conflicts_with(store, declares_reads, lambda txn: txn.set(b"y", b""))
    assert await conflicts_with(store, lambda txn: txn.get(b"b"), lambda txn: txn.add_write_conflict_range(b"a", b"c"))
    assert not await conflicts_with(store, lambda txn: txn.get(b"c"), lambda txn: txn.add_write_conflict_range(b"a", b"c"))
    assert not await conflicts_with(store, lambda txn: txn.get(b"c"), lambda txn: txn.add_write_conflict_range(b"d", b"b"))
    assert await conflicts_with(
        store, lambda txn: txn.get_range(b"b", b"d"), lambda txn: txn.add_write_conflict_range(b"a", b"c")
    )


@CHECKS.append
async def a_conflict_leaves_nothing(store: Store) -> None:
    txn = store.engine.transaction()
    await txn.get(b"a")
    txn.set(b"b", b"1")
    await write(store, (b"a", b"1"))
    assert not await commits(txn)
    assert await read_all(store) == [(b"a", b"1")]


# Counters.


@CHECKS.append
async def atomic_adds_all_count(store: Store) -> None:
    txns = [store.engine.transaction() for _ in range(5)]
    for number, txn in enumerate(txns):
        txn.atomic_add(b"n", 10**number)
    for txn in txns:
        await txn.commit()
    assert await read(store, b"n") == (11111).to_bytes(8, "little")


@CHECKS.append
async def atomic_adds_wrap(store: Store) -> None:
    async def add(start: bytes | None, *deltas: int) -> bytes | None:
        await write(store, (b"n", start))
        txn = store.engine.transaction()
        for delta in deltas:
            txn.atomic_add(b"n", delta)
        within = await txn.get(b"n")
        await txn.commit()
        assert await read(store, b"n") == within
        return within

    assert await add(None, 0) == bytes(8)
    assert await add(None, -1) == b"\xff" * 8
    assert await add(b"\xff" * 8, 1) == bytes(8)
    assert await add(b"\xff" * 7 + b"\x7f", 1) == bytes(7) + b"\x80"
    assert await add(b"", 258) == b"\x02\x01" + bytes(6)
    assert await add(b"\xff", 1) == b"\x00\x01" + bytes(6)  # shorter: extended with zeros
    assert await add(b"\x01" + bytes(7) + b"tail", 1) == b"\x02" + bytes(7)  # longer: cut
    assert await add(b"\x05", -3, -4, 1) == b"\xff" * 8


# Limits.


@CHECKS.append
async def keys_and_values_have_a_size_limit(store: Store) -> None:
    longest = b"k" * store.key_size_max
    txn = store.engine.transaction()
    for operation in (lambda key: txn.set(key, b""), txn.clear, lambda key: txn.atomic_add(key, 1)):
        with raises(Code.KEY_TOO_LARGE):
            operation(b"k" * (KEY_SIZE_MAX + 1))
    with raises(Code.VALUE_TOO_LARGE):
        txn.set(b"a", b"v" * (VALUE_SIZE_MAX + 1))
    txn.set(longest, b"v" * VALUE_SIZE_MAX)
    await txn.commit()  # what was refused left no trace
    assert await read_all(store) == [(longest, b"v" * VALUE_SIZE_MAX)]
    assert await read(store, b"k" * (KEY_SIZE_MAX + 1)) is None


@CHECKS.append
async def transactions_have_a_size_limit(store: Store) -> None:
    count = TRANSACTION_SIZE_MAX // VALUE_SIZE_MAX
    txn = store.engine.transaction()
    for number in range(count + 1):
        txn.set(b"k%05d" % number, b"v" * VALUE_SIZE_MAX)
    with raises(Code.TRANSACTION_TOO_LARGE):
        await txn.commit()
    assert await read_all(store) == []
    txn = store.engine.transaction()
    for number in range(count - 5):
        txn.set(b"k%05d" % number, b"v" * VALUE_SIZE_MAX)
    await txn.commit()
    assert len(await read_all(store)) == count - 5


@CHECKS.append
async def conflict_ranges_count_for_the_size(store: Store) -> None:
    size = store.key_size_max - 10
    txn = store.engine.transaction()
    await txn.get(b"a")
    txn.set(b"a", b"")
    for number in range(TRANSACTION_SIZE_MAX // (2 * size) + 1):
        key = b"%05d" % number + b"k" * size
        txn.add_read_conflict_range(key, key + b"\x00")
    with raises(Code.TRANSACTION_TOO_LARGE):
        await txn.commit()


@CHECKS.append
async def transactions_have_an_age_limit(store: Store) -> None:
    await write(store, (b"a", b"1"))
    reader, writer, blind = (store.engine.transaction() for _ in range(3))
    assert await reader.get(b"a") == b"1"
    assert await writer.get(b"a") == b"1"
    writer.set(b"b", b"1")
    blind.set(b"c", b"1")
    await write(store, (b"d", b"1"))
    await store.pass_time(TRANSACTION_AGE_MAX_MS / 1000 + 1.5)
    await write(store, (b"d", b"2"))
    with raises(Code.TRANSACTION_TOO_OLD):
        await reader.get(b"d")
    with raises(Code.TRANSACTION_TOO_OLD):
        await writer.commit()
    await blind.commit()  # it never read
    reader.reset()
    assert await reader.get_range(b"", b"\xff") == [(b"a", b"1"), (b"c", b"1"), (b"d", b"2")]
