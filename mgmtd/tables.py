"""Chain tables, targets and nodes, as operators change them. Pure."""

from __future__ import annotations

from dataclasses import replace

from fs3.api.admin import (
    CreateTableReply,
    CreateTableRequest,
    NodeAction,
    NodeActionRequest,
    RemoveTableRequest,
    TargetAction,
    TargetActionRequest,
)
from fs3.errors import Code, FS3Error
from fs3.placement.chain_file import check_chains
from fs3.routing import Chain, LocalState, PublicState, Table, Target

from .chains import give_up, new_chain
from .draft import Draft
from .state import IdKind
from .submit import check_free, set_drained


def create_table(draft: Draft, request: CreateTableRequest) -> CreateTableReply:
    """Make a table, or a new version of one, of new chains. Raises BAD_PLACEMENT, BAD_PLAN."""
    done = _made_already(draft, request) if request.token else None
    if done is not None:
        return CreateTableReply(done.id, done.version)
    check_chains(request.chains, request.replicas, draft.base.routing)
    for number, chain in enumerate(request.chains, start=1):
        for target in chain:
            used = draft.base.targets[target].used
            if used:
                raise FS3Error(
                    Code.BAD_PLACEMENT,
                    f"chain {number}: target {target} holds {used} bytes of a former time; empty it first"
                    " (`fs3 admin target empty`)",
                )
    before: Table | None = None
    if request.table:
        before = draft.base.tables.get(request.table)
        if before is None:
            raise FS3Error(Code.BAD_PLACEMENT, f"there is no chain table {request.table} to be extended")
        if before.replicas != request.replicas:
            message = f"chain table {before.id} has {before.replicas} replicas, the new chains {request.replicas}"
            raise FS3Error(Code.BAD_PLACEMENT, f"{message}: make them alike")
    fresh = []
    for chain in request.chains:
        number = draft.take_id(IdKind.CHAIN)
        draft.chains[number] = new_chain(number, chain)
        for target_id in chain:
            draft.put(replace(draft.base.targets[target_id], chain=number), stored=True)
        draft.settle_chain(number)
        fresh.append(number)
    if before is None:
        table = Table(draft.take_id(IdKind.TABLE), 1, tuple(fresh), request.replicas)
    else:
        lengths = before.lengths or tuple([len(before.chains)] * before.version)
        chains = (*before.chains, *fresh)
        table = replace(before, version=before.version + 1, chains=chains, lengths=(*lengths, len(chains)))
    draft.tables[table.id] = table
    return CreateTableReply(table.id, table.version)


def _made_already(draft: Draft, request: CreateTableRequest) -> Table | None:
    """The table whose last chains have just these targets: the reply to this very request was lost."""
    wanted = [set(chain) for chain in request.chains]
    for table in draft.base.tables.values():
        if request.table in (0, table.id) and len(table.chains) >= len(wanted):
            chains = [draft.base.chains[number] for number in table.chains[-len(wanted) :]]
            if [{entry.target for entry in chain.targets} for chain in chains] == wanted:
                return table
    return None


def remove_table(draft: Draft, request: RemoveTableRequest) -> None:
    """Remove a table and its chains, whose targets are free again. Raises BAD_PLAN, TABLE_IN_USE."""
    table = draft.base.tables.get(request.table)
    if table is None:
        raise FS3Error(Code.BAD_PLAN, f"there is no chain table {request.table}")
    config = draft.base.config
    if config is not None and config.table == table.id:
        raise _in_use(table, "it is the one that the root directory has")
    concerning = draft.base.operations.concerning()
    for number in table.chains:
        if number in concerning:
            raise _in_use(
                table, f"operation {concerning[number]} concerns its chain {number}; wait for its end or cancel it"
            )
        for entry in draft.base.chains[number].targets:
            target = draft.base.targets[entry.target]
            if target.used:
                raise _in_use(table, f"target {target.id} of its chain {number} holds {target.used} bytes; remove the files")
    for kind in (IdKind.CHAIN, IdKind.TABLE):
        draft.ids[kind] = draft.base.next_id(kind)
    draft.tables[table.id] = None
    for number in table.chains:
        draft.chains[number] = None
        for entry in draft.base.chains[number].targets:
            draft.retire(entry.target)


