from __future__ import annotations

from types import SimpleNamespace

import pytest

from fs3.ids import ROOT_INODE
from fs3.metrics import Metrics, Operation
from fuse.handles import InodeTable
from fuse.watch import Watch, path_of

READ = ("self", "fh", "off", "size")


def inodes() -> InodeTable:
    made = InodeTable()
    made.told(10, (ROOT_INODE, b"data"))
    made.told(11, (10, b"train.bin"))
    return made


def test_paths_follow_the_names_that_the_kernel_knows() -> None:
    known = inodes()
    assert path_of(known, ROOT_INODE) == "/"
    assert path_of(known, 11) == "/data/train.bin"
    known.told(13, (12, b"lost"))
    assert path_of(known, 13) == "#12/lost"
    known.told(20, (21, b"a"))
    known.told(21, (20, b"b"))
    assert path_of(known, 20).count("/") <= 64, "names in a circle, as after renames by others, must not hang it"


def test_what_is_read_and_closed_is_laid_to_who_opened_it() -> None:
    metrics = Metrics()
    watch = Watch(metrics, inodes())
    heard: list[Operation] = []
    watch.opened(1, 4711, 1000, 11)
    metrics.listeners.append(heard.append)
    watch.tell("read", 5_000, 0, READ, (None, 1, 4096, 100))
    watch.closed(1)
    watch.tell("release", 100, 0, ("self", "fh"), (None, 1))
    watch.tell("read", 5_000, 9, READ, (None, 1, 4096, 100))
    assert heard[0] == Operation("fuse.read", 5_000, "4711:1000", "", 11, "/data/train.bin", "off=4096 size=100")
    assert (heard[1].caller, heard[1].path) == ("4711:1000", "/data/train.bin")
    assert (heard[2].caller, heard[2].inode, heard[2].error) == ("", 0, "EBADF")


@pytest.mark.expects_error_log
def test_a_description_that_fails_is_logged_and_hurts_nobody() -> None:
    metrics = Metrics()
    watch = Watch(metrics, inodes())
    heard: list[Operation] = []
    metrics.listeners.append(heard.append)
    watch.tell("lookup", 1, 0, ("self", "parent_inode", "name"), (None, 10, "no bytes"))
    assert not heard


def test_directories_and_files_have_handles_of_their_own() -> None:
    metrics = Metrics()
    watch = Watch(metrics, inodes())
    heard: list[Operation] = []
    metrics.listeners.append(heard.append)
    watch.opened(1, 7, 0, 11)
    watch.opened(-1, 8, 0, 10)
    watch.tell("readdir", 1, 0, ("self", "fh", "start_id", "token"), (None, 1, 0, object()))
    watch.tell("flush", 1, 0, ("self", "fh"), (None, 1))
    assert [(one.caller, one.path) for one in heard] == [("8:0", "/data"), ("7:0", "/data/train.bin")]


def test_names_in_directories_are_part_of_the_path_and_names_of_attributes_are_not() -> None:
    metrics = Metrics()
    watch = Watch(metrics, inodes())
    heard: list[Operation] = []
    metrics.listeners.append(heard.append)
    ctx = SimpleNamespace(pid=3, uid=0)
    watch.tell("mkdir", 1, 17, ("self", "parent_inode", "name", "mode", "ctx"), (None, 10, b"x\xff", 0o755, ctx))
    watch.tell("getxattr", 1, 61, ("self", "inode", "name", "ctx"), (None, 11, b"user.a", ctx))
    names = ("self", "parent_inode_old", "name_old", "parent_inode_new", "name_new", "flags", "ctx")
    watch.tell("rename", 1, 0, names, (None, 10, b"a", ROOT_INODE, b"b", 0, ctx))
    assert [(one.path, one.error, one.detail) for one in heard] == [
        ("/data/x\\xff", "EEXIST", "mode=493"),
        ("/data/train.bin", "ENODATA", "name=user.a"),
        ("/data/a", "", f"parent_inode_new={ROOT_INODE} name_new=b flags=0"),
    ]
    assert heard[0].caller == "3:0"
