"""Operations on a cluster of simulated daemons: plans that are refused, and plans that are carried out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from fs3.api.admin import (
    Control,
    ControlRequest,
    Move,
    MoveState,
    OperationState,
    SubmitRequest,
)
from fs3.api.mgmtd import FormatRequest, HeartbeatRequest, RegisterRequest, TargetReport
from fs3.errors import Code, FS3Error
from fs3.ids import NodeKind
from fs3.routing import Chain, LocalState, PublicState, Target
from mgmtd.cluster import Cluster, Timing
from mgmtd.draft import Draft
from mgmtd.moves import PATIENCE_S
from mgmtd.operations import KEPT_MAX, Plan
from mgmtd.state import FIRST_CLIENT, Change, Head, Saved
from mgmtd.submit import control, submit

TIMING = Timing(lease_ms=1000)
WALL_MS = 1_000_000
DONE, FAILED, CANCELLED, WAITING, FILLING = (
    MoveState.DONE,
    MoveState.FAILED,
    MoveState.CANCELLED,
    MoveState.WAITING,
    MoveState.FILLING,
)


class Daemons:
    """A cluster of storage nodes 1..n with targets node * 10 + 0, 1, ... of a disk each, and what their daemons do.

    Filling a target takes a beat, and so does emptying one.
    """

    def __init__(self, nodes: int = 5, targets: int = 1, replicas: int = 3, chains_of: int = 3) -> None:
        self.now = 0.0
        self.saved = Saved(Head(1, 1, "test", FIRST_CLIENT))
        self.cluster = Cluster(self.saved, TIMING, self.now)
        self.running: dict[int, int] = {}
        self.failed: set[int] = set()
        self.slow: set[int] = set()  # targets that do not get filled
        self.deaf: set[int] = set()  # targets that do not leave, and are not emptied
        self.targets = targets
        for node in range(1, chains_of + 1):
            self.start(node)
        self.do(self.cluster.format(FormatRequest(replicas, 1 << 20, 0))[0])
        for node in range(chains_of + 1, nodes + 1):
            self.start(node)

    def do(self, change: Change) -> None:
        self.cluster.apply(change)
        if change.head is not None:
            saved = self.saved
            saved.head, saved.config = change.head, change.config or saved.config
            stored = {number: change.targets[number] for number in change.stored_targets}
            for into, records in (
                (saved.chains, change.chains),
                (saved.tables, change.tables),
                (saved.targets, stored),
                (saved.nodes, change.nodes),
            ):
                for number, record in records.items():
                    into.pop(number, None)  # type: ignore[attr-defined]
                    if record is not None:
                        into[number] = record  # type: ignore[index]
            kept = {record.id: record for record in saved.operations} | dict(change.operations)
            saved.operations = [record for record in kept.values() if record is not None]
            moves = {(record.operation, record.index): record for record in saved.moves} | dict(change.moves)
            saved.moves = [record for record in moves.values() if record is not None]

    def restart_mgmtd(self) -> None:
        self.cluster = Cluster(self.saved, TIMING, self.now)

    def own(self, node: int) -> list[int]:
        return [node * 10 + index for index in range(self.targets)]

    def report(self, target: int) -> TargetReport:
        entry = self.cluster.routing.targets.get(target)
        chain = self.cluster.routing.chains.get(entry.chain) if entry is not None else None
        state = chain.state_of(target) if chain is not None else None
        filled = state is PublicState.SYNCING and target not in self.slow
        local = LocalState.UPTODATE if state is PublicState.SERVING or filled else LocalState.ONLINE
        if target in self.failed:
            local = LocalState.OFFLINE
        asked = entry is not None and (entry.leaving or entry.retired) and target not in self.deaf
        obeyed = entry.since if entry is not None and asked else 0
        version = chain.version if chain is not None else 0
        return TargetReport(target, target % 10, local, 1000, 0, version, chain.id if chain is not None else 0, obeyed)

    def start(self, node: int) -> None:
        self.running[node] = self.running.get(node, 0) + 1
        reports = tuple([TargetReport(target, target % 10, LocalState.ONLINE, 1000, 0) for target in self.own(node)])
        request = RegisterRequest(node, NodeKind.STORAGE, f"mem://{node}", "h", node * 100 + self.running[node], (), reports)
        self.do(self.cluster.register(request, self.now)[0])

    def stop(self, *nodes: int) -> None:
        """They die; time passes until mgmtd knows."""
        for node in nodes:
            self.running[node] = -abs(self.running[node])
        for _ in range(5):
            self.beat(0.25)

    def start_again(self, node: int) -> None:
        self.running[node] = abs(self.running[node])
        self.start(node)

    def beat(self, seconds: float = 0.1) -> None:
        """Every daemon tells once what it sees, then time passes."""
        for node, life in self.running.items():
            if life > 0:
                reports = tuple([self.report(target) for target in self.own(node)])
                self.do(self.cluster.heartbeat(HeartbeatRequest(node, node * 100 + life, reports), self.now)[0])
        self.now += seconds
        self.do(self.cluster.tick(self.now, WALL_MS))

    def rest(self, beats: int = 12) -> None:
        for _ in range(beats):
            self.beat()

    def submit(self, *moves: Move, at_once: int = 4, drain: tuple[int, ...] = (), token: int = 0, replicas: int = 0) -> int:
        draft = Draft(self.cluster.state)
        token = token or self.cluster.head.revision
        request = SubmitRequest(token, "test", "a plan", moves, at_once, drain, 1 if replicas else 0, max(0, replicas))
        number = submit(draft, request, WALL_MS)
        self.do(draft.done())
        return number

    def control(self, number: int, action: Control, at_once: int = 0) -> None:
        draft = Draft(self.cluster.state)
        control(draft, ControlRequest(number, action, at_once), WALL_MS)
        self.do(draft.done())

    def plan(self, number: int) -> Plan:
        return self.cluster.state.operations.plans[number]

    def states(self, number: int) -> list[MoveState]:
        return [move.state for move in self.plan(number).moves]

    def notes(self, number: int) -> list[str]:
        plan = self.plan(number)
        return [status.note for status in self.cluster.explain(plan, plan.moves, self.now)]

    def chain(self, number: int = 1) -> Chain:
        return self.cluster.routing.chains[number]

    def serving(self, number: int = 1) -> list[int]:
        return list(self.chain(number).serving())

    def target(self, number: int) -> Target:
        return self.cluster.routing.targets[number]


@contextmanager
def refused(words: str, code: Code = Code.BAD_PLAN) -> Iterator[None]:
    with pytest.raises(FS3Error, match=words) as caught:
        yield
    assert caught.value.code is code


def test_replacement_fills_the_new_one_before_the_old_one_goes() -> None:
    bench = Daemons()
    number = bench.submit(Move(1, add=40, drop=10))
    bench.beat()
    assert bench.chain().state_of(40) is PublicState.SYNCING and bench.states(number) == [FILLING]
    assert "40 is syncing" in bench.notes(number)[0]
    lowest = 3
    while bench.plan(number).active:
        lowest = min(lowest, len(bench.serving()))
        bench.beat()
    assert lowest == 3 and bench.serving() == [20, 30, 40]
    assert bench.target(10).chain == 0 and not bench.target(10).leaving
    operation = bench.plan(number).operation()
    assert (operation.state, operation.ended_ms, operation.counts) == (OperationState.DONE, WALL_MS, (0, 0, 1, 0, 0))
    bench.rest(2)
    assert not bench.target(10).retired


def test_one_that_left_can_only_come_back_once_it_is_empty() -> None:
    bench = Daemons()
    bench.deaf.add(10)
    bench.stop(1)
    bench.submit(Move(1, drop=10))
    bench.rest()
    assert bench.target(10).retired and bench.target(10).chain == 0
    bench.start_again(1)
    bench.rest(3)
    with refused("move 0: target 10 has left a chain and is not emptied yet"):
        bench.submit(Move(1, add=10))
    since = bench.target(10).since
    stale = TargetReport(10, 0, LocalState.ONLINE, 1000, 0, obeyed=since - 1)
    life = 100 + bench.running[1]
    bench.do(bench.cluster.heartbeat(HeartbeatRequest(1, life, (stale,)), bench.now)[0])
    assert bench.target(10).retired  # it speaks of an earlier time
    bench.deaf.clear()
    bench.beat()
    assert not bench.target(10).retired
    bench.submit(Move(1, add=10))
    bench.rest()
    assert bench.serving() == [20, 30, 10]


def test_target_that_is_asked_to_leave_serves_until_it_says_that_it_stopped() -> None:
    bench = Daemons()
    bench.deaf.add(10)
    number = bench.submit(Move(1, drop=10))
    bench.rest()
    assert bench.serving() == [10, 20, 30] and bench.target(10).leaving and bench.states(number) == [FILLING]
    bench.control(number, Control.CANCEL)
    assert not bench.target(10).leaving
    report = TargetReport(10, 0, LocalState.UPTODATE, 1000, 0, 1, 1, bench.target(10).since)
    bench.do(bench.cluster.heartbeat(HeartbeatRequest(1, 101, (report,)), bench.now)[0])
    assert bench.serving() == [10, 20, 30]  # a word that was late
    bench.deaf.clear()
    assert bench.states(bench.submit(Move(1, drop=10))) == [WAITING]
    bench.rest()
    assert bench.serving() == [20, 30] and bench.target(10).chain == 0


def test_target_that_is_to_leave_stays_when_all_others_die() -> None:
    bench = Daemons()
    bench.deaf.add(10)
    number = bench.submit(Move(1, drop=10))
    bench.rest(3)
    assert bench.target(10).leaving
    bench.stop(2, 3)
    assert bench.serving() == [10] and not bench.target(10).leaving
    bench.deaf.clear()
    bench.rest(3)
    assert bench.serving() == [10] and "only 0 targets of chain 1 would serve" in bench.notes(number)[0]
    bench.start_again(2)
    bench.rest()
    assert bench.serving() == [10, 20] and "only 1 targets" in bench.notes(number)[0]  # two others served before
    bench.start_again(3)
    bench.rest()
    assert bench.serving() == [20, 30] and bench.states(number) == [DONE]


def test_head_goes_to_the_target_wanted_while_others_serve() -> None:
    bench = Daemons()
    number = bench.submit(Move(1, head=30))
    fewest = 3
    for _ in range(20):
        fewest = min(fewest, len(bench.serving()))
        bench.beat()
    assert bench.serving() == [30, 10, 20] and fewest == 2
    assert bench.states(number) == [DONE]
    assert not any(target.retired or target.leaving for target in bench.cluster.routing.targets.values())


def test_add_drop_and_head_in_one_move() -> None:
    bench = Daemons()
    number = bench.submit(Move(1, add=50, drop=20, head=50))
    bench.rest(40)
    assert bench.states(number) == [DONE] and bench.serving() == [50, 10, 30]


def test_no_more_are_filled_at_once_than_wanted_and_one_per_disk() -> None:
    bench = Daemons(nodes=8, targets=4, replicas=2, chains_of=4)  # chains 1 to 8
    chains = sorted(bench.cluster.routing.chains)
    old = {chain: bench.chain(chain).targets[0].target for chain in chains}
    free = [target for node in (5, 6, 7) for target in bench.own(node)][: len(chains)]
    bench.slow.update(free)
    number = bench.submit(*[Move(c, t, old[c]) for c, t in zip(chains, free, strict=True)], at_once=3)
    bench.rest(3)
    assert bench.states(number).count(FILLING) == 3
    bench.control(number, Control.PAUSE)
    bench.slow.clear()
    bench.rest()
    assert (bench.states(number).count(DONE), bench.states(number).count(WAITING)) == (3, len(chains) - 3)
    assert bench.notes(number)[-1] == "paused"
    bench.control(number, Control.RESUME, at_once=100)
    bench.slow.update(free)
    bench.rest(3)
    assert bench.states(number).count(FILLING) == len(chains) - 3
    bench.slow.clear()
    bench.rest(20)
    assert bench.plan(number).record.state is OperationState.DONE


def test_two_targets_of_a_disk_are_filled_one_after_the_other() -> None:
    bench = Daemons(nodes=4, targets=2, replicas=2, chains_of=2)
    old = {chain: bench.chain(chain).targets[0].target for chain in (1, 2)}
    draft = Draft(bench.cluster.state)
    report = TargetReport(31, 0, LocalState.ONLINE, 1000, 0)
    draft.report(3, [bench.report(30), report])
    bench.do(draft.done())
    bench.slow.add(30)
    number = bench.submit(Move(1, 30, old[1]), Move(2, 31, old[2]))
    for _ in range(3):
        reports = (bench.report(30), report)
        bench.do(bench.cluster.heartbeat(HeartbeatRequest(3, 301, reports), bench.now)[0])
        bench.do(bench.cluster.tick(bench.now, WALL_MS))
    assert bench.states(number) == [FILLING, WAITING]
    assert "another target of disk 0 of node 3 is being filled" in bench.notes(number)[1]


def test_moves_of_one_chain_wait_for_each_other() -> None:
    bench = Daemons()
    bench.slow.add(40)
    number = bench.submit(Move(1, 40, 10), Move(1, 50, 20))
    bench.rest(3)
    assert bench.states(number) == [FILLING, WAITING] and "waits for move 0" in bench.notes(number)[1]
    bench.slow.clear()
    bench.rest(20)
    assert bench.states(number) == [DONE, DONE] and bench.serving() == [30, 40, 50]


def test_plan_is_refused_as_a_whole_and_says_which_move() -> None:
    bench = Daemons(nodes=6)
    good = Move(1, 40, 10)
    for bad, words in (
        (Move(9, 50), "there is no chain 9"),
        (Move(1), "it does nothing"),
        (Move(1, 77), "there is no target 77"),
        (Move(1, 20), "target 20 is in chain 1 already"),
        (Move(1, 40), "target 40 is added by move 0 already"),
        (Move(1, drop=10), "target 10, to be dropped, is not in chain 1, which has 20, 30, 40"),
        (Move(1, head=10), "target 10, to lead chain 1, is not in it"),
    ):
        before = bench.cluster.head
        with refused(f"move 1: .*{words}"):
            bench.submit(good, bad)
        assert bench.cluster.head == before
    with refused("move 1: target 50 is on node 5, which is to be drained"):
        bench.submit(good, Move(1, 50, 20), drain=(5,))
    with refused("no target of chain 1 would serve without target 30"):
        bench.submit(Move(1, drop=10), Move(1, drop=20), Move(1, drop=30))
    with refused("0 moves at once"):
        bench.submit(good, at_once=0)
    with refused("there is nothing to do"):
        bench.submit()
    with refused("there is no node 9", Code.UNKNOWN_NODE):
        bench.submit(drain=(9,))


def test_two_replicas_never_come_on_one_node_but_to_replace_each_other() -> None:
    bench = Daemons(targets=2, replicas=1, chains_of=1)  # chains 1 and 2 of targets 10, 11
    with refused("move 1: target 21 is on node 2, as target 20 of the same chain is"):
        bench.submit(Move(1, 20), Move(1, 21))
    number = bench.submit(Move(1, 20), Move(1, 21, 20))
    bench.rest()
    assert bench.states(number) == [DONE, DONE] and bench.serving() == [10, 21]


def test_dead_drained_or_busy_targets_are_no_place() -> None:
    bench = Daemons(nodes=6)
    bench.stop(4)
    with refused("target 40 is on node 4, which is not alive"):
        bench.submit(Move(1, 40, 10))
    bench.failed.add(50)
    bench.beat()
    with refused("target 50 of node 5 is offline"):
        bench.submit(Move(1, 50, 10))
    bench.failed.clear()
    bench.beat()
    bench.slow.add(50)
    bench.submit(drain=(6,))
    with refused("target 60 is on node 6, which is drained"):
        bench.submit(Move(1, 60), token=77)
    first = bench.submit(Move(1, 50, 10))
    with refused(f"operation {first} concerns chain 1 already"):
        bench.submit(Move(1, drop=20), token=78)
    bench.do(bench.cluster.register(RegisterRequest(6, NodeKind.STORAGE, "mem://6", "h", 999), bench.now)[0])
    assert bench.cluster.routing.nodes[6].drained


def test_retried_submission_begins_nothing_twice() -> None:
    bench = Daemons()
    number = bench.submit(Move(1, 40, 10), token=5)
    before = bench.cluster.head
    assert bench.submit(Move(1, 40, 10), token=5) == number and bench.cluster.head == before


def test_operation_goes_on_after_a_restart_of_mgmtd_at_any_moment() -> None:
    for moment in range(1, 12):
        bench = Daemons()
        number = bench.submit(Move(1, 40, 10), Move(1, 50, 20, 50))
        bench.rest(moment)
        bench.restart_mgmtd()
        bench.rest(60)
        assert bench.states(number) == [DONE, DONE], moment
        assert bench.serving() == [50, 30, 40]
        assert bench.submit(Move(1, 10), token=12345) == number + 1


def test_cancelled_filling_leaves_no_trace() -> None:
    bench = Daemons()
    bench.slow.add(40)
    number = bench.submit(Move(1, 40, 10), Move(1, 50, 20))
    bench.rest(3)
    bench.control(number, Control.CANCEL)
    bench.rest(3)
    assert bench.states(number) == [CANCELLED, CANCELLED] and bench.serving() == [10, 20, 30]
    assert bench.target(40).chain == 0 and not bench.target(40).retired
    assert bench.plan(number).record.state is OperationState.CANCELLED and not bench.plan(number).active
    bench.slow.clear()
    bench.control(number, Control.RETRY)
    bench.rest(25)
    assert bench.states(number) == [DONE, DONE] and bench.plan(number).record.state is OperationState.DONE
    for action in (Control.CANCEL, Control.RETRY, Control.PAUSE):
        with refused("is done, 2 of 2 moves are done"):
            bench.control(number, action)


def test_cancelled_after_the_filling_goes_on_to_its_end() -> None:
    bench = Daemons()
    bench.deaf.add(10)
    number = bench.submit(Move(1, 40, 10))
    bench.rest()
    assert bench.serving() == [10, 20, 30, 40]
    bench.control(number, Control.CANCEL)
    bench.deaf.clear()
    bench.rest()
    assert bench.serving() == [20, 30, 40] and bench.states(number) == [DONE]
    assert bench.plan(number).record.state is OperationState.CANCELLED


def test_receiver_that_dies_is_waited_for_and_given_up_after_a_while() -> None:
    bench = Daemons()
    bench.slow.add(40)
    number = bench.submit(Move(1, 40, 10), Move(1, 50, 20))
    bench.rest(3)
    bench.stop(4)
    bench.now += PATIENCE_S / 2
    for node in (1, 2, 3, 5):
        bench.start(node)
    bench.rest(6)
    assert bench.states(number) == [FILLING, WAITING] and "target 40 is offline" in bench.notes(number)[0]
    bench.slow.clear()
    bench.start_again(4)
    bench.rest(3)
    assert bench.states(number)[0] is DONE
    bench.rest()
    assert bench.states(number) == [DONE, DONE]

    bench = Daemons()
    bench.slow.add(40)
    number = bench.submit(Move(1, 40, 10), Move(1, 50, 20))
    bench.rest(3)
    bench.stop(4)
    bench.now += PATIENCE_S
    for node in (1, 2, 3, 5):
        bench.start(node)
    bench.rest(3)
    assert bench.states(number) == [FAILED, FAILED] and "target 40 is offline for 600 s" in bench.notes(number)[0]
    assert bench.plan(number).record.state is OperationState.FAILED
    assert bench.chain().state_of(40) is None and bench.target(40).retired
    bench.slow.clear()
    bench.start_again(4)
    bench.control(number, Control.RETRY)
    bench.rest(25)
    assert bench.states(number) == [DONE, DONE]


def test_dead_target_is_replaced_without_it() -> None:
    bench = Daemons()
    bench.stop(1)
    number = bench.submit(Move(1, 40, 10))
    bench.rest()
    assert bench.states(number) == [DONE] and bench.serving() == [20, 30, 40]


def test_last_that_served_is_never_dropped() -> None:
    bench = Daemons()
    bench.slow.add(40)
    number = bench.submit(Move(1, 40, 10))
    bench.rest(3)
    bench.stop(2, 3)
    bench.stop(1)
    assert bench.chain().state_of(10) is PublicState.LASTSRV
    assert "no target serves chain 1" in bench.notes(number)[0]
    bench.control(number, Control.CANCEL)
    with refused("target 10 was the last that served chain 1: bring its node back"):
        bench.submit(Move(1, 50, 10))


def test_history_is_bounded() -> None:
    bench = Daemons()
    for index in range(KEPT_MAX + 5):
        bench.submit(drain=(5,), token=1000 + index)
    kept = sorted(bench.cluster.state.operations.plans)
    assert kept == list(range(6, KEPT_MAX + 6))
    assert [record.id for record in bench.saved.operations] == kept


def test_large_operations_are_forgotten_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Daemons()
    monkeypatch.setattr("mgmtd.operations.KEPT_MOVES_MAX", 3)
    for index in range(5):
        number = bench.submit(Move(1, head=20), Move(1, head=20), token=1000 + index)
        bench.rest()
        assert bench.plan(number).record.state is OperationState.DONE
    assert sorted(bench.cluster.state.operations.plans) == [4, 5]
    assert {(move.operation, move.index) for move in bench.saved.moves} == {(4, 0), (4, 1), (5, 0), (5, 1)}


def test_receiver_that_stops_again_and_again_is_given_up() -> None:
    """Its disk is full: it gives up, tries again after a while, and gives up."""
    bench = Daemons()
    bench.slow.add(40)
    number = bench.submit(Move(1, 40, 10))
    bench.rest(3)
    for _ in range(31):
        for full in (True, False):
            bench.failed = {40} if full else set()
            bench.beat(0.1)
            bench.now += 9.9
            for node in (1, 2, 3, 4, 5):
                bench.start(node)
    bench.failed = {40}
    bench.beat()
    assert bench.states(number) == [FAILED] and "target 40 is offline for 600 s" in bench.notes(number)[0]
    assert sorted(bench.serving()) == [10, 20, 30] and bench.target(40).chain == 0


def test_word_about_a_former_chain_fills_nothing() -> None:
    bench = Daemons()
    bench.slow.add(40)
    bench.submit(Move(1, 40, 10))
    bench.rest(3)
    for chain, state in ((2, PublicState.SYNCING), (1, PublicState.SERVING)):
        report = TargetReport(40, 0, LocalState.UPTODATE, 1000, 0, bench.chain().version, chain)
        bench.do(bench.cluster.heartbeat(HeartbeatRequest(4, 401, (report,)), bench.now)[0])
        assert bench.chain().state_of(40) is state
