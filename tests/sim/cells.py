"""Chunks as registers of cells: what makes a chunk's linearizability cheap to check.

A chunk is cut into cells at fixed offsets. Every operation covers whole cells, and each write fills its cells with a
pattern of its own, so that the content of a chunk is a short tuple of writers, and a torn cell shows by itself.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from tests.sim.linear import Model

SMALL = (0, 16, 48, 400, 1000, 3000, 3300, 4096)
BLOCKS = (0, 100, 5000, 65530, 65536, 65700, 100_000, 131_072)
"""Offsets that begin and end cells: within one block of the checksums, and across its border."""


class TornError(AssertionError):
    """A cell holds bytes of more than one write."""


def fill(writer: int, bounds: Sequence[int], first: int, end: int) -> bytes:
    """The bytes of cells [first, end) by this writer."""
    length = bounds[end] - bounds[first]
    shift = bounds[first] % 4
    word = writer.to_bytes(4, "big")
    return (word * (length // 4 + 2))[shift : shift + length]


def parse(data: bytes, bounds: Sequence[int], first: int) -> tuple[int, ...]:
    """Who wrote each of the cells from `first` on that `data` reaches; 0 for zeros. Raises TornError."""
    cells: list[int] = []
    at, end = 0, first + 1
    while at < len(data):
        length = bounds[end] - bounds[end - 1]
        cell = data[at : at + length]
        if len(cell) < length:
            raise TornError(f"{len(data)} bytes from cell {first}: no end of a cell")
        start = -bounds[end - 1] % 4
        writer = int.from_bytes(cell[start : start + 4].ljust(4, b"\0") if length >= start + 4 else cell[:4], "big")
        if length < start + 4 or cell != fill(writer, bounds, end - 1, end):
            raise TornError(f"cell {end - 1} is torn: {cell[:8].hex()}...{cell[-8:].hex()}")
        cells.append(writer)
        at += length
        end += 1
    return tuple(cells)


def _step(state: Any, request: Any, output: Any, known: bool) -> Hashable | None:
    """State: the writers of the cells that there are. Inputs: ("write", first, end, writer) and ("truncate", end), both
    with the number of cells then (or None) as output; ("remove",); ("read", first, end) with the cells' writers."""
    kind = request[0]
    after: tuple[int, ...] = state
    if kind == "write":
        _, first, end, writer = request
        after = state[:first] + (0,) * (first - len(state)) + (writer,) * (end - first) + state[end:]
    elif kind == "truncate":
        after = state[: request[1]] + (0,) * (request[1] - len(state))
    elif kind == "remove":
        return ()
    elif kind == "read":
        if not known:
            return state  # type: ignore[no-any-return]
        return state if output == state[request[1] : request[2]] else None
    if known and output is not None and output != len(after):
        return None
    return after


CELLS = Model(lambda key: (), _step)
"""A chunk of cells, empty at first."""

FILE_CELLS = Model(lambda key: (0,) * (len(SMALL) - 1), _step)
"""A file of cells that has its full length from the start."""
