"""Which mgmtd is primary: a lease on a record in the KV store, without trusting anybody's clock but one's own. Pure.

The primary renews the record now and then, and counts itself as primary for half the lease time after it began its last
renewal. Another one takes over when it has seen the record unchanged for the whole lease time, by its own monotonic clock.
Each take-over raises the epoch, and all that a primary writes is written in transactions that check the epoch.
"""

from __future__ import annotations

from dataclasses import dataclass


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
        self._seen_at = 0.0
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

    def primary_address(self) -> str:
        """Where the primary is, when it is another one that we know of; else empty."""
        owner = self._seen.owner if self._seen is not None else None
        return owner.address if owner is not None and not owner.released and not self._is_me(owner) else ""

    def decide(self, record: Record, now: float) -> Record | None:
        """What to write in the transaction that has read `record` (now: after the read); None: somebody else has it."""
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
        self._held_until = asked_at + self._lease_ms / 2000

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
