"""Where a file's chunks are, and how much space they take."""

from __future__ import annotations

import trio

from ..api.meta import Attr
from ..errors import Code, FS3Error
from ..layout import FileLayout, file_chains
from ..routing import RoutingInfo
from .each import each
from .storage import RoutingSource, StorageClient

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


def table_of(routing: RoutingInfo, layout: FileLayout) -> tuple[int, ...] | None:
    """The chains of a file's table as of the file's making; None where routing does not know them yet."""
    table = routing.tables.get(layout.table)
    return table.chains_at(layout.table_version) if table is not None else None


async def table_when_known(mgmtd: RoutingSource, layout: FileLayout, timeout_s: float) -> tuple[int, ...]:
    """As table_of, waiting for routing to know them. Raises NO_ROUTING after timeout_s."""
    with trio.move_on_after(timeout_s):
        while True:
            version = mgmtd.routing.version
            table = table_of(mgmtd.routing, layout)
            if table is not None:
                return table
            await mgmtd.wait_change(version)
    raise FS3Error(Code.NO_ROUTING, f"version {layout.table_version} of chain table {layout.table} is unknown")
