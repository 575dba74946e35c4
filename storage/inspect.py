"""`fs3-storage inspect DIR`: what a disk, or one target of it, holds, and whether all of it is as it should be. Offline.

Every record is decoded, every content read and verified, and no slot may be used twice. No content is changed: what power
loss undid is told, and undone when the daemon opens the target. Exit codes: 0, 1 where something is damaged, 2 where DIR
cannot be looked at.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fs3.errors import Code, ConfigError, FS3Error
from fs3.ids import ChunkId

from .contents import matches, overlay
from .data_files import DataFiles, parse_name
from .disk import Disk
from .disk_linux import LinuxDisk
from .disks import parse_format
from .records import (
    BOOT,
    CHANNEL,
    CHUNK,
    PATCH,
    Patch,
    Record,
    StoredVersion,
    decode_channel,
    decode_patch,
    decode_record,
)

EXIT_OK, EXIT_DAMAGED, EXIT_UNUSABLE = 0, 1, 2


@dataclass(slots=True)
class ChunkFound:
    """One chunk. place: of its committed version, as class:slot; durable: the version that power loss cannot undo, or 0."""

    chunk: str
    version: int
    chain_version: int
    length: int
    pending: int
    durable: int
    place: str
    patches: int
    problem: str = ""


@dataclass(slots=True)
class TargetFound:
    """One target. bytes: of committed contents; slot_bytes: of the slots they are in; file_bytes: of all data files."""

    target: str
    chunks: list[ChunkFound] = field(default_factory=list)
    bytes: int = 0
    slot_bytes: int = 0
    file_bytes: int = 0
    pending: int = 0
    channels: int = 0
    patches: int = 0
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Inspector:
    """Looks at one target."""

    def __init__(self, disk: Disk, folder: str) -> None:
        self._disk = disk
        self._folder = folder
        self._files = DataFiles(disk, folder)
        self._names = set(disk.files(folder))
        self._patches: dict[ChunkId, list[tuple[tuple[int, int], Patch]]] = {}
        self._users: dict[tuple[int, int], ChunkId] = {}
        self._boot = b""
        self.found = TargetFound(folder)

    def run(self) -> TargetFound:
        found = self.found
        if not self._disk.has_records(f"{self._folder}/records"):
            found.problems.append("its records are gone")
            return found
        values: dict[ChunkId, bytes] = {}
        try:
            records = self._disk.open_records(f"{self._folder}/records")
            try:
                for key, value in records.load():
                    self._sort(key, value, values)
            finally:
                records.close()
        except FS3Error as error:
            found.problems.append(error.message)
            return found
        for name in sorted(self._names - {"records"}):
            if parse_name(name) is None:
                found.problems.append(f"a file that is none of ours: {name}")
        for chunk, value in values.items():
            try:
                self._chunk(chunk, decode_record(value))
            except ValueError as error:
                found.problems.append(f"chunk {_name(chunk)}: {error}")
        for chunk in self._patches:
            found.notes.append(f"chunk {_name(chunk)}: patches that nothing needs; opening removes them")
        found.slot_bytes = sum(1 << shift for shift, _ in self._users)
        self._files.close()
        return found

    def _sort(self, key: bytes, value: bytes, values: dict[ChunkId, bytes]) -> None:
        kind = key[:1]
        try:
            if kind == CHUNK and len(key) == 17:
                values[ChunkId.unpack(key[1:])] = value
            elif kind == PATCH:
                chunk, place, patch = decode_patch(key, value)
                self._patches.setdefault(chunk, []).append((place, patch))
                self.found.patches += 1
            elif kind == CHANNEL:
                decode_channel(key, value)
                self.found.channels += 1
            elif kind == BOOT:
                self._boot = value
            else:
                raise ValueError("of an unknown kind")
        except ValueError as error:
            self.found.problems.append(f"record {key.hex()}: {error}")

    def _chunk(self, chunk: ChunkId, record: Record) -> None:
        found = self.found
        committed, pending = record.committed, record.pending
        slots = record.slots()
        stored = self._patches.pop(chunk, [])
        for slot in slots:
            place = (slot.shift, slot.number)
            slot.patches = tuple([patch for where, patch in stored if where == place])
            if place in self._users:
                found.problems.append(f"slot {_place(*place)}: used by {_name(self._users[place])} and {_name(chunk)}")
            self._users[place] = chunk
        durable = record.fallback if committed is None or not committed.stable else committed
        entry = ChunkFound(
            _name(chunk),
            committed.number if committed is not None else 0,
            committed.chain_version if committed is not None else 0,
            committed.length if committed is not None else 0,
            pending.number if pending is not None else 0,
            durable.number if durable is not None else 0,
            _place(committed.slot.shift, committed.slot.number) if committed is not None and committed.slot else "",
            sum(len(slot.patches) for slot in slots),
        )
        found.chunks.append(entry)
        found.bytes += entry.length
        found.pending += pending is not None
        for version in record.versions():
            problem = self._problem(version)
            if not problem:
                continue
            if version.stable or self._boot == self._disk.boot_id().encode():
                entry.problem = f"version {version.number}: {problem}"
                found.problems.append(f"chunk {entry.chunk}: {entry.problem}")
            else:
                found.notes.append(f"chunk {entry.chunk}: version {version.number} was not synced: {problem}; it is undone")

    def _problem(self, version: StoredVersion) -> str:
        """What is wrong with a version."""
        slot = version.slot
        if version.lost():
            return "its content is lost"
        if slot is None:
            return ""
        if slot.damaged:
            return "known to be damaged"
        if version.length > slot.size:
            return "longer than its slot"
        if self._files.file(slot).name.rpartition("/")[2] not in self._names:
            return "its data file is gone"
        view = memoryview(bytearray(version.length))
        try:
            self._files.read_blocking(slot, 0, view)
        except FS3Error as error:
            return error.message
        overlay(view, 0, slot.patches, version.last_patch)
        return "" if matches(view, version) else "its content does not match its checksums"


def _name(chunk: ChunkId) -> str:
    return f"{chunk.inode:x}.{chunk.index}"


def _place(shift: int, number: int) -> str:
    return f"{shift}:{number}"


def inspect(path: Path) -> list[TargetFound]:
    """Look at a data folder, or at one target's folder in it. Raises CONFIG, FORMAT_VERSION, DISK_FAILED."""
    root, only = (path.parent, path.name) if path.name.startswith("target-") else (path, "")
    if not (root / "FORMAT").is_file():
        raise ConfigError(f"{path} is no data folder of a storage daemon")
    disk = LinuxDisk(str(root))
    try:
        _, ids, empty, _ = parse_format(disk.read_small("FORMAT") or b"", disk.name)
        found = []
        for target in ids:
            folder = f"target-{target}"
            if target not in empty and only in ("", folder):
                result = Inspector(disk, folder).run()
                files = [file for file in (root / folder).iterdir() if parse_name(file.name)]
                result.file_bytes = sum(file.stat().st_blocks * 512 for file in files)
                found.append(result)
        if only and not found:
            raise ConfigError(f"{path} is no target with a past")
        return found
    finally:
        disk.close()


