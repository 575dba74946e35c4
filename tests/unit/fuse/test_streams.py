from hypothesis import given
from hypothesis import strategies as st

from fuse.streams import IDLE_READS, SINGLES_MAX, STEPS_MAX, STREAMS_MAX, ReadPattern, Shares, Steps, Stream

KIB, MIB = 1024, 1024 * 1024


def test_a_reader_from_the_start_with_large_requests_is_sequential_at_once() -> None:
    assert ReadPattern().observe(0, 128 * KIB)


def test_a_small_first_read_is_not_sequential_but_the_second_is() -> None:
    pattern = ReadPattern()
    assert not pattern.observe(0, 4 * KIB)
    assert pattern.observe(4 * KIB, 4 * KIB)


def test_requests_of_one_reader_may_come_out_of_order() -> None:
    pattern = ReadPattern()
    assert [pattern.observe(at * MIB, MIB) for at in (0, 2, 1, 3, 5, 4)] == [True] * 6
    assert pattern.stream is not None and pattern.stream.next_offset == 6 * MIB


@given(st.lists(st.integers(0, 1 << 30), unique=True, max_size=100))
def test_random_reads_are_no_stream(places: list[int]) -> None:
    pattern = ReadPattern()
    for place in places:
        assert not pattern.observe(place * 64 * KIB, 4 * KIB)
        assert pattern.stream is None and len(pattern._singles) <= SINGLES_MAX and len(pattern._steps) <= STEPS_MAX


@given(st.integers(2, STREAMS_MAX), st.integers(1, 4096), st.lists(st.integers(0, STREAMS_MAX - 1), max_size=200))
def test_readers_of_parts_of_one_file_are_told_apart(readers: int, pages: int, turns: list[int]) -> None:
    """However their requests mingle, once each has been met twice."""
    pattern = ReadPattern()
    length = pages * 4 * KIB
    offsets = [reader * 1024 * length for reader in range(readers)]
    for reader in range(readers):
        for number in range(2):
            assert pattern.observe(offsets[reader], length) or number == 0
            offsets[reader] += length
    for turn in turns:
        reader = turn % readers
        assert pattern.observe(offsets[reader], length)
        offsets[reader] += length
        assert pattern.stream is not None and pattern.stream.next_offset == offsets[reader]


def test_a_reader_goes_on_while_others_read_at_random() -> None:
    pattern = ReadPattern()
    for number in range(100):
        assert pattern.observe(number * MIB, MIB) or number == 1
        for other in range(3):
            assert not pattern.observe((1 + 7 * number + other) * 997 * MIB, 4 * KIB)


@given(st.sampled_from([-1, 1]), st.integers(1, 64), st.integers(8, 1000), st.integers(4, 50))
def test_equal_distances_are_found(sign: int, pages: int, factor: int, count: int) -> None:
    pattern = ReadPattern()
    length = pages * 4 * KIB
    start = length if sign > 0 else 2 * count * factor * length
    for number in range(count):
        assert not pattern.observe(start + sign * number * factor * length, length)
        steps = pattern.steps
        assert (steps is not None) == (number >= 2)
        if steps is not None:
            assert steps.distance == sign * factor * length and 1 <= steps.ahead(MIB) <= max(1, MIB // length)


def test_two_readers_at_equal_distances_share_a_handle() -> None:
    pattern = ReadPattern()
    found = 0
    for number in range(10):
        for base in (0, 512 * MIB):
            pattern.observe(base + number * 3 * MIB, 64 * KIB)
            found += pattern.steps is not None
    assert found >= 14


def test_it_is_ahead_by_what_was_read_within_limits() -> None:
    pattern = ReadPattern()
    ahead = []
    for number in range(6):
        assert pattern.observe(number * MIB, MIB)
        ahead.append(pattern.ahead(MIB, 4 * MIB) // MIB)
    assert ahead == [1, 2, 3, 4, 4, 4]


def test_readers_of_records_are_read_ahead_of_to_the_end_of_the_record() -> None:
    pattern = ReadPattern()

    def record(start: int, size: int) -> list[int]:
        return [
            pattern.ahead(MIB, 32 * MIB) // MIB
            for number in range(size // MIB)
            if pattern.observe(start + number * MIB, MIB)
        ]

    for number in range(STREAMS_MAX):
        assert record((1 + number) * 1000 * MIB, 5 * MIB) == [0, 3, 4, 5]
    record(100_000 * MIB, 5 * MIB)
    assert record(200_000 * MIB, 5 * MIB) == [0, 2, 1, 0]
    assert record(300_000 * MIB, 40 * MIB)[-1] == 32, "one that goes on is followed"


def test_streams_share_the_memory() -> None:
    shares = Shares()
    first, second = Stream(0, MIB), Stream(0, MIB)
    assert shares.of(first, 128 * MIB) == 64 * MIB
    assert shares.of(second, 128 * MIB) == shares.of(first, 128 * MIB) == 32 * MIB
    for _ in range(IDLE_READS + 1):
        part = shares.of(second, 128 * MIB)
    assert part == 64 * MIB, "one that stands still has none"


def test_a_closed_handle_has_no_share() -> None:
    shares = Shares()
    pattern = ReadPattern()
    pattern.observe(0, MIB)
    assert pattern.stream is not None
    shares.of(pattern.stream, 128 * MIB)
    shares.forget(pattern)
    assert shares.of(Stream(0, MIB), 128 * MIB) == 64 * MIB


def test_small_limits_leave_one_step() -> None:
    assert Steps(MIB, 64 * KIB).ahead(1) == 1
