from fs3.client.channels import ChannelPool
from fs3.ids import RequestTag


def test_requests_at_once_use_different_channels() -> None:
    pool = ChannelPool(7)
    first, second = pool.take(), pool.take()
    assert first.next_tag() == RequestTag(7, 1, 1)
    assert second.next_tag() == RequestTag(7, 2, 1)


def test_a_settled_channel_counts_on() -> None:
    pool = ChannelPool(7)
    channel = pool.take()
    channel.next_tag()
    pool.give_back(channel, settled=True)
    assert pool.take().next_tag() == RequestTag(7, 1, 2)


def test_a_channel_with_an_unanswered_request_is_never_used_again() -> None:
    pool = ChannelPool(7)
    channel = pool.take()
    channel.next_tag()
    pool.give_back(channel, settled=False)
    assert pool.take().next_tag() == RequestTag(7, 2, 1)
