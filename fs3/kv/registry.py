"""Stores by URL, so that a daemon's configuration names one.

memory:                                              forgets everything; for tests
embedded:/var/lib/fs3/meta                           RocksDB in a directory; one process
fdb:/etc/foundationdb/fdb.cluster?prefix=fs3/        FoundationDB; also api_version=730..800, timeout_ms=10000;
                                                     `fdb:` alone uses the system's cluster file
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import trio

from ..env import Env
from ..errors import ConfigError, FS3Error
from .base import KVEngine
from .embedded import EmbeddedEngine
from .foundationdb import API_VERSION, TIMEOUT_MS, FoundationDBEngine
from .memory import MemoryEngine


@asynccontextmanager
async def open_engine(url: str, env: Env) -> AsyncIterator[KVEngine]:
    """The store that a URL names, open within the block; an embedded one is kept durable meanwhile.

    Raises CONFIG (bad URL, FoundationDB not installed), FORMAT_VERSION, BUSY, IO. When the store fails for good, the
    block is cancelled and KV_UNAVAILABLE comes out.
    """
    parts = urlsplit(url)
    match parts.scheme:
        case "memory":
            yield MemoryEngine(env.monotonic)
        case "embedded":
            path = unquote(parts.netloc + parts.path)
            if not path or parts.query:
                raise ConfigError(f"store URL {url!r}: expected embedded:DIRECTORY")
            async with _run_embedded(EmbeddedEngine.open(Path(path), env.monotonic)) as engine:
                yield engine
        case "fdb":
            async with aclosing(_open_foundationdb(url, parts)) as engine:
                yield engine
        case _:
            raise ConfigError(f"store URL {url!r}: expected memory:, embedded:DIRECTORY or fdb:CLUSTER_FILE")


@asynccontextmanager
async def _run_embedded(engine: EmbeddedEngine) -> AsyncIterator[EmbeddedEngine]:
    failure: FS3Error | None = None

    async def flush(scope: trio.CancelScope) -> None:
        nonlocal failure
        try:
            await engine.run()
        except FS3Error as error:
            failure = error
            scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flush, nursery.cancel_scope)
            yield engine
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        if len(group.exceptions) > 1:
            raise
        raise group.exceptions[0] from group.exceptions[0].__cause__  # the block's own, as if there were no nursery here
    finally:
        await engine.aclose()
    if failure is not None:
        raise failure


def _open_foundationdb(url: str, parts: SplitResult) -> FoundationDBEngine:
    if not url.isascii():
        raise ConfigError(f"store URL {url!r}: write other than ASCII characters as %xx")
    options = dict(parse_qsl(parts.query, keep_blank_values=True, encoding="latin-1"))
    unknown = options.keys() - {"prefix", "api_version", "timeout_ms"}
    if unknown:
        raise ConfigError(f"store URL {url!r}: unknown option {sorted(unknown)[0]}")
    try:
        api_version = int(options.get("api_version", API_VERSION))
        timeout_ms = int(options.get("timeout_ms", TIMEOUT_MS))
    except ValueError:
        raise ConfigError(f"store URL {url!r}: api_version and timeout_ms must be whole numbers") from None
    return FoundationDBEngine.open(
        unquote(parts.netloc + parts.path) or None,
        prefix=options.get("prefix", "").encode("latin-1"),
        api_version=api_version,
        timeout_ms=timeout_ms,
    )
