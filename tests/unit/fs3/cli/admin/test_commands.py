"""Commands of `fs3 admin` on a cluster made of facts: what they show, submit and refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from fs3.api import admin
from fs3.api.admin import Move, MoveState, MoveStatus, Operation, OperationState
from fs3.api.common import Empty
from fs3.cli.main import cli
from fs3.errors import Code, FS3Error

from .support import GIB, LASTSRV, OFFLINE, SYNCING, Operator, node, routing


def operation(state: OperationState = OperationState.DONE, moves: int = 2) -> Operation:
    return Operation(7, "drain", "drain node 101", state, 1_700_000_000_000, 0, 4, moves, (0, 0, moves, 0, 0))


def test_a_plan_is_shown_and_nothing_is_done(operator: Operator) -> None:
    done = operator.on(routing()).types("drain 101")
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[0] == "drain node 101: 2 moves"
    assert "10101@101/0" in done.output and "2.0 GiB to copy" in done.output and "at least" in done.output
    assert lines[-1] == "Nothing was changed. The same command with --yes carries it out."
    assert not [request for request in operator.cluster.asked if isinstance(request, admin.SubmitRequest)]


def test_a_plan_as_json(operator: Operator) -> None:
    plan = json.loads(operator.on(routing()).types("drain h101 --json").output)["plan"]
    assert plan["kind"] == "drain" and plan["drain"] == [101] and plan["copied_bytes"] == 2 * GIB
    assert {move["drop"] for move in plan["moves"]} == {10101, 10102}
    assert plan["estimate_s"] == 8, "2 GiB, two targets at a time, 128 MiB/s each"


def test_yes_submits_and_watches(operator: Operator) -> None:
    def moves(request: admin.GetMovesRequest) -> admin.GetMovesReply:
        statuses = tuple(MoveStatus(i, Move(i + 1, 0, 0), MoveState.DONE) for i in range(2))
        return admin.GetMovesReply(operation(), statuses, False)

    replies = {admin.SUBMIT: admin.OperationReply(operation(OperationState.RUNNING)), admin.GET_MOVES: moves}
    done = operator.on(routing(), replies).types("drain 101 --yes --at-once 1")
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[-1] == "Operation 7 (drain node 101) is done."
    assert "operation 7 done: 2 of 2 moves" in done.output
    sent = next(request for request in operator.cluster.asked if isinstance(request, admin.SubmitRequest))
    assert sent.token and sent.at_once == 1 and sent.drain == (101,) and len(sent.moves) == 2
    done = operator.types("drain 101 --yes --detach --json")
    assert json.loads(done.output)["operation"]["state"] == "running"
    done = operator.types("drain 101 --yes --detach")
    assert "`fs3 admin operation watch 7` shows it" in done.output


def test_an_operation_that_failed_says_what_next(operator: Operator) -> None:
    failed = MoveStatus(0, Move(1, 10103, 10101), MoveState.FAILED, "disk full")
    reply = admin.GetMovesReply(operation(OperationState.FAILED, 1), (failed,), False)
    done = operator.on(routing(), {admin.GET_MOVES: reply}).types("operation watch 7")
    assert done.exit_code == 1
    assert "chain 1, 10101@101/0 -> 10103@101/0: failed: disk full" in done.output
    assert "`fs3 admin operation retry 7`" in done.output
    shown = operator.types("operation show 7").output
    assert "disk full" in shown and "10103@101/0" in shown
    assert json.loads(operator.types("operation show 7 --json --state done").output)["move_list"] == []


def test_operations_are_listed_and_controlled(operator: Operator) -> None:
    replies = {
        admin.LIST_OPERATIONS: admin.ListOperationsReply((operation(),)),
        admin.GET_MOVES: admin.GetMovesReply(operation(OperationState.RUNNING), (), False),
        admin.CONTROL: admin.OperationReply(operation(OperationState.PAUSED)),
    }
    operator.on(routing(), replies)
    assert json.loads(operator.types("operation list --json").output)[0]["title"] == "drain node 101"
    assert "is paused, 4 moves at once; 2 of 2 moves done." in operator.types("operation pause 7").output
    assert operator.cluster.asked[-1] == admin.ControlRequest(7, admin.Control.PAUSE)
    assert "--yes carries it out" in operator.types("operation cancel 7").output
    assert operator.types("operation cancel 7 --yes").exit_code == 0
    assert operator.cluster.asked[-1] == admin.ControlRequest(7, admin.Control.CANCEL)
    operator.types("operation limit 7 --at-once 9")
    assert operator.cluster.asked[-1] == admin.ControlRequest(7, 0, 9)


def test_giving_up_shows_what_is_left_and_wants_the_words(operator: Operator) -> None:
    info = routing([((10101, LASTSRV), (10201, SYNCING)), (10202, 10301)], nodes=[node(101, alive=False)])
    operator.on(info, {admin.TARGET_ACTION: Empty()})
    shown = operator.types("chain give-up 1")
    assert shown.exit_code == 0, shown.output
    assert "fs3 admin chain give-up 1 --target 10201 --accept 'lose what chain 1 wrote last'" in shown.output
    words = "lose what chain 1 wrote last"
    done = operator.types("chain give-up 1 --target 10201 --accept", words)
    assert done.exit_code == 0, done.output
    assert operator.cluster.asked[-1] == admin.TargetActionRequest(10201, admin.TargetAction.GIVE_UP, 3)


def test_a_chain_of_which_nothing_is_left_can_begin_anew(operator: Operator) -> None:
    dead = [node(101, alive=False), node(102, alive=False)]
    info = routing([((10101, LASTSRV), (10201, OFFLINE)), (10302, 10401)], nodes=dead, free=[10103, 10303])
    operator.on(info, {admin.TARGET_ACTION: Empty()})
    shown = operator.types("chain give-up 1").output
    assert "a free one can begin the chain anew, EMPTY" in shown
    assert "fs3 admin chain give-up 1 --target 10303 --accept 'lose all of chain 1'" in shown
    assert "--target 10103" not in shown, "it is on a dead node"
    refused = operator.types("chain give-up 1 --target 10201 --accept x").exception
    assert isinstance(refused, FS3Error) and "is not one that is free, to begin chain 1 anew: 10303" in refused.message
    assert operator.types("chain give-up 1 --target 10303 --accept", "lose all of chain 1").exit_code == 0
    assert operator.cluster.asked[-1] == admin.TargetActionRequest(10303, admin.TargetAction.GIVE_UP, 3, 1)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("drain 17", "node 17: there is no such node; `fs3 admin node list` shows 11, 101-103"),
        ("drain 11", "node 11 is a meta daemon and holds no chunks; storage nodes are 101-103"),
        ("drain 101 102 103", "101"),
        ("replace 101", "'101': expected NODE/DISK, such as 101/0"),
        ("replace 101/7", "node 101 has no disk 7: it has disks 0"),
        ("operation show 9", "operation 9: there is none; `fs3 admin operation list`"),
        ("operation pause 9", "operation 9: there is none; `fs3 admin operation list`"),
        ("node show 17", "there is no such node"),
        ("node forget 101", "node 101 is alive; stop its daemon first"),
        ("target show 5", "target 5: there is no such target"),
        ("target forget 10101", "target 10101 is in chain 1: `fs3 admin replace 101/0` moves it away"),
        ("target empty 10101", "target 10101 is in chain 1: `fs3 admin replace 101/0` moves it away"),
        ("target resync 10103", "target 10103 is in no chain: there is nothing to fill it from"),
        ("chain show 9", "chain 9: there is no such chain; `fs3 admin chain list` shows 1-3"),
        ("chain give-up 1", "chain 1 is served by target 10101, 10201: there is nothing to give up"),
        ("table show 4", "table 4: there is no such table; `fs3 admin table list` shows 1"),
        ("table remove 1", "table 1 is the default one"),
        ("table grow 4 --file FILE", "table 4: there is no such table"),
        ("table create", "give either --auto, or --file with a chain file"),
        ("table create --auto", "--auto needs --replicas"),
        ("table create --auto --replicas 4", "4 replicas need targets on 4 different storage nodes"),
        ("table create --file ABSENT", "cannot be read: No such file or directory"),
    ],
)
def test_bad_input_is_refused_with_the_way_to_what_was_meant(
    operator: Operator, tmp_path: Path, command: str, words: str
) -> None:
    path = tmp_path / "chains.toml"
    path.write_text("chains = [[10103, 10203]]\n")
    missing = {admin.GET_MOVES: FS3Error(Code.NOT_FOUND, "none"), admin.CONTROL: FS3Error(Code.NOT_FOUND, "none")}
    command = command.replace("FILE", str(path)).replace("ABSENT", str(tmp_path / "absent"))
    done = operator.on(routing(), missing).types(command)
    assert isinstance(done.exception, FS3Error), done.output
    assert words in done.exception.message


@pytest.mark.parametrize(
    ("chains", "words"),
    [
        ("[[10103, 10999]]", "chain 1: there is no target 10999 in this cluster; `fs3 admin target list`"),
        ("[[10103, 10104]]", "on the same node 101; each replica needs a node of its own"),
        ("[[10103, 10201]]", "target 10201 is in chain 1 already"),
        ("[[10103, 10203], [10204, 10203]]", "target 10203 is in chain 1 already"),
        ("[[10103]]", "chains of 1 targets, but table 1 has 2 replicas"),
        ("[10103]", "expected a list of target ids"),
        ("[", "not a chain file"),
    ],
)
def test_a_bad_chain_file_changes_nothing(operator: Operator, tmp_path: Path, chains: str, words: str) -> None:
    path = tmp_path / "chains.toml"
    path.write_text(f"chains = {chains}\n")
    done = operator.on(routing()).types(f"table grow 1 --yes --file {path}")
    assert isinstance(done.exception, FS3Error) and done.exception.code is Code.CONFIG
    assert done.exception.message.startswith(f"{path}: ") and words in done.exception.message
    assert not [request for request in operator.cluster.asked if isinstance(request, admin.CreateTableRequest)]


def test_a_chain_file_becomes_a_table(operator: Operator, tmp_path: Path) -> None:
    path = tmp_path / "chains.toml"
    path.write_text("chains = [[10103, 10203], [10304, 10104]]\n")
    operator.on(routing(), {admin.CREATE_TABLE: admin.CreateTableReply(2, 1)})
    assert "Make a chain table of 2 chains of 2 targets each." in operator.types(f"table create --file {path}").output
    assert "Table 2 is there, version 1" in operator.types(f"table create --yes --file {path}").output
    assert operator.cluster.asked[-1].chains == ((10103, 10203), (10304, 10104))


def test_free_targets_become_chains(operator: Operator) -> None:
    operator.on(routing(), {admin.CREATE_TABLE: admin.CreateTableReply(1, 2)})
    found = json.loads(operator.types("table grow 1 --auto --yes --json").output)
    assert (found["table"], found["version"], len(found["chains"])) == (1, 2, 3)
    assert sorted(target for chain in found["chains"] for target in chain) == [10103, 10104, 10203, 10204, 10303, 10304]


def test_a_list_is_shown_again_until_ctrl_c(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([None, None])

    async def sleep(seconds: float) -> None:
        if next(times, KeyboardInterrupt) is not None:
            raise KeyboardInterrupt

    monkeypatch.setattr(trio, "sleep", sleep)
    done = operator.on(routing()).types("chain list --watch 5 --json")
    assert done.exit_code == 0, done.output
    shown = [json.loads(line) for line in done.output.splitlines()]
    assert len(shown) == 3 and [row["chain"] for row in shown[0]] == [1, 2, 3]


LISTS = ("node", "disk", "target", "chain", "table", "client", "operation")


@pytest.mark.parametrize("name", LISTS)
def test_lists_have_no_colours_in_pipes_and_stable_keys(operator: Operator, name: str) -> None:
    text = (
        operator.on(routing(), {admin.LIST_OPERATIONS: admin.ListOperationsReply((operation(),))})
        .types(f"{name} list")
        .output
    )
    assert "\x1b" not in text and name in text.splitlines()[0]
    rows = json.loads(operator.types(f"{name} list --json").output)
    assert rows and name in rows[0]


def test_one_of_them_in_detail(operator: Operator) -> None:
    operator.on(routing())
    assert "10103" in operator.types("node show 101").output
    assert json.loads(operator.types("chain show 2 --json").output)["target_list"][0]["target"] == 10202
    assert "serving" in operator.types("target show 10101").output
    assert json.loads(operator.types("table show 1 --json").output)["chain_list"][2]["chain"] == 3


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str) -> None:
    done = CliRunner().invoke(cli, ["completion", shell])
    assert done.exit_code == 0 and "_FS3_COMPLETE" in done.output


def test_ids_are_completed(operator: Operator) -> None:
    operator.on(routing()).types("doctor")
    completion = ShellComplete(cli, {}, "fs3", "_FS3_COMPLETE")
    given = ["admin", "--mgmtd", "tcp://m:1"]
    assert [item.value for item in completion.get_completions([*given, "drain"], "10")] == ["101", "102", "103"]
    assert [item.value for item in completion.get_completions([*given, "chain", "show"], "")] == ["1", "2", "3"]
    assert "drain" in [item.value for item in completion.get_completions(["admin"], "dr")]
    assert completion.get_completions(["admin", "--mgmtd", "nonsense", "drain"], "1") == []


def test_words_of_mgmtd_are_passed_on(operator: Operator) -> None:
    dead = routing([(10201, 10301)], nodes=[node(101, alive=False)], free=(10101,))
    refusal = FS3Error(Code.BAD_PLAN, "operation 3 concerns it")
    done = operator.on(dead, {admin.NODE_ACTION: refusal}).types("node forget 101 --yes")
    assert done.exception is refusal
    done = operator.on(dead, {admin.NODE_ACTION: Empty()}).types("node forget 101 --yes --json")
    assert json.loads(done.output) == {"node": 101, "host": "h101", "targets": [10101], "changed": True}
