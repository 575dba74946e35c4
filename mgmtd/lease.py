"""Which mgmtd is primary: a lease on a record in the KV store, without trusting anybody's clock but one's own. Pure.

The primary renews the record now and then, and counts itself as primary for two thirds of the lease time after it began its
last renewal. Another one takes over when it has seen the record unchanged for the whole lease time, by its own monotonic
clock. Clocks may so run at speeds that differ by half. Each take-over raises the epoch, and all that a primary writes is
written in transactions that check the epoch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

RENEWALS_PER_LEASE = 8
"""How often the primary renews the record, and others look at it, in the time of a lease."""


def lease_ms(node_lease_ms: int, exclusive: bool) -> int:
    """The lease of the primary, given that of the nodes, T. exclusive: nobody else can be primary.

    A node gives up after T/2 without an answer, and may have asked T/4 before the primary died: it is to find the next
    one within T/4. That takes a lease of T/8, an eighth of this for who looks at the record now and then, and the time to
    load the state; what is left is for finding it.
    """
    return node_lease_ms if exclusive else node_lease_ms // 8


def held_s(lease_ms: int) -> float:
    """How long after it began to renew its lease a primary may believe in it."""
    return lease_ms / 1500


@dataclass(frozen=True, slots=True)
class Owner:
    """The primary, as stored. incarnation: of its process. released: it has stopped and waits for nobody."""

    epoch: int
    node: int
    incarnation: int
    address: str
    lease_ms: int
    released: bool = False


@dataclass(frozen=True, slots=True)
class Record:
    """The lease as stored: who has it, and how often it was renewed."""

    owner: Owner | None
    renewals: int


class PrimaryLease:
    """One mgmtd's part in it. `now`: its monotonic clock in seconds."""

    def __init__(self, node: int, incarnation: int, address: str, lease_ms: int, exclusive: bool) -> None:
        """exclusive: nobody else can have the store open, hence nobody else can be primary."""
        self._node = node
        self._incarnation = incarnation
        self._address = address
        self._lease_ms = lease_ms
        self._exclusive = exclusive
        self._seen: Record | None = None
        self._seen_at = 0.0  # when it was first seen as it is
        self._looked_at = 0.0  # when it was seen last
        self._epoch = 0
        self._held_until = 0.0
        # Invariant: holds(t) for no t at which another one could have taken over from us.

    @property
    def epoch(self) -> int:
        """Of the last take-over by us; 0 before the first."""
        return self._epoch

    def holds(self, now: float) -> bool:
        """Whether we may act as primary."""
        return now < self._held_until

    def primary_address(self, now: float) -> str:
        """Where the primary is, when it is another one that we know of; else empty: also where we could not look for so long
        that there may be another."""
        owner = self._seen.owner if self._seen is not None else None
        if owner is None or owner.released or self._is_me(owner) or now - self._looked_at > owner.lease_ms / 1000:
            return ""
        return owner.address

    def free_at(self) -> float:
        """When the lease becomes free unless it is renewed before; inf where it is ours, or nobody's."""
        owner = self._seen.owner if self._seen is not None else None
        return self._seen_at + owner.lease_ms / 1000 if owner is not None and not self._is_me(owner) else math.inf

    def decide(self, record: Record, now: float) -> Record | None:
        """What to write in the transaction that has read `record` (now: after the read); None: somebody else has it."""
        self._looked_at = now
        if record != self._seen:
            self._seen, self._seen_at = record, now
        owner = record.owner
        if owner is not None and self._is_me(owner) and owner.epoch == self._epoch and self.holds(now):
            return Record(owner, record.renewals + 1)
        if not self._free(owner, now):
            return None
        epoch = owner.epoch + 1 if owner is not None else 1
        return Record(Owner(epoch, self._node, self._incarnation, self._address, self._lease_ms), record.renewals + 1)

    def granted(self, written: Record, asked_at: float) -> None:
        """The transaction has committed. asked_at: before it began."""
        assert written.owner is not None and self._is_me(written.owner)
        self._seen, self._seen_at = written, asked_at
        self._epoch = written.owner.epoch
        self._held_until = asked_at + held_s(self._lease_ms)

    def give_up(self) -> None:
        """Act as primary no more until granted anew, which begins another epoch."""
        self._held_until = 0.0

    def released(self) -> Record | None:
        """What to write, where the stored owner is still ours, to let another one take over at once."""
        owner = self._seen.owner if self._seen is not None else None
        if owner is None or not self._is_me(owner):
            return None
        assert self._seen is not None
        freed = Owner(owner.epoch, owner.node, owner.incarnation, owner.address, owner.lease_ms, released=True)
        return Record(freed, self._seen.renewals + 1)

    def _is_me(self, owner: Owner) -> bool:
        return (owner.node, owner.incarnation) == (self._node, self._incarnation)

    def _free(self, owner: Owner | None, now: float) -> bool:
        """Whether nobody else can believe to be primary."""
        if owner is None or owner.released or self._exclusive or self._is_me(owner):
            return True
        # Our own former process: it is gone, since we run. But should two processes be given one node id, then
        # the one that has been primary must not take it back at once, or both would do so for ever.
        if owner.node == self._node and self._epoch == 0:
            return True
        return now - self._seen_at >= owner.lease_ms / 1000
