from __future__ import annotations

import json
from pathlib import Path

import pytest

from fs3.api import admin
from fs3.errors import FS3Error
from fs3.placement.chain_file import parse

from .support import Operator, node, routing


def test_a_cluster_that_need_not_exist(operator: Operator) -> None:
    result = operator.types("placement --nodes 10 --disks 4 --targets-per-disk 3 --racks 5 --replicas 3 --json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert (found["nodes"], found["racks"], found["replicas"], found["chains_made"]) == (10, 5, 3, 40)
    shared = found["shared"]
    assert (shared["least"], shared["most"]) == (shared["bound_least"], shared["bound_most"]) == (3, 3)
    assert found["unused_targets"] == 0
    assert max(len({(target // 10_000 - 1) // 2 for target in chain}) for chain in found["chains"]) == 3
    assert (
        json.loads(operator.types("placement --nodes 10 --disks 4 --targets-per-disk 3 --racks 5 --json").output)["chains"]
        == found["chains"]
    )


def test_what_is_said_of_a_design(operator: Operator) -> None:
    out = operator.types("placement --nodes 6 --racks 2 --time-limit 0").output
    assert "8 chains of 3 replicas on 6 nodes in 2 racks" in out
    assert "Note: 2 racks are too few for 3 replicas: up to 2 of a chain are in one rack." in out
    out = operator.types("placement --nodes 5").output
    assert "the solver has shown that there is no better one" in out
    assert "2 targets left over" in out
    out = operator.types("placement --nodes 5 --time-limit 0").output
    assert "may be out of reach: the solver was not asked (--time-limit)" in out


@pytest.mark.parametrize("name", ["chains.toml", "chains.json"])
def test_the_file_makes_a_table(operator: Operator, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    result = operator.types("placement --replicas 2 --output", str(path))
    assert result.exit_code == 0, result.output
    made = parse(path.read_text())
    assert (made.replicas, len(made.chains)) == (2, 3), "of six free targets"
    assert operator.types("table create --file", str(path), "--json").exit_code == 0
    assert operator.types("placement --nodes 3 --output", str(tmp_path / "none" / name)).exit_code == 1


def test_a_table_is_made_where_it_is_wanted(operator: Operator) -> None:
    operator.on(routing(), {admin.CREATE_TABLE: admin.CreateTableReply(1, 2)})
    assert operator.types("placement --table 1 --create --json").exit_code == 0
    assert not [asked for asked in operator.cluster.asked if isinstance(asked, admin.CreateTableRequest)], "--yes is missing"
    result = operator.types("placement --table 1 --create --yes")
    assert "Table 1 is there, version 2" in result.output
    (request,) = [asked for asked in operator.cluster.asked if isinstance(asked, admin.CreateTableRequest)]
    assert (request.table, request.replicas, len(request.chains)) == (1, 2, 3)
    assert all(len({target // 100 for target in chain}) == 2 for chain in request.chains)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--racks 2", "--racks goes with --nodes"),
        ("--nodes 3 --racks 4", "4 racks for 3 nodes: expected at most 3"),
        ("--nodes 3 --create", "--nodes designs for a cluster that need not exist"),
        ("--nodes 2", "3 replicas need targets on 3 different storage nodes"),
        ("--table 9", "table 9: there is no such table"),
        ("--table 1 --replicas 3", "table 1 has 2 replicas: `fs3 admin set-replicas`"),
        ("--replicas 4", "4 replicas need targets on 4 different storage nodes; 3 (ids 101, 102, 103) have free ones"),
    ],
)
def test_what_cannot_be_designed(operator: Operator, words: str, message: str) -> None:
    refused = operator.types(f"placement {words}").exception
    assert isinstance(refused, FS3Error)
    assert message in refused.message


def test_nodes_that_are_to_get_nothing_get_nothing(operator: Operator) -> None:
    operator.on(routing(nodes=[node(101, drained=True)]))
    found = json.loads(operator.types("placement --replicas 2 --json").output)
    assert {target // 100 for chain in found["chains"] for target in chain} == {102, 103}
