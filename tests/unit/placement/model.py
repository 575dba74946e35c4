"""Carrying out moves in a model, one at a time and in any order, with what must hold after each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from fs3.api.admin import Move
from fs3.placement.topology import domain_limit, domains
from fs3.routing import Chain, ChainTarget, PublicState, RoutingInfo


def carry_out(before: RoutingInfo, moves: Iterable[Move]) -> RoutingInfo:
    """The routing after these moves. What a move takes was free before any of them, and serving replicas never get fewer."""
    chains, targets = dict(before.chains), dict(before.targets)
    for move in moves:
        chain = chains[move.chain]
        members = list(chain.targets)
        serving = len(chain.serving())
        if move.add:
            assert before.targets[move.add].chain == 0 and not before.targets[move.add].retired, move
            assert before.nodes[targets[move.add].node].alive and not before.nodes[targets[move.add].node].drained, move
            assert targets[move.add].chain == 0, f"{move}: taken twice"
            assert serving, f"{move}: filled from nothing"
            members.append(ChainTarget(move.add, PublicState.SERVING))
            targets[move.add] = replace(targets[move.add], chain=move.chain)
        if move.drop:
            gone = next(entry for entry in members if entry.target == move.drop)
            members.remove(gone)
            targets[move.drop] = replace(targets[move.drop], chain=0, retired=True)
        if move.head:
            lead = next(entry for entry in members if entry.target == move.head)
            assert lead.state is PublicState.SERVING, move
            members.sort(key=lambda entry: entry.target != move.head)
        members.sort(key=lambda entry: entry.state)
        chains[move.chain] = Chain(move.chain, chain.version + 1, tuple(members))
        after = len(chains[move.chain].serving())
        assert after >= (1 if move.drop and not move.add else serving), move
    return replace(before, chains=chains, targets=targets)


def nodes_of(routing: RoutingInfo, chain: int) -> list[int]:
    return [routing.targets[entry.target].node for entry in routing.chains[chain].targets]


def check_apart(routing: RoutingInfo, leaving: Iterable[int] = ()) -> None:
    """No chain has two replicas on a node, or more than it must in a failure domain."""
    domain = domains(routing.nodes)
    holders = {t.node for t in routing.targets.values()} - set(leaving)
    for chain in routing.chains:
        nodes = nodes_of(routing, chain)
        assert len(set(nodes)) == len(nodes), (chain, nodes)
        limit = domain_limit([domain[n] for n in holders], len(nodes))
        assert max(Counter([domain[n] for n in nodes]).values()) <= limit, (chain, nodes)


def loads(routing: RoutingInfo) -> Counter[int]:
    return Counter([t.node for t in routing.targets.values() if t.chain])


def leads(routing: RoutingInfo) -> Counter[int]:
    heads = [chain.head() for chain in routing.chains.values()]
    return Counter([routing.targets[head].node for head in heads if head is not None])
