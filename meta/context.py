"""What every operation is given: the world, the store, and the few things that a daemon shares among its requests.

Nothing here caches what another daemon could change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from fs3.env import Env
from fs3.ids import NodeKind
from fs3.kv.base import KVEngine
from fs3.layout import FileLayout
from fs3.routing import RoutingInfo

from .inode_ids import InodeIds
from .schema import Inode
from .shares import Share

REMOVED_MAX = 100_000
"""Removed files that are remembered for the collector; where there are more, it has to search for them."""


@dataclass(slots=True)
class Context:
    """owner: this daemon's incarnation as mgmtd knows it, which marks its claims on work. node: its id, by which work is
    shared out. routing: the latest known."""

    env: Env
    engine: KVEngine
    ids: InodeIds
    routing: Callable[[], RoutingInfo]
    owner: int
    node: int
    garbage: trio.Event = field(default_factory=trio.Event)
    """Set when an operation may have put something into the GC queue."""
    removed: list[int] = field(default_factory=list)
    """What that was, by inode, since the collector has looked here: some of it may not be committed, now or ever."""
    trees: trio.Event = field(default_factory=trio.Event)
    """Set when a tree may have been removed."""

    def tell_removed(self, inode: int) -> None:
        """The collector has work, if what is being done is committed."""
        if len(self.removed) <= REMOVED_MAX:
            self.removed.append(inode)
        self.garbage.set()

    def now_ns(self) -> int:
        return self.env.wall_ns()

    def share(self) -> Share:
        """This daemon's part of the work that needs doing by one daemon, as of now."""
        return Share(self.node, tuple([node.id for node in self.routing().nodes_of(NodeKind.META)]))

    def file_layout(self, parent: Inode) -> FileLayout:
        """The layout of a file that is made in a directory."""
        table = self.routing().tables.get(parent.table)
        version = table.version if table is not None else parent.table_version
        return FileLayout(parent.table, version, parent.chunk_size, parent.stripe, self.env.random.getrandbits(64))
