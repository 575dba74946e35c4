"""Messages by which operators change a cluster: operations, chain tables, targets, nodes, configuration. To mgmtd. Pure.

An operation is a plan of moves, made by whoever submits it (fs3/placement), checked and then carried out by the primary
mgmtd, which keeps it in the store: it goes on after any crash, of mgmtd or of the submitter.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from .common import Empty, Method


class OperationState(IntEnum):
    RUNNING = 1
    PAUSED = 2
    """No move is begun; those under way go on."""
    DONE = 3
    """Every move is done."""
    FAILED = 4
    """Nothing is under way any more, and some moves failed; RETRY begins those anew."""
    CANCELLED = 5


class MoveState(IntEnum):
    WAITING = 1
    FILLING = 2
    """`add` is in the chain and does not serve yet."""
    DONE = 3
    FAILED = 4
    CANCELLED = 5


@dataclass(frozen=True, slots=True)
class Move:
    """One change of one chain: `add` comes in at its end and is filled; when it serves, `drop` leaves. 0: none of them.

    head: the target that is to lead the chain afterwards, 0: whichever does. A target that left is emptied by its daemon.
    """

    chain: int
    add: int = 0
    drop: int = 0
    head: int = 0


@dataclass(frozen=True, slots=True)
class MoveStatus:
    """note: why it failed, or what it waits for."""

    index: int
    move: Move
    state: MoveState
    note: str = ""


@dataclass(frozen=True, slots=True)
class Operation:
    """A plan under way or over. kind: drain, replace, rebalance, set-replicas...; title: for people. created_ms: wall clock.

    at_once: how many moves may be filling at the same time, of all chains. counts: moves by MoveState, in its order.
    """

    id: int
    kind: str
    title: str
    state: OperationState
    created_ms: int
    ended_ms: int
    at_once: int
    moves: int
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SubmitRequest:
    """Carry out a plan. token: chosen by the submitter, so that a retry does not begin it twice; not 0.

    drain: nodes that shall get no targets from now on. table, replicas: a chain table whose wanted number of replicas
    changes with this (0: none). Refused with BAD_PLAN, saying which move and why; nothing is done then.
    """

    token: int
    kind: str
    title: str
    moves: tuple[Move, ...]
    at_once: int = 4
    drain: tuple[int, ...] = ()
    table: int = 0
    replicas: int = 0


@dataclass(frozen=True, slots=True)
class OperationReply:
    operation: Operation


@dataclass(frozen=True, slots=True)
class ListOperationsRequest:
    """limit: the newest so many."""

    limit: int = 100


@dataclass(frozen=True, slots=True)
class ListOperationsReply:
    operations: tuple[Operation, ...]


@dataclass(frozen=True, slots=True)
class GetMovesRequest:
    """Moves of an operation from index `first` on, at most `limit`; states: only of these, empty: all."""

    operation: int
    first: int = 0
    limit: int = 1000
    states: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class GetMovesReply:
    operation: Operation
    moves: tuple[MoveStatus, ...]
    more: bool


class Control(IntEnum):
    PAUSE = 1
    RESUME = 2
    CANCEL = 3
    """Moves that wait are cancelled; a target that is being filled leaves its chain again."""
    RETRY = 4
    """Failed and cancelled moves wait again."""


@dataclass(frozen=True, slots=True)
class ControlRequest:
    """control: 0 to change at_once only. at_once: 0: as it is. Refused with BAD_PLAN where it makes no sense."""

    operation: int
    control: int = 0
    at_once: int = 0


@dataclass(frozen=True, slots=True)
class CreateTableRequest:
    """Make a chain table of new chains, or (table != 0) append chains to one, which makes a new version of it: files made
    before stay on the chains they have.

    chains: target ids of each, head first, on different nodes, of targets that are in no chain. Refused with BAD_PLACEMENT,
    saying which chain and why.
    """

    chains: tuple[tuple[int, ...], ...]
    replicas: int
    table: int = 0
    token: int = 0


@dataclass(frozen=True, slots=True)
class CreateTableReply:
    table: int
    version: int


@dataclass(frozen=True, slots=True)
class RemoveTableRequest:
    """Remove a chain table and its chains. Refused with TABLE_IN_USE while it is the default one, or its chains hold data,
    or an operation concerns them."""

    table: int


class TargetAction(IntEnum):
    RESYNC = 1
    """Take it out of service and fill it anew from its chain. Refused where no other target serves."""
    FORGET = 2
    """Drop a target that is in no chain, and that no living node reports, from the list."""
    GIVE_UP = 3
    """Of a chain that no target serves: this target, which is alive, takes the place of the one that served last, whose
    newer content is given up for ever."""
    EMPTY = 4
    """Of a target in no chain: have its daemon throw away what it holds, so that it can come into a chain."""


@dataclass(frozen=True, slots=True)
class TargetActionRequest:
    """chain_version: of its chain as the operator saw it, for GIVE_UP; 0: whatever it is. chain: for GIVE_UP of a chain none
    of whose targets is alive, by a target that is in none: the chain begins anew, with nothing in it; else 0."""

    target: int
    action: TargetAction
    chain_version: int = 0
    chain: int = 0


class NodeAction(IntEnum):
    FORGET = 1
    """Drop a dead node from the list, and its targets. Refused while it is alive, or a target of it is in a chain."""
    DRAIN = 2
    """It gets no more targets."""
    UNDRAIN = 3


@dataclass(frozen=True, slots=True)
class NodeActionRequest:
    node: int
    action: NodeAction


@dataclass(frozen=True, slots=True)
class Setting:
    """value: as one writes it on a command line."""

    key: str
    value: str


@dataclass(frozen=True, slots=True)
class ConfigVersion:
    """The settings of a kind of daemon (mgmtd, meta, storage, client) that were set, at one version; a key that is absent
    has the value of the daemon's own file, or its default. version: 0 before the first. set_ms: wall clock; by: who,
    on which host; comment: why."""

    kind: str
    version: int
    settings: tuple[Setting, ...]
    set_ms: int = 0
    by: str = ""
    comment: str = ""


@dataclass(frozen=True, slots=True)
class GetConfigRequest:
    """version: 0 for the latest. Refused with CONFIG where there is no such kind, or that version is not kept."""

    kind: str
    version: int = 0


@dataclass(frozen=True, slots=True)
class SetConfigRequest:
    """Change keys of a kind; unset: keys to be as if never set. base_version: what the changes were made of (-1: whatever
    is the latest); CONFIG_CHANGED where there is a newer one. Refused with CONFIG, saying which key and why. What changes
    nothing makes no new version."""

    kind: str
    settings: tuple[Setting, ...]
    unset: tuple[str, ...] = ()
    base_version: int = -1
    by: str = ""
    comment: str = ""


@dataclass(frozen=True, slots=True)
class ConfigHistoryRequest:
    """The newest `limit` versions, newest first."""

    kind: str
    limit: int = 20


@dataclass(frozen=True, slots=True)
class ConfigHistoryReply:
    versions: tuple[ConfigVersion, ...]


@dataclass(frozen=True, slots=True)
class ConfigUse:
    """What a living node said of its configuration. version: the one in use, -1 where it has not said.
    problem: why it does not use the latest, or which keys its own file or flags override."""

    node: int
    kind: str
    version: int
    problem: str


@dataclass(frozen=True, slots=True)
class ConfigUseReply:
    uses: tuple[ConfigUse, ...]


SUBMIT = Method(120, "mgmtd.submit", SubmitRequest, OperationReply)
LIST_OPERATIONS = Method(121, "mgmtd.list_operations", ListOperationsRequest, ListOperationsReply)
GET_MOVES = Method(122, "mgmtd.get_moves", GetMovesRequest, GetMovesReply)
CONTROL = Method(123, "mgmtd.control", ControlRequest, OperationReply)
CREATE_TABLE = Method(124, "mgmtd.create_table", CreateTableRequest, CreateTableReply)
REMOVE_TABLE = Method(125, "mgmtd.remove_table", RemoveTableRequest, Empty)
TARGET_ACTION = Method(126, "mgmtd.target_action", TargetActionRequest, Empty)
NODE_ACTION = Method(127, "mgmtd.node_action", NodeActionRequest, Empty)
GET_CONFIG = Method(128, "mgmtd.get_config", GetConfigRequest, ConfigVersion)
SET_CONFIG = Method(129, "mgmtd.set_config", SetConfigRequest, ConfigVersion)
CONFIG_HISTORY = Method(130, "mgmtd.config_history", ConfigHistoryRequest, ConfigHistoryReply)
CONFIG_USE = Method(131, "mgmtd.config_use", Empty, ConfigUseReply)
