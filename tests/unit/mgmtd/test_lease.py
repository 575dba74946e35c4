from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mgmtd.lease import Owner, PrimaryLease, Record, held_s, lease_ms

NOBODY = Record(None, 0)


def lease(node: int = 1, incarnation: int = 11, exclusive: bool = False) -> PrimaryLease:
    return PrimaryLease(node, incarnation, f"mem://{node}", 1000, exclusive)


def held(epoch: int = 4, renewals: int = 9, node: int = 2, released: bool = False) -> Record:
    return Record(Owner(epoch, node, 22, f"mem://{node}", 1000, released), renewals)


def test_free_lease_is_taken_and_renewed_for_two_thirds_of_its_time() -> None:
    mine = lease()
    written = mine.decide(NOBODY, 100.0)
    assert written == Record(Owner(1, 1, 11, "mem://1", 1000), 1)
    assert not mine.holds(100.0)
    mine.granted(written, 100.0)
    assert (mine.epoch, mine.holds(100.66), mine.holds(100.67)) == (1, True, False)
    renewed = mine.decide(written, 100.3)
    assert renewed == Record(written.owner, 2)
    mine.granted(renewed, 100.3)
    assert (mine.epoch, mine.holds(100.96), mine.holds(100.97)) == (1, True, False)


def test_lapsed_lease_begins_a_new_epoch() -> None:
    """So that everything is loaded anew, and nobody is called dead for what we did not hear meanwhile."""
    mine = lease()
    first = mine.decide(NOBODY, 0.0)
    assert first is not None
    mine.granted(first, 0.0)
    again = mine.decide(first, 0.7)
    assert again is not None and again.owner is not None and again.owner.epoch == 2


def test_anothers_lease_is_taken_only_after_it_stood_still_for_its_whole_time() -> None:
    mine = lease()
    assert mine.decide(held(renewals=9), 100.0) is None
    assert mine.decide(held(renewals=10), 100.9) is None
    assert mine.primary_address(100.9) == "mem://2"
    assert mine.free_at() == 101.9
    assert mine.decide(held(renewals=10), 101.8) is None
    taken = mine.decide(held(renewals=10), 101.9)
    assert taken == Record(Owner(5, 1, 11, "mem://1", 1000), 11)


def test_who_cannot_look_names_nobody() -> None:
    """There may be another primary by then, whom it would keep others from finding."""
    mine = lease()
    assert mine.primary_address(0.0) == ""
    assert mine.decide(held(renewals=9), 100.0) is None
    assert (mine.primary_address(101.0), mine.primary_address(101.1)) == ("mem://2", "")
    assert mine.decide(held(renewals=10), 102.0) is None
    assert mine.primary_address(102.0) == "mem://2"
    assert mine.decide(held(renewals=11, released=True), 102.1) is not None
    assert (mine.primary_address(102.1), mine.free_at()) == ("", 103.1)


def test_daemons_find_the_next_primary_before_they_give_up() -> None:
    """A daemon asks every T/4 and gives up after T/2; the standby sees the last renewal with the delay of one look."""
    node_ms = 10_000
    of_primary_ms = lease_ms(node_ms, exclusive=False)
    taken_over_ms = of_primary_ms + of_primary_ms / 8
    assert node_ms / 4 + taken_over_ms <= 0.4 * node_ms
    assert lease_ms(node_ms, exclusive=True) == node_ms


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


MOVES = st.lists(
    st.tuples(st.integers(0, 2), st.floats(0.01, 0.7), st.sampled_from(["ok", "lost", "late"])), min_size=1, max_size=60
)
RATES = st.lists(st.floats(0.82, 1.22), min_size=3, max_size=3)


@given(MOVES, RATES)
def test_never_two_primaries(moves: list[tuple[int, float, str]], rates: list[float]) -> None:
    """Three candidates whose store operations succeed, or succeed without their hearing of it, or take long; by clocks of
    which one runs half as fast again as another."""
    leases = [lease(node, node * 11) for node in (1, 2, 3)]
    record, now = NOBODY, 0.0
    for who, pause_s, outcome in moves:
        now += pause_s
        asked_at = now * rates[who]
        if outcome == "late":
            now += 0.3
        written = leases[who].decide(record, now * rates[who])
        if written is not None:
            record = written
            if outcome != "lost":
                leases[who].granted(written, asked_at)
        holders = [candidate.epoch for candidate, rate in zip(leases, rates, strict=True) if candidate.holds(now * rate)]
        assert len(holders) <= 1


def test_clocks_that_differ_by_more_than_half_would_not_do() -> None:
    """The bound above is what the lease gives, not more."""
    assert held_s(1000) * 1.22 / 0.82 < 1.0 < held_s(1000) * 1.3 / 0.8
