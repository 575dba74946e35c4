"""What `tests.bench.meta` does through a mount: `meta_load.py ROW FOLDER FILES THREADS` prints seconds and operations.

Standard library only. Threads work on files of their own in one folder. What precedes a row is made by the rows before it.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections.abc import Callable

BLOCK = b"x" * 4096


def create(path: str) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o644))


def create_4k(path: str) -> None:
    fd = os.open(path + ".4k", os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o644)
    os.write(fd, BLOCK)
    os.close(fd)


def unlink_4k(path: str) -> None:
    os.unlink(path + ".4k")


def open_close(path: str) -> None:
    os.close(os.open(path, os.O_RDONLY))


def rename(path: str) -> None:
    os.rename(path, path + ".new")


def unlink(path: str) -> None:
    os.unlink(path + ".new")


def mkdir(path: str) -> None:
    os.mkdir(path + ".d")


def rmdir(path: str) -> None:
    os.rmdir(path + ".d")


ROWS: dict[str, Callable[[str], object]] = {
    "create": create,
    "stat": os.stat,
    "shuffled": os.stat,
    "open": open_close,
    "create4k": create_4k,
    "unlink4k": unlink_4k,
    "rename": rename,
    "unlink": unlink,
    "mkdir": mkdir,
    "rmdir": rmdir,
}


def list_all(folder: str) -> int:
    """readdir and stat of each entry, as `ls -l` does."""
    with os.scandir(folder) as entries:
        return sum([1 for entry in entries if entry.stat(follow_symlinks=False)])


def main(row: str, folder: str, files: int, threads: int) -> None:
    paths = [f"{folder}/file-{number:07d}" for number in range(files)]
    if row == "shuffled":
        random.Random(files).shuffle(paths)
    done = [0] * threads
    start = threading.Barrier(threads + 1)

    def work(number: int) -> None:
        start.wait()
        if row == "readdir":
            done[number] = list_all(folder)
            return
        act = ROWS[row]
        mine = paths[number::threads]
        for path in mine:
            act(path)
        done[number] = len(mine)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    start.wait()
    began = time.perf_counter()
    for worker in workers:
        worker.join()
    if not all(done):
        raise SystemExit(f"{row}: a thread failed")
    print(time.perf_counter() - began, sum(done))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
