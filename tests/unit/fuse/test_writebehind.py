from __future__ import annotations

from typing import Any

import trio

from fuse.writebehind import WriteBehind


class Closed:
    """A client whose handles are all closed."""

    writes = 0

    async def write(self, file: Any, offset: int, data: bytes) -> None:
        self.writes += 1


async def test_nothing_is_sent_once_the_mount_ends() -> None:
    client: Any = Closed()
    file: Any = object()
    async with trio.open_nursery() as nursery:
        writes = WriteBehind(client, nursery, 64, 1000)
        await writes.write(file, 0, bytes(64))
        nursery.cancel_scope.cancel()
    assert client.writes == 0
