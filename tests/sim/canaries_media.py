"""Planted bugs about disks: what is not written, what is not noticed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fs3.ids import ChunkId
from storage.chunk_engine import ChunkEngine
from tests.sim import disk

Plant = tuple[Any, str, Any]
_KEPT = 3


def _records_in_memory() -> list[Plant]:
    """The last records that were written are still in the process when it is killed."""
    real = disk._Records.write

    def write(self: Any, puts: Sequence[tuple[bytes, bytes]], deletes: Sequence[bytes] = ()) -> None:
        waiting = self._disk.__dict__.setdefault("waiting", [])
        waiting.append((self, list(puts), list(deletes)))
        while len(waiting) > _KEPT:
            records, *change = waiting.pop(0)
            real(records, *change)

    return [(disk._Records, "write", write)]


def _rot_unnoticed() -> list[Plant]:
    async def verify(self: ChunkEngine, chunk: ChunkId) -> bool:
        return True

    return [(ChunkEngine, "verify", verify)]


MEDIA_CANARIES: dict[str, tuple[Callable[[], list[Plant]], str]] = {
    "records-in-memory": (_records_in_memory, "crash"),
    "rot-unnoticed": (_rot_unnoticed, "rot"),
}
