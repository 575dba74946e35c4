"""Rare branches made common: the points in the product that ask `env.rare(name)`, and how often a simulation says yes."""

from __future__ import annotations

from collections import Counter
from random import Random

POINTS: dict[str, float] = {
    "client.heartbeat.late": 0.05,
    "client.meta.impatient": 0.03,
    "client.read.impatient": 0.02,
    "client.routing.late": 0.2,
    "client.write.impatient": 0.02,
    "kv.commit-unknown": 0.05,
    "kv.conflict": 0.1,
    "kv.too-old": 0.05,
    "meta.gc.interrupted": 0.3,
    "meta.inode-ids.dropped": 0.1,
    "meta.intent.interrupted": 0.4,
    "meta.readdir.one": 0.3,
    "meta.trees.one": 0.3,
    "mgmtd.commit.late": 0.05,
    "mgmtd.heartbeat.reply-lost": 0.05,
    "mgmtd.register.reply-lost": 0.3,
    "mount.readahead.off": 0.3,
    "storage.dump.one": 0.5,
    "storage.forward.reply-lost": 0.02,
    "storage.forward.whole": 0.1,
    "storage.put.no-space": 0.01,
    "storage.resync.interrupted": 0.3,
    "storage.tidy.now": 0.9,
    "storage.write.reply-lost": 0.02,
}
"""Name -> how often it is taken, in a run whose plan has it. What stands after the check of a point must be something that
could happen in production just so."""


class Rare:
    """Answers for one run. Each point has its own chance, so that one of them changes nothing for the others."""

    def __init__(self, seed: int, names: tuple[str, ...]) -> None:
        self._chances = {name: Random(f"{seed}/rare/{name}") for name in names}
        self.fired: Counter[str] = Counter()

    def ask(self, point: str) -> bool:
        """Whether to take it now. Raises KeyError for a point that nobody has listed."""
        often = POINTS[point]
        chance = self._chances.get(point)
        if chance is None or chance.random() >= often:
            return False
        self.fired[point] += 1
        return True
