from dataclasses import replace

from fs3.api.meta import Attr, FileKind
from fs3.client.inode import NO_VERSION, UNSYNCED_MAX, OpenInode
from fs3.layout import FileLayout

CHUNK = 1 << 16
ATTR = Attr(
    9, 0, FileKind.FILE, 0o644, 0, 0, 1, 100, 1, 1, 1, truncate_version=3, data_version=5,
    layout=FileLayout(1, 1, CHUNK, 2, 0),
)  # fmt: skip


def make() -> OpenInode:
    return OpenInode(ATTR, (11, 12, 13), fresh=True)


def test_chains_are_drawn_from_the_table() -> None:
    chains = make().chains
    assert len(chains) == 2 and set(chains) < {11, 12, 13} and make().chains == chains


def test_a_write_makes_the_file_longer_at_once() -> None:
    state = make()
    state.wrote(90, 20, 777)
    assert (state.length, state.dirty, state.unsynced) == (110, True, {0})
    seen = state.view(ATTR)
    assert (seen.length, seen.mtime_ns) == (110, 777)


def test_a_report_settles_what_was_written_before_it() -> None:
    state = make()
    state.wrote(0, 200, 1)
    changes = state.changes
    state.wrote(200, 50, 2)
    state.was_reported(changes, replace(ATTR, length=200, data_version=6))
    assert state.dirty and state.length == 250
    state.was_reported(state.changes, replace(ATTR, length=250, data_version=7, mtime_ns=9))
    assert not state.dirty and state.view(state.attr).mtime_ns == 9


def test_a_write_that_failed_is_for_the_chains_to_tell() -> None:
    state = make()
    state.wrote_in_part()
    assert state.dirty and state.length == 100 and state.unsynced_all
    assert state.report == (0, NO_VERSION)
    state.wrote(0, 200, 1)
    assert state.report == (200, NO_VERSION)
    changes = state.changes
    state.wrote_in_part()
    state.was_reported(changes, replace(ATTR, length=200, data_version=6))
    assert state.report == (200, NO_VERSION), "the second failure came after what was reported"
    state.was_reported(state.changes, replace(ATTR, length=300, data_version=7))
    assert (state.length, state.dirty, state.report) == (300, False, (200, 3))


def test_a_reply_that_was_overtaken_changes_nothing() -> None:
    state = make()
    state.learn(replace(ATTR, length=500, data_version=8))
    assert state.learn(ATTR).length == 500
    assert state.length == 500


def test_somebody_elses_truncation_is_taken_over() -> None:
    state = make()
    state.wrote(0, 300, 1)
    state.was_reported(state.changes, replace(ATTR, length=300, data_version=6))
    state.learn(replace(ATTR, length=10, truncate_version=4, data_version=7))
    assert state.length == 10
    state.wrote(10, 5, 2)
    assert (state.end, state.end_version, state.length) == (15, 4, 15)


def test_unreported_writes_from_before_a_truncation_keep_their_version() -> None:
    state = make()
    state.wrote(0, 300, 1)
    state.learn(replace(ATTR, length=10, truncate_version=4, data_version=7))
    state.wrote(0, 20, 2)
    assert (state.end, state.end_version) == (300, 3), "meta must ask the chains"
    state.was_reported(state.changes, replace(ATTR, length=20, truncate_version=4, data_version=8))
    assert (state.end, state.length) == (-1, 20)


def test_an_own_truncation_settles_everything() -> None:
    state = make()
    state.wrote(0, 300, 1)
    state.truncated(replace(ATTR, length=7, truncate_version=4, data_version=6))
    assert (state.length, state.dirty, state.end) == (7, False, -1)


def test_chunks_to_sync_are_remembered_up_to_a_number() -> None:
    state = make()
    state.wrote(CHUNK - 1, 2 * CHUNK, 1)
    assert state.unsynced == {0, 1, 2} and not state.unsynced_all
    state.wrote(0, CHUNK * (UNSYNCED_MAX + 1), 1)
    assert state.unsynced_all and not state.unsynced
