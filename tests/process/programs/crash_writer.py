"""Writes until it is killed or the mount goes away, and keeps a manifest, outside the mount, of what was promised to it.

    python crash_writer.py DIR MANIFEST [--seed N]
    python crash_writer.py DIR MANIFEST --check

Slots of files are overwritten with records of growing generations; other files are replaced by rename. The manifest has one
line per step, each written before (B) or after (A) the call on the mount returned, or after fsync returned (F). The check
demands of every slot: whole, not older than the last generation whose call had returned, not newer than the last begun.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from pathlib import Path

import records

SLOT_BYTES = 64 << 10
SLOTS = 64
FILES = 4
RENAMED = 8


class Manifest:
    """Lines `EVENT file slot generation`, each handed to the kernel by one write."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)

    def note(self, event: str, file: int, slot: int, generation: int) -> None:
        os.write(self._fd, f"{event} {file} {slot} {generation}\n".encode())


def write(root: Path, manifest: Manifest, seed: int) -> None:
    """Never returns; ends by OSError when the mount is gone."""
    rng = random.Random(seed)
    generations: dict[tuple[int, int], int] = {}
    fds = [os.open(root / f"slots{file}", os.O_CREAT | os.O_RDWR, 0o644) for file in range(FILES)]
    for file in range(FILES):
        manifest.note("A", file, -1, 0)
    while True:
        if rng.random() < 0.1:
            _replace(root, manifest, rng, generations)
            continue
        # Slots become reachable one by one, so that overwrites, appends and holes all occur.
        file, slot = rng.randrange(FILES), min(rng.randrange(SLOTS), rng.randrange(SLOTS))
        generation = generations[file, slot] = generations.get((file, slot), 0) + 1
        data = records.make(file, slot, generation, SLOT_BYTES)
        manifest.note("B", file, slot, generation)
        if os.pwrite(fds[file], data, slot * SLOT_BYTES) != SLOT_BYTES:
            raise RuntimeError("a short write")
        manifest.note("A", file, slot, generation)
        if rng.random() < 0.05:
            os.fsync(fds[file])
            manifest.note("F", file, -1, 0)


def _replace(root: Path, manifest: Manifest, rng: random.Random, generations: dict[tuple[int, int], int]) -> None:
    number = rng.randrange(RENAMED)
    generation = generations[FILES + number, 0] = generations.get((FILES + number, 0), 0) + 1
    manifest.note("B", FILES + number, 0, generation)
    path = root / f"renamed{number}"
    with path.with_suffix(".new").open("wb") as out:
        out.write(records.make(FILES + number, 0, generation, SLOT_BYTES))
        out.flush()
        os.fsync(out.fileno())
    os.rename(path.with_suffix(".new"), path)
    manifest.note("A", FILES + number, 0, generation)


def promised(manifest: Path) -> tuple[dict[tuple[int, int], int], dict[tuple[int, int], int]]:
    """(last generation whose call had returned, last generation begun) by (file, slot)."""
    returned: dict[tuple[int, int], int] = {}
    begun: dict[tuple[int, int], int] = {}
    for line in manifest.read_text().splitlines():
        event, *numbers = line.split()
        file, slot, generation = map(int, numbers)
        if event == "B":
            begun[file, slot] = generation
        elif event == "A" and slot >= 0:
            returned[file, slot] = generation
    return returned, begun


def check(root: Path, manifest: Path) -> list[str]:
    """What is wrong, one line each."""
    returned, begun = promised(manifest)
    wrong = []
    for (file, slot), last in sorted(begun.items()):
        least = returned.get((file, slot), 0)
        path = root / (f"slots{file}" if file < FILES else f"renamed{file - FILES}")
        try:
            with path.open("rb") as source:
                # What a page cache holds proves nothing about the servers.
                os.posix_fadvise(source.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                source.seek(slot * SLOT_BYTES)
                data = source.read(SLOT_BYTES)
        except FileNotFoundError:
            data = b""
        except OSError as exc:
            wrong.append(f"{path.name} slot {slot}: {exc}")
            continue
        # A file that ends within a slot whose write had not returned holds nothing there yet, or all of it.
        found = 0 if not data else records.generation_of(data, file, slot) if len(data) == SLOT_BYTES else None
        if found is None:
            wrong.append(f"{path.name} slot {slot}: torn ({len(data)} bytes), expected generation {least}..{last}")
        elif not least <= found <= last:
            wrong.append(f"{path.name} slot {slot}: generation {found}, expected {least}..{last}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=Path)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    if args.check:
        wrong = check(args.dir, args.manifest)
        for line in wrong:
            print(line)
        return 1 if wrong else 0
    try:
        write(args.dir, Manifest(args.manifest), args.seed)
    except OSError as exc:
        print(f"ended by {exc}", file=sys.stderr)
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
