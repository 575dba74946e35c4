"""Random calls on one file, through one or several mounts, against a model in memory: `python -m tests.posix.exerciser`.

One seed is one run: the same calls on the same file. A run that finds a difference prints the seed, the calls that led there
and where the first byte differs; with `--seed` it is done again, and with `--until` only as far as one likes.

With several folders (the same one, by different mounts) the calls go on in one of them until it hands over: it syncs and
closes the file, another one opens it, and from then on must see all that was done.
"""

from __future__ import annotations

import argparse
import mmap
import os
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

KIB = 1 << 10
MIB = 1 << 20
PAGE = mmap.PAGESIZE
LENGTH_MAX = 3 * MIB + 77_777
BORDERS = (0, PAGE, 64 * KIB, 128 * KIB, MIB, 2 * MIB, 3 * MIB)
HISTORY = 40
"""Calls shown of a run that failed."""


class Difference(AssertionError):
    """The file is not as the model has it."""


class Exerciser:
    """One run. paths: the file, by each of the mounts. shared: whether shared mappings are made.

    Invariant: `model` is the file's content, as whoever has it open now must see it.
    """

    def __init__(self, paths: Sequence[Path], seed: int, *, shared: bool = True) -> None:
        self.paths = paths
        self.seed = seed
        self.model = bytearray()
        self.history: list[str] = []
        self._chance = random.Random(seed)
        self._shared = shared
        self._at = 0
        self._fill = 0
        self._fd = -1
        self._direct = -1
        self._open(os.O_CREAT | os.O_TRUNC)
        calls: list[tuple[int, Callable[[], None]]] = [
            (20, self.write), (20, self.read), (6, self.append), (5, self.truncate), (4, self.extend),
            (4, self.write_direct), (4, self.read_direct), (6, self.read_mapped), (3, self.copy), (3, self.punch),
            (2, self.fill), (3, self.sync), (3, self.reopen), (2, self.check_length),
            (6 if len(paths) > 1 else 0, self.hand_over),
        ]  # fmt: skip
        if shared:
            calls.append((8, self.write_mapped))
        self._calls = [call for _, call in calls]
        self._weights = [weight for weight, _ in calls]

    def run(self, steps: int) -> None:
        """Raises Difference, or the OSError of a call that failed."""
        try:
            for _ in range(steps):
                self._chance.choices(self._calls, self._weights)[0]()
            self._note("end")
            self._compare(os.pread(self._fd, LENGTH_MAX * 2, 0), 0, LENGTH_MAX * 2)
            for at in range(len(self.paths)):
                self._close()
                self._at = at
                self._open()
                self._compare(os.pread(self._fd, LENGTH_MAX * 2, 0), 0, LENGTH_MAX * 2)
        except (OSError, Difference) as error:
            told = "\n  ".join(self.history[-HISTORY:])
            raise Difference(f"seed {self.seed}, step {len(self.history)}: {error}\n  {told}") from error
        finally:
            self._close()

    # What is drawn

    def _offset(self, limit: int) -> int:
        """At most `limit`, mostly near a border or the end of the file."""
        near = self._chance.choice((*BORDERS, len(self.model), self._chance.randrange(LENGTH_MAX)))
        return max(0, min(limit, near + self._chance.choice((0, 0, -1, 1, -100, 100, -PAGE))))

    def _length(self, limit: int) -> int:
        length = self._chance.choice((1, 7, 100, PAGE, PAGE + 1, 64 * KIB, 100_000, 200_001, MIB + 3))
        return max(0, min(limit, self._chance.choice((length, self._chance.randrange(length) + 1))))

    def _data(self, length: int) -> bytes:
        """Bytes that tell which call wrote them, and where it began."""
        self._fill = self._fill % 251 + 1
        period = bytes([(self._fill * 7 + i) % 255 + 1 for i in range(251)])
        return (period * (length // 251 + 1))[:length]

    def _note(self, what: str) -> None:
        self.history.append(f"{len(self.history) + 1}: {what}" + (f" in {self._at}" if len(self.paths) > 1 else ""))

    # The model

    def _put(self, offset: int, data: bytes) -> None:
        if offset > len(self.model):
            self.model.extend(bytes(offset - len(self.model)))
        self.model[offset : offset + len(data)] = data

    def _resize(self, length: int) -> None:
        del self.model[length:]
        self.model.extend(bytes(length - len(self.model)))

    def _compare(self, found: bytes, offset: int, length: int) -> None:
        wanted = bytes(self.model[offset : offset + length])
        if found == wanted:
            return
        both = min(len(found), len(wanted))
        at = next((i for i in range(both) if found[i] != wanted[i]), both)
        told = f"found {found[at : at + 8].hex(' ')}, wanted {wanted[at : at + 8].hex(' ')}"
        raise Difference(f"{len(found)} bytes read at {offset}, {len(wanted)} wanted; from {offset + at} on: {told}")

    # The calls

    def write(self) -> None:
        offset = self._offset(LENGTH_MAX - 1)
        data = self._data(self._length(LENGTH_MAX - offset))
        self._note(f"pwrite {len(data)} at {offset}")
        self._written(os.pwrite(self._fd, data, offset), len(data))
        self._put(offset, data)

    def _written(self, count: int, wanted: int) -> None:
        if count != wanted:
            raise Difference(f"{count} bytes written of {wanted}")

    def read(self) -> None:
        offset, length = self._offset(LENGTH_MAX), self._length(LENGTH_MAX)
        self._note(f"pread {length} at {offset}")
        self._compare(os.pread(self._fd, length, offset), offset, length)

    def append(self) -> None:
        data = self._data(self._length(LENGTH_MAX - len(self.model)))
        self._note(f"append {len(data)} at {len(self.model)}")
        fd = os.open(self.paths[self._at], os.O_WRONLY | os.O_APPEND)
        try:
            self._written(os.write(fd, data), len(data))
        finally:
            os.close(fd)
        self._put(len(self.model), data)

    def truncate(self) -> None:
        length = self._offset(len(self.model))
        self._note(f"ftruncate {len(self.model)} to {length}")
        os.ftruncate(self._fd, length)
        self._resize(length)

    def extend(self) -> None:
        length = max(len(self.model), self._offset(LENGTH_MAX))
        self._note(f"truncate {len(self.model)} to {length}")
        os.truncate(self.paths[self._at], length)
        self._resize(length)

    def write_direct(self) -> None:
        offset = self._offset(LENGTH_MAX - 20 * PAGE) // PAGE * PAGE
        data = self._data(self._chance.randrange(1, 20) * PAGE)
        self._note(f"direct pwrite {len(data)} at {offset}")
        with mmap.mmap(-1, len(data)) as aligned:
            aligned[:] = data
            self._written(os.pwritev(self._direct, [aligned], offset), len(data))
        self._put(offset, data)

    def read_direct(self) -> None:
        offset, length = self._offset(LENGTH_MAX) // PAGE * PAGE, self._chance.randrange(1, 20) * PAGE
        self._note(f"direct pread {length} at {offset}")
        with mmap.mmap(-1, length) as aligned:
            count = os.preadv(self._direct, [aligned], offset)
            self._compare(aligned[:count], offset, length)

    def read_mapped(self) -> None:
        offset, length = self._mapped_range()
        if not length:
            return
        self._note(f"mapped read {length} at {offset}")
        flags = mmap.MAP_SHARED if self._shared else mmap.MAP_PRIVATE
        with mmap.mmap(self._fd, len(self.model), flags=flags, prot=mmap.PROT_READ) as view:
            self._compare(view[offset : offset + length], offset, length)

    def write_mapped(self) -> None:
        offset, length = self._mapped_range()
        if not length:
            return
        data = self._data(length)
        synced = self._chance.random() < 0.5
        self._note(f"mapped write {length} at {offset}{', msync' if synced else ''}")
        with mmap.mmap(self._fd, len(self.model)) as view:
            view[offset : offset + length] = data
            if synced:
                view.flush()
        self._put(offset, data)

    def _mapped_range(self) -> tuple[int, int]:
        if not self.model:
            return 0, 0
        offset = self._offset(len(self.model) - 1)
        return offset, self._length(len(self.model) - offset)

    def copy(self) -> None:
        """A range to another place of the same file, as far as the kernel likes."""
        source, target = self._offset(LENGTH_MAX), self._offset(LENGTH_MAX)
        length = min(self._length(LENGTH_MAX), abs(source - target), LENGTH_MAX - max(source, target))
        if length <= 0:
            return
        self._note(f"copy_file_range {length} from {source} to {target}")
        count = os.copy_file_range(self._fd, self._fd, length, source, target)
        data = bytes(self.model[source : source + length])
        if bool(count) != bool(data) or count > len(data):
            raise Difference(f"{count} bytes copied of {len(data)}")
        if count:
            self._put(target, data[:count])

    def punch(self) -> None:
        """Cut and extend again: what was behind must be zeros."""
        before, length = len(self.model), self._offset(len(self.model))
        self._note(f"punch by ftruncate {before} to {length} and back")
        os.ftruncate(self._fd, length)
        os.ftruncate(self._fd, before)
        self._resize(length)
        self._resize(before)

    def fill(self) -> None:
        offset = self._offset(LENGTH_MAX - 1)
        length = max(1, self._length(LENGTH_MAX - offset))
        self._note(f"posix_fallocate {length} at {offset}")
        os.posix_fallocate(self._fd, offset, length)
        self._resize(max(len(self.model), offset + length))

    def sync(self) -> None:
        self._note("fsync")
        os.fsync(self._fd)

    def check_length(self) -> None:
        self._note("fstat and stat")
        for found in (os.fstat(self._fd).st_size, os.stat(self.paths[self._at]).st_size):
            if found != len(self.model):
                raise Difference(f"length {found}, wanted {len(self.model)}")

    def reopen(self) -> None:
        self._note("close and open")
        self._close()
        self._open()

    def hand_over(self) -> None:
        os.fsync(self._fd)  # which also sends what was written through mappings
        self._close()
        self._at = (self._at + self._chance.randrange(1, len(self.paths))) % len(self.paths)
        self._note("fsync, close, and open")
        self._open()

    def _open(self, flags: int = 0) -> None:
        self._fd = os.open(self.paths[self._at], os.O_RDWR | flags, 0o644)
        self._direct = os.open(self.paths[self._at], os.O_RDWR | os.O_DIRECT)

    def _close(self) -> None:
        for fd in (self._fd, self._direct):
            if fd >= 0:
                os.close(fd)
        self._fd = self._direct = -1


def main() -> None:
    """Run seeds until stopped, or one of them."""
    parser = argparse.ArgumentParser(prog="python -m tests.posix.exerciser", description=__doc__)
    parser.add_argument(
        "folders", nargs="+", type=Path, help="a folder; or several that are the same one by different mounts"
    )
    parser.add_argument("--seed", type=int, help="only this one")
    parser.add_argument("--first", type=int, default=0, help="the first of many")
    parser.add_argument("--seeds", type=int, default=1_000_000_000, help="how many")
    parser.add_argument("--until", type=int, default=400, help="calls in each run")
    parser.add_argument("--no-shared", action="store_true", help="no shared mappings, for strict mounts")
    given = parser.parse_args()
    seeds = [given.seed] if given.seed is not None else range(given.first, given.first + given.seeds)
    paths = [folder / f"exerciser-{os.getpid()}" for folder in given.folders]
    try:
        for seed in seeds:
            Exerciser(paths, seed, shared=not given.no_shared).run(given.until)
            print(f"seed {seed}: {given.until} calls, no difference", flush=True)
    except Difference as found:
        sys.exit(str(found))
    finally:
        paths[0].unlink(missing_ok=True)


if __name__ == "__main__":
    main()