def act_on_target(draft: Draft, request: TargetActionRequest) -> None:
    """Raises BAD_PLAN."""
    target = draft.base.targets.get(request.target)
    if target is None:
        raise _bad(f"there is no target {request.target}")
    if request.action == TargetAction.RESYNC:
        _resync(draft, target)
    elif request.action == TargetAction.FORGET:
        _forget(draft, target)
    elif request.action == TargetAction.GIVE_UP:
        _give_up(draft, target, request)
    elif request.action == TargetAction.EMPTY:
        if target.chain:
            raise _bad(f"target {target.id} is in chain {target.chain}: only one that is in none can be emptied")
        if not target.retired:
            draft.retire(target.id)
    else:
        raise _bad(f"action {request.action} is not known")


def _resync(draft: Draft, target: Target) -> None:
    chain = draft.chain(target.chain)
    if chain is None:
        raise _bad(f"target {target.id} is in no chain")
    state = chain.state_of(target.id)
    if state is not PublicState.SERVING:
        name = state.name.lower() if state is not None else "absent"
        raise _bad(f"target {target.id} is {name} in chain {chain.id}: only one that serves can be taken out of service")
    if len(chain.serving()) == 1:
        raise _bad(f"target {target.id} is the only one that serves chain {chain.id}: nothing could fill it")
    draft.stop(target.id)


def _forget(draft: Draft, target: Target) -> None:
    if target.chain:
        raise _bad(f"target {target.id} is in chain {target.chain}: drop it from there first")
    node = draft.node(target.node)
    if node is not None and node.alive and draft.local(target.id) is not LocalState.OFFLINE:
        raise _bad(f"target {target.id} is reported by node {target.node}, which is alive")
    _check_not_awaited(draft, target.id)
    draft.remove(target.id)


def _give_up(draft: Draft, target: Target, request: TargetActionRequest) -> None:
    chain = draft.chain(request.chain or target.chain)
    if chain is None:
        raise _bad(f"there is no chain {request.chain}" if request.chain else f"target {target.id} is in no chain")
    if request.chain_version not in (0, chain.version):
        raise _bad(f"chain {chain.id} is at version {chain.version} now, not {request.chain_version}: look at it again")
    if target.chain != chain.id:
        chain = _with_stranger(draft, chain, target)
    node = draft.node(target.node)
    alive = node is not None and node.alive and draft.local(target.id) not in (None, LocalState.OFFLINE)
    draft.chains[chain.id] = give_up(chain, target.id, alive)
    draft.settle_chain(chain.id)


def _with_stranger(draft: Draft, chain: Chain, target: Target) -> Chain:
    """The chain, of which nothing is left, with a free target in it, which begins it anew."""
    members = [entry.target for entry in chain.targets]
    if chain.serving():
        raise _bad(f"chain {chain.id} is served, by target {chain.serving()[0]}: there is nothing to give up")
    left = [member for member in members if draft.local(member) is not LocalState.OFFLINE]
    if left:
        raise _bad(f"target {left[0]} of chain {chain.id} is alive, or not heard of yet: it may have what was written")
    check_free(draft, target)  # on any node, also that of a lost one: where there is one node only, there is no other
    _check_not_awaited(draft, target.id)
    draft.put_into(chain.id, target.id)
    found = draft.chain(chain.id)
    assert found is not None, chain.id
    return found


def act_on_node(draft: Draft, request: NodeActionRequest) -> None:
    """Raises UNKNOWN_NODE, BAD_PLAN."""
    node = draft.base.nodes.get(request.node)
    if node is None:
        raise FS3Error(Code.UNKNOWN_NODE, f"there is no node {request.node}")
    if request.action in (NodeAction.DRAIN, NodeAction.UNDRAIN):
        set_drained(draft, node.id, request.action == NodeAction.DRAIN)
        return
    if request.action != NodeAction.FORGET:
        raise _bad(f"action {request.action} is not known")
    if node.alive:
        raise _bad(f"node {node.id} at {node.address} is alive: stop its daemon first")
    targets = sorted(draft.base.node_targets.get(node.id, ()))
    for number in targets:
        target = draft.base.targets[number]
        if target.chain:
            raise _bad(f"target {number} of node {node.id} is in chain {target.chain}: drain the node first")
        _check_not_awaited(draft, number)
    for number in targets:
        draft.remove(number)
    draft.nodes[node.id] = None


def _check_not_awaited(draft: Draft, target: int) -> None:
    operation = draft.base.operations.receiving().get(target)
    if operation is not None:
        raise _bad(f"operation {operation} is to put target {target} into a chain: cancel it first")


def _in_use(table: Table, why: str) -> FS3Error:
    return FS3Error(Code.TABLE_IN_USE, f"chain table {table.id} is in use: {why}")


def _bad(message: str) -> FS3Error:
    return FS3Error(Code.BAD_PLAN, message)
