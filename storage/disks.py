"""A daemon's disks and the targets on them. What cannot be opened is left out, and the rest is served.

FORMAT names the targets of a disk, and those among them that are empty for want of a past: on a disk that was just
formatted, or when their records were damaged and thrown away. Such a target must not speak for its chain before it is sure
that the chain does not count on it (rebuild.py).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fs3.errors import Code, ConfigError, FS3Error
from fs3.ids import ChunkId
from fs3.routing import RoutingInfo

from .chunk_engine import ChunkEngine
from .disk import Disk, Space
from .local import LocalTarget
from .space import SpaceBudget

logger = logging.getLogger("fs3.storage.disks")

FORMAT_VERSION = 2
_CHUNK_ID_SIZE = 16
_TARGETS_MAX = 99
"""Of one disk, whose number takes the two digits before those of its targets."""
_FORMAT_NAME = "fs3-storage"
_OURS = ("LOCK", "FORMAT.new", "lost+found")


class Home:
    """A disk of this daemon, formatted. ids: of its targets. empty: those that have no past."""

    def __init__(self, disk: Disk, number: int, node_id: int, targets: int, reserve_bytes: int) -> None:
        """Formats a disk that is empty; makes more targets where there are fewer than `targets`.

        Raises CONFIG, FORMAT_VERSION, DISK_FAILED.
        """
        self.disk = disk
        self.number = number
        self._node_id = node_id
        self.space = SpaceBudget(disk, reserve_bytes)
        self.cluster = ""  # the id of the cluster that it belongs to, once it has registered with one
        found = disk.read_small("FORMAT")
        if found is not None:
            owner, self.ids, self.empty, self.cluster = parse_format(found, disk.name)
            if owner != node_id:
                raise ConfigError(f"data folder {disk.name} belongs to node {owner}, this is node {node_id} (node_id)")
            if len(self.ids) < targets:
                self._add(targets - len(self.ids))
            return
        strangers = [name for name in disk.files("") if name not in _OURS]
        if strangers:
            raise ConfigError(f"data folder {disk.name} is no fs3 data, but holds {strangers[0]}")
        self.ids, self.empty = [], set()
        self._add(targets)

    def _add(self, count: int) -> None:
        """Make so many targets, which are empty: on a fresh disk, or where there are to be more than there were."""
        # After the disk's own ones: by its number another disk may have been formatted, before their order changed.
        first = self.ids[0] // 100 * 100 + 1 if self.ids else self._node_id * 10_000 + self.number * 100 + 1
        numbers = [target for target in range(first, first + _TARGETS_MAX) if target not in self.ids]
        self.ids += numbers[:count]
        self.empty |= set(numbers[:count])
        self._write()

    def folder(self, target: int) -> str:
        """Where a target is on the disk."""
        return f"target-{target}"

    def open(self, target: int, now: float) -> LocalTarget:
        """Open a target. Raises RECORDS_DAMAGED, DISK_FAILED."""
        folder = self.folder(target)
        if target in self.empty:
            self.disk.remove(folder)  # what a rebuild left that did not get far
        elif not self.disk.has_records(f"{folder}/records"):
            raise FS3Error(Code.RECORDS_DAMAGED, f"{self.disk.name}/{folder}: its records are gone")
        opened = LocalTarget(target, self.number, ChunkEngine(self.disk, folder, self.space), now)
        opened.empty = target in self.empty
        place = self.disk.read_small(f"scrub-{target}") or b""
        if len(place) == _CHUNK_ID_SIZE:
            opened.scrubbed_to = ChunkId.unpack(place)
        opened.save_scrubbed = lambda chunk: self.disk.write_small(
            f"scrub-{target}", chunk.pack() if chunk is not None else b""
        )
        return opened

    def forget(self, target: int) -> None:
        """From now on the target is empty; open() removes what is there."""
        self.empty.add(target)
        self._write()

    def settle(self, target: int) -> None:
        """An empty target has found its place: from now on it has a past."""
        self.empty.discard(target)
        self._write()

    def join(self, cluster: str) -> None:
        """The daemon has registered with this cluster: its disk belongs to that one, if it belongs to none."""
        if not self.cluster:
            self.cluster = cluster
            try:
                self._write()
            except FS3Error as error:
                self.cluster = ""
                logger.error("disk %s cannot be marked as the cluster's: %s", self.disk.name, error.message)
        elif self.cluster != cluster:
            logger.warning("disk %s holds data of cluster %s, and serves %s now", self.disk.name, self.cluster, cluster)

    def _write(self) -> None:
        empty = sorted(self.empty)
        content = {"node": self._node_id, "targets": self.ids, "empty": empty, "cluster": self.cluster}
        head = f"{_FORMAT_NAME} {FORMAT_VERSION}\n"
        self.disk.write_small("FORMAT", (head + json.dumps(content) + "\n").encode())


def parse_format(found: bytes, name: str) -> tuple[int, list[int], set[int], str]:
    """The node, the targets, those of them that are empty, and the cluster ("": none yet). Raises CONFIG, FORMAT_VERSION."""
    head, _, rest = found.decode(errors="replace").partition("\n")
    kind, _, number_text = head.partition(" ")
    if kind != _FORMAT_NAME or not number_text.isdigit():
        raise ConfigError(f"data folder {name} is no data of a storage daemon (its FORMAT says {head[:40]!r})")
    if int(number_text) != FORMAT_VERSION:
        raise FS3Error(
            Code.FORMAT_VERSION,
            f"data folder {name} has format {number_text}, this program knows {FORMAT_VERSION} only",
        )
    try:
        content = json.loads(rest)
        owner, ids = int(content["node"]), [int(target) for target in content["targets"]]
        empty = {int(target) for target in content.get("empty", [])}
        cluster = str(content.get("cluster", ""))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(f"data folder {name}: its FORMAT file is damaged") from None
    return owner, ids, empty, cluster


@dataclass(frozen=True, slots=True)
class ClosedTarget:
    """A target that could not be opened, and why. damaged: its records are, while its disk works."""

    id: int
    home: Home
    reason: str
    damaged: bool


class Homes:
    """All disks of a daemon that work, by their numbers, and the targets on them: those that are open, and the others.

    mgmtd takes a target for offline that a daemon does not speak of.
    """

    def __init__(self) -> None:
        self.homes: dict[int, Home] = {}
        self.targets: list[LocalTarget] = []
        self.closed: list[ClosedTarget] = []
        self._disks: list[Disk] = []

    def open(
        self,
        names: Sequence[str],
        open_folder: Callable[[str], Disk],
        node_id: int,
        targets: int,
        reserve_bytes: int,
        now: float,
    ) -> None:
        """Open what can be opened. Raises CONFIG, FORMAT_VERSION; DISK_FAILED where no disk is left."""
        failure: FS3Error | None = None
        for number, name in enumerate(names):
            try:
                disk = open_folder(name)
                self._disks.append(disk)
                home = self.homes[number] = Home(disk, number, node_id, targets, reserve_bytes)
            except FS3Error as error:
                if error.code is not Code.DISK_FAILED:
                    raise
                failure = error
                logger.error("disk %d stays out: %s", number, error.message)
                continue
            for target in home.ids:
                self._open_target(home, target, now)
        if failure is not None and not self.homes:
            raise failure

    def _open_target(self, home: Home, target: int, now: float) -> None:
        try:
            self.targets.append(home.open(target, now))
        except FS3Error as error:
            if error.code not in (Code.DISK_FAILED, Code.RECORDS_DAMAGED):
                raise
            damaged = error.code is Code.RECORDS_DAMAGED
            self.closed.append(ClosedTarget(target, home, error.message, damaged))
            (logger.warning if damaged else logger.error)("target %d stays out: %s", target, error.message)

    def settle_new(self, routing: RoutingInfo) -> None:
        """Empty targets that are in no chain have nothing to lose: they may register as they are."""
        known = {entry.target for chain in routing.chains.values() for entry in chain.targets}
        for target in self.targets:
            if target.empty and target.id not in known:
                self.homes[target.disk].settle(target.id)
                target.empty = False

    def keep_free(self, reserve_bytes: int) -> None:
        """Of each disk, from now on."""
        for home in self.homes.values():
            home.space.keep_free(reserve_bytes)

    def space(self, number: int) -> Space:
        return self.homes[number].disk.space()

    def close(self) -> None:
        for target in self.targets:
            target.engine.close()
        for disk in self._disks:
            disk.close()
