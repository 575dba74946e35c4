"""Checks of key-value engines: reads, snapshots, ranges, read-your-writes."""

from __future__ import annotations

from .kv_kit import Check, Store, commits, pairs_of, read, read_all, write

CHECKS: list[Check] = []


# Reads.


@CHECKS.append
async def an_empty_store_holds_nothing(store: Store) -> None:
    txn = store.engine.transaction()
    assert await txn.get(b"a") is None
    assert await txn.get(b"a", snapshot=True) is None
    assert await txn.get_range(b"", b"\xff") == []
    await txn.commit()


@CHECKS.append
async def what_is_committed_is_read(store: Store) -> None:
    await write(store, (b"a", b"1"), (b"b", b""), (b"", b"empty key"), (b"n\x00ul\xfe", b"\x00\xff"))
    assert await read(store, b"a") == b"1"
    assert await read(store, b"b") == b""
    assert await read(store, b"") == b"empty key"
    assert await read(store, b"n\x00ul\xfe") == b"\x00\xff"
    await write(store, (b"a", None), (b"b", b"2"), (b"absent", None))
    assert await read_all(store) == [(b"", b"empty key"), (b"b", b"2"), (b"n\x00ul\xfe", b"\x00\xff")]


@CHECKS.append
async def what_is_not_committed_is_not_read(store: Store) -> None:
    txn = store.engine.transaction()
    txn.set(b"a", b"1")
    assert await read(store, b"a") is None
    del txn
    assert await read(store, b"a") is None


@CHECKS.append
async def reads_see_one_snapshot(store: Store) -> None:
    await write(store, (b"a", b"1"), (b"c", b"1"), (b"e", b"1"))
    old = store.engine.transaction()
    assert await old.get(b"e") == b"1"
    await write(store, (b"a", b"2"), (b"b", b"2"), (b"c", None))
    new = store.engine.transaction()
    assert await new.get_range(b"", b"\xff") == [(b"a", b"2"), (b"b", b"2"), (b"e", b"1")]
    await write(store, (b"a", b"3"), (b"e", None))
    for snapshot in (False, True):
        assert await old.get(b"a", snapshot=snapshot) == b"1"
        assert await old.get(b"b", snapshot=snapshot) is None
        assert await old.get(b"c", snapshot=snapshot) == b"1"
        assert await old.get_range(b"", b"\xff", snapshot=snapshot) == [(b"a", b"1"), (b"c", b"1"), (b"e", b"1")]
        assert await new.get_range(b"", b"\xff", limit=1, snapshot=snapshot) == [(b"a", b"2")]
    assert await read_all(store) == [(b"a", b"3"), (b"b", b"2")]


@CHECKS.append
async def the_snapshot_is_that_of_the_first_read(store: Store) -> None:
    txn = store.engine.transaction()
    txn.set(b"own", b"1")
    txn.add_read_conflict_key(b"a")
    assert await txn.get(b"own") == b"1"
    await write(store, (b"a", b"1"))
    assert await txn.get(b"a") == b"1"
    assert await commits(txn)


@CHECKS.append
async def ranges_have_ends_limits_and_two_directions(store: Store) -> None:
    pairs = pairs_of(10)
    await write(store, *pairs)
    txn = store.engine.transaction()
    for snapshot in (False, True):
        assert await txn.get_range(b"k00002", b"k00005", snapshot=snapshot) == pairs[2:5]
        assert await txn.get_range(b"k00002", b"k00005\x00", snapshot=snapshot) == pairs[2:6]
        assert await txn.get_range(b"k00002\x00", b"k00005", snapshot=snapshot) == pairs[3:5]
        assert await txn.get_range(b"k00002", b"k00005", reverse=True, snapshot=snapshot) == pairs[2:5][::-1]
        assert await txn.get_range(b"k00002", b"k00009", limit=3, snapshot=snapshot) == pairs[2:5]
        assert await txn.get_range(b"", b"k00009", limit=3, reverse=True, snapshot=snapshot) == pairs[6:9][::-1]
        assert await txn.get_range(b"k00008", b"\xff", limit=3, snapshot=snapshot) == pairs[8:]
        assert await txn.get_range(b"k00002", b"k00002", snapshot=snapshot) == []
        assert await txn.get_range(b"k00005", b"k00002", snapshot=snapshot) == []
        assert await txn.get_range(b"l", b"m", reverse=True, snapshot=snapshot) == []


