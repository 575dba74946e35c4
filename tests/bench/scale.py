"""mgmtd at the size of a large cluster, by simulation. Run: make bench-scale, or python -m tests.bench.scale --help.

Real mgmtd daemons, RPC server and messages, in one process over a simulated network and store (3 ms for each request to it).
Nodes are light: they send real messages and keep only the version that they know; some real MgmtdClients are among them.
Virtual time passes with the CPU time that each mgmtd's tasks take, as if it had a core of this machine for itself, and with
what the kernel takes for each message (measured apart, with --real). So all times below include waiting for mgmtd's core.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gc
import json
import logging
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import trio

from fs3.api.mgmtd import FORMAT, GET_ROUTING, FormatRequest, GetRoutingReply, GetRoutingRequest, RoutingMessage
from fs3.client.mgmtd import MgmtdClient
from fs3.rpc.client import RpcClient
from fs3.wire.codec import encode
from tests.bench.scale_load import LightNode, Population
from tests.bench.scale_world import Mgmtd, World, simulate
from tests.sim.env import SimEnv

LEASE_S, CLIENT_LEASE_S = 10.0, 30.0


@dataclass(frozen=True, slots=True)
class Size:
    """How large a cluster. rack: nodes that die at once in one of the measurements. cpu: virtual time passes with CPU time;
    without, a run is always the same. only: names of measurements, all if empty."""

    storages: int = 1000
    targets: int = 20
    clients: int = 10_000
    mgmtds: int = 3
    watchers: int = 20
    rack: int = 40
    steady_s: float = 30.0
    cpu: bool = True
    only: str = ""


@dataclass(slots=True)
class Report:
    """What was measured; _ms: virtual time, which includes that of mgmtd's core; cpu_: of mgmtd's core."""

    size: Size
    register_ms: float = 0.0
    register_cpu_ms: float = 0.0
    register_commits: int = 0
    register_versions: int = 0
    register_bytes: int = 0
    format_ms: float = 0.0
    format_cpu_ms: float = 0.0
    full_bytes: int = 0
    beat_storage_us: float = 0.0
    beat_storage_writing_us: float = 0.0
    beat_client_us: float = 0.0
    poll_us: float = 0.0
    steady_core_percent: float = 0.0
    steady_messages_per_s: float = 0.0
    death_notice_ms: float = 0.0
    death_first_ms: float = 0.0
    death_last_storage_ms: float = 0.0
    death_last_ms: float = 0.0
    death_cpu_ms: float = 0.0
    death_delta_bytes: int = 0
    death_sent_bytes: int = 0
    rack_chains: int = 0
    rack_versions: int = 0
    rack_last_ms: float = 0.0
    rack_cpu_ms: float = 0.0
    rack_delta_bytes: int = 0
    failover_primary_ms: float = 0.0
    failover_cpu_ms: float = 0.0
    failover_last_heartbeat_ms: float = 0.0
    failover_last_routing_ms: float = 0.0
    failover_sent_bytes: int = 0
    failover_delta_bytes: int = 0
    failover_died: int = 0
    lost_heartbeats: int = 0


class Bench:
    """One cluster and its measurements, in this order."""

    def __init__(self, world: World, size: Size) -> None:
        self.world = world
        self.size = size
        self.report = Report(size)
        self.watchers: list[MgmtdClient] = []
        self._beats = trio.CancelScope()

    async def run(self) -> None:
        await self.world.start_mgmtds(self.size.mgmtds)
        self.population = Population(
            [m.address for m in self.world.mgmtds], self.world.network.host, lambda: self.world.clock.now
        )
        steps = (self.register, self.format, self.costs, self.steady, self.death, self.rack, self.failover)
        for step in steps:
            if self.size.only and step.__name__ not in ("register", "format", *self.size.only.split(",")):
                continue
            say(f"{self.world.clock.now:8.1f} s: {step.__name__}")
            await step()
        self.report.lost_heartbeats = self.population.lost_heartbeats

    @property
    def primary(self) -> Mgmtd:
        return self.world.mgmtds[self.population.storages[-1].where % len(self.world.mgmtds)]

    def now_ms(self) -> float:
        return self.world.clock.now * 1000

    # -- the measurements

    async def register(self) -> None:
        """All nodes come at once, as after a power failure of the site."""
        size, population, report = self.size, self.population, self.report
        population.add_storages(size.storages, size.targets)
        population.add_clients(size.clients)
        cpu_s, start, commits = self.cpu_s(), self.now_ms(), self.world.commits
        sent = self.bytes_out()
        for node in population.all():
            self.world.nursery.start_soon(node.run)
        await population.until(lambda node: node.registered and node.version > 0, 600)
        report.register_ms = self.now_ms() - start
        report.register_cpu_ms = (self.cpu_s() - cpu_s) * 1000
        report.register_commits = self.world.commits - commits
        await self.start_watchers()
        self.world.nursery.start_soon(self.beat)
        await self.told_all()
        report.register_versions = self.population.seen.routing.version
        report.register_bytes = self.bytes_out() - sent

    async def format(self) -> None:
        report = self.report
        cpu_s, start = self.cpu_s(), self.now_ms()
        await self.watchers[0].call(FORMAT, FormatRequest(3, 1 << 20, 0), timeout_ms=60_000)
        await self.told_all()
        report.format_ms, report.format_cpu_ms = self.now_ms() - start, (self.cpu_s() - cpu_s) * 1000
        report.full_bytes = len(self.whole())
        await trio.sleep(LEASE_S)  # all report that they are up to date

    async def costs(self) -> None:
        """Each kind of request alone."""
        self._beats.cancel()
        await trio.sleep(0.2)
        report, storages, clients = self.report, self.population.storages, self.population.clients
        report.poll_us = await self.cost_of(clients, LightNode.probe)
        report.beat_client_us = await self.cost_of(clients, LightNode.heartbeat)
        report.beat_storage_us = await self.cost_of(storages, LightNode.heartbeat)
        self.population.writing = True
        report.beat_storage_writing_us = await self.cost_of(storages, LightNode.heartbeat)
        self.population.writing = False
        self.world.nursery.start_soon(self.beat)

    async def steady(self) -> None:
        """Nothing happens; half of the time all fill levels change."""
        messages, cpu_s = self.world.network.messages, self.primary.cpu_s
        await trio.sleep(self.size.steady_s / 2)
        self.population.writing = True
        await trio.sleep(self.size.steady_s / 2)
        self.population.writing = False
        self.report.steady_core_percent = 100 * (self.primary.cpu_s - cpu_s) / self.size.steady_s
        self.report.steady_messages_per_s = (self.world.network.messages - messages) / self.size.steady_s

    async def death(self) -> None:
        """A node loses power."""
        report = self.report
        before = self.population.seen.routing
        victim = self.population.storages[0]
        await trio.sleep(0.5)
        cpu_s, sent = self.primary.cpu_s, self.primary.bytes_out
        start = self.now_ms()
        victim.die()
        await self.until_version(before.version)
        noticed = self.now_ms()
        await self.told_all()
        await trio.sleep(0.2)
        nodes = self.population.all()
        told = sorted(node.told_at for node in nodes)
        report.death_notice_ms = noticed - start
        report.death_first_ms = told[0] * 1000 - start
        report.death_last_storage_ms = max(n.told_at for n in nodes if n.targets) * 1000 - start
        report.death_last_ms = told[-1] * 1000 - start
        report.death_cpu_ms = (self.primary.cpu_s - cpu_s) * 1000
        report.death_sent_bytes = self.primary.bytes_out - sent
        report.death_delta_bytes = await self.delta_bytes(before.version)

    async def rack(self) -> None:
        """Many nodes lose power at once."""
        before = self.population.seen.routing
        cpu_s, start = self.primary.cpu_s, self.now_ms()
        for victim in self.population.storages[1 : 1 + self.size.rack]:
            victim.die()
        await trio.sleep(1.5 * LEASE_S)
        after = await self.told_all()
        report = self.report
        report.rack_versions = after - before.version
        report.rack_last_ms = max(node.told_at for node in self.population.all()) * 1000 - start
        report.rack_cpu_ms = (self.primary.cpu_s - cpu_s) * 1000
        report.rack_delta_bytes = await self.delta_bytes(before.version)
        now = self.population.seen.routing
        report.rack_chains = sum(now.chains[number] != chain for number, chain in before.chains.items())

    async def failover(self) -> None:
        """The primary's process is killed."""
        report, population = self.report, self.population
        before = population.seen.routing
        old = self.primary
        sent, cpu_s = self.bytes_out(), self.cpu_s()
        alive = len(population.all())
        population.seen.bytes_in.clear()
        start = self.now_ms()
        old.crash()
        await self.until_version(before.version)
        report.failover_primary_ms = self.now_ms() - start
        primary_at = self.world.clock.now
        await population.until(lambda node: node.answered_at > primary_at, 120)
        report.failover_last_heartbeat_ms = self.now_ms() - start
        await self.told_all()
        report.failover_last_routing_ms = max(n.told_at for n in population.all()) * 1000 - start
        report.failover_cpu_ms = (self.cpu_s() - cpu_s) * 1000
        report.failover_sent_bytes = self.bytes_out() - sent
        report.failover_delta_bytes = await self.delta_bytes(before.version)
        report.failover_died = alive - len(population.all())

    # -- helpers

    def cpu_s(self) -> float:
        return sum(self.world.cores.cpu_s.values())

    def bytes_out(self) -> int:
        return sum(self.world.network.bytes_out.values())

    async def start_watchers(self) -> None:
        for number in range(self.size.watchers):
            env = SimEnv(self.world.network.host(f"watcher{number}"), random.Random(number))
            watcher = MgmtdClient(env, RpcClient(env, self.world.nursery), [m.address for m in self.world.mgmtds])
            await self.world.nursery.start(watcher.run)
            self.watchers.append(watcher)

    async def beat(self) -> None:
        with trio.CancelScope() as self._beats:
            await self.population.beat(LEASE_S / 4, CLIENT_LEASE_S / 4)

    async def until_version(self, newer_than: int) -> None:
        with trio.fail_after(120):
            while self.population.seen.routing.version <= newer_than:  # noqa: ASYNC110
                await trio.sleep(0.01)

    async def told_all(self) -> int:
        """Wait until everybody knows the latest version, and check that watchers know the same as who asks for all."""
        while True:
            watcher = self.watchers[0]
            request = GetRoutingRequest(0)
            latest = (await watcher.call(GET_ROUTING, request, timeout_ms=60_000)).routing
            assert latest is not None
            await self.population.until(functools.partial(_knows, latest.version), 120)
            for other in self.watchers:
                with trio.fail_after(60):
                    while other.routing.version < latest.version:
                        await other.wait_change(other.routing.version)
            infos = [other.routing for other in self.watchers]
            if any(info.version != latest.version for info in infos):
                continue  # there is news already
            whole = latest.to_info()
            for info in infos:
                assert (info.chains, info.tables, info.nodes) == (whole.chains, whole.tables, whole.nodes)
                assert {t: _lasting(info.targets[t]) for t in info.targets} == {
                    t: _lasting(whole.targets[t]) for t in whole.targets
                }
            return latest.version

    def whole(self) -> bytes:
        return encode(GetRoutingReply(RoutingMessage.of(self.watchers[0].routing)))

    async def delta_bytes(self, base: int) -> int:
        """The size of the answer to one who knows `base`."""
        reply = await self.watchers[0].call(GET_ROUTING, GetRoutingRequest(base, 0, True), timeout_ms=60_000)
        return len(encode(reply))

    async def cost_of(self, nodes: list[LightNode], ask: Callable[[LightNode], None]) -> float:
        """CPU of the primary for one request of each of these, in us: of three rounds the cheapest."""
        costs = []
        for _ in range(3):
            for node in self.population.storages:  # whose leases must not end meanwhile
                node.heartbeat()
            await trio.sleep(1)
            cpu_s = self.primary.cpu_s
            for node in nodes:
                ask(node)
            await trio.sleep(1.5 + len(nodes) * 300e-6)
            costs.append((self.primary.cpu_s - cpu_s) / len(nodes) * 1e6)
        return min(costs)


