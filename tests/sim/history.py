"""What clients did, and when, for the checkers."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import trio

from tests.sim.linear import Operation


@dataclass(slots=True)
class History:
    """Operations in the order of their calls. An operation that has not returned has an unknown outcome."""

    operations: list[Operation] = field(default_factory=list)
    returned: int = 0
    void: set[int] = field(default_factory=set)
    """The operations that certainly did not happen."""

    def call(self, client: int, key: Hashable, request: Any) -> int:
        """Note a call; returns its number."""
        self.operations.append(Operation(client, key, trio.current_time(), math.inf, request))
        return len(self.operations) - 1

    def done(self, number: int, output: Any = None) -> None:
        """It returned."""
        before = self.operations[number]
        self.operations[number] = Operation(
            before.client, before.key, before.called, trio.current_time(), before.input, output
        )
        self.returned += 1

    def refused(self, number: int) -> None:
        """It certainly did not happen, and never will."""
        self.void.add(number)

    def relevant(self) -> list[Operation]:
        """What says something of the objects."""
        return [op for n, op in enumerate(self.operations) if n not in self.void and (op.known or op.input[0] != "read")]
