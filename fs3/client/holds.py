"""Keeps files that are open here only for reading, should other clients remove them: meta is told of those that stay open
for more than a moment, many at once. So most opens, which last for less, cost nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import trio

from ..api.meta import HOLD, RELEASES_MAX, HoldRequest, SessionRef
from ..errors import FS3Error
from .inode import OpenInode
from .meta import MetaClient
from .releases import Releases

logger = logging.getLogger("fs3.client.holds")

INTERVAL_S = 1.0
"""A file is kept once it was open for one to two times that."""


class Holds:
    """inodes: those with open handles, by number."""

    def __init__(
        self,
        meta: MetaClient,
        node: int,
        inodes: Mapping[int, OpenInode],
        releases: Releases,
        new_session: Callable[[], int],
    ) -> None:
        self._meta = meta
        self._node = node
        self._inodes = inodes
        self._releases = releases
        self._new_session = new_session

    async def run(self) -> None:
        """Until cancelled."""
        before: dict[int, OpenInode] = {}
        while True:
            await trio.sleep(INTERVAL_S)
            now = {number: state for number, state in self._inodes.items() if not (state.sessions or state.holds)}
            lasting = [state for number, state in now.items() if before.get(number) is state and not state.gone]
            before = now
            for at in range(0, len(lasting), RELEASES_MAX):
                try:
                    await self.keep(lasting[at : at + RELEASES_MAX])
                except FS3Error as error:
                    logger.info("files that are open are not kept if others remove them now: %s", error)
                    break

    async def renew(self) -> None:
        """Make all holds anew: meta may have ended them while it took this client for dead."""
        held = [(state, session) for state in self._inodes.values() for session in state.holds]
        for at in range(0, len(held), RELEASES_MAX):
            some = held[at : at + RELEASES_MAX]
            refs = tuple([SessionRef(state.id, session) for state, session in some])
            try:
                gone = (await self._meta.change(HOLD, lambda tag, refs=refs: HoldRequest(tag, self._node, refs))).gone  # type: ignore[misc]
            except FS3Error as error:
                logger.warning("files that are open may be lost if others have removed them: %s", error)
                return
            for state, _ in some:
                state.gone = state.gone or state.id in gone

    async def keep(self, states: list[OpenInode]) -> None:
        """Hold these files, of which at most RELEASES_MAX may be given. Those that are gone already are left alone."""
        wanted = {state.id: self._new_session() for state in states}
        refs = tuple([SessionRef(inode, session) for inode, session in wanted.items()])
        gone: tuple[int, ...] = ()
        try:
            gone = (await self._meta.change(HOLD, lambda tag: HoldRequest(tag, self._node, refs))).gone
        except BaseException:
            for inode, session in wanted.items():
                self._releases.add(inode, session)  # it may have been made
            raise
        for state in states:
            if state.id in gone:
                continue
            if self._inodes.get(state.id) is state:
                state.holds.append(wanted[state.id])
            else:
                self._releases.add(state.id, wanted[state.id])
