import pytest

from fs3.client.retry import Action, Backoff, action_for
from fs3.errors import Code, FS3Error


@pytest.mark.parametrize(
    ("code", "action"),
    [
        (Code.CONNECTION_LOST, Action.ELSEWHERE),
        (Code.CHECKSUM, Action.ELSEWHERE),
        (Code.CHAIN_VERSION, Action.REFRESH),
        (Code.NOT_HEAD, Action.REFRESH),
        (Code.CONFLICT, Action.WAIT),
        (Code.OVERLOADED, Action.WAIT),
        (Code.NO_SPACE, Action.GIVE_UP),
        (Code.EXISTS, Action.GIVE_UP),
        (Code.PROTOCOL, Action.GIVE_UP),
    ],
)
def test_what_is_done_about_an_error(code: Code, action: Action) -> None:
    assert action_for(FS3Error(code)) is action


def test_waits_double_up_to_the_limit() -> None:
    backoff = Backoff(first_s=0.01, max_s=0.05)
    assert [round(backoff.delay_s(n, lambda: 1.0), 3) for n in (1, 2, 3, 4, 1000)] == [0.01, 0.02, 0.04, 0.05, 0.05]


def test_jitter_spreads_over_the_upper_half() -> None:
    backoff = Backoff(first_s=0.01, max_s=1.0)
    assert backoff.delay_s(1, lambda: 0.0) == 0.005
    assert backoff.delay_s(1, lambda: 0.5) == 0.0075
