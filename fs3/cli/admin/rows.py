"""What lists show: routing information as rows of plain values, the same that --json prints. No cluster is asked here.

Sizes are in bytes and their keys end in _bytes. Nodes, targets and chains are named by their ids.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ...api.mgmtd import ClientInfo
from ...ids import NodeKind
from ...routing import Chain, LocalState, PublicState, RoutingInfo, Target

Row = dict[str, Any]


def node_rows(routing: RoutingInfo) -> list[Row]:
    """Daemons, but no clients, by id. targets: how many it has; in_chains, free, retired: of them."""
    rows = []
    targets: dict[int, list[Target]] = {}
    for target in routing.targets.values():
        targets.setdefault(target.node, []).append(target)
    for _, node in sorted(routing.nodes.items()):
        if node.kind == NodeKind.CLIENT:
            continue
        own = targets.get(node.id, [])
        rows.append(
            {
                "node": node.id,
                "kind": NodeKind(node.kind).name.lower(),
                "state": "alive" if node.alive else "dead",
                "drained": node.drained,
                "host": node.host,
                "address": node.address,
                "tags": list(node.tags),
                "disks": len({target.disk for target in own}),
                "targets": len(own),
                "in_chains": sum(target.chain != 0 for target in own),
                "free": sum(is_free(routing, target) for target in own),
                "retired": sum(target.retired for target in own),
                "capacity_bytes": sum(target.capacity for target in own),
                "used_bytes": sum(target.used for target in own),
            }
        )
    return rows


def is_free(routing: RoutingInfo, target: Target) -> bool:
    """Whether a target could be put into a chain now."""
    node = routing.nodes.get(target.node)
    usable = node is not None and node.alive and not node.drained and target.local is not LocalState.OFFLINE
    return usable and not target.chain and not target.retired and not target.used


def target_state(routing: RoutingInfo, target: Target) -> str:
    """In its chain as everybody sees it; else retired, offline or unused."""
    chain = routing.chains.get(target.chain)
    state = chain.state_of(target.id) if chain is not None else None
    if state is not None:
        return state.name.lower()
    if target.retired:
        return "retired"
    return "offline" if target.local is LocalState.OFFLINE else "unused"


def target_rows(routing: RoutingInfo) -> list[Row]:
    """All targets, by id. local: as its own daemon last reported it."""
    rows = []
    for _, target in sorted(routing.targets.items()):
        node = routing.nodes.get(target.node)
        rows.append(
            {
                "target": target.id,
                "node": target.node,
                "disk": target.disk,
                "chain": target.chain,
                "state": target_state(routing, target),
                "local": target.local.name.lower(),
                "node_state": "alive" if node is not None and node.alive else "dead",
                "capacity_bytes": target.capacity,
                "used_bytes": target.used,
            }
        )
    return rows


def disk_rows(routing: RoutingInfo) -> list[Row]:
    """Disks, as their targets tell of them, by node and number. state: failed where no target of a living node works."""
    disks: dict[tuple[int, int], list[Target]] = {}
    for _, target in sorted(routing.targets.items()):
        disks.setdefault((target.node, target.disk), []).append(target)
    rows = []
    for (number, disk), targets in sorted(disks.items()):
        node = routing.nodes.get(number)
        capacity, used = sum(t.capacity for t in targets), sum(t.used for t in targets)
        rows.append(
            {
                "node": number,
                "disk": disk,
                "host": node.host if node is not None else "",
                "state": _disk_state(node is not None and node.alive, targets),
                "targets": [target.id for target in targets],
                "in_chains": sum(target.chain != 0 for target in targets),
                "free": sum(is_free(routing, target) for target in targets),
                "retired": sum(target.retired for target in targets),
                "capacity_bytes": capacity,
                "used_bytes": used,
                "used_percent": percent(used, capacity),
            }
        )
    return rows


def _disk_state(alive: bool, targets: list[Target]) -> str:
    if not alive:
        return "dead"
    offline = sum(target.local is LocalState.OFFLINE for target in targets)
    return "failed" if offline == len(targets) else "degraded" if offline else "alive"


def chain_rows(routing: RoutingInfo) -> list[Row]:
    """All chains, by id. replicas: targets that serve; wanted: as its tables say."""
    wanted = wanted_replicas(routing)
    tables: dict[int, list[int]] = {}
    for _, table in sorted(routing.tables.items()):
        for chain_id in table.chains:
            tables.setdefault(chain_id, []).append(table.id)
    rows = []
    for _, chain in sorted(routing.chains.items()):
        known = [routing.targets[entry.target] for entry in chain.targets if entry.target in routing.targets]
        rows.append(
            {
                "chain": chain.id,
                "version": chain.version,
                "state": chain_state(chain, wanted.get(chain.id, 0)),
                "tables": tables.get(chain.id, []),
                "replicas": len(chain.serving()),
                "wanted": wanted.get(chain.id, 0),
                "used_bytes": max([target.used for target in known], default=0),
                "targets": [
                    {"target": entry.target, "node": node_id(routing, entry.target), "state": entry.state.name.lower()}
                    for entry in chain.targets
                ],
            }
        )
    return rows


def wanted_replicas(routing: RoutingInfo) -> dict[int, int]:
    """By chain: how many targets its tables want it to have."""
    wanted: dict[int, int] = {}
    for table in routing.tables.values():
        for chain_id in table.chains:
            wanted[chain_id] = max(wanted.get(chain_id, 0), table.replicas)
    return wanted


def chain_state(chain: Chain, wanted: int) -> str:
    """unavailable: no target serves; degraded: one does not, or there are fewer than wanted; else healthy."""
    if chain.head() is None:
        return "unavailable"
    serving = chain.serving()
    return "healthy" if len(serving) == len(chain.targets) and len(serving) >= wanted else "degraded"


def node_id(routing: RoutingInfo, target: int) -> int:
    """The node that has a target; 0 where that is not known."""
    known = routing.targets.get(target)
    return known.node if known is not None else 0


def table_rows(routing: RoutingInfo, default: int) -> list[Row]:
    """All chain tables, by id. default: the id of that of new directories."""
    rows = []
    for _, table in sorted(routing.tables.items()):
        chains = [routing.chains[chain] for chain in table.chains if chain in routing.chains]
        serving = [[routing.targets[t] for t in chain.serving() if t in routing.targets] for chain in chains]
        rows.append(
            {
                "table": table.id,
                "version": table.version,
                "default": table.id == default,
                "replicas": table.replicas,
                "chains": len(table.chains),
                "degraded": sum(chain_state(chain, table.replicas) == "degraded" for chain in chains),
                "unavailable": sum(chain.head() is None for chain in chains),
                "capacity_bytes": sum(min(t.capacity for t in targets) for targets in serving if targets),
                "used_bytes": sum(max(t.used for t in targets) for targets in serving if targets),
            }
        )
    return rows


def client_rows(clients: Iterable[ClientInfo]) -> list[Row]:
    """Clients, by id. state: ended where its process is known to be gone."""
    return [
        {"client": client.client, "host": client.host, "state": _client_state(client)}
        for client in sorted(clients, key=lambda client: client.client)
    ]


def _client_state(client: ClientInfo) -> str:
    return "alive" if client.alive else "ended" if client.ended else "dead"


def percent(part: float, whole: float) -> float:
    return round(100 * part / whole, 1) if whole else 0.0


def counted(number: int, one: str, many: str = "") -> str:
    """1 chain, 2 chains."""
    return f"{number} {one if number == 1 else many or one + 's'}"


STATES = (*[state.name.lower() for state in PublicState], "unused", "retired")
"""Of targets, as lists show them."""
