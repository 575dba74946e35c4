"""The data folder of `fs3 up`: made once, found again, held by one."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from fs3.cli.folder import (
    ClusterConfig,
    Daemon,
    DataFolder,
    check_ports,
    daemon_settings,
    free_ports,
    port_free,
)
from fs3.errors import Code, ConfigError, FS3Error


@pytest.fixture
def made(tmp_path: Path) -> DataFolder:
    folder = DataFolder(tmp_path / "data")
    folder.create(ClusterConfig(storages=2, replicas=2, chunk_size=1 << 16), lease_ms=3000)
    return folder


def test_what_is_made_is_found_again(made: DataFolder) -> None:
    assert made.exists()
    assert made.cluster() == ClusterConfig(2, 2, 1 << 16)
    assert [daemon.name for daemon in made.daemons()] == ["mgmtd", "storage-1", "storage-2", "meta"]
    assert made.mgmtd() == (made.daemons()[0].address,)
    assert len({daemon.address for daemon in made.daemons()}) == 4


def test_no_two_daemons_share_an_id_a_port_or_a_folder() -> None:
    settings = daemon_settings(Path("/d"), ClusterConfig(), 3000, [1, 2, 3, 4, 5])
    daemons = [values for name, values in settings.items() if name != "mount"]
    for key in ("node_id", "listen", "data"):
        assert len({str(values[key]) for values in daemons}) == 5, key


def test_an_absent_or_empty_folder_is_new(tmp_path: Path) -> None:
    assert not DataFolder(tmp_path / "absent").exists()
    assert not DataFolder(tmp_path).exists()
    (tmp_path / "run").mkdir()
    assert not DataFolder(tmp_path).exists(), "left by a start that did not get far"


def test_a_folder_of_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(ConfigError, match=r"expected fs3 data or an empty folder, it holds 'thesis.txt'"):
        DataFolder(tmp_path).exists()


def test_data_of_a_newer_version_is_refused(made: DataFolder) -> None:
    made.format_file.write_text("2\n")
    with pytest.raises(FS3Error, match="data of format 2, this program knows up to 1") as caught:
        made.exists()
    assert caught.value.code is Code.FORMAT_VERSION
    made.format_file.write_text("new\n")
    with pytest.raises(ConfigError, match="expected a format version"):
        made.exists()


@pytest.mark.parametrize(
    ("values", "words"),
    [((3, 4, 1 << 20), "4 replicas need at least 4 storage daemons, there are 3"), ((1, 1, 3 << 19), "power of two")],
)
def test_settings_that_cannot_be(values: tuple[int, int, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ClusterConfig(*values)


def test_only_one_holds_the_folder(made: DataFolder) -> None:
    assert made.running_pid() is None
    with made.locked():
        assert made.running_pid() == os.getpid()
        with pytest.raises(FS3Error, match=f"runs here already \\(pid {os.getpid()}\\)"), made.locked():
            pass
    assert made.running_pid() is None
    with made.locked():
        pass


def test_a_taken_port_is_named(made: DataFolder) -> None:
    check_ports(made.daemons())
    daemon = made.daemons()[1]
    port = int(daemon.address.rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)):
        assert not port_free("127.0.0.1", port)
        with pytest.raises(ConfigError, match=f"storage-1.toml: key 'listen': port {port} on 127.0.0.1 is taken"):
            check_ports(made.daemons())


def test_an_address_that_is_none(made: DataFolder) -> None:
    with pytest.raises(ConfigError, match=r"x.toml: key 'listen': expected an address"):
        check_ports([Daemon("x", "meta", Path("x.toml"), Path("x.log"), "localhost")])


def test_free_ports_are_free_and_different() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    assert all(port_free("127.0.0.1", port) for port in ports)


def test_state_is_kept_whole(made: DataFolder) -> None:
    assert made.state() is None
    made.write_state({"pid": 5})
    assert made.state() == {"pid": 5}
    made.state_file.write_text(json.dumps({"pid": 5})[:-2])
    assert made.state() is None


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ConfigError, match=f"{file}: expected a folder"):
        DataFolder(file / "data").check_writable()
