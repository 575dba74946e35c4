"""What `fs3 status` says of a cluster."""

from __future__ import annotations

import io

from rich.console import Console

from fs3.api.mgmtd import ClientInfo, ClusterConfigReply
from fs3.cli.status import human, render, report
from fs3.ids import NodeKind
from fs3.routing import Chain, ChainTarget, LocalState, Node, PublicState, RoutingInfo, Table, Target

CONFIG = ClusterConfigReply(1, "c0ffee", 1, 2, 1 << 20, 1)


def routing(*states: PublicState) -> RoutingInfo:
    targets = {n: Target(n, 100 + n, 0, 7, LocalState.UPTODATE, 1 << 30, 1 << 20) for n, _ in enumerate(states, 1)}
    chain = Chain(7, 3, tuple(ChainTarget(n, state) for n, state in enumerate(states, 1)))
    nodes = {100 + n: Node(100 + n, NodeKind.STORAGE, f"tcp://s{n}:1", "h", n < 3, 5) for n in targets}
    nodes[1_000_001] = Node(1_000_001, NodeKind.CLIENT, "", "h", True, 6)
    return RoutingInfo(9, "c0ffee", {7: chain}, {1: Table(1, 1, (7,), 2)}, targets, nodes)


def test_all_serve() -> None:
    found = report(CONFIG, routing(PublicState.SERVING, PublicState.SERVING), [ClientInfo(1_000_001, "h", True)], [])
    assert found["serving"] and found["available"] and found["formatted"]
    assert found["capacity"] == 2 << 30 and found["used"] == 2 << 20
    assert [node["kind"] for node in found["nodes"]] == ["storage", "storage"], "clients are listed apart"
    assert found["chains"][0]["targets"][1] == {"target": 2, "node": 102, "state": "serving"}


def test_one_is_behind() -> None:
    found = report(CONFIG, routing(PublicState.SERVING, PublicState.SYNCING), [], [])
    assert not found["serving"] and found["available"]


def test_none_serves() -> None:
    found = report(CONFIG, routing(PublicState.LASTSRV, PublicState.OFFLINE), [], [])
    assert not found["serving"] and not found["available"]


def test_an_unformatted_cluster_is_not_serving() -> None:
    found = report(ClusterConfigReply(0, "", 0, 0, 0, 0), RoutingInfo(1, "c0ffee"), [], [])
    assert not found["serving"] and not found["available"] and not found["formatted"]
    assert "not formatted" in rendered(found)


def rendered(found: dict[str, object]) -> str:
    out = io.StringIO()
    render(found, Console(file=out, width=200, highlight=False))
    return out.getvalue()


def test_text_for_people_has_no_colours_in_a_pipe() -> None:
    mounts = [{"path": "/m", "source": "fs3", "alive": False}]
    text = rendered(report(CONFIG, routing(PublicState.SERVING, PublicState.OFFLINE), [], mounts))
    assert "\x1b" not in text
    assert "1 serving @101   2 offline @102" in text
    assert "used 2.0 MiB of 2.0 GiB" in text
    assert "mounted here at /m (its daemon is gone)" in text


def test_sizes_for_people() -> None:
    assert [human(size) for size in (0, 1023, 1536, 5 << 30, 1 << 60)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "5.0 GiB",
        "1024.0 PiB",
    ]
