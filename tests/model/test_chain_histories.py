"""What the targets of a chain hold, while they die, return, fail, are replaced by empty ones, and operators act on it.

The rules of chains.py are run by a few lines that stand for mgmtd and for the storage daemons. Each target has the history
of the writes that it holds. A write goes to all that serve or are being filled, and is acknowledged where all of them took
it. Whatever happens, whoever serves has every acknowledged write, in one order; what is lost is lost by give_up, for good.
"""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fs3.errors import Code, FS3Error
from fs3.routing import Chain, LocalState, PublicState
from mgmtd.chains import add_target, drop_target, give_up, new_chain, next_chain

FIRST = (1, 2, 3)
ALL = (1, 2, 3, 4, 5)
TARGET = st.sampled_from(ALL)
S, L, Y = PublicState.SERVING, PublicState.LASTSRV, PublicState.SYNCING


@dataclass
class Disk:
    """A target as it is. history: the writes that it holds, in their order. runs: its process, registered as it is now.
    empty: it has no past, see storage/rebuild.py. fails: it cannot be used. leaves: it was asked to stop. seen: the chain
    that its daemon knows. synced: the version of the chain in which it was filled."""

    history: tuple[int, ...] = ()
    runs: bool = True
    empty: bool = False
    fails: bool = False
    leaves: bool = False
    seen: Chain | None = None
    synced: int = 0


