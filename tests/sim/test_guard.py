"""Nothing that no seed controls can be reached from a simulation, neither by the product nor by the simulator."""

from __future__ import annotations

import ast
import os
import random
import secrets
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.sim.cluster import Shape, World, simulate
from tests.sim.failure import SimulationFailed
from tests.sim.guard import RealWorldError, guarded

SIM = Path(__file__).resolve().parent
PROGRAMS = {"__main__.py", "guard.py", "scenario.py", "shrink.py"}
"""They look at real clocks and streams, outside of the simulation."""
FORBIDDEN = {
    "asyncio", "concurrent", "datetime", "multiprocessing", "pathlib", "queue", "secrets", "select", "shutil", "signal",
    "socket", "subprocess", "sys", "tempfile", "threading", "time", "uuid",
}  # fmt: skip

CALLS: dict[str, Callable[[], object]] = {
    "time.monotonic": lambda: time.monotonic(),
    "time.sleep": lambda: time.sleep(0),
    "time.clock_gettime": lambda: time.clock_gettime(time.CLOCK_REALTIME),
    "os.urandom": lambda: os.urandom(1),
    "os.stat": lambda: os.stat("/"),
    "os.fsync": lambda: os.fsync(-1),
    "random.random": lambda: random.random(),
    "random.Random": lambda: random.Random(),
    "secrets.token_bytes": lambda: secrets.token_bytes(1),
    "uuid.uuid4": lambda: uuid.uuid4(),
    "socket.socket": lambda: socket.socket(),
    "Thread.start": lambda: threading.Thread(target=int).start(),
}


@pytest.mark.parametrize("name", CALLS)
def test_real_world_is_out_of_reach(name: str) -> None:
    with guarded(), pytest.raises(RealWorldError, match=rf"calls \S*{name} (\w+ )*inside a simulation"):
        CALLS[name]()
    assert random.Random() is not None and time.monotonic() > 0, "all is as before"


def test_seeded_chance_is_allowed() -> None:
    with guarded():
        assert random.Random(1).random() == random.Random(1).random()


def test_a_run_that_touches_the_real_world_fails() -> None:
    async def main(world: World) -> None:
        os.listdir("/")

    with pytest.raises(SimulationFailed, match=r"calls os\.listdir inside a simulation"):
        simulate(1, Shape("bare"), main)


def _modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(SIM.glob("*.py")):
        if not path.name.startswith("test_"):
            yield path.name, ast.parse(path.read_text(encoding="utf-8"))


def test_the_simulator_imports_nothing_of_the_world() -> None:
    bad = []
    for name, tree in _modules():
        for node in ast.walk(tree):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module or ""]
            bad += [f"{name} imports {module}" for module in modules if module.partition(".")[0] in FORBIDDEN]
    assert not [line for line in bad if line.partition(" ")[0] not in PROGRAMS], bad


def test_all_chance_of_the_simulator_has_a_seed() -> None:
    bad = []
    for name, tree in _modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "random":
                if node.attr != "Random" and name != "guard.py":
                    bad.append(f"{name}:{node.lineno} random.{node.attr}")
            elif isinstance(node, ast.Call) and not node.args and not node.keywords:
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if called == "Random":
                    bad.append(f"{name}:{node.lineno} Random without a seed")
    assert not bad, bad
