"""Holds an embedded store and runs the transactions of other processes on it, until stopped.

    python -m tests.process.programs.store_server FOLDER SOCKET

Says "ready" on standard output once it listens. kill -9 loses nothing that was committed.
"""

from __future__ import annotations

import random
import signal
import sys
from pathlib import Path

import trio

from fs3.env import Env
from fs3.kv.registry import open_engine
from fs3.transport.registry import Transports
from tests.process.shared_store import StoreServer


async def main(folder: Path, socket: Path) -> None:
    env = Env(Transports(), random.Random())
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with open_engine(f"embedded:{folder}", env) as engine, trio.open_nursery() as nursery:
            await nursery.start(StoreServer(engine).serve, socket)
            print("ready", flush=True)
            await anext(aiter(signals))
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    Path(sys.argv[2]).unlink(missing_ok=True)
    trio.run(main, Path(sys.argv[1]), Path(sys.argv[2]))