def _text(found: TargetFound, chunks: bool) -> str:
    lines = [f"{found.target}:"]
    if chunks:
        for entry in found.chunks:
            line = (
                f"  {entry.chunk:>20} v{entry.version} chain v{entry.chain_version} {entry.length:>9} bytes in {entry.place}"
            )
            line += f", pending v{entry.pending}" if entry.pending else ""
            line += f", durable v{entry.durable}" if entry.durable != entry.version else ""
            line += f", {entry.patches} patches" if entry.patches else ""
            lines.append(line + (f"  DAMAGED: {entry.problem}" if entry.problem else ""))
    lines.append(
        f"  {len(found.chunks)} chunks of {found.bytes} bytes in slots of {found.slot_bytes}, files of {found.file_bytes};"
        f" {found.pending} pending, {found.patches} patches, {found.channels} channels"
    )
    lines += [f"  note: {note}" for note in found.notes]
    lines += [f"  PROBLEM: {problem}" for problem in found.problems]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str]) -> int:
    """The sub-command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="fs3-storage inspect", description="Show and check a data folder, offline.")
    parser.add_argument("folder", type=Path, help="a data folder, or a target's folder in it")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--totals", action="store_true", help="without a line for each chunk")
    options = parser.parse_args(argv)
    try:
        found = inspect(options.folder.absolute())
    except FS3Error as error:
        sys.stderr.write(f"fs3-storage inspect: {error.message}\n")
        return EXIT_DAMAGED if error.code is Code.RECORDS_DAMAGED else EXIT_UNUSABLE
    if options.json:
        targets = [asdict(target) for target in found]
        for target in targets:
            if options.totals:
                target["chunks"] = len(target["chunks"])
        sys.stdout.write(json.dumps({"targets": targets}, indent=1) + "\n")
    else:
        sys.stdout.write("".join(_text(target, not options.totals) for target in found))
    return EXIT_DAMAGED if any(target.problems for target in found) else EXIT_OK
