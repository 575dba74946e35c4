"""What reads and writes of storage cost over real verbs and over TCP: requests to the device, and copies of each byte, as
docs/rdma.md gives them from the code."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.process.harness import REPOSITORY
from tests.rdma.counted import COPIES
from tests.transports import LISTEN

MIB = 1 << 20
TIMES = 16
Counts = dict[str, float]


class Program:
    """One side; both of them count from their start on."""

    def __init__(self, role: str, argument: str, listen: str, preload: Path) -> None:
        words = [sys.executable, "-m", "tests.rdma.counted", role, argument]
        env = {**os.environ, "FS3_TEST_LISTEN": listen, "LD_PRELOAD": str(preload)}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, cwd=REPOSITORY, env=env)

    def ask(self, value: Any) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(value) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "it ended"
        return json.loads(line)

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@dataclass
class Sides:
    server: Program
    client: Program

    def measure(self, operation: str, size: int) -> tuple[Counts, Counts]:
        """For each operation, of the client and of the server; bytes as multiples of `size`."""
        self.client.ask(["write", size, 1])  # there must be something to read
        self.client.ask([operation, size, 2])  # connections, pools and files are made
        before = self.server.ask(None)
        client = self.client.ask([operation, size, TIMES])
        after = self.server.ask(None)
        server = {name: value - before.get(name, 0) for name, value in after.items()}
        return per_operation(client, size), per_operation(server, size)


def per_operation(counts: Counts, size: int) -> Counts:
    return {name: value / TIMES / (size if name in COPIES else 1) for name, value in counts.items()}


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Sides]]:
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("no gcc, to build what counts copies")
    folder = tmp_path_factory.mktemp("counts")
    preload = folder / "copies.so"
    source = Path(__file__).with_name("copies.c")
    subprocess.run([compiler, "-O2", "-fno-builtin", "-shared", "-fPIC", "-o", preload, source, "-ldl"], check=True)
    made: dict[str, Sides] = {}
    servers = {}
    for scheme, listen in (("rdma", LISTEN), ("tcp", LISTEN.replace("rdma://", "tcp://"))):
        (folder / scheme).mkdir()
        servers[scheme] = Program("serve", str(folder / scheme), listen, preload), listen
    try:
        for scheme, (server, listen) in servers.items():
            made[scheme] = Sides(server, Program("call", server.answer(), listen, preload))
        yield made
    finally:
        for server, _ in servers.values():
            server.end()
        for each in made.values():
            each.client.end()


def line(title: str, counts: Counts) -> str:
    verbs = [f"{counts[name]:.4g} {name}" for name in VERBS if counts.get(name)]
    copies = [f"{name} {counts[name]:.2f}" for name in COPIES if counts.get(name, 0) >= 0.01]
    asked = f"{', '.join(verbs)}; " if verbs else ""
    return f"  {title}: {asked}each byte {' and '.join(copies) or 'left alone'}; {counts['cpu_us'] / 1000:.0f} ms of CPU"


VERBS = ("message", "return", "write", "read", "signaled", "doorbells", "receives", "completions", "events")

BEGIN = -1.0
"""The first 64 KiB, which TCP's side that receives takes in together with the head."""

# Of the client and of the server, each operation; copies in the process, or by the kernel for it, of each byte.
CASES = {
    ("rdma", "write"): ({"message": 1, "copied": 1}, {"message": 1, "read": 1, "copied": 0, "file_written": 1}),
    ("rdma", "write-registered"): ({"message": 1, "copied": 0}, {"message": 1, "read": 1, "copied": 0, "file_written": 1}),
    ("rdma", "read"): ({"message": 1, "copied": 1}, {"message": 1, "write": 1, "copied": 0, "file_read": 1}),
    ("rdma", "read-registered"): ({"message": 1, "copied": 0}, {"message": 1, "write": 1, "copied": 0, "file_read": 1}),
    ("tcp", "write"): ({"sent": 1, "copied": 0}, {"received": 1, "copied": BEGIN, "file_written": 1}),
    ("tcp", "read"): ({"received": 1, "copied": BEGIN}, {"sent": 1, "copied": 0, "file_read": 1}),
}
SIZES = (MIB, 64 * 1024)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("scheme", "operation"), CASES)
def test_counts_are_those_of_the_code(
    sides: dict[str, Sides], scheme: str, operation: str, size: int, capsys: pytest.CaptureFixture[str]
) -> None:
    client, server = sides[scheme].measure(operation, size)
    with capsys.disabled():
        print(f"\n{scheme} {operation} of {size >> 10} KiB, each:\n{line('client', client)}\n{line('server', server)}")
    for side, counts, expected in zip(("client", "server"), (client, server), CASES[scheme, operation], strict=True):
        for name, value in expected.items():
            found, wanted = counts.get(name, 0), min(1.0, 65536 / size) if value == BEGIN else value
            slack = 0.15 if name in COPIES else 0  # records and bodies are copied, too
            assert abs(found - wanted) <= slack, f"{side}: {name} {found:.2f}, by the code {wanted}"
        if scheme == "rdma":
            assert counts["sent"] + counts["received"] < 0.05, f"{side}: bytes went through sockets"
            assert counts.get("return", 0) <= 0.13, f"{side}: credits come back with messages"
            assert counts["completions"] <= (2 if side == "server" else 1.13), side
        else:
            assert not any(counts.get(name) for name in VERBS), f"{side}: asked something of the device"


def test_small_reads_go_in_messages(sides: dict[str, Sides], capsys: pytest.CaptureFixture[str]) -> None:
    """Below 4 KiB nothing is worth a request of its own."""
    client, server = sides["rdma"].measure("read", 2048)
    with capsys.disabled():
        print(f"\nrdma read of 2 KiB, each:\n{line('client', client)}\n{line('server', server)}")
    assert (client["message"], server["message"]) == (1, 1)
    assert not server.get("write") and not server.get("read")
