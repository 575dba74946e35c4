"""What mgmtd keeps in the KV store: all keys and values, and the only transactions on them.

| key (fs3.kv.keys)  | value                                                                                  |
|--------------------|----------------------------------------------------------------------------------------|
| MGow               | lease.Owner: who is primary; changes at each take-over                                 |
| MGrn               | how often the lease was renewed, 8 bytes; apart from MGow, so that renewals conflict   |
|                    | with no commit                                                                         |
| MGhd               | state.Head: revision, routing version, cluster id, next client id, longest leases      |
| MGcf               | api.ClusterConfigReply: what was chosen at format; absent before                       |
| MGch, chain id     | routing.Chain                                                                          |
| MGtb, table id     | routing.Table                                                                          |
| MGtg, target id    | routing.Target; its local state and fill level as of some routing version              |
| MGnd, node id      | routing.Node                                                                           |
| MGcl, client id    | state.ClientRecord                                                                     |
| MGcv, kind,        | api.admin.ConfigVersion: the central configuration of an ids.NodeKind, its newest      |
|       version      | configs.HISTORY_MAX versions                                                           |
| MGop, operation id | operations.OperationRecord: the newest operations.KEPT_MAX that are over, and all others   |
| MGmv, operation id,| operations.MoveRecord                                                                  |
|       index        |                                                                                        |

Values are in the wire format (fs3.wire.codec), hence may get fields at their end. Every commit reads MGow and MGhd and
fails where the epoch or the revision is not what this primary knows: one that was deposed can change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from fs3.api.admin import ConfigVersion
from fs3.api.mgmtd import ClusterConfigReply
from fs3.errors import Code, FS3Error
from fs3.ids import NodeKind
from fs3.kv.base import KVEngine, Txn
from fs3.kv.keys import key, prefix_range
from fs3.routing import Chain, Node, Table, Target
from fs3.wire.codec import decode, encode

from .lease import Owner, PrimaryLease, Record
from .operations import MoveRecord, OperationRecord
from .state import FIRST_CLIENT, Change, ClientRecord, Head, Saved

T = TypeVar("T")

OWNER = key(b"MGow")
RENEWALS = key(b"MGrn")
HEAD = key(b"MGhd")
CONFIG = key(b"MGcf")
CHAIN = b"MGch"
TABLE = b"MGtb"
TARGET = b"MGtg"
NODE = b"MGnd"
CLIENT = b"MGcl"
CONFIG_VERSION = b"MGcv"
OPERATION = b"MGop"
MOVE = b"MGmv"

_PAGE = 1000


class Store:
    """mgmtd's state in a KV store. Methods raise what transactions raise, and NOT_PRIMARY."""

    def __init__(self, engine: KVEngine) -> None:
        self._engine = engine

    async def contend(self, lease: PrimaryLease, clock: Callable[[], float]) -> None:
        """Renew the lease, or take it where it is free."""
        asked_at = clock()
        txn = self._engine.transaction()
        record = await _record(txn)
        written = lease.decide(record, clock())
        if written is None:
            return
        _put_record(txn, record, written)
        await txn.commit()
        lease.granted(written, asked_at)

    async def release(self, lease: PrimaryLease) -> None:
        """Let another mgmtd take over at once; nothing happens where one has done so already."""
        released = lease.released()
        if released is None:
            return
        txn = self._engine.transaction()
        record = await _record(txn)
        assert released.owner is not None
        if record.owner is not None and record.owner.epoch == released.owner.epoch:
            _put_record(txn, record, released)
            await txn.commit()

    async def load(self, epoch: int, cluster: str, heard: Callable[[], None]) -> Saved:
        """All that is stored; a store that is empty becomes that of a new cluster of this name. heard: called after each
        answer of the store.

        Reads in several transactions: since we are primary nobody else writes, which the first commit will verify.
        """
        txn = self._engine.transaction()
        await _check_epoch(txn, epoch)
        raw = await txn.get(HEAD)
        if raw is None:
            head = Head(1, 1, cluster, FIRST_CLIENT)
            txn.set(HEAD, encode(head))
            await txn.commit()
            await self._engine.sync()
        else:
            head = decode(Head, raw)
        config = await self._engine.transaction().get(CONFIG)
        heard()

        async def every(tag: bytes, cls: type[T]) -> list[T]:
            return await self._all(tag, cls, heard)

        return Saved(
            head,
            decode(ClusterConfigReply, config) if config is not None else None,
            {chain.id: chain for chain in await every(CHAIN, Chain)},
            {table.id: table for table in await every(TABLE, Table)},
            {target.id: target for target in await every(TARGET, Target)},
            {node.id: node for node in await every(NODE, Node)},
            {client.id: client for client in await every(CLIENT, ClientRecord)},
            await every(CONFIG_VERSION, ConfigVersion),
            await every(OPERATION, OperationRecord),
            await every(MOVE, MoveRecord),
        )

    async def commit(self, change: Change, epoch: int, revision: int) -> None:
        """Store a change of the state at `revision`. Routing is also made safe from power loss: who saw a chain's
        version acts on it, so it must never be given to another state of the chain."""
        assert change.head is not None
        txn = self._engine.transaction()
        await _check_epoch(txn, epoch)
        raw = await txn.get(HEAD)
        stored = decode(Head, raw) if raw is not None else None
        if stored is None or stored.revision != revision:
            found = stored.revision if stored is not None else "nothing"
            raise FS3Error(Code.CONFLICT, f"the store holds revision {found}, memory {revision}")
        txn.set(HEAD, encode(change.head))
        if change.config is not None:
            txn.set(CONFIG, encode(change.config))
        _put_all(txn, CHAIN, change.chains)
        _put_all(txn, TABLE, change.tables)
        _put_all(txn, TARGET, {target: change.targets[target] for target in change.stored_targets})
        _put_all(txn, NODE, change.nodes)
        _put_all(txn, CLIENT, change.clients)
        for (kind, version), settings in change.configs.items():
            _put(txn, key(CONFIG_VERSION, NodeKind[kind.upper()], version), settings)
        _put_all(txn, OPERATION, change.operations)
        for (operation, index), move in change.moves.items():
            _put(txn, key(MOVE, operation, index), move)
        await txn.commit()
        if change.head.routing_version != stored.routing_version or change.configs or change.operations:
            await self._engine.sync()

    async def _all(self, tag: bytes, cls: type[T], heard: Callable[[], None]) -> list[T]:
        begin, end = prefix_range(tag)
        found: list[T] = []
        while True:
            page = await self._engine.transaction().get_range(begin, end, limit=_PAGE)
            heard()
            found.extend([decode(cls, value) for _, value in page])
            if len(page) < _PAGE:
                return found
            begin = page[-1][0] + b"\x00"


async def _record(txn: Txn) -> Record:
    owner = await txn.get(OWNER)
    renewals = await txn.get(RENEWALS)
    return Record(
        decode(Owner, owner) if owner is not None else None,
        int.from_bytes(renewals, "little") if renewals is not None else 0,
    )


def _put_record(txn: Txn, before: Record, record: Record) -> None:
    assert record.owner is not None
    if record.owner != before.owner:
        txn.set(OWNER, encode(record.owner))
    txn.set(RENEWALS, record.renewals.to_bytes(8, "little"))


async def _check_epoch(txn: Txn, epoch: int) -> None:
    raw = await txn.get(OWNER)
    owner = decode(Owner, raw) if raw is not None else None
    if owner is None or owner.epoch != epoch:
        raise FS3Error(Code.NOT_PRIMARY, f"the lease is at epoch {owner.epoch if owner else 0}, no longer at {epoch}")


def _put_all(txn: Txn, tag: bytes, records: Mapping[int, Any]) -> None:
    for number, record in records.items():
        _put(txn, key(tag, number), record)


def _put(txn: Txn, where: bytes, record: Any) -> None:
    if record is None:
        txn.clear(where)
    else:
        txn.set(where, encode(record))
