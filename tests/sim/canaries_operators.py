"""Planted bugs about operations: a target that goes too early, and one that is not emptied."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mgmtd.draft
import mgmtd.moves
import storage.retire
from fs3.routing import Chain

Plant = tuple[Any, str, Any]


def _drop_while_serving() -> list[Plant]:
    """A target that serves is dropped without being asked to stop first: it serves reads until it hears of it."""

    def drop_target(chain: Chain, target: int) -> Chain:
        return replace(chain, version=chain.version + 1, targets=tuple([t for t in chain.targets if t.target != target]))

    real = mgmtd.moves._Step._drop

    def drop(self: Any, record: Any, chain: Chain) -> Any:
        if len(chain.serving()) > 1 and record.move.drop in chain.serving():
            self._draft.take_out(chain.id, record.move.drop)
            return self._lead(record, self._draft.chain(chain.id))
        return real(self, record, chain)

    return [(mgmtd.draft, "drop_target", drop_target), (mgmtd.moves._Step, "_drop", drop)]


def _emptied_in_name_only() -> list[Plant]:
    async def empty(service: Any, homes: Any, home: Any, target: Any, since: int) -> None:
        target.emptied = since
        service.node.on_change()

    return [(storage.retire, "_empty", empty)]


OPERATOR_CANARIES: dict[str, tuple[Callable[[], list[Plant]], str]] = {
    "drop-while-serving": (_drop_while_serving, "operators-hot"),
    "emptied-in-name-only": (_emptied_in_name_only, "operators"),
}
