"""`make test-rdma`: the tests over real verbs (Soft-RoCE) in a guest that is made for them.

Arguments go to pytest; where they name no tests, all run. GUEST_FOLDER names where the guest is kept (1.2 GB;
build/rdma-guest), and GUEST_CPUS, GUEST_MEMORY, GUEST_TIMEOUT_S what it may use.
"""

from __future__ import annotations

import compileall
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
GUEST = Path(__file__).with_name("guest")
SCRATCH_BYTES = 3 << 30
CANNOT_BE_HAD = 77
LISTEN = "rdma://192.168.77.1"
PATIENCE = "10"
"""By how much time-outs are longer in an emulated machine."""
TIMEOUT_S = "1500"
OF_STORAGE = (
    "tests/unit/storage/test_service.py",
    "tests/unit/storage/test_recovery.py",
    "tests/unit/storage/test_read.py",
    "tests/unit/client/test_batch.py",
    # The guest's file system cannot say whether pages are in memory.
    "--deselect=tests/unit/storage/test_read.py::test_pages_and_blocks_are_read_quickly_but_never_what_is_pending",
)
"""Those tests of storage, and of clients with it, of which the daemons talk over the transport that is tested."""


def why_not(folder: Path) -> str | None:
    """Why there can be no guest on this machine, as far as that can be told at once."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"the guest is a Linux machine of x86_64, this is {platform.system()} on {platform.machine()}"
    if (folder / "kver").exists():
        return None
    place = next(path for path in (folder, *folder.parents) if path.exists())
    if shutil.disk_usage(place).free < SCRATCH_BYTES:
        return f"less than {SCRATCH_BYTES >> 30} GiB are free in {place}"
    return None


def make_guest(folder: Path) -> str | None:
    """Returns why it cannot be had. Raises SystemExit where it should have worked."""
    if not (folder / "kver").exists():
        print(f"making the guest in {folder}: downloading and unpacking Debian packages, installing nothing", flush=True)
    done = subprocess.run([str(GUEST / "setup.sh"), str(folder)], stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode == CANNOT_BE_HAD:
        return done.stderr.strip().splitlines()[-1]
    if done.returncode != 0:
        raise SystemExit(f"{done.stderr}making the guest failed with exit code {done.returncode}")
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    if not list((folder / "python" / "pyverbs").glob(f"device*{suffix}")):
        return f"python3-pyverbs of this system is not for {sys.executable} (it has no modules *{suffix})"
    return None


def run_guest(folder: Path, line: str) -> int:
    """Runs a line there, and returns its exit code."""
    environment = {
        **os.environ,
        "GUEST_TIMEOUT_S": os.environ.get("GUEST_TIMEOUT_S", TIMEOUT_S),
        "PYTHONPATH": str(folder / "python"),
        "PYTHONDONTWRITEBYTECODE": "",
        "FS3_TEST_LISTEN": LISTEN,
        "FS3_TEST_PATIENCE": PATIENCE,
        "FS3_TEST_LIMIT_S": "600",
    }
    words = [str(GUEST / "run.sh"), str(folder), line]
    with subprocess.Popen(words, cwd=REPOSITORY, env=environment) as guest:
        try:
            return guest.wait()
        finally:
            guest.terminate()  # and its machine with it


def main(arguments: list[str]) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    folder = Path(os.environ.get("GUEST_FOLDER", REPOSITORY / "build" / "rdma-guest")).resolve()
    reason = why_not(folder) or make_guest(folder)
    if reason is not None:
        print(f"the tests over real verbs are SKIPPED: {reason}")
        return 0
    for package in ("fs3", "mgmtd", "meta", "storage", "fuse", "tests"):
        compileall.compile_dir(REPOSITORY / package, quiet=2)  # once here, not by each process there
    options = ["-v", "--tb=short", "-p", "tests.rdma.slow", "-p", "no:cacheprovider"]
    named = any((REPOSITORY / word.partition("::")[0]).exists() for word in arguments)
    chosen = [] if named else ["tests/rdma", *OF_STORAGE]
    line = shlex.join([sys.executable, "-m", "pytest", *options, *arguments, *chosen])
    print(f"in a guest with the device rxe0: {line}", flush=True)
    return run_guest(folder, line)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
