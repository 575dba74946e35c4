"""Databases on a real mount, several processes at once: nothing committed is lost, and what was not is not there."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.process import harness
from tests.process.harness import needs_program, own_mounts, run

pytestmark = pytest.mark.process

WRITER = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
for n in range(10):
    database.execute("begin immediate")
    (total,) = database.execute("select total from sums").fetchone()
    database.execute("insert into entries values (?, ?, ?)", (sys.argv[2], n, "x" * (n * 331 % 5000)))
    database.execute("update sums set total = ?", (total + 1,))
    database.execute("rollback" if n % 5 == 4 else "commit")
database.close()
"""


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_sqlite_by_several_processes(mounted: Path, journal: str) -> None:
    """WAL shares its index by a mapping, rollback journals lock by fcntl: both hold within one mount."""
    path = mounted / "data.sqlite"
    database = sqlite3.connect(path, timeout=60, isolation_level=None)
    assert database.execute(f"pragma journal_mode = {journal}").fetchone() == (journal,)
    database.execute("create table entries (who text, n integer, text text, primary key (who, n))")
    database.execute("create table sums (total integer)")
    database.execute("insert into sums values (0)")
    jobs = [subprocess.Popen([sys.executable, "-c", WRITER, path, str(who)]) for who in range(3)]
    while any(job.poll() is None for job in jobs):
        time.sleep(0.02)
        database.execute("begin")
        (count,) = database.execute("select count(*) from entries").fetchone()
        assert database.execute("select total from sums").fetchone() == (count,), "a transaction is seen in part"
        database.execute("commit")
    assert [job.wait(harness.COMMAND_TIMEOUT_S) for job in jobs] == [0, 0, 0]
    assert database.execute("pragma wal_checkpoint(truncate)").fetchone()[0] == 0
    assert database.execute("select count(*), sum(n) from entries").fetchone() == (
        24,
        3 * sum(n for n in range(10) if n % 5 < 4),
    )
    database.close()
    again = sqlite3.connect(path)
    assert again.execute("pragma integrity_check").fetchone() == ("ok",)
    assert again.execute("select total from sums").fetchone() == (24,)
    again.close()
    assert os.listdir(mounted) == ["data.sqlite"]


POSTGRES = """
set -e
export PATH="$1:$PATH" PGHOST=/mnt/data PGDATABASE=postgres
initdb --pgdata=/mnt/data --auth=trust --no-locale --encoding=UTF8 --data-checksums --no-instructions > /mnt/initdb.log
start() {
    pg_ctl --pgdata=/mnt/data --log=/mnt/log --wait --silent start \\
        -o "-c listen_addresses= -c unix_socket_directories=/mnt/data -c shared_buffers=16MB -c max_wal_size=64MB" \\
        || { cat /mnt/log; exit 1; }
}
start
trap 'pg_ctl --pgdata=/mnt/data --mode=immediate --silent stop || true' EXIT
pgbench --initialize --quiet 2> /mnt/pgbench.log
pgbench --client=3 --transactions=100 --no-vacuum >> /mnt/pgbench.log 2>&1
pg_ctl --pgdata=/mnt/data --mode=immediate --silent stop
start
psql --no-align --tuples-only --command "select count(*), sum(delta) = (select sum(abalance) from pgbench_accounts),
    sum(delta) = (select sum(bbalance) from pgbench_branches) from pgbench_history"
pg_ctl --pgdata=/mnt/data --mode=fast --silent stop
trap - EXIT
pg_checksums --check --pgdata=/mnt/data | grep "Bad checksums"
"""


@pytest.mark.soak
def test_postgres(mounted: Path) -> None:
    """initdb, pgbench, a crash, recovery: all that was committed is there, and every page has its checksum."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or [Path(needs_program("initdb"))]
    users = subprocess.run(["id", "postgres"], capture_output=True, check=False)
    if os.geteuid() != 0 or users.returncode != 0:
        pytest.skip("postgres needs a user of its own: not root, or no user 'postgres' here")
    os.chown(mounted, *[int(run("id", flag, "postgres")) for flag in ("-u", "-g")])
    as_user = [needs_program("setpriv"), "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    # Temporary folders are root's alone: postgres sees its own at another place.
    line = [*own_mounts(f"mount --bind '{mounted}' /mnt"), *as_user, "sh", "-c", POSTGRES, "sh", programs[-1].parent]
    assert run(*line, cwd=Path("/")).splitlines() == ["300|t|t", "Bad checksums:  0"]
