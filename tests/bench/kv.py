"""What the embedded store costs: `python -m tests.bench.kv [--directory DIR] [--count N]`. Microseconds per operation."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from fs3.kv.embedded import EmbeddedEngine

ROUNDS = 5
VALUE = bytes(120)

Operation = Callable[[int], Awaitable[object]]


class Bench:
    """The operations measured, on one engine."""

    def __init__(self, engine: EmbeddedEngine) -> None:
        self.engine = engine
        self.long = engine.transaction()

    async def get(self, n: int) -> object:
        return await self.long.get(b"INOD%08d" % n)

    async def get_absent(self, n: int) -> object:
        return await self.long.get(b"XXXX%08d" % n)

    async def transaction_and_get(self, n: int) -> object:
        return await self.engine.transaction().get(b"INOD%08d" % n)

    async def range_of_100(self, n: int) -> object:
        return await self.engine.transaction().get_range(b"INOD%08d" % n, b"INOE", limit=100)

    async def commit_1_key(self, n: int) -> object:
        txn = self.engine.transaction()
        txn.set(b"INOD%08d" % n, VALUE)
        return await txn.commit()

    async def like_create(self, n: int) -> object:
        """Read a directory's inode and an absent entry; write inode, entry, directory and idempotency record."""
        txn = self.engine.transaction()
        await txn.get(b"INOD%08d" % 1)
        await txn.get(b"DENT%08d" % n)
        txn.set(b"INOD%08d" % n, VALUE)
        txn.set(b"DENT%08d" % n, VALUE[:20])
        txn.set(b"INOD%08d" % 1, VALUE)
        txn.set(b"IDEM%08d" % n, VALUE[:60])
        return await txn.commit()

    async def like_create_beside_a_reader(self, n: int) -> object:
        """The same while another transaction has the present state open."""
        reader = self.engine.transaction()
        await reader.get(b"INOD%08d" % 1)
        await self.like_create(n)
        return await reader.get(b"INOD%08d" % 1)

    async def commit_and_sync(self, n: int) -> object:
        await self.commit_1_key(n)
        return await self.engine.sync()


async def measure(operation: Operation, count: int) -> float:
    """Median over some rounds of the mean microseconds."""
    rounds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for number in range(count):
            await operation(number)
        rounds.append((time.perf_counter() - start) / count * 1e6)
        await trio.lowlevel.checkpoint()
    return statistics.median(rounds)


async def main(directory: Path, count: int) -> None:
    engine = EmbeddedEngine.open(directory / "kv")
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        bench = Bench(engine)
        writes: list[Operation] = [bench.commit_1_key, bench.like_create, bench.like_create_beside_a_reader]
        for operation in writes:
            print(f"{operation.__name__:30}{await measure(operation, count):8.1f} us")
        print(f"{bench.commit_and_sync.__name__:30}{await measure(bench.commit_and_sync, count // 100):8.1f} us")
        for operation in (bench.get, bench.get_absent, bench.transaction_and_get):
            bench.long = engine.transaction()
            print(f"{operation.__name__:30}{await measure(operation, count):8.1f} us")
        print(f"{bench.range_of_100.__name__:30}{await measure(bench.range_of_100, count // 10):8.1f} us")
        nursery.cancel_scope.cancel()
    await engine.aclose()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, help="where to put the store (default: a temporary folder)")
    parser.add_argument("--count", type=int, default=10_000, help="operations per round (default 10000)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as made:
        trio.run(main, Path(made), arguments.count)
