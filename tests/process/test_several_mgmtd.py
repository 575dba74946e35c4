"""Three mgmtd over one store, as processes, under load: the primary is killed, frozen, stopped; all that shows is a delay.

No daemon may end by itself meanwhile: it would where it found no primary within half of its lease. How long there was none,
as a client sees it, is printed.
"""

from __future__ import annotations

import itertools
import json
import re
import statistics
import time
from collections.abc import Callable, Iterator

import pytest
import trio

from fs3.api.common import Empty
from fs3.api.mgmtd import CLUSTER_CONFIG, LIST_CLIENTS
from fs3.cli.access import visiting
from fs3.client.connect import connect
from fs3.client.mgmtd import MgmtdClient
from fs3.client.paths import Paths
from fs3.env import Env
from fs3.errors import FS3Error
from fs3.transport.registry import Transports
from tests.process.harness import SOAK, fs3
from tests.process.shared_cluster import SharedCluster, shared_cluster

pytestmark = pytest.mark.process

KILLS = 40 if SOAK else 2
LEASE_MS = 10_000 if SOAK else 6_000
PAUSE_S = 0.8
LIMIT_S = 1200.0 if SOAK else 120.0


@pytest.fixture(scope="module")
def made() -> Iterator[SharedCluster]:
    with shared_cluster(lease_ms=LEASE_MS) as cluster:
        yield cluster


class Load:
    """Clients that write and read files all the time, and one that asks the primary something every now and then."""

    def __init__(self, made: SharedCluster) -> None:
        self.made = made
        self.operations = 0
        self.slowest_s = 0.0
        self.gap_s = 0.0  # the longest without an answer of the primary, since somebody set it to 0
        self.stop = False

    async def work(self, number: int, addresses: tuple[str, ...]) -> None:
        """Any error of any operation ends the test."""
        async with connect(Env(Transports()), addresses, f"test-{number}") as client:
            paths = Paths(client)
            await paths.makedirs(f"/load-{number}")
            for turn in itertools.count():
                if self.stop:
                    return
                path, data = f"/load-{number}/{turn % 5}", f"{number}/{turn} ".encode() * 20_000
                await self._timed(lambda path=path, data=data: paths.write_file(path, data))
                assert await self._timed(lambda path=path: paths.read_file(path)) == data
                if turn % 5 == 4:
                    await self._timed(lambda path=path: paths.unlink(path))
                await trio.sleep(0.02)

    async def _timed(self, call: Callable[[], object]) -> object:
        start = time.monotonic()
        result = await call()  # type: ignore[misc]
        self.slowest_s = max(self.slowest_s, time.monotonic() - start)
        self.operations += 1
        return result

    async def ask(self) -> None:
        async with visiting() as (env, rpc):
            client = MgmtdClient(env, rpc, self.made.mgmtd)
            answered = time.monotonic()
            while not self.stop:
                await client.call(LIST_CLIENTS, Empty(), timeout_ms=LEASE_MS)
                self.gap_s = max(self.gap_s, time.monotonic() - answered)
                answered = time.monotonic()
                await trio.sleep(0.01)


def under_load(made: SharedCluster, act: Callable[[Load], None]) -> Load:
    """While clients work, which must meet no error: act, in a thread. Each client knows the addresses in another order."""
    load = Load(made)

    async def main() -> None:
        with trio.fail_after(LIMIT_S):
            async with trio.open_nursery() as nursery:
                for number, addresses in enumerate(itertools.islice(itertools.permutations(made.mgmtd), 0, None, 2)):
                    nursery.start_soon(load.work, number, addresses)
                nursery.start_soon(load.ask)
                await trio.sleep(PAUSE_S)
                await trio.to_thread.run_sync(act, load)
                await trio.sleep(PAUSE_S)
                load.stop = True

    trio.run(main)
    assert not made.ended(), made.logs()
    assert load.operations > 20
    print(f"{load.operations} operations, the slowest took {load.slowest_s:.2f} s")
    return load


def test_primaries_are_killed_one_after_the_other(made: SharedCluster) -> None:
    gaps = []

    def kill(load: Load) -> None:
        for _ in range(KILLS):
            load.gap_s = 0.0
            killed = made.wait_primary()
            made.kill(killed)
            assert made.wait_primary() != killed
            made.start(killed)
            time.sleep(PAUSE_S)
            gaps.append(load.gap_s)

    under_load(made, kill)
    print(f"lease {LEASE_MS} ms, {KILLS} kills: no primary for {statistics.median(gaps):.2f} s, {max(gaps):.2f} s at most")


def test_a_primary_that_was_frozen_for_longer_than_its_lease_is_none_any_more(made: SharedCluster) -> None:
    def freeze(load: Load) -> None:
        for _ in range(KILLS // 2):
            load.gap_s = 0.0
            frozen = made.wait_primary()
            made.freeze(frozen)
            after = made.wait_primary()
            time.sleep(PAUSE_S)
            made.thaw(frozen)
            assert made.wait_primary() == after != frozen  # which would find two
            time.sleep(PAUSE_S)
            assert made.primary() == after
            print(f"frozen: no primary for {load.gap_s:.2f} s")

    under_load(made, freeze)
    assert any("no longer primary" in made.log(name) for name in made.names("mgmtd"))


def test_one_that_is_stopped_hands_over(made: SharedCluster) -> None:
    def stop(load: Load) -> None:
        stopped = made.wait_primary()
        made.stop(stopped)
        assert made.wait_primary() != stopped
        made.start(stopped)
        print(f"stopped: no primary for {load.gap_s:.2f} s")

    under_load(made, stop)


def test_the_store_hangs_for_longer_than_the_primarys_lease(made: SharedCluster) -> None:
    def hang(load: Load) -> None:
        made.freeze("store")
        time.sleep(LEASE_MS / 8000)
        made.thaw("store")
        made.wait_primary()

    under_load(made, hang)


async def test_who_finds_no_mgmtd_says_which_were_asked(made: SharedCluster) -> None:
    async with visiting() as (env, rpc):
        with pytest.raises(FS3Error, match=re.escape("tcp://127.0.0.1:1, tcp://127.0.0.1:2")):
            client = MgmtdClient(env, rpc, ("tcp://127.0.0.1:1", "tcp://127.0.0.1:2"))
            await client.call(CLUSTER_CONFIG, Empty(), timeout_ms=500)


def test_the_primary_is_found_from_any_order_of_addresses(made: SharedCluster) -> None:
    """One of them is dead, and was primary the last that the others heard."""
    dead = made.wait_primary()
    made.kill(dead)

    async def find(addresses: tuple[str, ...]) -> None:
        async with visiting() as (env, rpc):
            reply = await MgmtdClient(env, rpc, addresses).call(CLUSTER_CONFIG, Empty(), timeout_ms=LEASE_MS)
            assert reply.version

    for addresses in itertools.permutations(made.mgmtd):
        trio.run(find, addresses)
    order = sorted(made.mgmtd, key=lambda address: address != made.addresses[dead])
    done = fs3("status", "--json", "--mgmtd", ",".join(order))
    assert done.returncode == 0, done.stdout + done.stderr
    nodes = json.loads(done.stdout)["nodes"]
    assert made.addresses[dead] not in [node["address"] for node in nodes]
    assert sum(node["kind"] == "mgmtd" for node in nodes) == 1
