"""Bugs of mgmtd's to plant: primaries that are none any more, and commits that nobody fences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mgmtd.store
from fs3.errors import Code, FS3Error
from mgmtd.lease import PrimaryLease

Plant = tuple[Any, str, Any]


def _commit_without_fence() -> list[Plant]:
    """Whoever has been primary goes on to write."""

    async def check(txn: Any, epoch: int) -> None:
        return

    return [(mgmtd.store, "_check_epoch", check)]


def _lease_trusted_for_ever() -> list[Plant]:
    """A primary that cannot reach the store goes on to answer."""
    return [(PrimaryLease, "holds", lambda self, now: self._held_until > 0)]


def _impatient_standby() -> list[Plant]:
    """A standby takes over from a primary that may still believe to be it."""
    real = PrimaryLease._free

    def free(self: Any, owner: Any, now: float) -> bool:
        shorter = replace(owner, lease_ms=owner.lease_ms // 4) if owner is not None else None
        return real(self, shorter, now)

    return [(PrimaryLease, "_free", free)]


def _standby_that_never_takes_over() -> list[Plant]:
    """But where the primary said goodbye."""

    def free(self: Any, owner: Any, now: float) -> bool:
        return owner is None or owner.released or self._is_me(owner)

    return [(PrimaryLease, "_free", free)]


def _unknown_commit_taken_for_done() -> list[Plant]:
    real = mgmtd.store.Store.commit

    async def commit(self: Any, *arguments: Any) -> None:
        try:
            await real(self, *arguments)
        except FS3Error as error:
            if error.code is not Code.COMMIT_UNKNOWN:
                raise

    return [(mgmtd.store.Store, "commit", commit)]


OFFICE_CANARIES: dict[str, tuple[Callable[[], list[Plant]], str]] = {
    "commit-without-fence": (_commit_without_fence, "primary"),
    "lease-trusted-for-ever": (_lease_trusted_for_ever, "primary"),
    "impatient-standby": (_impatient_standby, "primary"),
    "unknown-commit-taken-for-done": (_unknown_commit_taken_for_done, "doubt"),
    "standby-that-never-takes-over": (_standby_that_never_takes_over, "primary"),
}
"""Name -> what to replace, and the shape whose seeds find it soonest."""
