"""The key-value port: ordered keys, serializable transactions, with FoundationDB's semantics and limits.

Reads see one snapshot, taken at the first read, overlaid with the transaction's own writes. A commit fails with
FS3Error(CONFLICT) when a key or range read (other than by snapshot reads) was written by a transaction that committed
after that snapshot. COMMIT_UNKNOWN means that the commit may or may not have happened. Both are retryable: see transact.
What the transaction's own writes alone decide (a key that it set, a range that it cleared) is not read from the store
and does not conflict. A transaction that writes nothing always commits. Keys are below b"\xff", and a range ends there
at the latest; an empty or inverted range holds nothing. To break these rules or to use a transaction after its commit
is a bug of the caller: an assertion.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

KEY_SIZE_MAX = 10_000
VALUE_SIZE_MAX = 100_000
TRANSACTION_SIZE_MAX = 10_000_000
"""Bytes of keys and values written, and of conflict ranges."""
TRANSACTION_AGE_MAX_MS = 5_000
"""From the first read to the commit; then TRANSACTION_TOO_OLD."""


class Txn(ABC):
    """One transaction. Not to be shared between tasks that run at once."""

    __slots__ = ()

    @abstractmethod
    async def get(self, key: bytes, *, snapshot: bool = False) -> bytes | None:
        """The value of a key, None where it is absent. A snapshot read causes no conflict."""

    @abstractmethod
    async def get_range(
        self, begin: bytes, end: bytes, *, limit: int = 0, reverse: bool = False, snapshot: bool = False
    ) -> list[tuple[bytes, bytes]]:
        """The pairs with begin <= key < end in key order (from the end if reverse), at most `limit` unless 0.

        Conflicts with writes in the part of the range that was really read.
        """

    @abstractmethod
    def set(self, key: bytes, value: bytes) -> None:
        """Write. Raises KEY_TOO_LARGE (as do clear and atomic_add), VALUE_TOO_LARGE."""

    @abstractmethod
    def clear(self, key: bytes) -> None: ...

    @abstractmethod
    def clear_range(self, begin: bytes, end: bytes) -> None: ...

    @abstractmethod
    def atomic_add(self, key: bytes, delta: int) -> None:
        """Add to a little-endian signed 64-bit counter (absent = 0), modulo 2**64; causes no read conflict."""

    @abstractmethod
    def add_read_conflict_range(self, begin: bytes, end: bytes) -> None:
        """Conflict as if the range had been read. This takes no snapshot, only a read does."""

    def add_read_conflict_key(self, key: bytes) -> None:
        self.add_read_conflict_range(key, key + b"\x00")

    @abstractmethod
    def add_write_conflict_range(self, begin: bytes, end: bytes) -> None:
        """Make others conflict as if the range had been written."""

    @abstractmethod
    async def commit(self) -> None:
        """Commit. The transaction cannot be used afterwards, but by reset().

        Raises CONFLICT, COMMIT_UNKNOWN, TRANSACTION_TOO_OLD, TRANSACTION_TOO_LARGE, KV_UNAVAILABLE.
        """

    @abstractmethod
    def reset(self) -> None:
        """Forget all reads and writes and begin anew."""


class KVEngine(ABC):
    """A store."""

    __slots__ = ()

    @abstractmethod
    def transaction(self) -> Txn:
        """A new transaction."""

    @abstractmethod
    async def sync(self) -> None:
        """Return once everything committed before the call survives power loss."""

    @abstractmethod
    async def aclose(self) -> None:
        """Release the store. May run twice."""
