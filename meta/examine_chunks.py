"""`fs3-meta fsck`, second half: reads the lists of chunks of all serving targets, page by page, and compares them with the
namespace and with each other.

Chunks change while they are listed. What seems wrong with one and its file holds if the chunk is the same before and after
meta was asked about the file: then it was so at that moment. Replicas differ if each of them is twice the same, one after
the other, with nothing pending.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import trio

from fs3.api.admin import TARGET_ACTION, TargetAction, TargetActionRequest
from fs3.api.common import Empty, Method, Rep, Req
from fs3.api.meta_admin import MEND, UNUSED_IDS, MendRequest, Problem, Verdict
from fs3.api.storage import SUSPECT, ChunkMeta, SuspectRequest
from fs3.api.storage_admin import LIST_CHUNKS, ListChunksRequest
from fs3.client.each import each
from fs3.client.mgmtd import MgmtdClient
from fs3.client.storage import StorageClient
from fs3.env import Env
from fs3.errors import Code, FS3Error
from fs3.ids import U64_MAX, ChunkId, NodeKind
from fs3.routing import Chain
from fs3.rpc.client import RpcClient

from .examine import BATCH, Caller, Progress, Report, Reported, state_of
from .fsck import Fault, Survey, check_chunk, check_place, chunk_name, place_of

CHAINS_AT_ONCE = 8
CALL_S = 10.0
PATIENCE_S = 30.0
"""How long a chain may be out of reach before it counts as not checked."""
LOOKS_MAX = 5
LOOK_PAUSE_S = 0.3
DAMAGE_S = 10.0
"""How long a daemon may take to repair a chunk that it knows to be damaged."""
RESYNC_S = 600.0

Content = tuple[int, int, int, int]


@dataclass(slots=True)
class Suspicion:
    """What seems wrong with chunks of one inode on one chain: (target that has it, its record) each."""

    fault: Fault
    inode: int
    text: str
    end: int = 0
    chunks: list[tuple[int, ChunkMeta]] = field(default_factory=list)


@dataclass(slots=True)
class Difference:
    """A chunk of which the serving targets hold different things. copies: by target. right: what all should have."""

    chunk: ChunkId
    copies: dict[int, Content | None]
    right: Content | None = None
    decided: bool = False


def content(meta: ChunkMeta | None) -> Content | None:
    """What replicas compare: (chain version, version, length, checksum)."""
    return (meta.chain_version, meta.version, meta.length, meta.checksum) if meta is not None and meta.version else None


class Chunks:
    """Checks the chunks of a cluster."""

    def __init__(
        self,
        env: Env,
        rpc: RpcClient,
        mgmtd: MgmtdClient,
        meta: Caller,
        report: Report,
        progress: Progress,
        *,
        repair: bool,
    ) -> None:
        self._env = env
        self._rpc = rpc
        self._mgmtd = mgmtd
        self._meta = meta
        self._storage = StorageClient(env, rpc, mgmtd, env.client_id())
        self._report = report
        self._progress = progress
        self._repair = repair
        self.counted: Counter[int] | None = None
        """How many chunks each file has, those behind its end left out; None: not counted."""

    async def check(self, found: Survey, *, count: bool = False) -> None:
        """Check all chains against what a survey found; with that of the first part, replicas against each other too.
        count: how many chunks files have."""
        self.counted = Counter() if count else None
        chains = sorted(self._mgmtd.routing.chains)
        done = 0

        async def one(number: int) -> None:
            nonlocal done
            await self._chain(found, number)
            done += 1
            self._progress("reading chunks", done, len(chains))

        await each(chains, one, CHAINS_AT_ONCE)

    async def _chain(self, found: Survey, number: int) -> None:
        after: ChunkId | None = None
        reached_at = self._env.monotonic()
        differences: list[Difference] = []
        while True:
            version = self._mgmtd.routing.version
            try:
                after, more = await self._page(found, number, after, differences)
                if not more:
                    break
                reached_at = self._env.monotonic()
            except FS3Error as error:
                if self._env.monotonic() - reached_at > PATIENCE_S or not _passing(error):
                    self._report.unchecked.append(f"chain {number}: {error}")
                    return
                await self._wait_routing(version, 1.0)
        if differences:
            try:
                await self._tell_differences(number, differences)
            except FS3Error as error:
                self._report.unchecked.append(f"chain {number}: {error}")

    # Reading

    def _chain_of(self, number: int) -> Chain:
        """A chain that somebody serves. Raises CHAIN_UNAVAILABLE."""
        chain = self._mgmtd.routing.chains.get(number)
        if chain is None or not chain.serving():
            raise FS3Error(Code.CHAIN_UNAVAILABLE, "no target serves")
        return chain

    async def _ask(self, target: int, method: Method[Req, Rep], request: Req) -> Rep:
        node = self._mgmtd.routing.node_of(target)
        if node is None:
            raise FS3Error(Code.NO_ROUTING, f"nobody knows where target {target} is")
        return await self._rpc.call(node.address, method, request, deadline=self._env.monotonic() + CALL_S)

    async def _page(
        self, found: Survey, number: int, after: ChunkId | None, differences: list[Difference]
    ) -> tuple[ChunkId | None, bool]:
        """Check the next chunks of a chain; returns where they end, and whether there are more."""
        targets = self._chain_of(number).serving()
        reply = await self._ask(targets[0], LIST_CHUNKS, ListChunksRequest(targets[0], after))
        until = reply.chunks[-1].chunk if reply.more else None
        lists = {targets[0]: {meta.chunk: meta for meta in reply.chunks}}
        for target in targets[1:]:
            lists[target] = await self._list(target, after, until)
        suspicions: dict[tuple[Fault, int], Suspicion] = {}
        tables = self._mgmtd.routing.tables
        first = found.part == 0
        counted: Counter[int] = Counter()
        for chunk in sorted(set().union(*lists.values())):
            copies = {target: listed.get(chunk) for target, listed in lists.items()}
            if first:
                self._report.chunks += 1
                self._report.copies += sum([meta is not None for meta in copies.values()])
                if any(meta is not None and meta.damaged for meta in copies.values()):
                    await self._damaged(number, chunk)
                elif len({content(meta) for meta in copies.values()}) > 1:
                    await self._look_closer(number, chunk, differences)
            has = next(((target, meta) for target, meta in copies.items() if meta is not None and meta.version), None)
            if has is None:
                continue
            inode = found.inodes.get(chunk.inode)
            if inode is not None and chunk.index * inode.chunk_size < inode.length:
                counted[chunk.inode] += 1
            finding = check_chunk(found, chunk, has[1].length) or check_place(found, tables, chunk, number)
            if finding is not None:
                key = (finding.fault, chunk.inode)
                suspicion = suspicions.setdefault(key, Suspicion(finding.fault, chunk.inode, finding.text))
                suspicion.chunks.append(has)
                if inode is not None:
                    suspicion.end = max(suspicion.end, chunk.index * inode.chunk_size + has[1].length)
        await self._confirm(found, number, list(suspicions.values()))
        if self.counted is not None:
            self.counted.update(counted)
        return until, until is not None

    async def _list(self, target: int, after: ChunkId | None, until: ChunkId | None) -> dict[ChunkId, ChunkMeta]:
        listed: dict[ChunkId, ChunkMeta] = {}
        more = True
        while more:
            reply = await self._ask(target, LIST_CHUNKS, ListChunksRequest(target, after, until))
            listed.update([(meta.chunk, meta) for meta in reply.chunks])
            more = reply.more
            after = reply.chunks[-1].chunk if reply.chunks else after
        return listed

    async def _copy(self, target: int, chunk: ChunkId) -> ChunkMeta | None:
        """What a target has of a chunk now."""
        return (await self._list(target, _before(chunk), chunk)).get(chunk)

    async def _copies(self, number: int, chunk: ChunkId) -> tuple[int, dict[int, ChunkMeta | None]]:
        """The chain's version, and what its serving targets have of a chunk."""
        chain = self._chain_of(number)
        return chain.version, {target: await self._copy(target, chunk) for target in chain.serving()}

    async def _wait_routing(self, version: int, limit_s: float) -> None:
        with trio.move_on_after(limit_s):
            await self._mgmtd.wait_change(version)

    # Chunks and their files

    async def _confirm(self, found: Survey, number: int, suspicions: Sequence[Suspicion]) -> None:
        """Ask meta about the files, then look at the chunks again, and act on what is certain."""
        for at in range(0, len(suspicions), BATCH):
            batch = suspicions[at : at + BATCH]
            problems = tuple([Problem(each.fault.name, each.inode, length=each.end) for each in batch])
            reply = await self._meta.call(MEND, MendRequest(problems))
            for suspicion, outcome in zip(batch, reply.outcomes, strict=True):
                if outcome.verdict is not Verdict.FOUND:
                    continue
                still = []
                for target, meta in suspicion.chunks:
                    now = await self._copy(target, meta.chunk)
                    if content(now) == content(meta):
                        still.append(meta.chunk)
                if still:
                    await self._certain(found, number, suspicion, still)

    async def _certain(self, found: Survey, number: int, suspicion: Suspicion, chunks: Sequence[ChunkId]) -> None:
        text = suspicion.text
        if len(chunks) > 1:
            text += f" (and {len(chunks) - 1} more such chunks of this inode on chain {number})"
        if not self._repair:
            self._report.findings.append(Reported(suspicion.fault, suspicion.inode, text, "found"))
            return
        try:
            if suspicion.fault in (Fault.ORPHAN_CHUNK, Fault.FOREIGN_CHUNK):
                state, action = await self._remove_orphans(number, suspicion)
            elif suspicion.fault is Fault.WRONG_CHAIN:
                state, action = await self._remove_misplaced(found, number, suspicion.inode, chunks)
            else:
                problem = Problem(suspicion.fault.name, suspicion.inode, length=suspicion.end)
                outcome = (await self._meta.call(MEND, MendRequest((problem,), True))).outcomes[0]
                if outcome.verdict in (Verdict.GONE, Verdict.UNSETTLED):
                    return  # somebody is at work on the file
                state, action = state_of(outcome, True), outcome.text
        except FS3Error as error:
            state, action = "left", f"could not be repaired, run this again: {error}"
        self._report.findings.append(Reported(suspicion.fault, suspicion.inode, text, state, action))

    async def _remove_orphans(self, number: int, suspicion: Suspicion) -> tuple[str, str]:
        inode = suspicion.inode
        if suspicion.fault is Fault.FOREIGN_CHUNK:
            problem = Problem(suspicion.fault.name, inode)
            outcome = (await self._meta.call(MEND, MendRequest((problem,), True))).outcomes[0]
            if outcome.verdict is Verdict.CANNOT:
                return "left", outcome.text
        holder = await self._holder_of_id(inode)
        if holder:
            return "left", f"its id may still be given to a new file: restart {holder}, and run this again"
        await self._storage.remove_file(number, inode, 0, deadline=self._env.monotonic() + PATIENCE_S)
        return "repaired", "removed"

    async def _holder_of_id(self, inode: int) -> str:
        """The meta daemon that may still hand out this id, in words; "" where it is spent."""
        for node in self._mgmtd.routing.nodes_of(NodeKind.META):
            deadline = self._env.monotonic() + CALL_S
            unused = await self._rpc.call(node.address, UNUSED_IDS, Empty(), deadline=deadline)
            if unused.begin <= inode < unused.end:
                return f"fs3-meta node {node.id}"
        return ""

    async def _remove_misplaced(self, found: Survey, number: int, inode: int, chunks: Sequence[ChunkId]) -> tuple[str, str]:
        """Remove chunks that are where they belong as well."""
        removed = 0
        for chunk in chunks:
            right = place_of(found.inodes[inode], self._mgmtd.routing.tables, chunk.index)
            _, copies = await self._copies(right, chunk)
            if any(content(meta) is not None for meta in copies.values()):
                await self._storage.remove_chunk(number, chunk, deadline=self._env.monotonic() + PATIENCE_S)
                removed += 1
        if removed == len(chunks):
            return "repaired", "removed; they are on the right chain as well"
        kept = len(chunks) - removed
        return "left", f"{kept} kept, since the right chain has none of them: copy what you need, and remove the file"

    # Replicas

    async def _look_closer(self, number: int, chunk: ChunkId, differences: list[Difference]) -> None:
        """Note a difference that is there at one moment."""
        for attempt in range(LOOKS_MAX):
            one = await self._copies(number, chunk)
            two = await self._copies(number, chunk)
            contents = {content(meta) for meta in two[1].values()}
            if len(contents) <= 1:
                return
            if one == two and not any(meta is not None and meta.pending for meta in two[1].values()):
                copies = {target: content(meta) for target, meta in two[1].items()}
                differences.append(Difference(chunk, copies))
                return
            await trio.sleep(LOOK_PAUSE_S * (attempt + 1))
        self._report.unsettled += 1

    async def _decide(self, difference: Difference) -> None:
        """Which content is right; where some have none, the file says whether that is."""
        if None in difference.copies.values():
            problem = Problem(Fault.ORPHAN_CHUNK.name, difference.chunk.inode)
            outcome = (await self._meta.call(MEND, MendRequest((problem,)))).outcomes[0]
            if outcome.verdict is Verdict.FOUND:
                difference.decided = True
                return
        decide(difference)

    async def _tell_differences(self, number: int, differences: list[Difference]) -> None:
        for difference in differences:
            await self._decide(difference)
        by_target: dict[int, list[Difference]] = {}
        for difference in differences:
            wrong = [target for target, copy in difference.copies.items() if copy != difference.right]
            if not difference.decided:
                text = f"{chunk_name(difference.chunk)} on chain {number}: {_words(difference)}"
                action = "nothing says which is right: read the file, and write it anew" if self._repair else ""
                state = "left" if self._repair else "found"
                self._report.findings.append(Reported(Fault.REPLICAS_DIFFER, difference.chunk.inode, text, state, action))
                continue
            for target in wrong:
                by_target.setdefault(target, []).append(difference)
        refused = await self._fill_anew(number, sorted(by_target)) if self._repair and by_target else {}
        for target, wrong_chunks in sorted(by_target.items()):
            await self._tell_target(number, target, wrong_chunks, refused.get(target, ""))

    async def _tell_target(self, number: int, target: int, differences: list[Difference], refused: str) -> None:
        first = differences[0]
        text = f"target {target} of chain {number}: {chunk_name(first.chunk)}: {_words(first)}"
        if len(differences) > 1:
            text += f" (and {len(differences) - 1} more such chunks)"
        state, action = "found", ""
        if self._repair:
            state, action = "repaired", "the target was filled anew from its chain"
            if refused:
                state, action = "left", f"`fs3 admin target resync {target}` fills it anew from its chain: {refused}"
            elif any([await self._differs(number, difference.chunk) for difference in differences]):
                state, action = "left", "it still differs after it was filled anew: run this again"
        self._report.findings.append(Reported(Fault.REPLICAS_DIFFER, first.chunk.inode, text, state, action))

    async def _differs(self, number: int, chunk: ChunkId) -> bool:
        found: list[Difference] = []
        await self._look_closer(number, chunk, found)
        return bool(found)

    async def _fill_anew(self, number: int, targets: Sequence[int]) -> dict[int, str]:
        """Have targets filled by the others of their chain, and wait for it; returns why that could not be, for each.

        All at once, so that none of them is filled by another one that is wrong.
        """
        before = self._chain_of(number).version
        refused: dict[int, str] = {}
        for target in targets:
            self._progress(f"filling target {target} anew", 0, 0)
            try:
                await self._mgmtd.call(TARGET_ACTION, TargetActionRequest(target, TargetAction.RESYNC))
            except FS3Error as error:
                refused[target] = str(error)
        waits = set(targets) - refused.keys()
        with trio.move_on_after(RESYNC_S):
            while waits:
                routing = self._mgmtd.routing
                chain = routing.chains[number]
                if chain.version > before and waits <= set(chain.serving()):
                    return refused
                await self._wait_routing(routing.version, 10.0)
        return refused | dict.fromkeys(waits, f"not done within {RESYNC_S:.0f} s")

    # Damage

    async def _damaged(self, number: int, chunk: ChunkId) -> None:
        """A target cannot read its copy. It repairs it by itself, if another one has it."""
        end = self._env.monotonic() + (DAMAGE_S if self._repair else LOOK_PAUSE_S * LOOKS_MAX)
        told = not self._repair
        known: list[int] = []
        while True:
            _, copies = await self._copies(number, chunk)
            damaged = [target for target, meta in copies.items() if meta is not None and meta.damaged]
            known = known or damaged
            if not damaged or self._env.monotonic() >= end:
                break
            if not told:
                for target in damaged:
                    await self._ask(target, SUSPECT, SuspectRequest(target, (chunk,)))
                told = True
            await trio.sleep(LOOK_PAUSE_S)
        if not damaged and not (self._repair and known):
            return  # the daemon was at it
        where = ", ".join([str(target) for target in damaged or known])
        text = f"{chunk_name(chunk)} on chain {number}: target {where} cannot read it"
        state, action = ("repaired", "with the bytes of another target") if not damaged else ("found", "")
        if damaged and self._repair:
            others = len(copies) - len(damaged)
            state = "left"
            action = "no target of its chain can read it: write the file anew, or bring back a target that has it"
            if others:
                action = "the daemon has not repaired it yet: look at its log, and run this again"
        self._report.findings.append(Reported(Fault.DAMAGED_CHUNK, chunk.inode, text, state, action))


def decide(difference: Difference) -> None:
    """Which of several contents is right: the latest version; of two with the same version, what most targets have."""
    copies = [copy for copy in difference.copies.values() if copy is not None]
    newest = max([copy[:2] for copy in copies])
    candidates = Counter([copy for copy in copies if copy[:2] == newest])
    difference.right, count = candidates.most_common(1)[0]
    difference.decided = len(candidates) == 1 or 2 * count > len(difference.copies)


def _words(difference: Difference) -> str:
    """Who has what."""
    return ", ".join(
        [
            f"target {target} has "
            + (f"version {copy[1]} of {copy[2]} bytes ({copy[3]:08x})" if copy is not None else "none")
            for target, copy in difference.copies.items()
        ]
    )


def _before(chunk: ChunkId) -> ChunkId | None:
    """The chunk id just before this one."""
    if chunk.index:
        return ChunkId(chunk.inode, chunk.index - 1)
    return ChunkId(chunk.inode - 1, U64_MAX) if chunk.inode else None


def _passing(error: FS3Error) -> bool:
    """Whether it may be otherwise a little later."""
    return error.retryable or error.code is Code.DEADLINE_EXCEEDED
