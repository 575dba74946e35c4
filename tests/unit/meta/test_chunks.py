"""What the metadata service sends to the storage service."""

from __future__ import annotations

from typing import Any, cast

import pytest

from fs3.api.storage import QueryReply
from fs3.client.storage import StorageClient
from fs3.errors import Code, FS3Error
from fs3.ids import ChunkId, RequestTag
from fs3.layout import FileLayout
from fs3.routing import RoutingInfo, Table
from meta.chunks import RoutedChunks

SIZE = 64 * 1024


class Sent:
    """Stands for the storage client: notes what it is asked to do."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, int, RequestTag | None]] = []

    async def remove_file(self, chain: int, inode: int, first: int, *, deadline: float, tag: Any = None) -> int:
        self.sent.append(("remove", chain, tag))
        return 0

    async def query(self, chain: int, inode: int, first: int, *, deadline: float) -> QueryReply:
        return QueryReply(1, first, SIZE, SIZE)

    async def truncate(self, chain: int, chunk: ChunkId, length: int, size: int, *, deadline: float, tag: Any) -> None:
        self.sent.append(("truncate", chain, tag))


async def truncated(version: int) -> list[tuple[str, int, RequestTag | None]]:
    sent = Sent()
    routing = RoutingInfo(1, "c", {}, {1: Table(1, 1, (1, 2), 1)})
    chunks = RoutedChunks(cast(StorageClient, sent), lambda: routing)
    await chunks.truncate(77, FileLayout(1, 1, SIZE, 2, 5), SIZE // 2, -1, version, deadline=1.0)
    return sorted(sent.sent)


async def test_daemons_that_do_the_same_truncation_send_the_same_requests() -> None:
    """So that the storage service does them once, however late one of them arrives."""
    first = await truncated(4)
    assert [what for what, _, _ in first] == ["remove", "remove", "truncate"]
    assert await truncated(4) == first
    tags = [tag for _, _, tag in first]
    assert None not in tags
    assert not set(tags) & {tag for _, _, tag in await truncated(6)}


async def test_a_truncation_can_be_repeated_from_its_first_step() -> None:
    """A channel forgets a request when the next one comes: the steps must not share one."""
    tags = {tag for _, _, tag in await truncated(4) if tag is not None}
    assert len(tags) == len({(tag.client, tag.channel) for tag in tags}) == 2


async def test_who_stalled_past_its_lease_cuts_nothing_any_more() -> None:
    """Between its question how long the chunk is and the answer another daemon may have cut it, and a client written it."""
    sent = Sent()
    routing = RoutingInfo(1, "c", {}, {1: Table(1, 1, (1, 2), 1)})
    chunks = RoutedChunks(cast(StorageClient, sent), lambda: routing, lambda: False)
    with pytest.raises(FS3Error) as caught:
        await chunks.truncate(77, FileLayout(1, 1, SIZE, 2, 5), SIZE // 2, -1, 4, deadline=1.0)
    assert caught.value.code is Code.SHUTTING_DOWN
    assert {what for what, _, _ in sent.sent} == {"remove"}
