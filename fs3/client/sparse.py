"""How much space a file takes that may have holes."""

from __future__ import annotations

from ..api.meta import Attr
from ..layout import FileLayout, file_chains
from .each import each
from .storage import StorageClient

QUERY_S = 2.0
CHAINS_AT_ONCE = 16


async def used_by(attr: Attr, layout: FileLayout, table: tuple[int, ...], storage: StorageClient) -> int:
    """Bytes of a file's chunks, one replica of each. Raises what a query raises, after QUERY_S at the latest."""
    used = 0
    deadline = storage.env.monotonic() + QUERY_S

    async def ask(chain: int) -> None:
        nonlocal used
        found = await storage.query(chain, attr.inode, deadline=deadline)
        used += found.bytes  # not in one line: others add to it while this one waits

    chunks = -(-attr.length // layout.chunk_size)
    await each(file_chains(layout, table)[:chunks], ask, CHAINS_AT_ONCE)
    return used
