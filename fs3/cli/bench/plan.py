"""What `fs3 bench` does in which order, and how much room it needs. Pure but for the sizes that it is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...config import format_size

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Options:
    """Sizes in bytes; size, files: of each worker."""

    workers: int
    size: int
    block: int
    files: int
    small: int
    kv_block: int
    seconds: float
    verify: bool


@dataclass(frozen=True, slots=True)
class Step:
    """One job of all workers. row: what the table calls it; none for one that is only a preparation. unit: "MiB/s", or what
    is counted. cold: what the kernel is to forget before: "pages" of files, or "names" too, for which all its caches
    must be dropped. units: how many each worker will do; 0: as many as there is time for. block: of files."""

    job: str
    row: str
    unit: str
    units: int
    block: int
    cold: str = ""


def steps(name: str, options: Options) -> list[Step]:
    """The steps of one benchmark."""
    return _MAKERS[name](options)


def _big(o: Options) -> list[Step]:
    blocks = -(-o.size // o.block)
    what = f"{format_size(o.size)} by {format_size(o.block)}"
    return [
        Step("big_write", f"sequential write, {what}", "MiB/s", blocks, o.block),
        Step("big_read", "sequential read", "MiB/s", blocks, o.block, cold="pages"),
        Step("big_read", "the same again", "MiB/s", blocks, o.block),
    ]


def _small(o: Options) -> list[Step]:
    what = f"of {format_size(o.small)}"
    return [
        Step("small_write", f"write files {what}", "files/s", o.files, o.block),
        Step("small_read", f"read files {what}", "files/s", o.files, o.block, cold="pages"),
    ]


def _metadata(o: Options) -> list[Step]:
    return [
        Step("create", "create", "files/s", o.files, o.block),
        Step("stat", "stat", "files/s", o.files, o.block, cold="names"),
        Step("open", "open and close", "files/s", o.files, o.block),
        Step("readdir", "readdir and stat", "entries/s", o.files, o.block, cold="names"),
        Step("rename", "rename", "files/s", o.files, o.block),
        Step("unlink", "unlink", "files/s", o.files, o.block),
    ]


def _checkpoint(o: Options) -> list[Step]:
    blocks = -(-o.size // o.block)
    ranks = f"{o.workers} rank{'s' if o.workers > 1 else ''} of {format_size(o.size)}"
    return [
        Step("save", f"save, fsync, rename: {ranks}", "MiB/s", blocks, o.block),
        Step("load", "load, all at once", "MiB/s", blocks, o.block, cold="pages"),
    ]


def _kvcache(o: Options) -> list[Step]:
    blocks = max(1, o.size // o.kv_block)
    what = f"blocks of {format_size(o.kv_block)}"
    return [
        Step("put", f"put {what}", "MiB/s", blocks, o.kv_block),
        Step("get", f"get {what} at random", "MiB/s", 0, o.kv_block, cold="pages"),
        Step("remove", "remove them", "blocks/s", blocks, o.kv_block),
    ]


def _random(o: Options) -> list[Step]:
    return [
        Step("fill", "", "MiB/s", -(-o.size // o.block), o.block),
        Step("random_read", f"read 4 KiB of {format_size(o.size)}", "1/s", 0, o.block, cold="pages"),
        Step("random_write", f"write 4 KiB of {format_size(o.size)}", "1/s", 0, o.block),
    ]


_MAKERS = {
    "big": _big,
    "small": _small,
    "metadata": _metadata,
    "checkpoint": _checkpoint,
    "kvcache": _kvcache,
    "random": _random,
}
NAMES = tuple(_MAKERS)


def room(names: Sequence[str], options: Options) -> tuple[int, int]:
    """Bytes and files that exist at once, at most. Each benchmark removes its own before the next one begins; but the
    space may come back later than that, so they are added up."""
    size = files = 0
    for name in names:
        if name == "small":
            size += options.files * max(options.small, 4096)
            files += options.files
        elif name == "metadata":
            files += options.files
        else:
            size += options.size
            files += max(1, options.size // options.kv_block) if name == "kvcache" else 1
    return size * options.workers, files * options.workers
