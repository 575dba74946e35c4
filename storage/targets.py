"""Which of our targets may do what, by the routing that we know. Immutable; made anew on each change. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from fs3.errors import Code, FS3Error
from fs3.routing import PublicState, RoutingInfo


@dataclass(frozen=True, slots=True)
class Successor:
    """Where a target forwards its updates. address: empty while its node is unknown. syncing: it is being filled."""

    target: int
    address: str
    syncing: bool


@dataclass(frozen=True, slots=True)
class Role:
    """A target's place in its chain at one chain version."""

    target: int
    chain: int
    chain_version: int
    state: PublicState
    head: bool
    successor: Successor | None


class TargetMap:
    """The roles of one daemon's targets."""

    __slots__ = ("roles", "routing_version")

    def __init__(self, routing_version: int, roles: dict[int, Role]) -> None:
        self.routing_version = routing_version
        self.roles = roles

    @staticmethod
    def of(routing: RoutingInfo, own: Collection[int]) -> TargetMap:
        """The map for the targets `own`; those in no chain are left out. Costs no more for all the others there are."""
        roles: dict[int, Role] = {}
        for target in own:
            known = routing.targets.get(target)
            chain = routing.chains.get(known.chain) if known is not None else None
            state = chain.state_of(target) if chain is not None else None
            if chain is None or state is None:
                continue
            following = chain.successor(target) if state is PublicState.SERVING else None
            successor = None
            if following is not None:
                node = routing.node_of(following.target)
                address = node.address if node is not None else ""
                successor = Successor(following.target, address, following.state is PublicState.SYNCING)
            roles[target] = Role(target, chain.id, chain.version, state, chain.head() == target, successor)
        return TargetMap(routing.version, roles)

    def role(self, chain: int, chain_version: int, target: int) -> Role:
        """The target's role. Raises UNKNOWN_TARGET, CHAIN_VERSION."""
        role = self.roles.get(target)
        if role is None or role.chain != chain:
            raise FS3Error(Code.UNKNOWN_TARGET, f"target {target} of chain {chain} is not here")
        if role.chain_version != chain_version:
            raise FS3Error(Code.CHAIN_VERSION, f"chain {chain} is at version {role.chain_version} here, not {chain_version}")
        return role

    def for_read(self, chain: int, chain_version: int, target: int) -> Role:
        """Raises UNKNOWN_TARGET, CHAIN_VERSION, NOT_SERVING."""
        role = self.role(chain, chain_version, target)
        if role.state is not PublicState.SERVING:
            raise FS3Error(Code.NOT_SERVING, f"target {target} is {role.state.name.lower()}")
        return role

    def for_update(self, chain: int, chain_version: int, target: int, from_client: bool) -> Role:
        """Raises UNKNOWN_TARGET, CHAIN_VERSION, NOT_SERVING, NOT_HEAD.

        A client writes to the head; a predecessor forwards to any other target that serves or is being filled.
        """
        role = self.role(chain, chain_version, target)
        if from_client:
            if not role.head:
                raise FS3Error(Code.NOT_HEAD, f"target {target} does not lead chain {chain}")
        elif role.state not in (PublicState.SERVING, PublicState.SYNCING):
            raise FS3Error(Code.NOT_SERVING, f"target {target} is {role.state.name.lower()}")
        elif role.head:
            raise FS3Error(Code.CHAIN_VERSION, f"target {target} leads chain {chain}, nobody forwards to it")
        return role
