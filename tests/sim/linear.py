"""Linearizability checking: the search of Wing and Gong (1993) with the memory of Lowe (2017).

A history is a list of operations with their call and return times. It is linearizable when every operation can be given
one instant between its call and its return so that the sequence of instants is a run of the model. An operation whose
outcome is unknown (its client crashed, or it got an ambiguous error) returns at infinity: it may take effect at any time
after its call, or never.

A model says how one object behaves. Objects are independent, so a history is cut by object first (Herlihy and Wing's
locality theorem) and each part searched by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of one client. returned: math.inf when its outcome is unknown; output is then ignored."""

    client: int
    key: Hashable
    called: float
    returned: float
    input: Any
    output: Any = None

    @property
    def known(self) -> bool:
        return self.returned != math.inf


@dataclass(frozen=True, slots=True)
class Model:
    """How an object behaves. States must be hashable.

    step(state, input, output, known) -> the state after the operation, or None where the model cannot have answered so;
    with known=False every answer is possible.
    """

    initial: Callable[[Hashable], Hashable]
    step: Callable[[Any, Any, Any, bool], Hashable | None]


@dataclass(slots=True)
class Verdict:
    """ok, or the object that failed with its longest prefix that could be ordered and what blocked the next step."""

    ok: bool
    key: Hashable = None
    history: Sequence[Operation] = ()
    longest: Sequence[Operation] = field(default_factory=list)
    gave_up: bool = False

    def explain(self) -> str:
        """For people: the operations of the failing object in time order, those of the longest good order marked."""
        if self.ok:
            return "linearizable"
        order = {id(operation): position + 1 for position, operation in enumerate(self.longest)}
        lines = [f"object {self.key}: no order explains these operations ({len(self.longest)} of {len(self.history)} do)"]
        for operation in sorted(self.history, key=lambda o: o.called):
            place = f"#{order[id(operation)]}" if id(operation) in order else "-"
            end = f"{operation.returned:.6f}" if operation.known else "?"
            lines.append(
                f"  {place:>5} client {operation.client} [{operation.called:.6f}, {end}] {operation.input!r}"
                f" -> {operation.output!r}"
            )
        return "\n".join(lines)


def check(history: Iterable[Operation], model: Model, steps_max: int = 5_000_000) -> Verdict:
    """Search every object of the history. `gave_up` is set where an object took more than steps_max steps."""
    objects: dict[Hashable, list[Operation]] = {}
    for operation in history:
        objects.setdefault(operation.key, []).append(operation)
    for key, operations in objects.items():
        verdict = _search(key, operations, model, steps_max)
        if not verdict.ok:
            return verdict
    return Verdict(True)


class _Entry:
    """A call or return event in a doubly linked list by time. match: the return of a call, None for a return itself."""

    __slots__ = ("after", "before", "match", "number", "operation")

    def __init__(self, operation: Operation, number: int, match: _Entry | None) -> None:
        self.operation = operation
        self.number = number
        self.match = match
        self.before: _Entry | None = None
        self.after: _Entry | None = None


def _events(operations: Sequence[Operation]) -> _Entry:
    """The head (a sentinel) of the list of events in time order; a call at the same instant as a return comes first,
    since such operations are concurrent."""
    events: list[tuple[float, int, int, _Entry]] = []
    for number, operation in enumerate(operations):
        assert operation.called <= operation.returned, operation
        end = _Entry(operation, number, None)
        events.append((operation.called, 0, number, _Entry(operation, number, end)))
        events.append((operation.returned, 1, number, end))
    events.sort(key=lambda event: event[:3])
    head = last = _Entry(operations[0], -1, None)
    for *_, entry in events:
        last.after, entry.before = entry, last
        last = entry
    return head


def _lift(call: _Entry) -> None:
    """Take an operation's two events out of the list."""
    assert call.before is not None and call.match is not None
    for entry in (call, call.match):
        assert entry.before is not None
        entry.before.after = entry.after
        if entry.after is not None:
            entry.after.before = entry.before


def _unlift(call: _Entry) -> None:
    """Put them back, in the reverse order."""
    assert call.match is not None
    for entry in (call.match, call):
        assert entry.before is not None
        entry.before.after = entry
        if entry.after is not None:
            entry.after.before = entry


def _search(key: Hashable, operations: Sequence[Operation], model: Model, steps_max: int) -> Verdict:
    unknown = sum(1 for operation in operations if not operation.known)
    known_left = len(operations) - unknown
    head = _events(operations)
    state = model.initial(key)
    done = 0  # bit set of the operations ordered so far
    seen: set[tuple[int, Hashable]] = {(done, state)}
    stack: list[tuple[_Entry, Hashable]] = []
    longest: list[Operation] = []
    entry = head.after
    steps = 0
    while known_left:
        steps += 1
        if steps > steps_max:
            return Verdict(False, key, operations, longest, gave_up=True)
        assert entry is not None
        if entry.match is not None:
            operation = entry.operation
            following = model.step(state, operation.input, operation.output, operation.known)
            mark = (done | 1 << entry.number, following)
            if following is not None and mark not in seen:
                seen.add(mark)
                stack.append((entry, state))
                state, done = following, mark[0]
                known_left -= operation.known
                _lift(entry)
                if len(stack) > len(longest):
                    longest = [call.operation for call, _ in stack]
                entry = head.after
            else:
                entry = entry.after
            continue
        # A return whose call was not ordered: nothing that was called before it can come next. Go back.
        if not stack:
            return Verdict(False, key, operations, longest)
        call, state = stack.pop()
        done &= ~(1 << call.number)
        known_left += call.operation.known
        _unlift(call)
        entry = call.after
    return Verdict(True)


# Models


def _register_step(state: Any, request: Any, output: Any, known: bool) -> Hashable | None:
    kind, value = request
    if kind == "write":
        return (value,)
    return state if not known or output == state[0] else None


REGISTER = Model(lambda key: (None,), _register_step)
"""A register: inputs ("write", value) and ("read", None); a read's output is the value, None before the first write."""


def _file_step(state: Any, request: Any, output: Any, known: bool) -> Hashable | None:
    """State: the file's bytes. Inputs: ("write", offset, data), ("append", data), ("truncate", length),
    ("read", offset, length) with the bytes as output, ("length",) with the length as output."""
    kind = request[0]
    content: bytes = state
    if kind == "write":
        offset: int = request[1]
        data: bytes = request[2]
        return content[:offset].ljust(offset, b"\0") + data + content[offset + len(data) :]
    if kind == "append":
        if known and output is not None and output != len(content):
            return None
        appended: bytes = content + request[1]
        return appended
    if kind == "truncate":
        return content[: request[1]].ljust(request[1], b"\0")
    if not known:
        return content
    answer = content[request[1] : request[1] + request[2]] if kind == "read" else len(content)
    return content if output == answer else None


FILE = Model(lambda key: b"", _file_step)
"""A small file's content, or one chunk of it."""
