"""`fs3-meta fsck`, first half: surveys the store of a running cluster, and has the daemons look again at what seems wrong.

The survey takes many transactions while others work, so most of what the checks find on a busy cluster is only what was
under way. What is reported has been looked at again in one transaction (mend.py). What keeps changing is not decided, and
counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Protocol

import trio

from fs3.api.common import Empty, Method, Rep, Req
from fs3.api.meta import STATFS
from fs3.api.meta_admin import MEND, SCAN, EntryRef, MendRequest, Outcome, Problem, ScanRequest, Verdict
from fs3.env import Env
from fs3.ids import ROOT_INODE
from fs3.routing import Table

from .fsck import Fault, Finding, Survey, check, check_layouts
from .schema import DIRECTORY, FILE, INODE_PENDING, span

INODES_AT_ONCE = 1_000_000
"""How many inodes are surveyed at a time, by default: each takes about a kilobyte."""
BATCH = 64
ROUNDS_MAX = 6
"""Surveys of one part: one repair may show what else is wrong."""
PAUSE_S = 0.5
PARTS_MAX = 1024

_TAGS = (b"INOD", b"DENT", b"DSUB", b"DTIM", b"GCQ_", b"IBLK", b"INTN", b"LOCK", b"SESS", b"STAT", b"TDIR", b"TREE", b"XATR")
"""What is read: inodes first, see Problem.ctime_ns. Records of requests have no rules; other keys may be mgmtd's."""


class Caller(Protocol):
    """The part of MetaClient that is used here."""

    async def call(self, method: Method[Req, Rep], request: Req, *, deadline: float | None = None) -> Rep: ...


@dataclass(frozen=True, slots=True)
class Reported:
    """One finding, certain. state: found, repaired, left. action: what was done about it, or is to be done. path: of the
    inode, "" where it has none or that is not known."""

    fault: Fault
    inode: int
    text: str
    state: str
    action: str = ""
    path: str = ""


@dataclass(frozen=True, slots=True)
class Holes:
    """A file of which chunks are absent: a sparse one, or one that has lost them."""

    inode: int
    path: str
    chunks: int
    absent: int


@dataclass(slots=True)
class Report:
    """unsettled: seemed wrong, but kept changing. unchecked: what could not be looked at, and why. holes: if asked for."""

    findings: list[Reported] = field(default_factory=list)
    holes: list[Holes] = field(default_factory=list)
    inodes: int = 0
    chunks: int = 0
    copies: int = 0
    unsettled: int = 0
    unchecked: list[str] = field(default_factory=list)

    def exit_code(self) -> int:
        """As fsck(8): 0 all is well, 1 all that was wrong is repaired, 4 something is left, plus 8 for what could not be
        checked."""
        code = 0
        if self.findings:
            code = 1 if all(each.state == "repaired" for each in self.findings) else 4
        return code | 8 if self.unchecked else code


Progress = Callable[[str, int, int], None]
"""Is told (what, how many are done, of how many)."""


def state_of(outcome: Outcome, repair: bool) -> str:
    if outcome.verdict is Verdict.MENDED:
        return "repaired"
    return "left" if repair else "found"


class Names:
    """Checks the namespace. tables: the chain tables, as they are now."""

    def __init__(
        self,
        env: Env,
        meta: Caller,
        tables: Callable[[], dict[int, Table]],
        report: Report,
        progress: Progress,
        *,
        repair: bool,
    ) -> None:
        self._env = env
        self._meta = meta
        self._tables = tables
        self._report = report
        self._progress = progress
        self._repair = repair
        self._reported: set[tuple[Fault, int, int, bytes]] = set()
        self._uncounted = False  # the count of inodes could not be compared

    async def parts(self, at_once: int) -> int:
        """Into how many parts the store has to be cut, by its own count of inodes."""
        return parts_of((await self._meta.call(STATFS, Empty())).files, at_once)

    async def check(self, part: int, parts: int) -> Survey:
        """Check one part, and repair it if asked to; returns the last survey of it."""
        self._uncounted = False
        quiet = 0
        rounds = ROUNDS_MAX
        while True:
            found = await self._survey(part, parts)
            tables = self._tables()
            findings = [*check(found), *check_layouts(found, tables)]
            rounds -= 1
            again, unsettled = await self._judge(found, findings, rounds == 0)
            quiet = 0 if again else quiet + 1
            if rounds == 0 or (not again and not unsettled) or quiet > 2:
                self._report.unsettled += unsettled + self._uncounted
                return found
            await trio.sleep(PAUSE_S)

    async def _survey(self, part: int, parts: int) -> Survey:
        found = Survey(part, parts)
        total = (await self._meta.call(STATFS, Empty())).files
        stage = "reading the namespace" if parts == 1 else f"reading the namespace, part {part + 1} of {parts}"
        for tag in _TAGS:
            begin, end = span(tag)
            more = True
            while more:
                reply = await self._meta.call(SCAN, ScanRequest(begin, end))
                for key, value in zip(reply.keys, reply.values, strict=True):
                    found.add(key, value)
                more = reply.more
                if more:
                    begin = reply.keys[-1] + b"\0"
                self._progress(stage, found.records["INOD"] + found.records["DENT"], 2 * max(0, total))
        self._report.inodes = found.records["INOD"]
        return found

    async def _judge(self, found: Survey, findings: Sequence[Finding], last: bool) -> tuple[bool, int]:
        """Have all findings looked at again. last: what only another repair would put right is told now. Returns whether
        there is reason for another survey, and how many findings could not be decided."""
        again = False
        unsettled = 0
        problems = problems_of(found, findings)
        for at in range(0, len(problems), BATCH):
            batch = problems[at : at + BATCH]
            outcomes = (await self._meta.call(MEND, MendRequest(tuple(batch)))).outcomes
            for finding, problem, outcome in zip(findings[at : at + BATCH], batch, outcomes, strict=True):
                if self._repair and outcome.verdict is Verdict.FOUND:
                    outcome = await self._mend(problem)
                if outcome.verdict is Verdict.UNSETTLED and finding.fault is Fault.WRONG_COUNT:
                    self._uncounted = True  # of a big store that is in use, and no survey will be better
                elif outcome.verdict is Verdict.UNSETTLED:
                    unsettled += 1
                elif outcome.verdict is Verdict.FOUND and self._repair and not last:
                    again = True
                elif outcome.verdict is not Verdict.GONE:
                    again = again or outcome.verdict is Verdict.MENDED
                    self._tell(finding, outcome)
            self._progress("looking again", at + len(batch), len(problems))
        return again, unsettled

    async def _mend(self, problem: Problem) -> Outcome:
        """Repair what was found just now."""
        outcome = (await self._meta.call(MEND, MendRequest((problem,), True))).outcomes[0]
        if outcome.verdict is Verdict.GONE:  # by the repair of another one, or by a request whose reply was lost
            return Outcome(Verdict.MENDED, "it is so no more")
        return outcome

    def _tell(self, finding: Finding, outcome: Outcome) -> None:
        key = (finding.fault, finding.inode, finding.parent, finding.name)
        if key in self._reported and outcome.verdict is not Verdict.MENDED:
            return
        self._reported.add(key)
        state = state_of(outcome, self._repair)
        self._report.findings.append(Reported(finding.fault, finding.inode, finding.text, state, outcome.text))


