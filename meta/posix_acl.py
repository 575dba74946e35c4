"""POSIX access control lists: acl(5), in the form in which the kernel passes them as extended attributes. Pure.

A list is bytes: a version u32 = 2, then entries of tag u16, rights u16, id u32, all little-endian, in the order of TAGS.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from fs3.api.meta import Caller
from fs3.errors import Code, FS3Error

ACCESS = b"system.posix_acl_access"
DEFAULT = b"system.posix_acl_default"

USER_OBJ = 0x01
USER = 0x02
GROUP_OBJ = 0x04
GROUP = 0x08
MASK = 0x10
OTHER = 0x20

ENTRIES_MAX = 500
"""In one list: they stand with the inode, which every change of it writes."""

_VERSION = 2
_HEADER = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")
_NO_ID = 0xFFFFFFFF

Entry = tuple[int, int, int]
"""tag, rights (READ | WRITE | EXECUTE), id of a user or group."""


def parsed(value: bytes) -> list[Entry]:
    """The entries of a list. Raises INVALID, NO_SPACE (too many)."""
    size = len(value) - _HEADER.size
    if size < 0 or size % _ENTRY.size or _HEADER.unpack_from(value)[0] != _VERSION:
        raise FS3Error(Code.INVALID, f"no access control list: {value[:20]!r}")
    if size // _ENTRY.size > ENTRIES_MAX:
        raise FS3Error(Code.NO_SPACE, f"an access control list of {size // _ENTRY.size} entries, {ENTRIES_MAX} fit")
    entries = [(tag, rights, number) for tag, rights, number in _ENTRY.iter_unpack(value[_HEADER.size :])]
    if entries:
        _check(entries)
    return entries


def _check(entries: Sequence[Entry]) -> None:
    """Raises INVALID: entries out of order, one missing or there twice, rights or ids that do not exist."""
    tags = [tag for tag, _, _ in entries]
    once = [tags.count(tag) for tag in (USER_OBJ, GROUP_OBJ, OTHER)]
    named = USER in tags or GROUP in tags
    masks = tags.count(MASK)
    if tags != sorted(tags) or once != [1, 1, 1] or masks > 1 or (named and not masks):
        raise FS3Error(Code.INVALID, f"an access control list of entries {tags}")
    for tag, rights, number in entries:
        if tag not in (USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER) or rights & ~7:
            raise FS3Error(Code.INVALID, f"an entry of an access control list: tag {tag}, rights {rights}")
        if tag in (USER, GROUP) and number == _NO_ID:
            raise FS3Error(Code.INVALID, "an entry of an access control list names nobody")


def packed(entries: Sequence[Entry]) -> bytes:
    """b"" for a list without entries."""
    return _HEADER.pack(_VERSION) + b"".join([_ENTRY.pack(*entry) for entry in entries]) if entries else b""


def as_mode(entries: Sequence[Entry]) -> tuple[int, bool]:
    """(permission bits, whether they say all that the list says). The group's bits are the mask where there is one."""
    rights = {tag: bits for tag, bits, _ in entries}
    plain = len(entries) == 3
    group = rights[GROUP_OBJ] if plain else rights.get(MASK, rights[GROUP_OBJ])
    return rights[USER_OBJ] << 6 | group << 3 | rights[OTHER], plain


def allows(access: bytes, gid: int, caller: Caller, wanted: int) -> bool:
    """Whether a list gives all rights of `wanted` to a caller who is not the owner. gid: the file's group."""
    mask = 7
    of_user = -1
    of_groups: list[int] = []
    of_others = 0
    for tag, rights, number in _ENTRY.iter_unpack(access[_HEADER.size :]):
        if tag == USER and number == caller.uid:
            of_user = rights
        elif tag in (GROUP_OBJ, GROUP):
            group = gid if tag == GROUP_OBJ else number
            if group == caller.gid or group in caller.groups:
                of_groups.append(rights)
        elif tag == MASK:
            mask = rights
        elif tag == OTHER:
            of_others = rights
    if of_user >= 0:
        return of_user & mask & wanted == wanted
    if of_groups:
        # One entry must give all of them; groups do not add up.
        return any(rights & mask & wanted == wanted for rights in of_groups)
    return of_others & wanted == wanted


def inherited(default: bytes, mode: int) -> tuple[bytes, int]:
    """(list, mode) of what is made with `mode` in a directory with a default list; b"" where the mode says all."""
    entries = parsed(default)
    mask_tag = MASK if any(tag == MASK for tag, _, _ in entries) else GROUP_OBJ
    limits = {USER_OBJ: mode >> 6 & 7, mask_tag: mode >> 3 & 7, OTHER: mode & 7}
    entries = [(tag, rights & limits.get(tag, 7), number) for tag, rights, number in entries]
    bits, plain = as_mode(entries)
    return b"" if plain else packed(entries), mode & ~0o777 | bits


def with_mode(access: bytes, mode: int) -> bytes:
    """A list after chmod: the group's bits become the mask's where there is one."""
    entries = parsed(access)
    mask_tag = MASK if any(tag == MASK for tag, _, _ in entries) else GROUP_OBJ
    rights_of = {USER_OBJ: mode >> 6 & 7, mask_tag: mode >> 3 & 7, OTHER: mode & 7}
    return packed([(tag, rights_of.get(tag, rights), number) for tag, rights, number in entries])
