"""fs3:// through fsspec, on a real cluster: fsspec's own tests, and what they leave out."""

from __future__ import annotations

import csv
import os
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.tests.abstract import (
    AbstractCopyTests,
    AbstractFixtures,
    AbstractGetTests,
    AbstractOpenTests,
    AbstractPipeTests,
    AbstractPutTests,
)

from fs3.integrations import cluster
from fs3.integrations.fsspec import FS3FileSystem
from tests.process import harness

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def mgmtd(shared_cluster: harness.Cluster) -> str:
    return ",".join(shared_cluster.mgmtd())


@pytest.fixture(scope="module")
def remote(mgmtd: str) -> Iterator[FS3FileSystem]:
    found = fsspec.filesystem("fs3", mgmtd=mgmtd)
    assert isinstance(found, FS3FileSystem)
    yield found
    found.client.close()  # before the cluster ends
    FS3FileSystem.clear_instance_cache()


class Fixtures(AbstractFixtures):  # type: ignore[misc]
    @pytest.fixture(scope="class")
    @classmethod
    def local_fs(cls) -> LocalFileSystem:
        return LocalFileSystem(auto_mkdir=True)

    @pytest.fixture
    def fs(self, remote: FS3FileSystem, mgmtd: str) -> Any:
        return fsspec.filesystem("fs3", mgmtd=mgmtd, auto_mkdir=True)

    @pytest.fixture(scope="class")
    @classmethod
    def home(cls, remote: FS3FileSystem) -> Iterator[str]:
        remote.mkdir(f"/{cls.__name__}")
        yield f"/{cls.__name__}"
        remote.rm(f"/{cls.__name__}", recursive=True)

    @pytest.fixture
    def fs_path(self, home: str) -> str:
        return home


class TestCopy(Fixtures, AbstractCopyTests):  # type: ignore[misc]
    pass


class TestGet(Fixtures, AbstractGetTests):  # type: ignore[misc]
    pass


class TestPut(Fixtures, AbstractPutTests):  # type: ignore[misc]
    pass


class TestOpen(Fixtures, AbstractOpenTests):  # type: ignore[misc]
    pass


class TestPipe(Fixtures, AbstractPipeTests):  # type: ignore[misc]
    pass


@pytest.fixture
def home(remote: FS3FileSystem, request: pytest.FixtureRequest) -> Iterator[str]:
    name = f"/{request.node.name}"
    remote.mkdir(name)
    yield name
    remote.rm(name, recursive=True)
    assert not remote.exists(name)


def test_files_in_all_modes(remote: FS3FileSystem, home: str) -> None:
    name = f"{home}/a/file"
    with pytest.raises(FileNotFoundError):
        remote.open(name, "wb")
    remote.makedirs(f"{home}/a")
    data = os.urandom(3_000_000)
    with remote.open(name, "wb", block_size=4096) as file:
        for at in range(0, len(data), 100_000):
            file.write(data[at : at + 100_000])
    with remote.open(name) as file:
        assert file.size == len(data) and file.read() == data and file.read() == b""
        assert file.seek(-10, 2) == len(data) - 10 and file.read() == data[-10:]
        assert file.seek(1_048_570) and file.read(20) == data[1_048_570:1_048_590]
        into = bytearray(100)
        assert file.seek(77) == 77 and file.readinto(into) == 100 and into == data[77:177]
        assert file.full_name.endswith(name) and file.full_name.startswith("fs3://127.0.0.1:")
    with remote.open(name, cache_type="readahead", block_size=1000) as file:
        assert file.read(10) == data[:10] and file.seek(2_999_990) and file.read() == data[-10:]
    with remote.open(name, "ab") as file:
        file.write(b"tail")
    with remote.open(name, "r+b") as file:
        file.write(b"HEAD")
        file.seek(1000)
        assert file.read(5) == data[1000:1005]
    assert remote.head(name, 4) == b"HEAD" and remote.tail(name, 4) == b"tail" and remote.size(name) == len(data) + 4
    with pytest.raises(FileExistsError):
        remote.open(name, "xb")
    with pytest.raises(IsADirectoryError):
        remote.open(home, "rb")
    with remote.open(f"{home}/text", "w", newline="") as file:
        csv.writer(file).writerows([["a", "b"], [1, 2]])
    with remote.open(f"{home}/text", "r") as file:
        assert list(csv.reader(file)) == [["a", "b"], ["1", "2"]]
    with remote.open(f"{home}/text.gz", "wt", compression="infer") as file:
        file.write("zipped" * 1000)
    assert remote.size(f"{home}/text.gz") < 200
    with remote.open(f"{home}/text.gz", "rt", compression="infer") as file:
        assert file.read() == "zipped" * 1000


