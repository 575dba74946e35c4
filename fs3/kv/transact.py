"""Run a function as one transaction, again where that is safe and may help, but not for ever."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from ..env import Env, never
from ..errors import Code, FS3Error
from .base import KVEngine, Txn

T = TypeVar("T")

ATTEMPTS_MAX = 100
TIMEOUT_MS = 10_000
_BACKOFF_MS_MIN = 1.0
_BACKOFF_MS_MAX = 500.0

_NOT_COMMITTED = frozenset({Code.CONFLICT, Code.TRANSACTION_TOO_OLD, Code.KV_UNAVAILABLE})


async def transact(
    engine: KVEngine | Txn,
    body: Callable[[Txn], Awaitable[T]],
    *,
    env: Env,
    idempotent: bool = False,
    attempts_max: int = ATTEMPTS_MAX,
    deadline: float | None = None,
) -> T:
    """Run `body` in a transaction, commit, and return what it returned.

    `body` may run several times, so it must do nothing that its transaction does not undo. Given a transaction instead
    of an engine, `body` becomes part of that one, which its owner commits.

    A commit whose result is unknown is tried again only if `idempotent`: the body then says so by itself that running it
    after it succeeded changes nothing and returns the same (it records what it did, or only sets what it read nowhere).

    `deadline`: env.monotonic() seconds, TIMEOUT_MS from now by default; no attempt begins after it. Raises the last
    attempt's error when attempts or time run out, and at once what `body` raises and what no retry can help.
    """
    if isinstance(engine, Txn):
        return await body(engine)
    if deadline is None:
        deadline = env.monotonic() + TIMEOUT_MS / 1000
    backoff_ms = _BACKOFF_MS_MIN
    attempt = 1
    while True:
        txn = engine.transaction()
        try:
            result = await body(txn)
            if env.rare is never:
                await txn.commit()
                return result
            _fail(env, "kv.too-old", Code.TRANSACTION_TOO_OLD)
            _fail(env, "kv.conflict", Code.CONFLICT)
            await txn.commit()
            _fail(env, "kv.commit-unknown", Code.COMMIT_UNKNOWN)
            return result
        except FS3Error as error:
            if not _may_retry(error, idempotent) or attempt >= attempts_max:
                raise
            pause_s = env.random.uniform(0, backoff_ms) / 1000
            if env.monotonic() + pause_s >= deadline:
                raise
        await trio.sleep(pause_s)
        backoff_ms = min(2 * backoff_ms, _BACKOFF_MS_MAX)
        attempt += 1


def _fail(env: Env, point: str, code: Code) -> None:
    if env.rare(point):
        raise FS3Error(code, point)


def _may_retry(error: FS3Error, idempotent: bool) -> bool:
    if error.code is Code.COMMIT_UNKNOWN:
        return idempotent
    return error.code in _NOT_COMMITTED and error.retryable