class Histories(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.chain = new_chain(1, FIRST)
        self.disks = {target: Disk(seen=self.chain) for target in FIRST}
        self.known: dict[int, LocalState] = {}
        self.alive = dict.fromkeys(ALL, True)  # as mgmtd has stored it
        self.acknowledged: tuple[int, ...] = ()
        self.given_up: set[int] = set()
        self.writes = 0
        self.versions = {1: self.chain}

    # mgmtd

    def adopt(self, chain: Chain) -> None:
        """A change of the chain is stored."""
        if chain is not self.chain:
            assert chain.version == self.chain.version + 1
            self.chain = self.versions[chain.version] = chain

    def hear(self, target: int, local: LocalState) -> None:
        self.known[target] = local
        self.settle()

    def settle(self) -> None:
        self.adopt(next_chain(self.chain, self.known))
        assert next_chain(self.chain, self.known) is self.chain

    @rule()
    def mgmtd_restarts(self) -> None:
        self.known = {target: LocalState.OFFLINE for target in self.disks if not self.alive[target]}

    # Storage daemons

    def local(self, target: int, seen: Chain) -> LocalState:
        """What a daemon says of a target."""
        disk, state = self.disks[target], seen.state_of(target)
        if disk.fails or disk.leaves:
            return LocalState.OFFLINE
        if disk.empty:
            if state in (S, L) or not seen.serving():
                return LocalState.OFFLINE
            disk.empty = False
        if state is S or (state is Y and disk.synced == seen.version):
            return LocalState.UPTODATE
        return LocalState.ONLINE

    @rule(who=TARGET)
    def learns(self, who: int) -> None:
        """A daemon hears of the present chain."""
        if who in self.disks and self.disks[who].runs:
            self.disks[who].seen = self.chain

    @rule(who=TARGET)
    def reports(self, who: int) -> None:
        """A heartbeat. What is said of a chain that is over does not count as up to date."""
        disk = self.disks.get(who)
        if disk is None or not disk.runs or disk.seen is None:
            return
        local = self.local(who, disk.seen)
        if local is LocalState.UPTODATE and disk.seen.version != self.chain.version:
            local = LocalState.ONLINE
        self.hear(who, local)

    @rule(who=TARGET)
    def dies(self, who: int) -> None:
        if who in self.disks:
            self.disks[who].runs = False

    @rule(who=TARGET)
    def lease_ends(self, who: int) -> None:
        if who in self.disks and not self.disks[who].runs:
            self.alive[who] = False
            self.hear(who, LocalState.OFFLINE)

    @rule(who=TARGET, replaced=st.sampled_from((False, False, False, True)))
    def starts(self, who: int, replaced: bool) -> None:
        """A new process registers, which ends the former one; perhaps with another disk, an empty one."""
        disk = self.disks.get(who)
        if disk is None:
            return
        if replaced:
            disk.history, disk.empty, disk.fails = (), True, False
        disk.runs, disk.synced = True, 0
        self.alive[who] = True
        self.hear(who, LocalState.OFFLINE)  # a chain must not miss that it was away
        disk.seen = self.chain
        self.reports(who)

    @rule(who=TARGET, fails=st.booleans())
    def disk_fails(self, who: int, fails: bool) -> None:
        if who in self.disks and (fails or not self.disks[who].runs):
            self.disks[who].fails = fails

    @rule()
    def sync(self) -> None:
        """The last that serves fills the one that is syncing."""
        filled = [t.target for t in self.chain.targets if t.state is Y]
        serving = self.chain.serving()
        if filled and self.works(filled[0]) and self.works(serving[-1]):
            disk = self.disks[filled[0]]
            disk.history, disk.synced = self.disks[serving[-1]].history, self.chain.version

    def works(self, target: int) -> bool:
        """Whether it takes part in the present chain. One that has not heard of it yet would refuse."""
        disk = self.disks[target]
        return disk.runs and not disk.fails and not disk.leaves and disk.seen is self.chain

    @rule()
    def write(self) -> None:
        """By a client that knows the present chain. It reaches those before the first that does not take part."""
        if self.chain.head() is None:
            return
        self.writes += 1
        for target in self.chain.writable():
            if not self.works(target):
                return
            self.disks[target].history += (self.writes,)
        self.acknowledged += (self.writes,)

    # Operators

    @rule(who=TARGET)
    def add(self, who: int) -> None:
        if who not in self.disks:
            self.adopt(add_target(self.chain, who))
            self.disks[who] = Disk(seen=None)
            self.starts(who, False)

    @rule(who=TARGET)
    def leave(self, who: int) -> None:
        """It is asked to stop, which its daemon does; not the last that serves."""
        if who in self.disks and self.chain.serving() != (who,):
            self.disks[who].leaves = True

    @rule(who=TARGET)
    def stay(self, who: int) -> None:
        if who in self.disks:
            self.disks[who].leaves = False
            self.disks[who].synced = 0

    @rule(who=TARGET)
    def drop(self, who: int) -> None:
        if who not in self.disks:
            return
        state = self.chain.state_of(who)
        try:
            self.adopt(drop_target(self.chain, who))
        except FS3Error as error:
            assert error.code is Code.BAD_PLAN and state in (S, L)
            return
        del self.disks[who]
        self.known.pop(who, None)
        self.settle()

    @precondition(lambda self: self.chain.head() is None)
    @rule(who=TARGET)
    def give_up(self, who: int) -> None:
        alive = self.known.get(who) in (LocalState.ONLINE, LocalState.UPTODATE)
        try:
            self.adopt(give_up(self.chain, who, alive))
        except FS3Error as error:
            assert error.code is Code.BAD_PLAN
            return
        held = set(self.disks[who].history)
        self.given_up |= {write for write in range(1, self.writes + 1) if write not in held}
        self.acknowledged = tuple([write for write in self.acknowledged if write in held])
        self.settle()

    # What must hold

    @rule()
    def heal(self) -> None:
        """Everybody comes back. Where the last that served has what it had, or another served on, all serve soon."""
        for target, disk in self.disks.items():
            if disk.fails or not disk.runs or disk.leaves:
                disk.fails = disk.leaves = False
                self.starts(target, False)
        for _ in range(3 * len(self.disks)):
            for target in self.disks:
                self.learns(target)
                self.reports(target)
            self.learns_all()
            self.sync()
        lost = [t.target for t in self.chain.targets if t.state is L]
        if lost:
            assert self.disks[lost[0]].empty, self.chain
        else:
            assert len(self.chain.serving()) == len(self.disks), self.chain

    def learns_all(self) -> None:
        for target in self.disks:
            self.learns(target)

    @invariant()
    def whoever_serves_has_all_that_was_acknowledged_in_one_order(self) -> None:
        for target in self.chain.serving():
            disk = self.disks[target]
            if not disk.runs or disk.empty:
                continue  # nobody is there who could answer, and nobody will be before the chain has heard of it
            mine = tuple([write for write in disk.history if write in self.acknowledged])
            assert mine == self.acknowledged, (target, disk, self.chain)
            assert not self.given_up.intersection(disk.history), (target, disk, self.chain)

    @invariant()
    def somebody_counts(self) -> None:
        """The chain is served, or one target is remembered that alone may serve again; a version is of one chain."""
        states = [entry.state for entry in self.chain.targets]
        assert (S in states) != (states.count(L) == 1) and states.count(Y) <= (S in states), self.chain
        assert self.versions[self.chain.version] is self.chain


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
