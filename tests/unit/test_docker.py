"""docker/: every configuration file loads with its daemon's class, and the compose file and the units hang together."""

from __future__ import annotations

import configparser
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from fs3.cli.main import cli
from fs3.config import load, options
from fuse.daemon import MountConfig
from meta.daemon import MetaConfig
from mgmtd.daemon import MgmtdConfig
from storage.daemon import StorageConfig

DOCKER = Path(__file__).resolve().parents[2] / "docker"
CLASSES: dict[str, type[Any]] = {
    "fs3-mgmtd": MgmtdConfig,
    "fs3-meta": MetaConfig,
    "fs3-storage": StorageConfig,
    "fs3-mount": MountConfig,
}
COMPOSE = yaml.safe_load((DOCKER / "compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def daemons() -> dict[str, list[str]]:
    """The command lines of those services that run a daemon."""
    commands = {name: shlex.split(service.get("command", "")) for name, service in SERVICES.items()}
    return {name: words for name, words in commands.items() if words and words[0] in CLASSES}


def loaded(words: list[str]) -> Any:
    """The configuration that a command line of a service makes."""
    assert words[1] == "--config"
    path = DOCKER / "config" / Path(words[2]).relative_to("/etc/fs3")
    flags = dict(zip(words[3::2], words[4::2], strict=True))
    return load(CLASSES[words[0]], path, {flag.removeprefix("--").replace("-", "_"): text for flag, text in flags.items()})


def test_every_configuration_file_belongs_to_a_service() -> None:
    used = {Path(words[2]).name for words in daemons().values()}
    assert used == {path.name for path in (DOCKER / "config").glob("*.toml")}


def test_the_cluster_is_as_promised() -> None:
    kinds = [words[0] for words in daemons().values()]
    assert [kinds.count(kind) for kind in CLASSES] == [2, 2, 3, 1]
    assert SERVICES["foundationdb"]["image"].startswith("foundationdb/foundationdb:")


@pytest.mark.parametrize("name", sorted(daemons()))
def test_every_service_loads_its_configuration(name: str) -> None:
    words = daemons()[name]
    config = loaded(words)
    if "listen" in options(CLASSES[words[0]]):
        port = config.listen.rpartition(":")[2]
        assert config.advertise == f"tcp://{name}:{port}"
        assert SERVICES[name]["healthcheck"]["test"] == ["CMD", "fs3", "ping", f"tcp://127.0.0.1:{port}"]
    if hasattr(config, "mgmtd"):
        assert set(config.mgmtd) == {loaded(words).advertise for words in daemons().values() if words[0] == "fs3-mgmtd"}
    if getattr(config, "store", "").startswith("fdb:"):
        assert "/etc/fs3/fdb.cluster" in config.store


def test_no_two_daemons_share_an_id_or_a_volume() -> None:
    ids = [loaded(words).node_id for words in daemons().values() if words[0] != "fs3-mount"]
    assert len(ids) == len(set(ids))
    volumes = [SERVICES[name]["volumes"][1].split(":")[0] for name, words in daemons().items() if words[0] == "fs3-storage"]
    assert len(set(volumes)) == 3 and set(volumes) <= set(COMPOSE["volumes"])


def test_services_wait_only_for_services_that_exist_and_say_how_they_are() -> None:
    for name, service in SERVICES.items():
        for other, wait in service.get("depends_on", {}).items():
            assert other in SERVICES, f"{name} waits for {other}"
            if wait["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[other], f"{name} waits for the health of {other}"


def test_the_client_may_mount() -> None:
    client = SERVICES["client"]
    assert client["devices"] == ["/dev/fuse"] and client["cap_add"] == ["SYS_ADMIN"]
    assert client["healthcheck"]["test"][-1] == loaded(daemons()["client"]).mount


def test_the_cluster_file_names_the_server() -> None:
    contents = (DOCKER / "config" / "fdb.cluster").read_text().strip()
    assert contents == SERVICES["foundationdb"]["environment"]["FDB_CLUSTER_FILE_CONTENTS"]
    assert SERVICES["foundationdb"]["networks"]["default"]["ipv4_address"] in contents


def test_the_client_library_is_of_the_servers_version() -> None:
    text = (DOCKER / "Dockerfile").read_text()
    version = re.search(r"^ARG FDB_VERSION=(\S+)$", text, re.MULTILINE)
    assert version is not None
    images = {service["image"] for service in SERVICES.values() if "foundationdb" in service["image"]}
    assert images == {f"foundationdb/foundationdb:{version.group(1)}"}
    assert text.count("${FDB_VERSION}") == 3, "of the binding, and twice in the client library's address"


def test_commands_of_fs3_are_real() -> None:
    for service in SERVICES.values():
        test = service.get("healthcheck", {}).get("test", [])
        words = test[1:] if test[:2] == ["CMD", "fs3"] else shlex.split(service.get("command", ""))
        if words and words[0] == "fs3":
            assert words[1] in cli.commands
            flags = {option for parameter in cli.commands[words[1]].params for option in parameter.opts}
            assert {word for word in words if word.startswith("--")} <= flags


@pytest.mark.parametrize("path", sorted((DOCKER / "systemd").iterdir()), ids=lambda path: path.name)
def test_units_start_daemons_that_exist(path: Path) -> None:
    unit = configparser.ConfigParser(interpolation=None)
    unit.read(path)
    words = shlex.split(unit["Service"]["ExecStart"])
    assert Path(words[0]).name in CLASSES and words[1] == "--config"
    assert unit["Service"]["Type"] == "notify"
    assert unit["Service"]["RestartPreventExitStatus"] == "2"
