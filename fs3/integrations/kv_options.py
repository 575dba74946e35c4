"""How a block store (kv_store) is asked for in the configuration of an engine."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ..client.sync import shared
from ..config import parse_size
from ..doors import ClientDoor, Door, PlainDoor
from ..ring_door import RingDoor
from ..usrbio import mount_point_of
from .cluster import PROTOCOL, addresses, split_url
from .kv_store import BlockStore

logger = logging.getLogger("fs3.integrations.kv_store")

KEYS = {
    "place": "a folder of an fs3 mount (its rings are used), or fs3://HOST:PORT/FOLDER, or fs3:///FOLDER with FS3_MGMTD set",
    "capacity": 'bytes, or a text such as "1TiB", that all who write there may fill together; default: no bound',
    "segment": 'bytes of a file that holds many blocks; default "256MiB", or more where the capacity is large',
    "refresh_s": "after so many seconds blocks of others are found; default 1",
    "verify": "whether blocks that are read are compared with their checksums; default true",
    "rings": "false: read and write by the kernel's calls; default true",
}


def open_store(options: Mapping[str, Any]) -> BlockStore:
    """The store that these options (KEYS) describe. Raises ValueError for what they should not say, OSError where there is
    no such place. Where rings are not to be had it does without, with a warning."""
    unknown = sorted(options.keys() - KEYS.keys())
    if unknown:
        raise ValueError(f"fs3: no option {', '.join(unknown)}; there are {', '.join(KEYS)}")
    place = options.get("place")
    if not isinstance(place, str) or not place:
        raise ValueError(f"fs3: give `place`, {KEYS['place']}")
    for name in ("verify", "rings"):
        if not isinstance(options.get(name, True), bool):
            raise ValueError(f"fs3: {name}: expected true or false")
    refresh_s = options.get("refresh_s", 1.0)
    if not isinstance(refresh_s, (int, float)) or refresh_s < 0:
        raise ValueError("fs3: refresh_s: expected a number of seconds")
    capacity, segment = _size(options, "capacity", 0), _size(options, "segment", 0)
    door = _door(place, options.get("rings", True))
    try:
        return BlockStore(
            door, capacity_bytes=capacity, segment_bytes=segment, refresh_s=refresh_s, verify=options.get("verify", True)
        )
    except BaseException:
        door.end()
        raise


def _size(options: Mapping[str, Any], name: str, default: int) -> int:
    value = options.get(name, default)
    try:
        found = parse_size(value) if isinstance(value, str) else value
    except ValueError:
        found = None
    if type(found) is not int or found < 0:
        raise ValueError(f'fs3: {name}: expected a number of bytes, or a text such as "1TiB"')
    return found


def _door(place: str, rings: bool) -> Door:
    if place.startswith(PROTOCOL):
        hosts, path = split_url(place)
        return ClientDoor(shared(addresses(hosts or None)), path)
    if not rings:
        return PlainDoor(place)
    try:
        mount_point_of(place)
    except ValueError:
        logger.warning("%s is on no fs3 mount: its files are used as those of any file system", place)
        return PlainDoor(place)
    try:
        return RingDoor(place)
    except OSError as error:
        logger.warning("%s: its files are used without rings: %s", place, error)
        return PlainDoor(place)
