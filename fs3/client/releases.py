"""Sessions that ended here and have nothing more to tell, and files that were read: meta hears of them together, a moment
later."""

from __future__ import annotations

import logging

import trio

from ..api.meta import RELEASE, RELEASES_MAX, ReleaseRequest, SessionRef
from ..errors import FS3Error
from .meta import MetaClient

logger = logging.getLogger("fs3.client.releases")

DELAY_S = 0.02
"""How long an ended session may wait for others."""


class Releases:
    """node: this client's id at mgmtd, for sessions."""

    def __init__(self, meta: MetaClient, node: int) -> None:
        self._meta = meta
        self._node = node
        self._ended: list[SessionRef] = []
        self._touched: set[int] = set()
        self._wanted = trio.Event()

    def add(self, inode: int, session: int) -> None:
        """A session ended."""
        self._ended.append(SessionRef(inode, session))
        self._wanted.set()

    def touch(self, inode: int) -> None:
        """A file was read, and its access time is due."""
        self._touched.add(inode)
        self._wanted.set()

    def holds(self, inode: int) -> bool:
        """Whether meta has still to be told of a session of this inode."""
        return any(ended.inode == inode for ended in self._ended)

    async def run(self) -> None:
        """Tell meta, until cancelled."""
        while True:
            await self._wanted.wait()
            if len(self._ended) < RELEASES_MAX:
                await trio.sleep(DELAY_S)
            self._wanted = trio.Event()
            await self.tell()

    async def tell(self) -> None:
        """Tell meta now of all that ended so far and that nobody is telling it of."""
        while self._ended:
            batch = tuple(self._ended[:RELEASES_MAX])
            del self._ended[: len(batch)]
            try:
                await self._meta.change(
                    RELEASE,
                    lambda tag, batch=batch: ReleaseRequest(tag, self._node, batch),  # type: ignore[misc]
                )
            except FS3Error as error:
                logger.warning("%d sessions stay open at meta until this client ends: %s", len(batch), error)
        while self._touched:
            touched = tuple([self._touched.pop() for _ in range(min(len(self._touched), RELEASES_MAX))])
            try:
                # In a request of its own: others may be changing these files, and then it has to be done again.
                await self._meta.change(
                    RELEASE,
                    lambda tag, touched=touched: ReleaseRequest(tag, self._node, (), touched),  # type: ignore[misc]
                )
            except FS3Error as error:
                logger.info("access times of %d files are not set: %s", len(touched), error)
