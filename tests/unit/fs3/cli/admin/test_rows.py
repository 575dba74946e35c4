"""Lists of `fs3 admin`: facts in, rows out, without a cluster."""

from __future__ import annotations

from fs3.api.mgmtd import ClientInfo
from fs3.cli.admin.rows import chain_rows, client_rows, disk_rows, node_rows, table_rows, target_rows
from fs3.ids import NodeKind
from fs3.routing import Chain, ChainTarget, LocalState, Node, PublicState, RoutingInfo, Table, Target

GIB = 1 << 30


def node(number: int, *, alive: bool = True, drained: bool = False, kind: NodeKind = NodeKind.STORAGE) -> Node:
    return Node(number, kind, f"tcp://h{number}:1", f"h{number}", alive, 5, (f"rack=r{number % 2}",), drained)


def target(number: int, chain: int = 0, *, local: LocalState = LocalState.UPTODATE, retired: bool = False) -> Target:
    """Number 10102 is of node 101, disk 0."""
    return Target(number, number // 100, number % 100 // 50, chain, local, 4 * GIB, GIB if chain else 0, retired)


def chain(number: int, **states: PublicState) -> Chain:
    return Chain(number, 3, tuple(ChainTarget(int(key.removeprefix("t")), state) for key, state in states.items()))


SERVING, OFFLINE, LASTSRV = PublicState.SERVING, PublicState.OFFLINE, PublicState.LASTSRV

ROUTING = RoutingInfo(
    9,
    "c0ffee",
    {
        1: chain(1, t10101=SERVING, t10201=SERVING),
        2: chain(2, t10202=SERVING, t10301=OFFLINE),
        3: chain(3, t10302=LASTSRV),
    },
    {1: Table(1, 1, (1, 2), 2), 2: Table(2, 1, (3,), 1)},
    {
        t.id: t
        for t in (
            target(10101, 1),
            target(10150),
            target(10151, retired=True),
            target(10201, 1),
            target(10202, 2),
            target(10250, local=LocalState.OFFLINE),
            target(10301, 2, local=LocalState.OFFLINE),
            target(10302, 3, local=LocalState.OFFLINE),
        )
    },
    {n.id: n for n in (node(101), node(102, drained=True), node(103, alive=False), node(1 << 20, kind=NodeKind.CLIENT))},
)


def test_nodes() -> None:
    rows = {row["node"]: row for row in node_rows(ROUTING)}
    assert list(rows) == [101, 102, 103], "clients are listed apart"
    assert rows[101]["free"] == 1 and rows[101]["retired"] == 1 and rows[101]["in_chains"] == 1 and rows[101]["disks"] == 2
    assert rows[102]["drained"] and rows[102]["free"] == 0
    assert rows[103]["state"] == "dead" and rows[103]["used_bytes"] == 2 * GIB
    assert rows[101]["tags"] == ["rack=r1"]


def test_targets() -> None:
    states = {row["target"]: row["state"] for row in target_rows(ROUTING)}
    assert states == {
        10101: "serving",
        10150: "unused",
        10151: "retired",
        10201: "serving",
        10202: "serving",
        10250: "offline",
        10301: "offline",
        10302: "lastsrv",
    }


def test_disks() -> None:
    states = {(row["node"], row["disk"]): row["state"] for row in disk_rows(ROUTING)}
    assert states == {(101, 0): "alive", (101, 1): "alive", (102, 0): "alive", (102, 1): "failed", (103, 0): "dead"}


def test_chains_and_tables() -> None:
    rows = {row["chain"]: row for row in chain_rows(ROUTING)}
    assert {number: row["state"] for number, row in rows.items()} == {1: "healthy", 2: "degraded", 3: "unavailable"}
    assert rows[2]["replicas"] == 1 and rows[2]["wanted"] == 2 and rows[2]["tables"] == [1]
    assert rows[2]["targets"][1] == {"target": 10301, "node": 103, "state": "offline"}
    tables = table_rows(ROUTING, 1)
    assert [table["default"] for table in tables] == [True, False]
    assert (tables[0]["degraded"], tables[1]["unavailable"]) == (1, 1)
    assert tables[0]["used_bytes"] == 2 * GIB and tables[0]["capacity_bytes"] == 8 * GIB


def test_clients() -> None:
    clients = [ClientInfo(3, "b", False, True), ClientInfo(1, "a", True), ClientInfo(2, "b", False)]
    assert [(row["client"], row["state"]) for row in client_rows(clients)] == [(1, "alive"), (2, "dead"), (3, "ended")]
