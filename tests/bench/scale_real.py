"""A real mgmtd process over TCP and its own store, with as many nodes as this machine can play.

Run: python -m tests.bench.scale_real --help. What it says of each request checks, and calibrates, tests.bench.scale.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import trio

from fs3.api.mgmtd import FORMAT, FormatRequest
from fs3.client.mgmtd import MgmtdClient
from fs3.env import Env
from fs3.rpc.client import RpcClient
from fs3.transport.registry import Transports
from tests.bench.scale_load import LightNode, Population

REPOSITORY = Path(__file__).parents[2]
LEASE_S, CLIENT_LEASE_S = 10.0, 30.0


class Process:
    """The daemon's CPU time and memory."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._tick_s = 1 / os.sysconf("SC_CLK_TCK")

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self._pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * self._tick_s

    def rss_mib(self) -> float:
        pages = int(Path(f"/proc/{self._pid}/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


async def cost(
    process: Process, nodes: list[LightNode], ask: Callable[[LightNode], None], rounds: int, wait_s: float
) -> float:
    """CPU of the daemon for one request, in us: of a few measurements the cheapest."""
    costs = []
    for _ in range(3):
        cpu_s = process.cpu_s()
        for _ in range(rounds):
            for number, node in enumerate(nodes):
                ask(node)
                if number % 50 == 49:
                    await trio.sleep(0.002)
            await trio.sleep(wait_s)
        costs.append((process.cpu_s() - cpu_s) / (rounds * len(nodes)) * 1e6)
    return min(costs)


async def measure(address: str, process: Process, storages: int, targets: int, clients: int) -> dict[str, float]:
    transports = Transports()
    population = Population([address], lambda _: transports, trio.current_time)
    population.add_storages(storages, targets)
    population.add_clients(clients)
    found = {"rss_empty_mib": process.rss_mib()}
    count = storages + clients
    async with trio.open_nursery() as nursery:
        env = Env(transports)
        watcher = MgmtdClient(env, RpcClient(env, nursery), [address])
        start, cpu_s = trio.current_time(), process.cpu_s()
        for node in population.all():
            nursery.start_soon(node.run)
        await population.until(lambda node: node.registered and node.version > 0, 120)
        found["register_ms"] = (trio.current_time() - start) * 1000
        found["register_cpu_ms"] = (process.cpu_s() - cpu_s) * 1000
        nursery.start_soon(population.beat, LEASE_S / 4, CLIENT_LEASE_S / 4)
        await watcher.call(FORMAT, FormatRequest(3, 1 << 20, 0), timeout_ms=60_000)
        await trio.sleep(LEASE_S / 2)
        found["rss_mib"] = process.rss_mib()
        found["rss_kib_each"] = (found["rss_mib"] - found["rss_empty_mib"]) * 1024 / count
        found["beat_storage_us"] = await cost(process, population.storages, LightNode.heartbeat, 10, 0.05)
        population.writing = True
        found["beat_storage_writing_us"] = await cost(process, population.storages, LightNode.heartbeat, 10, 0.05)
        population.writing = False
        found["beat_client_us"] = await cost(process, population.clients, LightNode.heartbeat, 3, 0.05)
        found["poll_us"] = await cost(process, population.clients, LightNode.probe, 1, 1.5)
        versions = population.seen.routing.version
        cpu_s = process.cpu_s()
        for victim in population.storages[:5]:  # each is a change of its own, told to all
            victim.die()
            await trio.sleep(1.0)
        await trio.sleep(LEASE_S + 1)
        told = population.seen.routing.version - versions
        found["death_versions"] = told
        beats_us = (storages * found["beat_storage_us"] / (LEASE_S / 4)) + clients * found["beat_client_us"] / (
            CLIENT_LEASE_S / 4
        )
        rest_s = process.cpu_s() - cpu_s - (LEASE_S + 6) * beats_us / 1e6
        found["told_us"] = rest_s / (told * count) * 1e6
        nursery.cancel_scope.cancel()
    return found


async def _address(log: Path) -> str:
    with trio.fail_after(30):
        while "ready: " not in (text := await trio.Path(log).read_text(encoding="utf-8")):  # noqa: ASYNC110
            await trio.sleep(0.05)
    return text.partition("ready: ")[2].partition(" ")[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--storages", type=int, default=100)
    parser.add_argument("--targets", type=int, default=20)
    parser.add_argument("--clients", type=int, default=900)
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "mgmtd.daemon", "--data", folder, "--listen", "tcp://127.0.0.1:0"]
        log = Path(folder) / "log"
        with log.open("w") as stderr, subprocess.Popen(command, cwd=REPOSITORY, stderr=stderr) as daemon:
            try:
                address = trio.run(_address, log)
                sizes = (options.storages, options.targets, options.clients)
                found = trio.run(measure, address, Process(daemon.pid), *sizes)
            finally:
                daemon.terminate()
    for name, value in found.items():
        print(f"{name:26} {value:,.1f}")


if __name__ == "__main__":
    main()
