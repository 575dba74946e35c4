"""One direction of what two hosts exchange and what is no stream of frames: what was put in comes out in order, or not."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from tests.sim.net import Network

Deliver = Callable[[], None]


class Cable:
    """As one direction of a connection: kept in order, held up while the link is blocked, broken when its sender's patience
    ends before that. gave_up: called then; what is on its way is lost."""

    def __init__(self, network: Network, source: str, destination: str, gave_up: Callable[[str], None]) -> None:
        self.network = network
        self.source = source
        self.destination = destination
        self.number = network.plug_in(self)
        self._gave_up = gave_up
        self._flying: deque[Deliver] = deque()
        self._due = 0
        self._stalls = 0
        self._last_at = 0.0

    def put(self, deliver: Deliver, size: int) -> None:
        """Let something happen at the other end, in its time. size: in bytes."""
        network = self.network
        when = max(self._last_at, network.clock.now + network.delay_s(self.source, self.destination, size))
        self._last_at = when
        self._flying.append(deliver)
        network.at(when, self._arrive)

    def lose(self, kept: int = 0) -> None:
        """Nothing of what is on its way arrives, but for the first few."""
        while len(self._flying) > kept:
            self._flying.pop()
        self._due = min(self._due, len(self._flying))

    def lose_some(self) -> None:
        self.lose(self.network.chance.randint(0, len(self._flying)))

    def unplug(self) -> None:
        """It is of no use any more, and what is on its way arrives all the same, if the link works."""
        self.network.forget_number(self.number)

    # What the network asks

    def resume(self) -> None:
        """The link works again: what is due comes after a moment."""
        if not self._due:
            return
        network = self.network
        self._last_at = max(self._last_at, network.clock.now + network.delay_s(self.source, self.destination, 0))
        due, self._due = self._due, 0
        self._stalls += 1
        for _ in range(due):
            network.at(self._last_at, self._arrive)

    def break_now(self, why: str) -> None:
        self.lose()
        self._gave_up(why)

    def _arrive(self) -> None:
        if not self._flying:
            return  # it was lost meanwhile
        if self._due or self.network.blocked(self.source, self.destination):
            self._due += 1
            if self._due == 1:
                self._lose_patience_later()
            return
        self._flying.popleft()()

    def _lose_patience_later(self) -> None:
        network = self.network
        self._stalls += 1
        stall = self._stalls

        def give_up() -> None:
            if self._due and self._stalls == stall:
                self.lose()
                self._gave_up(f"{self.destination} does not answer")

        network.at(network.clock.now + network.patience_s(), give_up)