def test_information(remote: FS3FileSystem, home: str) -> None:
    remote.pipe({f"{home}/d/e/one": b"1" * 10, f"{home}/two": b"22"} if remote.makedirs(f"{home}/d/e") is None else {})
    remote.chmod(f"{home}/two", 0o640)
    remote.symlink("two", f"{home}/to-file")
    remote.symlink("d", f"{home}/to-folder")
    remote.symlink("nowhere", f"{home}/broken")
    remote.link(f"{home}/two", f"{home}/three")
    info = remote.info(f"{home}/two")
    assert (info["type"], info["size"], info["mode"], info["nlink"]) == ("file", 2, 0o100640, 2)
    assert info["ino"] == remote.info(f"{home}/three")["ino"] and info["uid"] == os.geteuid()
    assert abs(remote.modified(f"{home}/two").timestamp() - info["mtime"]) < 1e-3
    assert remote.created(f"{home}/two") >= remote.modified(f"{home}/two")
    listed = {entry["name"].rpartition("/")[2]: entry for entry in remote.ls(home)}
    assert {name: entry["type"] for name, entry in listed.items()} == {
        "broken": "link",
        "d": "directory",
        "three": "file",
        "to-file": "file",
        "to-folder": "link",
        "two": "file",
    }
    assert listed["to-file"]["destination"] == "two" and listed["to-file"]["size"] == 2 and remote.islink(f"{home}/broken")
    assert remote.isdir(f"{home}/to-folder") and not remote.exists(f"{home}/broken") and remote.lexists(f"{home}/broken")
    assert remote.ls(home, detail=False) == sorted(remote.ls(home, detail=False))
    assert remote.find(f"{home}/d") == [f"{home}/d/e/one"] and remote.glob(f"{home}/t*") == [
        f"{home}/three",
        f"{home}/to-file",
        f"{home}/to-folder",
        f"{home}/two",
    ]
    assert [(root, folders) for root, folders, _ in remote.walk(f"{home}/d")] == [(f"{home}/d", ["e"]), (f"{home}/d/e", [])]
    assert remote.du(f"{home}/d") == 10 and remote.du(f"{home}/d", total=False) == {f"{home}/d/e/one": 10}
    assert remote.fsid.startswith("fs3-") and remote.ukey(f"{home}/two") != remote.ukey(f"{home}/d/e/one")
    remote.touch(f"{home}/two", truncate=False)
    assert remote.cat(f"{home}/two") == b"22" and remote.modified(f"{home}/two").timestamp() >= info["mtime"]
    remote.touch(f"{home}/two")
    assert remote.size(f"{home}/two") == 0


def test_many_ranges_at_once(remote: FS3FileSystem, home: str) -> None:
    names = [f"{home}/{number}" for number in range(5)]
    content = {name: os.urandom(1_500_000) for name in names}
    remote.pipe(content)
    assert remote.cat(names) == content and remote.cat(home, recursive=True) == content
    starts: list[Any] = [0, 100, -50, None, 1_048_570]
    ends: list[Any] = [10, -100, None, None, 1_048_590]
    assert remote.cat_ranges(names, starts, ends) == [
        content[name][start:end] for name, start, end in zip(names, starts, ends, strict=True)
    ]
    found = remote.cat_ranges([names[0], f"{home}/none"], 0, 5)
    assert found[0] == content[names[0]][:5] and isinstance(found[1], FileNotFoundError)
    with pytest.raises(FileNotFoundError):
        remote.cat_ranges([f"{home}/none"], 0, 5, on_error="raise")
    assert remote.cat_file(names[1], 5, 5) == b"" and remote.cat_file(names[1], -5) == content[names[1]][-5:]
    with pytest.raises(FileNotFoundError):
        remote.cat_file(f"{home}/none")
    assert list(remote.cat([names[0], f"{home}/none"], on_error="omit")) == [names[0]]
    assert remote.get_mapper(home)["3"] == content[names[3]]