def _knows(version: int, node: LightNode) -> bool:
    return node.version >= version


def _lasting(target: object) -> object:
    """What a routing version says of a target, and the next one does not change in silence."""
    return dataclasses.replace(target, local=1, capacity=0, used=0)  # type: ignore[type-var]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def measure(size: Size) -> Report:
    reports: list[Report] = []

    async def main(world: World) -> None:
        bench = Bench(world, size)
        await bench.run()
        reports.append(bench.report)

    with as_daemons_collect():
        simulate(main, size.cpu)
    return reports[0]


@contextmanager
def as_daemons_collect() -> Iterator[None]:
    """The garbage collector works as seldom as in a daemon, which freezes what it has at its start."""
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for entry in dataclasses.fields(Size):
        default = entry.default
        if entry.name == "cpu":
            continue
        assert isinstance(default, int | float | str)
        parser.add_argument(f"--{entry.name.replace('_', '-')}", type=type(default), default=default)
    parser.add_argument("--json", action="store_true")
    options = vars(parser.parse_args())
    as_json = options.pop("json")
    logging.getLogger("fs3").setLevel(logging.ERROR)
    report = dataclasses.asdict(measure(Size(**options)))
    if as_json:
        print(json.dumps(report))
        return
    for name, value in report.items():
        print(f"{name:28} {value:,.1f}" if isinstance(value, float) else f"{name:28} {value}")


if __name__ == "__main__":
    main()
