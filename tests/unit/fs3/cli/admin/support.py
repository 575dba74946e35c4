"""A cluster made of facts, for commands that are tested without daemons."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fs3.api import admin, mgmtd
from fs3.cli.admin import common
from fs3.cli.main import cli
from fs3.env import Env
from fs3.errors import Code, FS3Error
from fs3.ids import NodeKind
from fs3.routing import Chain, ChainTarget, LocalState, Node, PublicState, RoutingInfo, Table, Target
from fs3.transport.registry import Transports

GIB = 1 << 30
SERVING, SYNCING, LASTSRV, OFFLINE = (
    PublicState.SERVING,
    PublicState.SYNCING,
    PublicState.LASTSRV,
    PublicState.OFFLINE,
)


def node(number: int, *, kind: NodeKind = NodeKind.STORAGE, alive: bool = True, **more: Any) -> Node:
    return Node(number, kind, f"tcp://h{number}:1", f"h{number}", alive, 5, **more)


def routing(
    chains: Sequence[Sequence[int | tuple[int, PublicState]]] = ((10101, 10201), (10202, 10301), (10302, 10102)),
    *,
    replicas: int = 2,
    nodes: Sequence[Node] = (),
    free: Sequence[int] = (10103, 10203, 10303, 10104, 10204, 10304),
    change: Callable[[Target], Target] = lambda target: target,
) -> RoutingInfo:
    """Target 10203 is the third of node 102; its disk is 0 below 50. Chains have 1 GiB of 4. Ids of chains are from 1."""
    made = {}
    targets = {}
    for number, members in enumerate(chains, 1):
        entries = [member if isinstance(member, tuple) else (member, SERVING) for member in members]
        made[number] = Chain(number, 3, tuple(ChainTarget(target, state) for target, state in entries))
        for target, state in entries:
            local = (
                LocalState.UPTODATE if state is SERVING else LocalState.ONLINE if state is SYNCING else LocalState.OFFLINE
            )
            targets[target] = Target(target, target // 100, target % 100 // 50, number, local, 4 * GIB, GIB)
    for target in free:
        targets[target] = Target(target, target // 100, target % 100 // 50, 0, LocalState.UPTODATE, 4 * GIB, 0)
    known = {number: node(number) for number in {target.node for target in targets.values()}}
    known |= {11: node(11, kind=NodeKind.META), **{found.id: found for found in nodes}}
    tables = {1: Table(1, 1, tuple(made), replicas)} if made else {}
    return RoutingInfo(9, "c0ffee", made, tables, {number: change(target) for number, target in targets.items()}, known)


class FakeCluster(common.Cluster):
    """Answers from a dictionary: method -> reply, error, or function of the request. asked: what came."""

    def __init__(self, info: RoutingInfo, replies: dict[Any, Any]) -> None:
        self.env = Env(Transports())
        self.info = info
        self.replies: dict[Any, Any] = {
            admin.LIST_OPERATIONS: admin.ListOperationsReply(()),
            admin.GET_CONFIG: admin.ConfigVersion("storage", 0, ()),
            admin.CONFIG_USE: admin.ConfigUseReply(()),
            mgmtd.CLUSTER_CONFIG: mgmtd.ClusterConfigReply(1, "c0ffee", 1, 2, 1 << 20, 1),
            mgmtd.LIST_CLIENTS: mgmtd.ListClientsReply((mgmtd.ClientInfo(1 << 20, "h", True),)),
            **replies,
        }
        self.asked: list[Any] = []
        self.addresses = ()

    @property
    def routing(self) -> RoutingInfo:
        return self.info

    async def reload(self) -> RoutingInfo:
        return self.info

    async def call(self, method: Any, request: Any, timeout_s: float = 0) -> Any:
        self.asked.append(request)
        reply = self.replies.get(method, FS3Error(Code.UNKNOWN_METHOD, method.name))
        reply = reply(request) if callable(reply) else reply
        if isinstance(reply, FS3Error):
            raise reply
        return reply

    async def ask(self, node: Node, method: Any, request: Any, timeout_s: float = 0) -> Any:
        reply = self.replies.get((node.id, method), FS3Error(Code.CONNECT_FAILED, f"node {node.id}"))
        if isinstance(reply, FS3Error):
            raise reply
        return reply


class Operator:
    """Types commands at a cluster."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch
        self.cluster: FakeCluster = FakeCluster(routing(), {})

    def on(self, info: RoutingInfo, replies: dict[Any, Any] | None = None) -> Operator:
        self.cluster = FakeCluster(info, replies or {})
        return self

    def types(self, words: str, *more: str) -> Result:
        """Run `fs3 admin WORDS`."""

        @asynccontextmanager
        async def cluster(addresses: Sequence[str], timeout_s: float = 0) -> AsyncIterator[FakeCluster]:
            yield self.cluster

        self._patch.setattr(common, "cluster", cluster)
        return CliRunner().invoke(cli, ["admin", "--mgmtd", "tcp://m:1", *words.split(), *more])
