"""Listings of a big directory in which names come and go all the while."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest

pytestmark = pytest.mark.process

STAY = 2000
COME_AND_GO = 600
LISTINGS = 5


@contextmanager
def churn(folder: Path, seed: int) -> Iterator[list[int]]:
    """A thread makes and removes names between those that stay, and moves some of its own."""
    stop = threading.Event()
    done: list[int] = [0]
    failed: list[BaseException] = []
    chance = Random(seed)

    def work() -> None:
        there: set[str] = set()
        try:
            while not stop.is_set():
                name = f"{chance.randrange(STAY):05d}-{seed}-{chance.randrange(6)}"
                path = str(folder / name)
                if name in there:
                    os.unlink(path)
                    there.discard(name)
                elif there and chance.random() < 0.2:
                    other = there.pop()
                    os.rename(folder / other, path)
                    there.add(name)
                else:
                    os.mknod(path, stat.S_IFREG | 0o644)
                    there.add(name)
                done[0] += 1
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield done
    finally:
        stop.set()
        thread.join()
    assert not failed, failed


def test_what_stays_is_listed_exactly_once_while_others_come_and_go(mounted: Path) -> None:
    stay = [f"{number:05d}" for number in range(STAY)]
    for name in stay:
        os.mknod(mounted / name, stat.S_IFREG | 0o644)
    with churn(mounted, 1) as one, churn(mounted, 2) as two:
        for _ in range(LISTINGS):
            before = one[0] + two[0]
            names = os.listdir(mounted)
            assert [name for name in names if "-" not in name] == stay
            assert len(set(names)) == len(names)
            while one[0] + two[0] < before + 20:
                os.stat(mounted / stay[0])  # so that each listing meets other names
    removed = 0
    with os.scandir(mounted) as entries:
        for entry in entries:
            os.unlink(entry.path)
            removed += 1
    assert removed >= STAY and os.listdir(mounted) == []
