"""`fs3 admin config` on a cluster made of facts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.shell_completion import ShellComplete

from fs3.api import admin
from fs3.api.admin import ConfigUse, ConfigUseReply, ConfigVersion, SetConfigRequest, Setting
from fs3.cli.main import cli
from fs3.errors import ConfigError

from .support import Operator, routing

ONE = ConfigVersion("storage", 1, (Setting("log_level", "debug"),), 1_700_000_000_000, "ann@h", "a [look]")
TWO = ConfigVersion("storage", 2, (Setting("reserve_bytes", "1GiB"),), 1_700_000_060_000, "bob@h", "")
USES = ConfigUseReply(
    (
        ConfigUse(1, "mgmtd", 0, ""),
        ConfigUse(101, "storage", 2, "its own file or flags say reserve_bytes=0"),
        ConfigUse(102, "storage", -1, ""),
    )
)


def get(request: admin.GetConfigRequest) -> ConfigVersion:
    if request.kind != "storage":
        return ConfigVersion(request.kind, 0, ())
    return ONE if request.version == 1 else TWO


REPLIES: dict[Any, Any] = {admin.GET_CONFIG: get, admin.SET_CONFIG: TWO, admin.CONFIG_USE: USES}


@pytest.fixture
def store(operator: Operator) -> Operator:
    return operator.on(routing(), REPLIES)


def test_what_is_set_and_the_value_of_a_key(store: Operator) -> None:
    assert store.types("config get storage").output.splitlines()[1:] == ["  reserve_bytes = 1GiB"]
    assert "set " in (first := store.types("config get storage --version 1").output) and "by ann@h: a [look]" in first
    assert store.types("config get storage reserve_bytes").output == "1GiB\n"
    assert store.types("config get storage log_level").output == "info\n"
    assert store.types("config get meta").output == "meta: nothing was ever set\n"
    assert json.loads(store.types("config get storage --json").output)["settings"] == {"reserve_bytes": "1GiB"}


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("config get stroage", "no kind of daemon is called 'stroage', did you mean 'storage'?"),
        ("config get storage reserve", "unknown key 'reserve', did you mean 'reserve_bytes'?"),
        ("config get storage data", "'data' is not kept in mgmtd: disks are opened at the start; set it in the file"),
        ("config set storage log_level", "'log_level': expected KEY=VALUE, such as log_level=debug"),
        ("config unset cache x", "no kind of daemon is called 'cache'"),
    ],
)
def test_bad_input_is_one_line(store: Operator, words: str, error: str) -> None:
    done = store.types(words)
    assert isinstance(done.exception, ConfigError) and error in done.exception.message
    assert not any(isinstance(request, SetConfigRequest) for request in store.cluster.asked)


def test_set_shows_what_changed_and_who_uses_it(operator: Operator) -> None:
    operator.on(routing(), {**REPLIES, admin.GET_CONFIG: ONE})
    done = operator.types("config set storage reserve_bytes=1GiB --base 1 --wait 0", "--comment", "room")
    assert done.exit_code == 1, "node 102 does not use it yet"
    assert done.output.splitlines() == [
        "storage version 2:",
        "  log_level: debug -> info (default)",
        "  reserve_bytes: 256MiB (default) -> 1GiB",
        "1 of 2 living storage daemons use it.",
        "  node 101 h101: its own file or flags say reserve_bytes=0",
        "Not yet: node 102; see `fs3 admin config use storage`",
    ]
    (sent,) = [request for request in operator.cluster.asked if isinstance(request, SetConfigRequest)]
    assert (sent.settings, sent.base_version, sent.comment) == ((Setting("reserve_bytes", "1GiB"),), 1, "room")
    assert "@" in sent.by


def test_unset_waits_until_all_use_it(operator: Operator) -> None:
    answers = iter([USES, ConfigUseReply((ConfigUse(101, "storage", 2, ""), ConfigUse(102, "storage", 3, "")))])
    operator.on(routing(), {**REPLIES, admin.CONFIG_USE: lambda request: next(answers)})
    done = operator.types("config unset storage log_level --json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    assert found["all_use_it"] and found["changes"] == [] and found["version"] == 2
    assert [row["version"] for row in found["daemons"]] == [2, 3]


def test_versions_are_compared_with_each_other_and_the_defaults(store: Operator) -> None:
    found = json.loads(store.types("config diff storage --json").output)
    assert found["changes"] == [{"key": "reserve_bytes", "old": "256MiB (default)", "new": "1GiB"}]
    found = json.loads(store.types("config diff storage 1 2 --json").output)
    assert [row["key"] for row in found["changes"]] == ["log_level", "reserve_bytes"]
    assert "no difference" in store.types("config diff storage 1 1").output


def test_history_says_what_each_version_changed(operator: Operator) -> None:
    operator.on(routing(), {admin.CONFIG_HISTORY: admin.ConfigHistoryReply((TWO, ONE))})
    rows = json.loads(operator.types("config history storage --json").output)
    assert [row["version"] for row in rows] == [2, 1]
    assert rows[0]["changes"] == "log_level: debug -> info (default); reserve_bytes: 256MiB (default) -> 1GiB"
    assert rows[1]["changes"] == "log_level: info (default) -> debug" and rows[1]["comment"] == "a [look]"
    assert "a [look]" in operator.types("config history storage").output
    assert len(json.loads(operator.types("config history storage --limit 1 --json").output)) == 1


def test_all_keys_are_shown_with_where_they_come_from(store: Operator) -> None:
    found = json.loads(store.types("config show storage --json").output)
    by_key = {row["key"]: row for row in found["hot"]}
    assert by_key["reserve_bytes"] | {"help": ""} == {
        "key": "reserve_bytes",
        "value": "1GiB",
        "default": "256MiB",
        "source": "set",
        "help": "",
    }
    assert by_key["log_level"]["source"] == "default"
    text = store.types("config show storage").output
    assert "data files are opened with it" in text and "set it in the file of each fs3-storage" in text


def test_who_uses_what(store: Operator) -> None:
    done = store.types("config use --json")
    assert done.exit_code == 1
    rows = json.loads(done.output)
    assert [(row["node"], row["version"], row["latest"]) for row in rows] == [(1, 0, 0), (101, 2, 2), (102, None, 2)]
    assert store.types("config use mgmtd").exit_code == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("config set st", "storage"),
        ("config set storage scrub_r", "scrub_rate_bytes="),
        ("config get meta log", "log_level"),
    ],
)
def test_kinds_and_keys_are_completed(words: str, expected: str) -> None:
    *before, last = words.split()
    found = ShellComplete(cli, {}, "fs3", "_FS3_COMPLETE").get_completions(["admin", *before], last)
    assert [item.value for item in found] == [expected]
