"""Looking after processes: restarts, errors of the start, stopping."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
import trio

from fs3.cli import supervisor
from fs3.cli.folder import Daemon
from fs3.cli.supervisor import Supervised, Supervisor, describe_exit, last_words, process_alive
from fs3.errors import FS3Error

SLEEPS = "import time; print('up', flush=True); time.sleep(60)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"


class Playground:
    """A supervisor over small Python programs instead of daemons."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.said: list[str] = []
        self.changes = 0
        monkeypatch.setattr(supervisor, "command", lambda kind, arguments: [sys.executable, "-c", kind])
        monkeypatch.setattr(supervisor, "_BACKOFF_FIRST_S", 0.01)

    def daemon(self, program: str) -> Daemon:
        return Daemon("storage-1", program, Path("x.toml"), self.folder / "x.log", "")

    def changed(self) -> None:
        self.changes += 1

    async def until_up(self, entry: Supervised, times: int = 1) -> None:
        with trio.fail_after(10):
            while True:
                if entry.daemon.log.read_text().count("up") >= times:
                    return
                await trio.sleep(0.01)


@pytest.fixture
def playground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Playground:
    return Playground(tmp_path, monkeypatch)


async def test_a_killed_daemon_is_started_again(playground: Playground) -> None:
    async with trio.open_nursery() as nursery:
        watch = Supervisor(nursery, playground.said.append, playground.changed)
        entry = watch.start(playground.daemon(SLEEPS))
        watch.settled = True
        await playground.until_up(entry)
        first = entry.pid
        os.kill(first, signal.SIGKILL)
        await playground.until_up(entry, 2)
        assert entry.pid != first and entry.restarts == 1 and process_alive(entry.pid)
        assert playground.said[0].startswith(f"storage-1 (pid {first}) was killed by SIGKILL, is started again")
        await watch.stop([entry], 10)
        assert entry.gone.is_set() and not process_alive(entry.pid)
    assert len(playground.said) == 1
    assert playground.changes == 2


async def test_a_death_during_the_start_is_an_error_with_its_last_words(playground: Playground) -> None:
    async with trio.open_nursery() as nursery:
        watch = Supervisor(nursery, playground.said.append, playground.changed)
        entry = watch.start(playground.daemon("import sys; sys.exit('no disk')"))
        with trio.fail_after(10):
            await entry.gone.wait()
        with pytest.raises(FS3Error, match=r"storage-1 \(pid \d+\) ended with exit code 1: no disk \(log: "):
            watch.check()


async def test_what_cannot_work_is_not_started_again(playground: Playground) -> None:
    async with trio.open_nursery() as nursery:
        watch = Supervisor(nursery, playground.said.append, playground.changed)
        watch.settled = True
        entry = watch.start(playground.daemon("import sys; sys.exit(2)"))
        with trio.fail_after(10):
            await entry.gone.wait()
    assert entry.restarts == 0
    assert "it is not started again" in playground.said[0]


async def test_a_mount_that_somebody_unmounts_stays_away_but_a_daemon_that_ends_comes_back(playground: Playground) -> None:
    async with trio.open_nursery() as nursery:
        watch = Supervisor(nursery, playground.said.append, playground.changed)
        watch.settled = True
        ends = playground.daemon("print('up', flush=True)")
        mount = watch.start(ends, may_end=True)
        with trio.fail_after(10):
            await mount.gone.wait()
        assert mount.restarts == 0 and mount.failed is None
        assert "as somebody wished" in playground.said[0]
        other = watch.start(ends)
        await playground.until_up(other, 3)
        assert other.restarts >= 1
        await watch.stop([other], 10)


async def test_who_does_not_stop_is_killed(playground: Playground) -> None:
    async with trio.open_nursery() as nursery:
        watch = Supervisor(nursery, playground.said.append, playground.changed)
        entry = watch.start(playground.daemon(STUBBORN))
        await playground.until_up(entry)
        await watch.stop([entry], 0.05)
        assert entry.process is not None and entry.process.returncode == -signal.SIGKILL
    assert "did not stop" in playground.said[0]


def test_exits_in_words() -> None:
    assert describe_exit(-9) == "was killed by SIGKILL"
    assert describe_exit(3) == "ended with exit code 3"


def test_last_words(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("one\ntwo\n")
    assert last_words(tmp_path / "log") == "two"
    (tmp_path / "log").write_text("")
    assert last_words(tmp_path / "log") == "its log is empty"
    assert last_words(tmp_path / "none") == "its log cannot be read"


def test_a_zombie_is_not_alive() -> None:
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", ""], {})
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert not process_alive(pid)
    os.waitpid(pid, 0)
    assert not process_alive(pid)
    assert process_alive(os.getpid())
