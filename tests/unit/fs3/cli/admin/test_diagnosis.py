"""`fs3 admin doctor`: each state that needs somebody has its advice, which names commands that exist."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import pytest

from fs3.api import admin
from fs3.api.admin import ConfigUse, Operation, OperationState
from fs3.api.common import STATUS, StatusReply
from fs3.cli.admin.diagnosis import ERROR, KINDS, NOTE, WARNING, Advice, Facts, diagnose, no_mgmtd
from fs3.cli.main import cli
from fs3.ids import NodeKind
from fs3.routing import LocalState, PublicState, Target
from fs3.settings import OVERRIDDEN

from .support import GIB, LASTSRV, OFFLINE, SYNCING, Operator, node, routing


def status(version: str = "1.0", **metrics: float) -> StatusReply:
    return StatusReply("storage", 1, version, 5000, json.dumps({k.replace("__", "."): v for k, v in metrics.items()}))


def filling(compared: int) -> StatusReply:
    return status(storage__resync__1__bytes_total=100, storage__resync__1__bytes_compared=compared)


def operation(state: OperationState) -> Operation:
    return Operation(4, "drain", "drain node 7", state, 1, 0, 4, 2, (1, 0, 1, 0, 0))


def offline(numbers: set[int], used: int = GIB, chain: int | None = None):  # type: ignore[no-untyped-def]
    def change(target: Target) -> Target:
        return replace(target, local=LocalState.OFFLINE, used=used) if target.id in numbers else target

    return change


SYNC = routing([(10101, (10201, SYNCING)), (10202, 10301), (10302, 10102)])
METAS = [node(11, kind=NodeKind.META), node(12, kind=NodeKind.META)]
RACKS = [node(101, tags=("rack=a",)), node(102, tags=("rack=a",)), node(103, tags=("rack=b",))]

# kind: severity, facts, words of the advice
CASES: dict[str, tuple[str, Facts, str]] = {
    "mgmtd-silent": (WARNING, Facts(routing(), mgmtd={"tcp://a:1": True, "tcp://b:1": False}), "at tcp://b:1 does not"),
    "not-formatted": (ERROR, Facts(routing([]), formatted=False), "6 targets could make up chains"),
    "chain-unavailable": (
        ERROR,
        Facts(routing([((10101, LASTSRV), (10201, OFFLINE)), (10202, 10301)], nodes=[node(101, alive=False)])),
        "1 chain (1) is served by no target",
    ),
    "node-dead": (ERROR, Facts(routing([((10101, OFFLINE), 10201)], nodes=[node(101, alive=False)])), "storage node 101"),
    "disk-failed": (ERROR, Facts(routing(change=offline({10101, 10102, 10103, 10104}))), "`fs3 admin replace 101/0`"),
    "target-full": (WARNING, Facts(routing(change=offline({10101}, 4 * GIB))), "no room to fill 1 target (10101)"),
    "disk-full": (
        ERROR,
        Facts(routing(free=(), change=lambda t: replace(t, used=3 * GIB + 1015 * GIB // 1024) if t.node == 103 else t)),
        "disk 0 of node 103 is 100 % full",
    ),
    "chunks-lost": (ERROR, Facts(routing(), statuses={101: status(storage__lost_chunks=2)}), "node 101: 2 lost chunks"),
    "replicas-differ": (ERROR, Facts(routing(), statuses={101: status(storage__replicas_differ=1)}), "1 replicas differ"),
    "chunks-damaged": (NOTE, Facts(routing(), statuses={101: status(storage__damaged_chunks=3)}), "3 damaged chunks"),
    "replicas-on-one-node": (ERROR, Facts(routing([(10101, 10102), (10201, 10301)])), "(1) has more replicas on one node"),
    "replicas-in-one-rack": (WARNING, Facts(routing(nodes=RACKS)), "1 chain (1) has more replicas on one rack"),
    "meta-stores": (
        ERROR,
        Facts(routing(nodes=METAS), statuses={11: status(meta__store_embedded=1), 12: status()}),
        "nodes 11 have a store of their own",
    ),
    "daemon-silent": (WARNING, Facts(routing(), statuses={101: status(), 102: None}), "storage node 102 at tcp://h102:1"),
    "versions-mixed": (
        WARNING,
        Facts(routing(), statuses={101: status("1.0"), 102: status("1.1"), 103: status("1.0")}),
        "1.0: nodes 101, 103; 1.1: nodes 102",
    ),
    "target-syncing": (NOTE, Facts(SYNC, statuses={101: filling(50)}, earlier={101: filling(40)}), "being filled, 50.0 %"),
    "target-stalled": (WARNING, Facts(SYNC, statuses={101: filling(40)}, earlier={101: filling(40)}), "at 40.0 %"),
    "chain-fewer": (WARNING, Facts(routing([(10101,), (10202, 10301)])), "`fs3 admin set-replicas 1 2`"),
    "chain-more": (NOTE, Facts(routing([(10101, 10201), (10202, 10301)], replicas=1)), "`fs3 admin set-replicas 1 1`"),
    "operation-failed": (WARNING, Facts(routing(), operations=(operation(OperationState.FAILED),)), "operation retry 4"),
    "operation-paused": (WARNING, Facts(routing(), operations=(operation(OperationState.PAUSED),)), "operation resume 4"),
    "node-drained": (WARNING, Facts(routing(nodes=[node(101, drained=True)])), "targets in 2 chains"),
    "node-empty": (
        NOTE,
        Facts(routing([(10201, 10301)], free=(10101, 10202, 10302), nodes=[node(101, drained=True)])),
        "`fs3 admin node forget 101`",
    ),
    "target-retired": (
        NOTE,
        Facts(routing(change=lambda t: replace(t, retired=True) if t.id == 10103 else t)),
        "1 target of node 101 (10103)",
    ),
    "target-not-empty": (
        NOTE,
        Facts(routing(change=lambda t: replace(t, used=GIB) if t.id == 10103 else t)),
        "`fs3 admin target empty 10103`",
    ),
    "heads-uneven": (
        NOTE, Facts(routing([(10101, 10201), (10102, 10301), (10103, 10202), (10104, 10302)])), "node 101 leads 4"
    ),
    "config-not-used": (WARNING, Facts(routing(), uses=(ConfigUse(101, "storage", 2, "key 'x': unknown"),)), "'x'"),
    "no-room": (NOTE, Facts(routing(free=())), "2 targets in chains, could be drained: 0 are free"),
}  # fmt: skip


def test_a_healthy_cluster_needs_nothing() -> None:
    assert diagnose(Facts(routing(), mgmtd={"tcp://a:1": True}, statuses={101: status(), 102: status()})) == []


@pytest.mark.parametrize("kind", CASES)
def test_each_state_has_its_advice(kind: str) -> None:
    severity, facts, words = CASES[kind]
    found = [advice for advice in diagnose(facts) if advice.kind == kind]
    assert len(found) == 1, diagnose(facts)
    assert found[0].severity == severity
    assert words in f"{found[0].what} {found[0].why} {found[0].way_out}"


def test_every_kind_is_tried_and_documented() -> None:
    assert set(CASES) | {"no-primary"} == set(KINDS)
    text = (Path(__file__).resolve().parents[5] / "docs" / "operations.md").read_text()
    section = text[text.index("## States and ways out") :]
    assert [kind for kind in KINDS if f"**{kind}**" not in section] == []


def test_who_must_come_back_is_named() -> None:
    facts = Facts(routing([((10101, LASTSRV), (10201, OFFLINE))], nodes=[node(101, alive=False)]))
    advice = diagnose(facts)[0]
    assert "node 101 has what was written last" in advice.why
    assert advice.way_out.startswith("start its daemon; if that is gone for good, `fs3 admin chain give-up 1`")


def test_targets_that_all_wait_are_named() -> None:
    advice = diagnose(Facts(routing([((10101, PublicState.WAITING), (10201, OFFLINE))])))[0]
    assert advice.kind == "chain-unavailable"
    assert "its targets wait" in advice.why and advice.way_out.startswith("start the daemons of its targets")


def test_a_value_of_its_own_is_no_trouble() -> None:
    uses = (ConfigUse(101, "storage", 2, f"{OVERRIDDEN} log_level=debug"),)
    assert [advice.severity for advice in diagnose(Facts(routing(), uses=uses))] == [NOTE]


def test_the_worst_comes_first() -> None:
    order = [advice.severity for case in (CASES["node-dead"][1], CASES["chain-unavailable"][1]) for advice in diagnose(case)]
    assert order[0] == ERROR
    assert diagnose(Facts(routing(free=(), nodes=[node(12, kind=NodeKind.META, alive=False)])))[0].severity == WARNING


def advice_of_every_kind() -> Iterator[Advice]:
    for _, facts, _ in CASES.values():
        yield from diagnose(facts)
    yield no_mgmtd(["tcp://a:1", "tcp://b:1"])


def test_every_way_out_names_commands_that_exist() -> None:
    for advice in advice_of_every_kind():
        for command in re.findall(r"`fs3 ([^`]*)`", advice.way_out):
            assert_command(command.split(), advice)


def assert_command(words: list[str], where: object) -> None:
    """The words begin with the path of a command; its options exist too."""
    found: click.Command = cli
    while isinstance(found, click.Group):
        assert words and words[0] in found.commands, (words, where)
        found = found.commands[words[0]]
        words = words[1:]
    known = {option for parameter in found.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known, (words, where)


def test_the_command_and_its_exit_code(operator: Operator) -> None:
    statuses = {(number, STATUS): status() for number in (101, 102, 103, 11)}
    done = operator.on(routing(), statuses).types("doctor")
    assert (done.exit_code, done.output) == (0, "All is well.\n")
    failed = admin.ListOperationsReply((operation(OperationState.FAILED),))
    done = operator.on(routing(), {**statuses, admin.LIST_OPERATIONS: failed}).types("doctor")
    assert done.exit_code == 1
    assert "warning operation 4 (drain node 7) has failed [operation-failed]" in done.output
    assert "1 thing is to be done." in done.output
    found = json.loads(operator.types("doctor --json").output)
    assert [advice["kind"] for advice in found] == ["operation-failed"]
