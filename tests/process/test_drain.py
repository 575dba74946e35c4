"""A node is drained under load while mgmtd and storage daemons are killed: nothing is lost, and its space comes back."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from fs3.api.admin import (
    GET_MOVES,
    SUBMIT,
    GetMovesReply,
    GetMovesRequest,
    MoveState,
    OperationState,
    SubmitRequest,
)
from fs3.cli.access import visiting
from fs3.client.mgmtd import MgmtdClient
from fs3.errors import FS3Error
from fs3.placement.moves import drain
from tests.process.harness import Cluster, cluster, wait_until, watchdog
from tests.process.replicas import differences, routing_of

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("fuse")]

STORAGES = 4
TARGETS = 3
DRAINED = 101
MIB = 1 << 20


class Load:
    """Writes files through the mount, and remembers what they must hold."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sums: dict[str, str] = {}
        self.error: BaseException | None = None
        self._stop = threading.Event()

    def write(self, name: str) -> None:
        data = os.urandom(MIB + 4321)
        path = self.folder / name
        with path.open("wb") as file:
            file.write(data)
            os.fsync(file.fileno())
        self.sums[name] = hashlib.sha256(data).hexdigest()

    def run(self) -> None:
        number = 0
        try:
            while not self._stop.is_set():
                self.write(f"load-{number % 40}")
                number += 1
                time.sleep(0.01)
        except BaseException as error:
            self.error = error

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self.run, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join(60)
        assert not thread.is_alive() and self.error is None, f"the load failed: {self.error}"

    def check(self) -> None:
        for name, expected in self.sums.items():
            assert hashlib.sha256((self.folder / name).read_bytes()).hexdigest() == expected, name


async def submit(mgmtd: tuple[str, ...]) -> int:
    async with visiting() as (env, rpc):
        client = MgmtdClient(env, rpc, mgmtd)
        plan = drain(await client.refresh(client.routing.version), [DRAINED])
        request = SubmitRequest(env.client_id(), plan.kind, plan.title, plan.moves, 2, plan.drain)
        return (await client.call(SUBMIT, request)).operation.id


async def ask(mgmtd: tuple[str, ...], operation: int) -> GetMovesReply | None:
    async with visiting() as (env, rpc):
        try:
            return await MgmtdClient(env, rpc, mgmtd).call(GET_MOVES, GetMovesRequest(operation))
        except FS3Error:
            return None


def more_targets(made: Cluster, count: int) -> None:
    """Restart the storage daemons with so many targets on each disk."""
    names = [f"storage-{number}" for number in range(1, STORAGES + 1)]
    for name in names:
        config = made.data / "config" / f"{name}.toml"
        config.write_text(config.read_text().replace(f"targets_per_disk = {TARGETS}", f"targets_per_disk = {count}"))
    killed = {name: made.kill(name) for name in names}
    for name, pid in killed.items():
        made.wait_restarted(name, pid)
    made.wait_serving()


def bytes_under(folder: Path) -> int:
    return sum([path.stat().st_blocks * 512 for path in folder.rglob("data-*")])


def test_a_node_is_drained_through_crashes() -> None:
    settings = {f"storage-{number}": f"targets_per_disk = {TARGETS}" for number in range(1, STORAGES + 1)}
    with cluster(storages=STORAGES, replicas=3, settings=settings) as made, watchdog(made, 150):
        start = time.monotonic()
        made.expected_errors += ["cannot reach the store"]
        more_targets(made, 5)
        print(f"{time.monotonic() - start:.1f} s for more targets")
        load = Load(made.mount)
        for number in range(20):
            load.write(f"kept-{number}")
        before = routing_of(made.mgmtd())
        old = [target.id for target in before.targets.values() if target.node == DRAINED and target.chain]
        assert old
        (disk,) = {path.parent for path in made.data.rglob("FORMAT") if f'"node": {DRAINED},' in path.read_text()}
        assert bytes_under(disk) > 20 * MIB // 2
        with load.running():
            operation = trio.run(submit, made.mgmtd())
            time.sleep(0.5)
            made.wait_restarted("mgmtd", made.kill("mgmtd"))
            time.sleep(0.5)
            made.wait_restarted("storage-2", made.kill("storage-2"))
            made.kill("storage-1")

            def is_over() -> bool:
                reply = trio.run(ask, made.mgmtd(), operation)
                return reply is not None and reply.operation.state is not OperationState.RUNNING

            wait_until(is_over, "the operation to end", 90)
            print(f"over after {time.monotonic() - start:.1f} s")
        reply = trio.run(ask, made.mgmtd(), operation)
        assert reply is not None and {move.state for move in reply.moves} == {MoveState.DONE}, reply
        made.wait_serving()

        def is_empty() -> bool:
            targets = routing_of(made.mgmtd()).targets
            return all(not targets[number].retired and not targets[number].used for number in old)

        wait_until(is_empty, "the old targets to be emptied", 30)
        after = routing_of(made.mgmtd())
        assert after.nodes[DRAINED].drained and after.nodes[DRAINED].alive
        assert not any(target.chain for target in after.targets.values() if target.node == DRAINED)
        assert bytes_under(disk) == 0
        assert differences(made.mgmtd()) == []
        load.check()
