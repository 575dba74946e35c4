from __future__ import annotations

import pytest

from fs3.errors import Code, FS3Error
from fs3.ids import NodeKind
from fs3.routing import Chain, ChainTarget, LocalState, Node, PublicState, RoutingInfo, Target
from storage.targets import Role, Successor, TargetMap

S, Y, W = PublicState.SERVING, PublicState.SYNCING, PublicState.WAITING
CHAIN = Chain(1, 5, (ChainTarget(11, S), ChainTarget(12, S), ChainTarget(13, Y), ChainTarget(14, W)))
ROUTING = RoutingInfo(
    9,
    "test",
    {1: CHAIN},
    {},
    {t: Target(t, t, 0, 1, LocalState.UPTODATE, 0, 0) for t in (11, 12, 13, 14)},
    {t: Node(t, NodeKind.STORAGE, f"mem://{t}", "", True, 1) for t in (11, 12, 13)},
)


def code_of(make: object, *arguments: object) -> Code:
    assert callable(make)
    with pytest.raises(FS3Error) as caught:
        make(*arguments)
    return caught.value.code


def test_roles() -> None:
    found = TargetMap.of(ROUTING, {11, 12, 13, 14, 99})
    assert found.routing_version == 9
    assert found.roles == {
        11: Role(11, 1, 5, S, True, Successor(12, "mem://12", False)),
        12: Role(12, 1, 5, S, False, Successor(13, "mem://13", True)),
        13: Role(13, 1, 5, Y, False, None),
        14: Role(14, 1, 5, W, False, None),
    }
    assert TargetMap.of(ROUTING, {11}).roles.keys() == {11}


def test_an_unknown_node_has_no_address() -> None:
    routing = RoutingInfo(9, "test", {1: CHAIN}, targets={11: ROUTING.targets[11]})
    role = TargetMap.of(routing, {11}).roles[11]
    assert role.successor == Successor(12, "", False)


def test_who_may_read() -> None:
    found = TargetMap.of(ROUTING, {11, 12, 13, 14})
    assert found.for_read(1, 5, 12).target == 12
    assert code_of(found.for_read, 1, 5, 13) is Code.NOT_SERVING
    assert code_of(found.for_read, 1, 4, 12) is Code.CHAIN_VERSION
    assert code_of(found.for_read, 1, 5, 77) is Code.UNKNOWN_TARGET
    assert code_of(found.for_read, 2, 5, 12) is Code.UNKNOWN_TARGET


def test_who_takes_updates() -> None:
    found = TargetMap.of(ROUTING, {11, 12, 13, 14})
    assert found.for_update(1, 5, 11, True).head
    assert code_of(found.for_update, 1, 5, 12, True) is Code.NOT_HEAD
    assert not found.for_update(1, 5, 12, False).head
    assert found.for_update(1, 5, 13, False).state is Y
    assert code_of(found.for_update, 1, 5, 14, False) is Code.NOT_SERVING
    assert code_of(found.for_update, 1, 5, 11, False) is Code.CHAIN_VERSION
