"""How the targets of a chain change state: the table of 3FS's design notes as one pure function. Pure.

| local state | public state, and then                                                                          |
|-------------|-------------------------------------------------------------------------------------------------|
| up-to-date  | serving: stays; syncing: serving; waiting: stays; lastsrv: serving; offline: waiting            |
| online      | serving: stays; syncing: stays (waiting where nothing serves); waiting, offline: syncing if some |
|             | target serves and none is syncing, else waiting; lastsrv: serving                               |
| offline     | serving: offline, or lastsrv where none is left that serves; lastsrv: stays; others: offline    |
| not known   | stays; only syncing becomes waiting where nothing serves                                        |

"Not known" is the time between a start of mgmtd and the node's first heartbeat: no news changes nothing.

A living target that serves never just ceases to: it would go on to answer reads until it hears of it. It is asked to leave
(routing.Target.leaving), stops, says so, and counts as offline from then on. So a target that serves is never dropped, and
the lead of a chain goes to the next one when the head leaves and comes back at the end: targets that serve never change
their order, which updates under way rely on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from fs3.errors import Code, FS3Error
from fs3.routing import Chain, ChainTarget, LocalState, PublicState

_ALIVE = (LocalState.ONLINE, LocalState.UPTODATE)


def next_chain(chain: Chain, local_states: Mapping[int, LocalState]) -> Chain:
    """The chain after what is known of its targets; the same object where nothing changes, else version + 1.

    local_states: by target id; targets whose local state is not known are absent. Applying it again without news changes
    nothing. Targets keep their order within a state; a target that comes into a state goes behind those already there.
    """
    old: dict[PublicState, list[int]] = {state: [] for state in PublicState}
    for entry in chain.targets:
        old[entry.state].append(entry.target)

    serving, lost = _split(old[PublicState.SERVING], lambda t: local_states.get(t) is not LocalState.OFFLINE)
    synced, filling = _split(old[PublicState.SYNCING], lambda t: local_states.get(t) is LocalState.UPTODATE)
    lastsrv = old[PublicState.LASTSRV]
    if not serving:
        back, _ = _split(lastsrv, lambda t: local_states.get(t) in _ALIVE)
        serving = back[:1]
    serving = serving + synced
    gone = lost + [t for t in lastsrv if t not in serving]
    # The last that served holds all that was acknowledged. Of several lost at once the head: writes reach it first.
    lastsrv, gone = ([], gone) if serving else (gone[:1], gone[1:])

    filling, failed = _split(filling, lambda t: local_states.get(t) is not LocalState.OFFLINE)
    waiting, waiting_failed = _split(old[PublicState.WAITING], lambda t: local_states.get(t) is not LocalState.OFFLINE)
    returned, offline = _split(old[PublicState.OFFLINE], lambda t: local_states.get(t) in _ALIVE)
    queue = waiting + returned
    if not serving:
        syncing, queue = [], filling + queue
    elif filling:
        syncing = filling
    else:
        syncing = [t for t in queue if local_states.get(t) is LocalState.ONLINE][:1]
        queue = [t for t in queue if t not in syncing]
    offline = offline + gone + failed + waiting_failed

    targets = tuple(
        [
            ChainTarget(target, state)
            for state, members in (
                (PublicState.SERVING, serving),
                (PublicState.LASTSRV, lastsrv),
                (PublicState.SYNCING, syncing),
                (PublicState.WAITING, queue),
                (PublicState.OFFLINE, offline),
            )
            for target in members
        ]
    )
    assert len(targets) == len(chain.targets), (chain, local_states)
    return chain if targets == chain.targets else replace(chain, version=chain.version + 1, targets=targets)


def new_chain(chain: int, targets: tuple[int, ...]) -> Chain:
    """A fresh chain: all its targets are empty, hence all serve."""
    assert len(set(targets)) == len(targets) > 0, targets
    return Chain(chain, 1, tuple([ChainTarget(t, PublicState.SERVING) for t in targets]))


def add_target(chain: Chain, target: int) -> Chain:
    """The chain with one more target, which is empty: offline, until next_chain() hears of it. Raises BAD_PLAN."""
    if chain.state_of(target) is not None:
        raise FS3Error(Code.BAD_PLAN, f"target {target} is in chain {chain.id} already")
    entry = ChainTarget(target, PublicState.OFFLINE)
    return replace(chain, version=chain.version + 1, targets=(*chain.targets, entry))


def drop_target(chain: Chain, target: int) -> Chain:
    """The chain without a target that does not serve. Raises BAD_PLAN where it is not in the chain, or counts."""
    state = chain.state_of(target)
    if state is None:
        raise FS3Error(Code.BAD_PLAN, f"target {target} is not in chain {chain.id}")
    if state is PublicState.SERVING:
        others = "stop it first" if len(chain.serving()) > 1 else "and no other target does"
        raise FS3Error(Code.BAD_PLAN, f"target {target} serves chain {chain.id}, {others}")
    if state is PublicState.LASTSRV:
        message = f"target {target} was the last that served chain {chain.id}: it alone has all that was written"
        raise FS3Error(Code.BAD_PLAN, message)
    return replace(chain, version=chain.version + 1, targets=tuple([t for t in chain.targets if t.target != target]))


def give_up(chain: Chain, target: int, alive: bool) -> Chain:
    """The chain, which no target serves, with this one serving, and without regard to what others have that it lacks.

    They are offline, to be filled by it like any that return. Raises BAD_PLAN.
    """
    state = chain.state_of(target)
    if state is None:
        raise FS3Error(Code.BAD_PLAN, f"target {target} is not in chain {chain.id}")
    if chain.serving():
        serving = ", ".join([str(t) for t in chain.serving()])
        raise FS3Error(Code.BAD_PLAN, f"chain {chain.id} is served, by target {serving}: there is nothing to give up")
    if state is PublicState.LASTSRV:
        message = f"target {target} is the one that served chain {chain.id} last: its return alone brings the chain back"
        raise FS3Error(Code.BAD_PLAN, message)
    if not alive:
        raise FS3Error(Code.BAD_PLAN, f"target {target} is offline: name one of chain {chain.id} that is alive")
    rest: dict[PublicState, list[ChainTarget]] = {PublicState.WAITING: [], PublicState.OFFLINE: []}
    for entry in chain.targets:
        if entry.target != target:
            after = PublicState.WAITING if entry.state is PublicState.WAITING else PublicState.OFFLINE
            rest[after].append(ChainTarget(entry.target, after))
    head = ChainTarget(target, PublicState.SERVING)
    targets = (head, *rest[PublicState.WAITING], *rest[PublicState.OFFLINE])
    return replace(chain, version=chain.version + 1, targets=targets)


def _split(targets: list[int], predicate: Callable[[int], bool]) -> tuple[list[int], list[int]]:
    """Those for which the predicate holds, and the others, in their order."""
    return [t for t in targets if predicate(t)], [t for t in targets if not predicate(t)]
