"""What to do about an error, and how long to wait before the next attempt. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from ..errors import Code, FS3Error


class Action(Enum):
    """What a client does about a failed attempt while its deadline has not passed."""

    ELSEWHERE = "elsewhere"
    """Try another replica or daemon at once; wait only when all were tried."""
    REFRESH = "refresh"
    """The view of the cluster may be old: wait for newer routing, for no longer than the back-off, then try again."""
    WAIT = "wait"
    """The same one can do it a little later."""
    GIVE_UP = "give up"
    """Trying again changes nothing: the caller gets the error."""


_ACTIONS = {
    Code.CONNECTION_LOST: Action.ELSEWHERE,
    Code.CONNECT_FAILED: Action.ELSEWHERE,
    Code.SHUTTING_DOWN: Action.ELSEWHERE,
    Code.DEADLINE_EXCEEDED: Action.ELSEWHERE,  # of one attempt; that of the call is its caller's
    Code.CHECKSUM: Action.ELSEWHERE,
    Code.READ_FAILED: Action.ELSEWHERE,
    Code.CHUNK_PENDING: Action.ELSEWHERE,
    Code.DISK_FAILED: Action.REFRESH,
    Code.NOT_PRIMARY: Action.REFRESH,
    Code.NO_ROUTING: Action.REFRESH,
    Code.CHAIN_VERSION: Action.REFRESH,
    Code.NOT_HEAD: Action.REFRESH,
    Code.NOT_SERVING: Action.REFRESH,
    Code.UNKNOWN_TARGET: Action.REFRESH,
    Code.CHAIN_UNAVAILABLE: Action.REFRESH,
}


def action_for(error: FS3Error) -> Action:
    """What to do about `error`, as an attempt's outcome."""
    found = _ACTIONS.get(error.code)
    if found is not None:
        return found
    return Action.WAIT if error.retryable else Action.GIVE_UP


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waits that double from first_s to max_s, each spread over its upper half, so that clients do not come in step."""

    first_s: float = 0.005
    max_s: float = 0.25

    def delay_s(self, attempt: int, chance: Callable[[], float]) -> float:
        """How long to wait after `attempt` failures in a row (at least 1). chance: uniform in [0, 1)."""
        assert attempt >= 1
        full = min(self.max_s, self.first_s * 2.0 ** min(attempt - 1, 30))
        return full * (0.5 + 0.5 * chance())
