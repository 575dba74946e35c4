"""Random calls on one file, through one mount and several, against a model (exerciser.py): the same ones each time,
but in a soak, which does many more."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.posix.exerciser import Difference, Exerciser
from tests.process import harness

pytestmark = pytest.mark.process

STEPS = 400 if harness.SOAK else 80


def run(paths: list[Path], seeds: range, *, shared: bool = True) -> None:
    first = random.SystemRandom().getrandbits(32) if harness.SOAK else 0
    for seed in seeds if not harness.SOAK else range(first, first + 300):
        print(f"seed {seed}")
        Exerciser(paths, seed, shared=shared).run(STEPS)


def test_one_mount(mounted: Path) -> None:
    run([mounted / "f"], range(2))


def test_two_mounts_in_turn(shared_cluster: harness.Cluster, mounted: Path, more_mounts: dict[str, Path]) -> None:
    below = mounted.relative_to(shared_cluster.mount)
    run([mounted / "f", more_mounts["other"] / below / "f"], range(100, 102))


def test_with_a_strict_mount_in_turn(shared_cluster: harness.Cluster, mounted: Path, more_mounts: dict[str, Path]) -> None:
    below = mounted.relative_to(shared_cluster.mount)
    run([mounted / "f", more_mounts["strict"] / below / "f"], range(200, 201), shared=False)


def test_a_difference_is_found_and_its_seed_told(mounted: Path) -> None:
    class Wrong(Exerciser):
        def write(self) -> None:
            super().write()
            self.model[-1] ^= 1

    with pytest.raises(Difference, match=r"seed 5, step \d+: \d+ bytes read at[^$]*pwrite \d+ at"):
        Wrong([mounted / "f"], 5).run(100)
