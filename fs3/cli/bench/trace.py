"""A trace of requests to a KV cache: which blocks each of them needs, in order of time; and how large a cache it wants. Pure
but for the file.

The format is that of the traces which Mooncake published: a JSON object a line, with `timestamp` (ms) and `hash_ids`,
numbers of blocks; the same number is the same block."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ...config import format_size
from ...errors import ConfigError

BLOCK_BYTES = 2 * 1024 * 1024
PAGE = 4096
SPACE_USED = 0.8
"""Of the space that is free."""

Request = tuple[int, ...]


def load(path: Path, requests: int | None) -> list[Request]:
    """The blocks of each request, of so many at most. Raises CONFIG."""
    found: list[Request] = []
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if requests is not None and len(found) == requests:
                    break
                if line.strip():
                    found.append(_request(f"{path}, line {number}", line))
    except OSError as error:
        raise ConfigError(f"--trace {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"--trace {path}: not a text file") from None
    if not found:
        raise ConfigError(f"--trace {path}: no requests")
    return found


def _request(place: str, line: str) -> Request:
    try:
        blocks = json.loads(line)["hash_ids"]
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f'--trace {place}: expected a JSON object with "hash_ids", a list of numbers') from None
    if not isinstance(blocks, list) or not all(type(block) is int and 0 <= block < 2**63 for block in blocks):
        raise ConfigError(f'--trace {place}: "hash_ids": expected a list of numbers from 0 on')
    return tuple(dict.fromkeys(blocks))


def distinct(requests: Sequence[Request]) -> int:
    return len({block for request in requests for block in request})


def fitting(requests: Sequence[Request], size: int | None, capacity: int | None, free: int) -> tuple[int, int]:
    """(bytes of a block, blocks that are held at once). size, capacity: in bytes, as they were asked for. free: bytes that
    there are. Raises CONFIG where it would not fit."""
    count = distinct(requests)
    room = int(free * SPACE_USED)
    if capacity is not None:
        size = size or BLOCK_BYTES
        held = min(count, capacity // size)
        longest = max([len(request) for request in requests])
        if held < min(count, longest):
            raise ConfigError(f"--capacity: at least the {longest} blocks of one request, {format_size(longest * size)}")
    else:
        held = count
        size = size or max(PAGE, min(BLOCK_BYTES, room // held // PAGE * PAGE))
    if held * size > room:
        raise ConfigError(
            f"{held} blocks of {format_size(size)} do not fit in {format_size(room)}: give a smaller --kv-size, a"
            " --capacity, or fewer --requests"
        )
    return size, held
