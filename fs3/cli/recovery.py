"""`fs3 recovery`: how far the filling of returned targets is, and how fast it, and scrubbing, may go."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import trio

from ..api.admin import (
    CONFIG_USE,
    GET_CONFIG,
    SET_CONFIG,
    ConfigVersion,
    GetConfigRequest,
    SetConfigRequest,
    Setting,
)
from ..api.common import STATUS, Empty
from ..client.mgmtd import MgmtdClient
from ..config import format_size
from ..env import Env
from ..errors import Code, FS3Error
from ..ids import NodeKind
from ..routing import Node
from ..rpc.client import RpcClient
from ..settings import KINDS, StorageSettings, merged
from .access import setter, visiting

_TIMEOUT_S = 5.0
_PREFIX = "storage.resync."


async def visit(addresses: Sequence[str], rates: Mapping[str, str]) -> list[str]:
    """Set rates in the configuration of all storage daemons (none: leave it as it is); a line on what is set there, and for
    each daemon that keeps to its own, that is silent, and each recovery. Raises FS3Error where no mgmtd answers, CONFIG.
    """
    async with visiting() as (env, rpc):
        mgmtd = MgmtdClient(env, rpc, addresses)
        routing = await mgmtd.refresh(0, timeout_ms=int(_TIMEOUT_S * 1000))
        if not routing.version:
            raise FS3Error(Code.CONNECT_FAILED, f"no management daemon answers at {', '.join(addresses)}")
        if rates:
            settings = tuple([Setting(key, value) for key, value in rates.items()])
            request = SetConfigRequest("storage", settings, by=setter(), comment="fs3 recovery")
            central = await mgmtd.call(SET_CONFIG, request)
        else:
            central = await mgmtd.call(GET_CONFIG, GetConfigRequest("storage"))
        lines = [limits(central)]
        uses = (await mgmtd.call(CONFIG_USE, Empty())).uses
        lines.extend([f"node {use.node}: {use.problem}" for use in uses if use.kind == "storage" and use.problem])
        found = await recoveries(env, rpc, routing.nodes_of(NodeKind.STORAGE))
    return [*lines, *[line for _, some in sorted(found.items()) for line in some]]


async def recoveries(env: Env, rpc: RpcClient, nodes: Sequence[Node]) -> dict[int, list[str]]:
    """Ask storage daemons, all at once: lines by node id; one that does not answer is said to be silent."""
    lines: dict[int, list[str]] = {}

    async def ask(node: Node) -> None:
        try:
            status = await rpc.call(node.address, STATUS, Empty(), deadline=env.monotonic() + _TIMEOUT_S)
        except FS3Error as error:
            lines[node.id] = [f"node {node.id}: silent ({error})"]
            return
        found = progress(json.loads(status.metrics))
        lines[node.id] = [f"node {node.id}:", *found] if found else [f"node {node.id}: nothing to recover"]

    async with trio.open_nursery() as nursery:
        for node in nodes:
            nursery.start_soon(ask, node)
    return lines


def storage_settings(central: ConfigVersion) -> StorageSettings:
    """What storage daemons use that have no settings of their own."""
    central_values = {setting.key: setting.value for setting in central.settings}
    settings: StorageSettings = merged(KINDS["storage"], StorageSettings(), central_values)[0]
    return settings


def limits(central: ConfigVersion) -> str:
    """Both rates in words."""
    settings = storage_settings(central)
    named = (("recovery", settings.resync_rate_bytes), ("scrubbing", settings.scrub_rate_bytes))
    return ", ".join([f"{name} {f'at most {format_size(rate)}/s' if rate else 'not limited'}" for name, rate in named])


def progress(metrics: Mapping[str, float]) -> list[str]:
    """A line for each chain whose recovery this daemon is the source of."""
    chains = sorted({int(name.split(".")[2]) for name in metrics if name.startswith(_PREFIX)})
    lines = []
    for chain in chains:
        compared, total, sent, chunks = [
            int(metrics.get(f"{_PREFIX}{chain}.{name}", 0))
            for name in ("bytes_compared", "bytes_total", "bytes_sent", "chunks_sent")
        ]
        lines.append(f"  chain {chain}: {_mib(compared)} of {_mib(total)} compared, {_mib(sent)} in {chunks} chunks sent")
    return lines


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.0f} MiB"