@CHECKS.append
async def long_ranges_come_whole(store: Store) -> None:
    pairs = pairs_of(3000)
    await write(store, *pairs)
    txn = store.engine.transaction()
    assert await txn.get_range(b"", b"\xff") == pairs
    assert await txn.get_range(b"", b"\xff", reverse=True) == pairs[::-1]
    assert await txn.get_range(b"", b"\xff", limit=2999) == pairs[:2999]
    assert await txn.get_range(b"", b"\xff", limit=2999, reverse=True) == pairs[:0:-1]


# Read-your-writes.


@CHECKS.append
async def a_transaction_reads_its_own_writes(store: Store) -> None:
    await write(store, (b"a", b"old"), (b"b", b"old"), (b"c", b"old"))
    txn = store.engine.transaction()
    txn.set(b"a", b"new")
    txn.clear(b"b")
    txn.set(b"d", b"new")
    txn.clear_range(b"c", b"d")
    for snapshot in (False, True):
        assert await txn.get(b"a", snapshot=snapshot) == b"new"
        assert await txn.get(b"b", snapshot=snapshot) is None
        assert await txn.get(b"c", snapshot=snapshot) is None
        assert await txn.get(b"d", snapshot=snapshot) == b"new"
    txn.set(b"b", b"again")
    txn.set(b"c", b"again")
    txn.clear(b"a")
    expected = [(b"b", b"again"), (b"c", b"again"), (b"d", b"new")]
    assert await txn.get_range(b"", b"\xff") == expected
    await txn.commit()
    assert await read_all(store) == expected


@CHECKS.append
async def range_reads_see_own_sets_clears_and_adds(store: Store) -> None:
    old = [(b"k%d" % number, b"old") for number in range(10)]
    await write(store, *old)
    txn = store.engine.transaction()
    txn.set(b"k1", b"new")
    txn.set(b"k15", b"new")
    txn.clear(b"k3")
    txn.clear_range(b"k5", b"k8")
    txn.set(b"k6", b"new")
    txn.atomic_add(b"k7", 5)
    txn.atomic_add(b"m", -1)
    expected = [
        *[(b"k0", b"old"), (b"k1", b"new"), (b"k15", b"new"), (b"k2", b"old"), (b"k4", b"old"), (b"k6", b"new")],
        *[(b"k7", (5).to_bytes(8, "little")), (b"k8", b"old"), (b"k9", b"old"), (b"m", b"\xff" * 8)],
    ]
    for snapshot in (False, True):
        assert await txn.get_range(b"", b"\xff", snapshot=snapshot) == expected
        assert await txn.get_range(b"", b"\xff", reverse=True, snapshot=snapshot) == expected[::-1]
        for limit in range(1, 11):
            assert await txn.get_range(b"", b"\xff", limit=limit, snapshot=snapshot) == expected[:limit]
            backwards = await txn.get_range(b"", b"\xff", limit=limit, reverse=True, snapshot=snapshot)
            assert backwards == expected[::-1][:limit]
        assert await txn.get_range(b"k3", b"k6", snapshot=snapshot) == [(b"k4", b"old")]
    txn.clear_range(b"", b"\xff")
    assert await txn.get_range(b"", b"\xff") == []
    txn.set(b"z", b"")
    await txn.commit()
    assert await read_all(store) == [(b"z", b"")]


@CHECKS.append
async def the_later_of_own_writes_wins(store: Store) -> None:
    await write(store, (b"a", b"old"), (b"b", b"old"), (b"c", b"old"), (b"n", (1).to_bytes(8, "little")))
    txn = store.engine.transaction()
    txn.clear_range(b"a", b"c")
    txn.set(b"a", b"new")
    txn.set(b"b", b"new")
    txn.clear_range(b"b", b"d")
    txn.clear_range(b"d", b"d")
    txn.clear_range(b"z", b"a")  # inverted: nothing
    txn.atomic_add(b"n", 1)
    txn.atomic_add(b"n", 2)
    assert await txn.get(b"n") == (4).to_bytes(8, "little")
    expected = [(b"a", b"new"), (b"n", (4).to_bytes(8, "little"))]
    assert await txn.get_range(b"", b"\xff") == expected
    await txn.commit()
    assert await read_all(store) == expected


@CHECKS.append
async def large_ranges_are_cleared(store: Store) -> None:
    pairs = pairs_of(500)
    await write(store, *pairs)
    old = store.engine.transaction()
    assert await old.get(b"k00100") is not None
    txn = store.engine.transaction()
    txn.clear_range(b"k00100", b"k00400")
    txn.set(b"k00200", b"new")
    await txn.commit()
    assert await read_all(store) == [*pairs[:100], (b"k00200", b"new"), *pairs[400:]]
    assert await old.get_range(b"", b"\xff") == pairs
    assert await old.get(b"k00200") == pairs[200][1]