def parts_of(inodes: int, at_once: int) -> int:
    """Into how many parts a store of so many inodes is cut, so that each has about `at_once`."""
    return min(PARTS_MAX, max(1, -(-inodes // max(1, at_once))))


def paths_of(found: Survey, wanted: Set[int]) -> dict[int, str]:
    """The paths of inodes, as the survey saw them; one for each that has any."""
    above = {number: (parent, name) for parent, name, number, kind in found.entries if kind == DIRECTORY or number in wanted}
    paths: dict[int, str] = {}
    for number in wanted:
        parts: list[bytes] = []
        at = number
        while at in above and len(parts) <= len(above):
            at, name = above[at]
            parts.append(name)
        if at == ROOT_INODE:
            paths[number] = "/" + b"/".join(parts[::-1]).decode(errors="backslashreplace")
    return paths


def add_paths(report: Report, found: Survey) -> None:
    """Say where the inodes are that findings speak of."""
    wanted = {each.inode for each in report.findings if not each.path and each.inode}
    if wanted:
        paths = paths_of(found, wanted)
        report.findings = [
            replace(each, path=paths[each.inode]) if not each.path and each.inode in paths else each
            for each in report.findings
        ]


def holes_of(found: Survey, counted: Mapping[int, int]) -> list[Holes]:
    """The files that have fewer chunks than their length takes, given how many of them there are. Those that somebody
    writes are left out."""
    lacking = []
    for number, inode in found.inodes.items():
        if inode.kind == FILE and inode.length and number not in found.written and not inode.flags & INODE_PENDING:
            chunks = -(-inode.length // inode.chunk_size)
            if counted.get(number, 0) < chunks:
                lacking.append((number, chunks, chunks - counted.get(number, 0)))
    paths = paths_of(found, {number for number, _, _ in lacking}) if lacking else {}
    return [Holes(number, paths.get(number, ""), chunks, absent) for number, chunks, absent in lacking]


def problems_of(found: Survey, findings: Iterable[Finding]) -> list[Problem]:
    """What the daemons are asked about each finding."""
    findings = list(findings)
    wanted = {finding.inode for finding in findings}
    names: dict[int, list[EntryRef]] = {number: [] for number in wanted}
    ways = any(finding.fault is Fault.LOOP for finding in findings)
    above: dict[int, EntryRef] = {}
    for parent, name, number, kind in found.entries:
        if number in wanted:
            names[number].append(EntryRef(parent, name))
        if ways and kind == DIRECTORY:
            above[number] = EntryRef(parent, name)
    problems = []
    for finding in findings:
        inode = found.inodes.get(finding.inode)
        refs = names[finding.inode] if finding.fault is not Fault.LOOP else _way_up(above, finding.inode)
        ctime_ns = inode.ctime_ns if inode is not None else 0
        problems.append(Problem(finding.fault.name, finding.inode, finding.parent, finding.name, tuple(refs), ctime_ns))
    return problems


def _way_up(above: dict[int, EntryRef], directory: int) -> list[EntryRef]:
    way: list[EntryRef] = []
    seen: set[int] = set()
    at = directory
    while at in above and at not in seen:
        seen.add(at)
        way.append(above[at])
        at = above[at].parent
    return way