def test_transactions_show_all_or_nothing(remote: FS3FileSystem, home: str) -> None:
    remote.pipe(f"{home}/old", b"before")
    with remote.transaction:
        with remote.open(f"{home}/old", "wb") as file:
            file.write(b"after")
        with remote.open(f"{home}/new", "xb") as file:
            file.write(b"new")
        assert remote.cat(f"{home}/old") == b"before" and not remote.exists(f"{home}/new")
        with pytest.raises(NotImplementedError):
            remote.open(f"{home}/old", "ab")
    assert remote.cat(home, recursive=True) == {f"{home}/new": b"new", f"{home}/old": b"after"}
    with pytest.raises(ZeroDivisionError), remote.transaction:
        with remote.open(f"{home}/old", "wb") as file:
            file.write(b"never")
        raise ZeroDivisionError
    assert remote.cat(home, recursive=True) == {f"{home}/new": b"new", f"{home}/old": b"after"}


def test_move_and_remove(remote: FS3FileSystem, home: str) -> None:
    remote.makedirs(f"{home}/tree/deep")
    remote.pipe(f"{home}/tree/deep/file", b"x")
    before = remote.info(f"{home}/tree/deep/file")["ino"]
    remote.mv(f"{home}/tree", f"{home}/moved", recursive=True)
    assert remote.info(f"{home}/moved/deep/file")["ino"] == before  # renamed, not copied
    remote.mkdir(f"{home}/folder")
    remote.mv(f"{home}/moved/deep/file", f"{home}/folder")
    assert remote.cat(f"{home}/folder/file") == b"x"
    with pytest.raises(FileNotFoundError):
        remote.mv(f"{home}/none", f"{home}/other")
    with pytest.raises(FileExistsError):
        remote.makedirs(f"{home}/folder")
    remote.makedirs(f"{home}/folder", exist_ok=True)
    with pytest.raises(OSError, match="empty"):
        remote.rmdir(f"{home}/folder")
    with pytest.raises(FileNotFoundError):
        remote.rm(f"{home}/none")
    remote.rm([f"{home}/moved", f"{home}/folder/file"], recursive=True)
    assert remote.find(home, withdirs=True) == [home, f"{home}/folder"]


def test_urls_options_and_the_environment(remote: FS3FileSystem, home: str, mgmtd: str, monkeypatch: Any) -> None:
    remote.pipe(f"{home}/file", b"content")
    hosts = mgmtd.replace("tcp://", "")
    with fsspec.open(f"fs3://{hosts}{home}/file") as file:
        assert file.read() == b"content"
    with fsspec.open(f"fs3://{home}/file", mgmtd=mgmtd) as file:
        assert file.read() == b"content"
    monkeypatch.setenv(cluster.MGMTD, mgmtd)
    assert fsspec.filesystem("fs3", skip_instance_cache=True).cat(f"fs3://{home}//./file") == b"content"
    monkeypatch.delenv(cluster.MGMTD)
    with pytest.raises(ValueError, match="which cluster"):
        fsspec.filesystem("fs3", skip_instance_cache=True)
    for bad in ("fs3://data/file", "fs3://host:port/file"):
        with pytest.raises(ValueError, match=r"expected fs3://HOST:PORT/PATH"):
            fsspec.open(bad, mgmtd=mgmtd)
    assert cluster.split_url("fs3://a:1,b:2/x/../y/") == (("tcp://a:1", "tcp://b:2"), "/x/../y")
    assert cluster.addresses("a:1, tcp://b:2") == ("tcp://a:1", "tcp://b:2")
    assert fsspec.url_to_fs(remote.unstrip_protocol(home))[0].addresses == remote.addresses
    again = pickle.loads(pickle.dumps(remote))
    assert again.client is remote.client
    with fsspec.open(f"simplecache::fs3://{hosts}{home}/file") as file:
        assert Path(file.name).read_bytes() == b"content"


def test_threads_share_a_client(remote: FS3FileSystem, home: str, mgmtd: str) -> None:
    remote.pipe(f"{home}/file", b"content")
    found: list[Any] = []

    def work() -> None:
        mine = fsspec.filesystem("fs3", mgmtd=mgmtd)
        found.append((mine.client, mine.cat(f"{home}/file")))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [(remote.client, b"content")] * 4


def test_a_client_that_was_closed_is_replaced(remote: FS3FileSystem) -> None:
    remote.client.close()
    assert remote.info("/")["type"] == "directory"
