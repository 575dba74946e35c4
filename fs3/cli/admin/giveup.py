"""`fs3 admin chain give-up`: the last resort for a chain whose last serving target is lost."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

import click

from ...api.admin import TARGET_ACTION, TargetAction, TargetActionRequest
from ...api.storage import ChunkMeta
from ...api.storage_admin import LIST_CHUNKS, ListChunksRequest
from ...errors import ConfigError, FS3Error
from ...ids import ChunkId
from ...routing import Chain, PublicState, RoutingInfo
from .common import Admin, Cluster, chain_ids, command, ranges, rows_table, target_ids
from .lists import chain
from .rows import Row, is_free, target_rows
from .shows import known_chain

commands: tuple[click.Command, ...] = ()
"""It joins a group of lists.py."""

ACCEPTANCE = "lose what chain {chain} wrote last"
"""What an operator types to give up a chain's newest content."""
ACCEPTANCE_OF_ALL = "lose all of chain {chain}"
"""The same where nothing is left of it, and a free target begins it anew."""

LIST_TIMEOUT_S = 20.0


@command(chain, "give-up")
@click.argument("chain", type=int, metavar="CHAIN", shell_complete=chain_ids)
@click.option(
    "--target",
    type=int,
    metavar="TARGET",
    shell_complete=target_ids,
    help="Which one is to serve instead; without it, they are compared.",
)
@click.option("--accept", metavar="WORDS", help="The words of acceptance, where nobody is at a terminal.")
def chain_give_up(go: Admin, chain: int, target: int | None, accept: str | None) -> None:
    """Let another target serve a chain whose last serving one never comes back: what only that one had is LOST.

    Only for a chain that no target serves. Shows what each target that is alive holds: `behind` counts chunks of which
    another one has a newer version, `missing` those that another one has. Where none of its targets is alive, a free one can
    begin the chain anew, empty: what was on it then reads as zeros. First try to bring back the node and disk of the target
    in state lastsrv.
    """
    found = go.visit(lambda cluster: _look(cluster, chain))
    living, free = [row["target"] for row in found["targets"] if row["alive"]], found["free"]
    words = (ACCEPTANCE if living else ACCEPTANCE_OF_ALL).format(chain=chain)
    if not go.as_json:
        columns = "target node disk state node_state local used_bytes chunks content_bytes pending damaged behind missing"
        go.console.print(rows_table(found["targets"], columns))
        last = ranges(found["lastsrv"])
        click.echo(f"Served last: {last}. What was written after the others were gone is there alone.")
    if target is None:
        go.show(found, lambda: _choices(chain, living, free, words))
        return
    if target not in (living or free):
        which = "of chain {} that is alive" if living else "that is free, to begin chain {} anew"
        raise ConfigError(f"target {target} is not one {which.format(chain)}: {ranges(living or free)}")
    if accept is None and not go.as_json and sys.stdin.isatty():
        accept = click.prompt(f"This cannot be undone. Type '{words}' to go on", default="", show_default=False)
    if accept != words:
        raise ConfigError(f"nothing was changed; to go on, give --accept '{words}'")

    async def run(cluster: Cluster) -> None:
        request = TargetActionRequest(target, TargetAction.GIVE_UP, found["version"], 0 if living else chain)
        await cluster.call(TARGET_ACTION, request)

    go.visit(run)
    lost = "what it lacks reads as before the loss, or as zeros" if living else "all that was on it reads as zeros"
    done = (
        f"Target {target} serves chain {chain} now; {lost}. `fs3 admin locate PATH` says whether a file lies on it:"
        " compare such files with their sources, or restore them."
    )
    go.show({**found, "given_to": target}, lambda: done)


async def _look(cluster: Cluster, chain: int) -> Row:
    known_chain(cluster.routing, chain)
    found = give_up_facts(cluster.routing, cluster.routing.chains[chain])
    held: dict[int, Mapping[ChunkId, ChunkMeta]] = {}
    for row in found["targets"]:
        if row["alive"]:
            chunks = await _chunks(cluster, row["target"])
            if chunks is not None:
                held[row["target"]] = chunks
    compared = compare(held)
    unknown = dict.fromkeys(("chunks", "content_bytes", "pending", "damaged", "behind", "missing"))
    found["targets"] = [{**row, **compared.get(row["target"], unknown)} for row in found["targets"]]
    return found


def give_up_facts(routing: RoutingInfo, chain: Chain) -> Row:
    """What is known of a chain that no target serves. Raises CONFIG where one does."""
    serving = chain.serving()
    if serving:
        raise ConfigError(f"chain {chain.id} is served by target {ranges(serving)}: there is nothing to give up")
    rows = {row["target"]: row for row in target_rows(routing)}
    targets = [rows[entry.target] for entry in chain.targets if entry.target in rows]
    for row in targets:
        row["alive"] = row["node_state"] == "alive" and row["local"] != "offline"
    lastsrv = [entry.target for entry in chain.targets if entry.state is PublicState.LASTSRV]
    mine = {row["node"] for row in targets}
    spare = sorted(
        [t for t in routing.targets.values() if is_free(routing, t)], key=lambda t: (t.node in mine, t.used, t.id)
    )
    free = [target.id for target in spare]
    return {"chain": chain.id, "version": chain.version, "lastsrv": lastsrv, "targets": targets, "free": free}


def compare(held: Mapping[int, Mapping[ChunkId, ChunkMeta]]) -> dict[int, Row]:
    """By target: what it holds, and how many chunks another one has newer, or has while it lacks them."""
    newest: dict[ChunkId, tuple[int, int]] = {}
    for chunks in held.values():
        for chunk, meta in chunks.items():
            newest[chunk] = max(newest.get(chunk, (0, 0)), _age(meta))
    return {
        target: {
            "chunks": len(chunks),
            "content_bytes": sum(meta.length for meta in chunks.values()),
            "pending": sum(meta.pending != 0 for meta in chunks.values()),
            "damaged": sum(meta.damaged for meta in chunks.values()),
            "behind": sum(_age(meta) < newest[chunk] for chunk, meta in chunks.items()),
            "missing": len(newest.keys() - chunks.keys()),
        }
        for target, chunks in held.items()
    }


def _age(meta: ChunkMeta) -> tuple[int, int]:
    """The later of two contents of a chunk has the greater one."""
    return meta.chain_version, meta.version


async def _chunks(cluster: Cluster, target: int) -> dict[ChunkId, ChunkMeta] | None:
    """All chunks of a target; None where its daemon does not tell."""
    node = cluster.routing.node_of(target)
    assert node is not None, target
    found: dict[ChunkId, ChunkMeta] = {}
    after: ChunkId | None = None
    while True:
        try:
            reply = await cluster.ask(node, LIST_CHUNKS, ListChunksRequest(target, after), LIST_TIMEOUT_S)
        except FS3Error:
            return None
        found.update({meta.chunk: meta for meta in reply.chunks})
        if not reply.more or not reply.chunks:
            return found
        after = reply.chunks[-1].chunk


def _choices(chain: int, living: Sequence[int], free: Sequence[int], words: str) -> str:
    lines = []
    if not living:
        lines.append("None of its targets is alive. If all are gone for good, a free one can begin the chain anew, EMPTY:")
        if not free:
            return "None of its targets is alive, and no other is free: bring one back, or add a disk or node."
    lines += [f"fs3 admin chain give-up {chain} --target {target} --accept '{words}'" for target in (living or free)[:3]]
    return "\n".join(lines)
