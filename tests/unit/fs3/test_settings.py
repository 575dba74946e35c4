from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fs3 import config, settings
from fs3.errors import ConfigError
from fs3.ids import NodeKind
from fs3.settings import KINDS, StorageSettings, checked, differences, in_words, kind_of, merged
from fuse.daemon import MountConfig
from meta.daemon import MetaConfig
from mgmtd.daemon import MgmtdConfig
from storage.daemon import StorageConfig

STORAGE = KINDS["storage"]


@pytest.mark.parametrize(
    ("kind", "cls"), [("mgmtd", MgmtdConfig), ("meta", MetaConfig), ("storage", StorageConfig), ("client", MountConfig)]
)
def test_each_key_of_a_daemon_is_hot_or_cold_with_a_reason(kind: str, cls: type[Any]) -> None:
    hot, cold = KINDS[kind].options(), KINDS[kind].cold
    assert issubclass(cls, KINDS[kind].hot)
    assert not hot.keys() & cold.keys() and hot.keys() | cold.keys() == config.options(cls).keys()
    assert all(cold.values()) and all(entry.help and not entry.required for entry in hot.values())


def test_each_kind_of_node_has_a_name_here() -> None:
    assert [settings.name_of(kind) for kind in NodeKind] == list(KINDS)


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("scrub_rate", "1MiB", "storage: unknown key 'scrub_rate', did you mean 'scrub_rate_bytes'?"),
        ("scrub_rate_bytes", "fast", """storage: key 'scrub_rate_bytes': expected a size such as 65536 or "64KiB", """),
        ("scrub_rate_bytes", "-1", "found '-1'"),
        ("full_retry_ms", "1ms", "at least 100ms"),
        ("log_level", "loud", "expected one of debug, info, warning, error, found 'loud'"),
        ("data", "/x", "storage: 'data' cannot be changed while running: disks are opened at the start; set it in the file"),
        ("nonsense_at_all", "1", "known keys are: reserve_bytes, resync_rate_bytes"),
    ],
)
def test_what_cannot_be_set_is_refused_with_the_reason(key: str, value: str, error: str) -> None:
    with pytest.raises(ConfigError) as caught:
        checked(STORAGE, key, value)
    assert error in caught.value.message and "\n" not in caught.value.message


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(ConfigError, match="no kind of daemon is called 'mount', known keys are: mgmtd, meta") as caught:
        kind_of("mount")
    assert "client" in caught.value.message


def test_values_are_kept_in_one_way_of_writing() -> None:
    assert checked(STORAGE, "scrub_rate_bytes", "65536") == checked(STORAGE, "scrub_rate_bytes", "64 kib") == "64KiB"
    assert checked(STORAGE, "scrub_period_ms", "7200s") == "2h"


def test_own_settings_win_over_central_ones_and_these_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "storage.toml"
    file.write_text('node_id = 7\nmgmtd = ["mem://1"]\nscrub_rate_bytes = "1MiB"\n')
    own = config.load(StorageConfig, file, {"full_retry_ms": "20s"})
    central = {"scrub_rate_bytes": "2MiB", "full_retry_ms": "30s", "reserve_bytes": "1GiB"}
    used, problems = merged(STORAGE, own, central)
    assert used == StorageSettings(scrub_rate_bytes=1 << 20, full_retry_ms=20_000, reserve_bytes=1 << 30)
    assert problems == ["its own file or flags say scrub_rate_bytes=1MiB, full_retry_ms=20s"]
    assert merged(STORAGE, own, {"full_retry_ms": "20s"}) == (merged(STORAGE, own, {})[0], [])  # it says the same


def test_what_a_daemon_of_another_release_cannot_use_is_told_and_the_rest_used() -> None:
    used, problems = merged(STORAGE, StorageSettings(), {"new_key": "1", "log_level": "loud", "reserve_bytes": "1MiB"})
    assert used == StorageSettings(reserve_bytes=1 << 20)
    assert [problem.split(",")[0] for problem in problems] == [
        "storage: unknown key 'new_key'",
        "mgmtd: key 'log_level': expected one of debug",
    ]


def test_what_differs_is_said_as_one_writes_it() -> None:
    one, two = StorageSettings(), StorageSettings(log_level="debug", reserve_bytes=4096)
    assert differences(one, one) == [] and differences(one, two) == ["reserve_bytes", "log_level"]
    assert in_words(two, differences(one, two)) == "reserve_bytes=4KiB, log_level=debug"


def test_given_keys_of_a_config_that_was_not_loaded_are_those_without_default_values() -> None:
    assert config.given(StorageSettings(full_retry_ms=20_000, reserve_bytes=0)) == {"reserve_bytes"}
