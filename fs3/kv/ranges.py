"""Half-open ranges of keys, as (begin, end) with begin < end. Pure."""

from __future__ import annotations

from collections.abc import Iterable

Range = tuple[bytes, bytes]


def key_range(key: bytes) -> Range:
    """The range that holds one key only."""
    return key, key + b"\x00"


def contains(ranges: Iterable[Range], key: bytes) -> bool:
    """Whether one of the ranges holds the key."""
    return any(begin <= key < end for begin, end in ranges)


def intersects(ranges: Iterable[Range], begin: bytes, end: bytes) -> bool:
    """Whether one of the ranges shares a key with [begin, end)."""
    return any(other_begin < end and begin < other_end for other_begin, other_end in ranges)


def subtract(begin: bytes, end: bytes, holes: Iterable[Range]) -> list[Range]:
    """What is left of [begin, end) without the holes, in order."""
    left: list[Range] = []
    position = begin
    for hole_begin, hole_end in sorted(holes):
        if hole_begin >= end:
            break
        if hole_begin > position:
            left.append((position, hole_begin))
        position = max(position, hole_end)
    if position < end:
        left.append((position, end))
    return left


def insert(ranges: list[Range], begin: bytes, end: bytes) -> None:
    """Add [begin, end) to sorted, disjoint ranges, joining those that overlap or touch it."""
    kept = []
    for other_begin, other_end in ranges:
        if other_end < begin or end < other_begin:
            kept.append((other_begin, other_end))
        else:
            begin, end = min(begin, other_begin), max(end, other_end)
    kept.append((begin, end))
    kept.sort()
    ranges[:] = kept
