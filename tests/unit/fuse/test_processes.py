"""What is believed of other processes."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fuse.processes import Descriptor, check_process, descriptor_of, file_of_mount, file_size_limit, mount_of


def test_what_the_kernel_says_of_processes(tmp_path: Path) -> None:
    me = os.getpid()
    check_process(me, os.geteuid())
    for pid, uid in ((me, os.geteuid() + 1), (0, 0), (2**22 + 1, 0)):
        with pytest.raises(OSError) as caught:
            check_process(pid, uid)
        assert caught.value.errno == errno.EPERM
    path = tmp_path / "f"
    path.write_bytes(b"x")
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_APPEND, os.O_PATH):
        fd = os.open(path, flags)
        try:
            found = descriptor_of(me, fd)
            assert found.inode == path.stat().st_ino
            readable, writable = flags != os.O_WRONLY, flags not in (os.O_RDONLY, os.O_PATH)
            assert (found.readable, found.writable) == (readable and flags != os.O_PATH, writable)
            device, kind = mount_of(me, found.mount)
            assert kind
            if flags == os.O_PATH:
                with pytest.raises(OSError):
                    file_of_mount(me, fd, device)
            else:
                assert file_of_mount(me, fd, device) == found
            with pytest.raises(OSError):
                file_of_mount(me, fd, "0:0")
        finally:
            os.close(fd)
    with pytest.raises(OSError) as caught:
        descriptor_of(me, fd)
    assert caught.value.errno == errno.EBADF
    assert file_size_limit(me) > 0
    assert mount_of(me, 2**30) == ("", "")


@pytest.mark.skipif(os.geteuid() != 0, reason="it takes root to become another user")
def test_who_was_root_may_have_secrets_of_root() -> None:
    words = "import os, sys; os.setuid(1000); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", words], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
        assert program.stdout is not None and program.stdout.readline() == b"\n"
        assert os.stat(f"/proc/{program.pid}").st_uid == 1000
        with pytest.raises(OSError) as caught:
            check_process(program.pid, 1000)
        assert caught.value.errno == errno.EPERM


def test_what_a_program_names_its_memory_is_no_word_of_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "fdinfo"
    path.write_text("pos:\t0\nflags:\t02\nmnt_id:\t7\nino:\t5\nsize:\t4096\nname:\t\nino:\t1\nmnt_id:\t33\n")
    real = open
    monkeypatch.setattr("builtins.open", lambda name, **how: real(path if "fdinfo" in name else name, **how))
    assert descriptor_of(1, 1) == Descriptor(5, os.O_RDWR, 7)
