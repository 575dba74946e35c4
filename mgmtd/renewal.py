"""Heartbeats that change nothing that anybody need hear of: nearly all of them, hundreds in a second. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fs3.api.mgmtd import TargetReport
from fs3.routing import LocalState, Target

from .draft import worth_a_version
from .state import State


def fresh_levels(state: State, node: int, reports: Sequence[TargetReport]) -> list[Target] | None:
    """The targets whose fill levels changed, where a storage node says nothing else that is new; None where it does.

    It is what Draft.report would find, by comparisons alone.
    """
    own = state.node_targets.get(node, ())
    if len(reports) != len(own) or len({report.target for report in reports}) != len(own):
        return None
    targets, chains, locals_ = state.targets, state.chains, state.locals
    fresh = []
    for report in reports:
        number = report.target
        known = targets.get(number)
        if known is None or known.node != node or known.disk != report.disk or known.retired or known.leaving:
            return None
        local = report.local
        if local is LocalState.UPTODATE:
            chain = chains.get(known.chain)
            if report.chain not in (0, known.chain) or report.chain_version != (chain.version if chain is not None else 0):
                local = LocalState.ONLINE
        if local is not known.local or local is not locals_.get(number):
            return None
        if report.used != known.used or report.capacity != known.capacity:
            target = replace(known, used=report.used, capacity=report.capacity)
            if worth_a_version(state.published.get(number, known), target):
                return None
            fresh.append(target)
    return fresh
