"""Chain files, by which operators give the chains of a table, and the checks that every new chain must pass. Pure."""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import Code, FS3Error
from ..routing import LocalState, RoutingInfo, Target
from .topology import domain_of, limit_in

_KEYS = {"replicas", "chains", "nodes", "comment"}


@dataclass(frozen=True, slots=True)
class ChainFile:
    """chains: target ids of each chain, head first."""

    replicas: int
    chains: tuple[tuple[int, ...], ...]


def parse(text: str) -> ChainFile:
    """Read a chain file: an object in JSON (it begins with a brace) or else TOML. Raises BAD_PLACEMENT.

    `chains`: a list of lists of target ids, head first. `replicas`: how many each has; absent: as many as the first.
    `nodes` (for whom a design was made) and `comment` are for people. What the ids mean is not looked at here.
    """
    try:
        data = json.loads(text) if text.lstrip().startswith("{") else tomllib.loads(text)
    except (json.JSONDecodeError, tomllib.TOMLDecodeError) as error:
        raise _bad(f"not a chain file: {error}") from None
    return _checked(data)


def render(found: ChainFile, comment: str = "") -> str:
    """A chain file in TOML, one chain a line."""
    lines = [f"# {line}" for line in comment.splitlines()]
    lines += [f"replicas = {found.replicas}", "chains = ["]
    lines += [f"    [{', '.join(map(str, chain))}]," for chain in found.chains]
    return "\n".join([*lines, "]", ""])


def render_json(found: ChainFile) -> str:
    return json.dumps({"replicas": found.replicas, "chains": found.chains}) + "\n"


def check_chains(chains: Sequence[Sequence[int]], replicas: int, routing: RoutingInfo) -> None:
    """Whether new chains can be made of these targets (head first). Raises BAD_PLACEMENT: the first reason why not.

    Chains are told by their place in the list, from 1. At most one replica of a chain is on a node, and on a rack where
    there are enough racks.
    """
    if replicas < 1:
        raise _bad(f"{replicas} replicas: at least 1 is needed")
    if not chains:
        raise _bad("there is no chain in it: give the target ids of at least one")
    limit = limit_in(routing, replicas)
    used: dict[int, int] = {}
    for number, chain in enumerate(chains, start=1):
        if len(chain) != replicas:
            raise _bad(f"chain {number} has {len(chain)} targets {_ids(chain)}: expected {replicas}, one for each replica")
        for target in chain:
            if target in used:
                again = "twice in it" if used[target] == number else f"in chain {used[target]} already"
                raise _bad(f"chain {number}: target {target} is {again}, and a target can be in one chain only, once")
            used[target] = number
        _check_apart(number, [_usable(number, target, routing) for target in chain], routing, limit)


def _checked(data: Mapping[str, Any]) -> ChainFile:
    unknown = sorted(set(data) - _KEYS)
    if unknown:
        raise _bad(f"unknown key {unknown[0]!r} in the chain file: expected {', '.join(sorted(_KEYS))}")
    chains = data.get("chains")
    if not isinstance(chains, list) or not chains:
        raise _bad(
            "the chain file has no chains: expected `chains`, a list of lists of target ids, such as [[101, 201, 301]]"
        )
    for number, chain in enumerate(chains, start=1):
        if not isinstance(chain, list) or not chain or not all(type(target) is int and target > 0 for target in chain):
            raise _bad(
                f"chain {number} of the chain file is {chain!r}: expected a list of target ids, such as [101, 201, 301]"
            )
    replicas = data.get("replicas", len(chains[0]))
    if type(replicas) is not int or replicas < 1:
        raise _bad(f"replicas is {replicas!r} in the chain file: expected a number, at least 1")
    for number, chain in enumerate(chains, start=1):
        if len(chain) != replicas:
            raise _bad(f"chain {number} of the chain file has {len(chain)} targets {_ids(chain)}: expected {replicas}")
    return ChainFile(replicas, tuple([tuple(chain) for chain in chains]))


def _usable(number: int, target_id: int, routing: RoutingInfo) -> Target:
    target = routing.targets.get(target_id)
    if target is None:
        raise _bad(
            f"chain {number}: there is no target {target_id} in this cluster; `fs3 admin target list` shows those there are"
        )
    if target.chain:
        raise _bad(
            f"chain {number}: target {target_id} is in chain {target.chain} already; expected targets that are in none"
        )
    if target.retired:
        raise _bad(
            f"chain {number}: target {target_id} has left its chain and is not emptied yet; wait for its daemon to do so"
        )
    if target.used:
        held = f"target {target_id} holds {target.used} bytes of a former time"
        raise _bad(f"chain {number}: {held}; empty it first (`fs3 admin target empty {target_id}`)")
    node = routing.nodes.get(target.node)
    if node is None or not node.alive:
        raise _bad(f"chain {number}: target {target_id} is on node {target.node}, which is not alive; start it first")
    if node.drained:
        raise _bad(f"chain {number}: target {target_id} is on node {target.node}, which is drained; undrain it first")
    if target.local is LocalState.OFFLINE:
        raise _bad(
            f"chain {number}: target {target_id} of node {target.node} is offline; bring its disk {target.disk} back first"
        )
    return target


def _check_apart(number: int, targets: Sequence[Target], routing: RoutingInfo, limit: int) -> None:
    by_node = Counter([target.node for target in targets])
    for node, count in by_node.items():
        if count > 1:
            shared = _ids([target.id for target in targets if target.node == node])
            raise _bad(f"chain {number}: targets {shared} are on the same node {node}; each replica needs a node of its own")
    by_domain = Counter([domain_of(routing.nodes[target.node]) for target in targets])
    for domain, count in by_domain.items():
        if count > limit:
            shared = _ids([target.id for target in targets if domain_of(routing.nodes[target.node]) == domain])
            raise _bad(f"chain {number}: targets {shared} are in the same {domain}; at most {limit} of a chain may be")


def _ids(targets: Sequence[int]) -> str:
    return f"({', '.join(map(str, targets))})"


def _bad(message: str) -> FS3Error:
    return FS3Error(Code.BAD_PLACEMENT, message)
