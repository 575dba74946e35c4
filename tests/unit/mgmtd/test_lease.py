from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mgmtd.lease import Owner, PrimaryLease, Record

NOBODY = Record(None, 0)


def lease(node: int = 1, incarnation: int = 11, exclusive: bool = False) -> PrimaryLease:
    return PrimaryLease(node, incarnation, f"mem://{node}", 1000, exclusive)


def held(epoch: int = 4, renewals: int = 9, node: int = 2, released: bool = False) -> Record:
    return Record(Owner(epoch, node, 22, f"mem://{node}", 1000, released), renewals)


def test_free_lease_is_taken_and_renewed_for_half_its_time() -> None:
    mine = lease()
    written = mine.decide(NOBODY, 100.0)
    assert written == Record(Owner(1, 1, 11, "mem://1", 1000), 1)
    assert not mine.holds(100.0)
    mine.granted(written, 100.0)
    assert (mine.epoch, mine.holds(100.4), mine.holds(100.5)) == (1, True, False)
    renewed = mine.decide(written, 100.3)
    assert renewed == Record(written.owner, 2)
    mine.granted(renewed, 100.3)
    assert (mine.epoch, mine.holds(100.7)) == (1, True)


def test_lapsed_lease_begins_a_new_epoch() -> None:
    """So that everything is loaded anew, and nobody is called dead for what we did not hear meanwhile."""
    mine = lease()
    first = mine.decide(NOBODY, 0.0)
    assert first is not None
    mine.granted(first, 0.0)
    again = mine.decide(first, 0.6)
    assert again is not None and again.owner is not None and again.owner.epoch == 2


def test_anothers_lease_is_taken_only_after_it_stood_still_for_its_whole_time() -> None:
    mine = lease()
    assert mine.decide(held(renewals=9), 100.0) is None
    assert mine.decide(held(renewals=10), 100.9) is None
    assert mine.primary_address() == "mem://2"
    assert mine.decide(held(renewals=10), 101.8) is None
    taken = mine.decide(held(renewals=10), 101.9)
    assert taken == Record(Owner(5, 1, 11, "mem://1", 1000), 11)


def test_released_lease_exclusive_store_and_own_former_process_wait_for_nobody() -> None:
    assert lease().decide(held(released=True), 0.0) is not None
    assert lease(exclusive=True).decide(held(), 0.0) is not None
    assert lease(node=2).decide(held(), 0.0) is not None


def test_two_processes_of_one_node_id_do_not_snatch_it_from_each_other_for_ever() -> None:
    first, second = lease(2, 22), lease(2, 33)
    record = first.decide(NOBODY, 0.0)
    assert record is not None
    first.granted(record, 0.0)
    record = second.decide(record, 0.1)
    assert record is not None
    assert first.decide(record, 0.2) is None


def test_release_needs_an_own_lease() -> None:
    mine = lease()
    assert mine.released() is None
    mine.decide(held(), 0.0)
    assert mine.released() is None
    taken = mine.decide(held(), 1.0)
    assert taken is not None
    mine.granted(taken, 1.0)
    freed = mine.released()
    assert freed is not None and freed.owner is not None and freed.owner.released


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.floats(0.01, 0.7), st.sampled_from(["ok", "lost", "late"])), min_size=1, max_size=60
    )
)
def test_never_two_primaries(moves: list[tuple[int, float, str]]) -> None:
    """Three candidates whose store operations succeed, or succeed without their hearing of it, or take long."""
    leases = [lease(node, node * 11) for node in (1, 2, 3)]
    record, now = NOBODY, 0.0
    for who, pause_s, outcome in moves:
        now += pause_s
        asked_at = now
        if outcome == "late":
            now += 0.3
        written = leases[who].decide(record, now)
        if written is None:
            continue
        record = written
        if outcome != "lost":
            leases[who].granted(written, asked_at)
        holders = [candidate.epoch for candidate in leases if candidate.holds(now)]
        assert len(holders) <= 1
