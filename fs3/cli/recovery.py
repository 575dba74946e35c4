"""`fs3 recovery`: how far the filling of returned targets is, and how fast it, and scrubbing, may go."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from ..api.common import STATUS, Empty
from ..api.storage import TUNE, TuneReply, TuneRequest
from ..client.mgmtd import MgmtdClient
from ..config import format_size
from ..errors import Code, FS3Error
from ..ids import NodeKind
from .access import visiting

_TIMEOUT_S = 5.0
_PREFIX = "storage.resync."


async def visit(addresses: Sequence[str], resync_rate_bytes: int, scrub_rate_bytes: int) -> list[str]:
    """Set the rates of all living storage daemons, -1 leaving one as it is; a line for each daemon and each recovery.

    Raises FS3Error where a daemon does not answer.
    """
    lines = []
    async with visiting() as (env, rpc):
        mgmtd = MgmtdClient(env, rpc, addresses)
        routing = await mgmtd.refresh(0, timeout_ms=int(_TIMEOUT_S * 1000))
        if not routing.version:
            raise FS3Error(Code.CONNECT_FAILED, f"no management daemon answers at {', '.join(addresses)}")
        for node in routing.nodes_of(NodeKind.STORAGE):
            deadline = env.monotonic() + _TIMEOUT_S
            rates = await rpc.call(node.address, TUNE, TuneRequest(resync_rate_bytes, scrub_rate_bytes), deadline=deadline)
            status = await rpc.call(node.address, STATUS, Empty(), deadline=deadline)
            lines.append(f"node {node.id}: {limits(rates)}")
            lines.extend(progress(json.loads(status.metrics)))
    return lines


def limits(rates: TuneReply) -> str:
    """Both rates in words."""
    named = (("recovery", rates.resync_rate_bytes), ("scrubbing", rates.scrub_rate_bytes))
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
