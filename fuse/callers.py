"""Who sent a request: FUSE tells uid and gid; the other groups stand in /proc.

Reading them costs as much as the request, so they are kept for a moment. What a process may do is checked twice: by the
kernel (mount option default_permissions), which always knows its groups, and by meta with what is found here; a process that
changed its groups a moment ago may so be refused for that moment, and is never allowed more than the kernel allows.
"""

from __future__ import annotations

from collections.abc import Callable

from fs3.api.meta import Caller

GROUPS_KEPT_S = 2.0
_ENTRIES_MAX = 4096


class Callers:
    """Makes Callers. now: monotonic seconds. read_groups: the groups of a process, OSError where it is gone."""

    def __init__(self, now: Callable[[], float], read_groups: Callable[[int], tuple[int, ...]]) -> None:
        self._now = now
        self._read_groups = read_groups
        self._known: dict[tuple[int, int, int], tuple[float, tuple[int, ...]]] = {}
        self._root = Caller(0, 0, (0,), 0)

    def caller(self, uid: int, gid: int, pid: int, umask: int) -> Caller:
        """The caller of a request."""
        if uid == 0 and gid == 0 and umask == 0:
            return self._root  # may do all, whatever its groups
        return Caller(uid, gid, (gid,) if uid == 0 else self._groups(uid, gid, pid), umask)

    def _groups(self, uid: int, gid: int, pid: int) -> tuple[int, ...]:
        key = (pid, uid, gid)
        now = self._now()
        found = self._known.get(key)
        if found is not None and found[0] > now:
            return found[1]
        try:
            others = self._read_groups(pid) if pid else ()  # 0: it is in another pid namespace
        except OSError:
            others = ()
        groups = (gid, *[group for group in others if group != gid])
        if len(self._known) >= _ENTRIES_MAX:
            self._known.clear()
        self._known[key] = (now + GROUPS_KEPT_S, groups)
        return groups


def groups_of_process(pid: int) -> tuple[int, ...]:
    """The supplementary groups of a process, from /proc. Raises OSError."""
    with open(f"/proc/{pid}/status", "rb") as file:
        for line in file:
            if line.startswith(b"Groups:"):
                return tuple([int(word) for word in line.split()[1:]])
    return ()
