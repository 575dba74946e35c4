from __future__ import annotations

from fs3.api.storage import UpdateResult
from fs3.ids import RequestTag
from storage.channels import Admission, Channels

RESULT = UpdateResult(0, 5, 100, 9)


def tag(sequence: int, channel: int = 1) -> RequestTag:
    return RequestTag(7, channel, sequence)


def test_new_then_replay_then_stale() -> None:
    channels = Channels()
    assert channels.admit(tag(4), 0.0) == (Admission.NEW, None)
    assert channels.admit(tag(4), 0.0) == (Admission.IN_PROGRESS, None)
    channels.finish(tag(4), RESULT, 1.0)
    assert channels.admit(tag(4), 2.0) == (Admission.REPLAY, RESULT)
    assert channels.admit(tag(5), 2.0) == (Admission.NEW, None)
    assert channels.admit(tag(4), 2.0) == (Admission.STALE, None)
    assert channels.admit(tag(1, channel=2), 2.0) == (Admission.NEW, None)


def test_abandoned_request_may_be_done_again() -> None:
    channels = Channels()
    channels.admit(tag(4), 0.0)
    channels.abandon(tag(4))
    assert channels.admit(tag(4), 0.0) == (Admission.NEW, None)


def test_abandon_leaves_a_result_and_later_requests_alone() -> None:
    channels = Channels()
    channels.admit(tag(4), 0.0)
    channels.finish(tag(4), RESULT, 0.0)
    channels.abandon(tag(4))
    assert channels.admit(tag(4), 0.0) == (Admission.REPLAY, RESULT)
    channels.admit(tag(5), 0.0)
    channels.abandon(tag(4))
    assert channels.admit(tag(5), 0.0) == (Admission.IN_PROGRESS, None)


def test_confirm_sees_what_happened_meanwhile() -> None:
    channels = Channels()
    channels.admit(tag(4), 0.0)
    assert channels.confirm(tag(4)) == (Admission.NEW, None)
    channels.finish(tag(4), RESULT, 0.0)
    assert channels.confirm(tag(4)) == (Admission.REPLAY, RESULT)
    channels.admit(tag(5), 0.0)
    assert channels.confirm(tag(4)) == (Admission.STALE, None)
    assert channels.confirm(tag(1, channel=9)) == (Admission.NEW, None)


def test_late_finish_does_not_hide_a_later_request() -> None:
    channels = Channels()
    channels.admit(tag(4), 0.0)
    channels.admit(tag(5), 0.0)
    channels.finish(tag(4), RESULT, 0.0)
    assert channels.admit(tag(5), 0.0) == (Admission.IN_PROGRESS, None)


def test_restored() -> None:
    channels = Channels()
    channels.restore(tag(4), RESULT, 0.0)
    assert channels.admit(tag(4), 0.0) == (Admission.REPLAY, RESULT)


def test_bounded_by_last_use() -> None:
    channels = Channels(limit=2)
    for channel in (1, 2, 3):
        channels.admit(tag(1, channel), float(channel))
        channels.finish(tag(1, channel), RESULT, float(channel))
    channels.admit(tag(1, 1), 4.0)
    assert channels.drop_excess() == [(7, 2)]
    assert channels.drop_excess() == []
    assert len(channels) == 2
    assert channels.admit(tag(1, 2), 5.0)[0] is Admission.NEW


def test_what_runs_is_not_dropped() -> None:
    channels = Channels(limit=1)
    channels.admit(tag(1, 1), 0.0)
    channels.admit(tag(1, 2), 0.0)
    assert channels.drop_excess() == []
    assert channels.drop_idle(10.0) == []
    channels.finish(tag(1, 2), RESULT, 1.0)
    assert channels.drop_excess() == [(7, 2)]


def test_drop_idle() -> None:
    channels = Channels()
    for channel, used in ((1, 1.0), (2, 2.0), (3, 3.0)):
        channels.restore(tag(1, channel), RESULT, used)
    assert channels.drop_idle(3.0) == [(7, 1), (7, 2)]
    assert len(channels) == 1


def test_what_others_have_done_counts() -> None:
    ours, theirs = Channels(), Channels()
    for channel, sequence in ((1, 5), (2, 5), (3, 5), (4, 5)):
        theirs.finish(RequestTag(9, channel, sequence), UpdateResult(0, sequence, 0, 0), 0.0)
    theirs.admit(RequestTag(9, 4, 6), 0.0)
    ours.finish(RequestTag(9, 1, 6), UpdateResult(0, 1, 0, 0), 0.0)
    ours.admit(RequestTag(9, 2, 4), 0.0)
    news = [tag for tag, result in theirs.done() if ours.learn(tag, result, 1.0)]
    assert news == [RequestTag(9, 2, 5), RequestTag(9, 3, 5)]
    assert ours.admit(RequestTag(9, 1, 5), 2.0)[0] is Admission.STALE
    assert ours.admit(RequestTag(9, 2, 5), 2.0) == (Admission.REPLAY, UpdateResult(0, 5, 0, 0))
    assert not ours.learn(RequestTag(9, 3, 5), UpdateResult(0, 1, 0, 0), 3.0)
