"""Hosts where something is missing: each process says so once, in words that say what to do, and goes by TCP.

First of all tests (by its name), since a device that somebody has open cannot be taken away.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import trio

from fs3.transport.rdma_port import Device
from fs3.transport.rdma_roles import RdmaClient
from fs3.transport.rdma_transport import RdmaTransport
from tests.process.harness import REPOSITORY
from tests.rdma import device as hardware
from tests.rdma.peer import Lines, call, served
from tests.transports import LISTEN

PROGRAM_LIMIT_S = 180


@contextmanager
def listened() -> Iterator[list[str]]:
    """What fs3 logs meanwhile."""
    lines = Lines()
    log = logging.getLogger("fs3")
    before = log.level
    log.setLevel(logging.INFO)
    log.addHandler(lines)
    try:
        yield lines.lines
    finally:
        log.removeHandler(lines)
        log.setLevel(before)


def start(*words: str, prefix: Sequence[str] = (), **environment: str) -> subprocess.Popen[str]:
    line = [*prefix, sys.executable, "-m", "tests.rdma.peer", *words]
    env = {**os.environ, **environment}
    pipe = subprocess.PIPE
    return subprocess.Popen(line, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=REPOSITORY, env=env)


def result(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=PROGRAM_LIMIT_S)
    assert process.returncode == 0, err
    found = json.loads(out.splitlines()[-1])
    assert isinstance(found, dict)
    return found


WITHOUT_LIMIT = (
    "setpriv",
    "--bounding-set=-ipc_lock",
    "--inh-caps=-ipc_lock",
    "bash",
    "-c",
    'ulimit -l 64 && exec "$@"',
    "sh",
)
"""Root may lock all memory; without that capability its limit counts."""
WITHOUT_NODES = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /dev/infiniband && exec "$@"', "sh")


@pytest.fixture(scope="module")
def peers() -> dict[str, dict[str, Any]]:
    """What became of peers in several conditions, which are started together since that takes long."""
    hardware.needs_guest()
    hardware.remove()
    try:
        found = {"device": result(start(LISTEN))}
    finally:
        hardware.add()
    started = {
        "whole": start(LISTEN),
        "package": start(LISTEN, PYTHONPATH=""),
        "limit": start(LISTEN, prefix=WITHOUT_LIMIT),
        "nodes": start(LISTEN, prefix=WITHOUT_NODES),
    }
    return found | {name: result(process) for name, process in started.items()}


def test_a_whole_host_says_nothing(peers: dict[str, dict[str, Any]]) -> None:
    found = peers["whole"]
    assert (found["kinds"], found["served"]) == (["RdmaClient"] * 2, ["RdmaServer"] * 2)
    assert found["equal"] and found["log"] == []


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("package", ("pyverbs", "apt-get install python3-pyverbs ibverbs-providers")),
        ("limit", ("may lock 64 KiB of memory", "ulimit -l unlimited", "LimitMEMLOCK=infinity")),
        ("nodes", ("rxe0", "/dev/infiniband is missing")),
        ("device", ("no RDMA device found", "ibv_devices")),
    ],
)
def test_what_is_missing_is_said_and_tcp_is_used(
    peers: dict[str, dict[str, Any]], missing: str, words: tuple[str, ...]
) -> None:
    found = peers[missing]
    assert found["equal"]
    assert (found["kinds"], found["served"]) == (["TcpConnection"] * 2, ["TcpConnection"] * 2)
    told = [line for line in found["log"] if all(word in line for word in words)]
    assert len(told) == 1, f"once, and not: {found['log']}"
    assert not any(line.startswith("ERROR") for line in found["log"])


async def test_a_peer_without_rdma_is_served_by_tcp(device: Device) -> None:
    async with served(device) as (_, listener):
        process = start("call", listener.address, PYTHONPATH="")
        found = await trio.to_thread.run_sync(result, process)
        assert found["kinds"] == ["TcpConnection"] * 2 and found["equal"]


async def test_a_server_without_rdma_is_called_by_tcp_which_is_said_once(device: Device) -> None:
    process = start("serve", LISTEN, PYTHONPATH="")
    assert process.stdout is not None
    address = (await trio.to_thread.run_sync(process.stdout.readline)).strip()
    transport = RdmaTransport(lambda: [device])
    with listened() as lines:
        for number in (1, 2, 3):
            connection = await transport.connect(address)
            assert not isinstance(connection, RdmaClient) and await call(connection, number)
            await connection.aclose()
    told = [line for line in lines if "no RDMA there, using TCP" in line and "pyverbs" in line]
    assert len(told) == 1, f"once, with the server's reason, and not: {lines}"
    assert (await trio.to_thread.run_sync(result, process))["served"] == ["TcpConnection"] * 3
