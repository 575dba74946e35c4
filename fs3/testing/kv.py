"""What every key-value engine must do: memory, embedded and FoundationDB all pass the same checks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from . import kv_conflicts, kv_reads, kv_transact
from .kv_kit import Check, Store

CHECKS: list[Check] = [*kv_reads.CHECKS, *kv_conflicts.CHECKS, *kv_transact.CHECKS]


async def check_kv(make: Callable[[], Awaitable[Store]]) -> None:
    """Run all checks, each on a store of its own, which `make` makes empty and which is closed afterwards.

    Raises AssertionError, or what an engine should not have raised.
    """
    for check in CHECKS:
        store = await make()
        try:
            await check(store)
        finally:
            await store.engine.aclose()
