"""What all services share: the method descriptor, error bodies, ping. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from ..errors import Code, FS3Error

Req = TypeVar("Req")
Rep = TypeVar("Rep")


@dataclass(frozen=True, slots=True)
class Method(Generic[Req, Rep]):
    """One remote procedure. id: unique over all services, never reused. idempotent: may be sent again blindly."""

    id: int
    name: str
    request: type[Req]
    reply: type[Rep]


@dataclass(frozen=True, slots=True)
class ErrorBody:
    """The body of an error reply."""

    code: int
    message: str
    retryable: bool

    def to_error(self) -> FS3Error:
        """The error as raised at the caller; an unknown code (a newer peer) becomes INTERNAL."""
        try:
            code = Code(self.code)
        except ValueError:
            return FS3Error(Code.INTERNAL, f"error {self.code} of a newer peer: {self.message}", retryable=self.retryable)
        return FS3Error(code, self.message, retryable=self.retryable)

    @staticmethod
    def of(error: FS3Error) -> ErrorBody:
        return ErrorBody(int(error.code), error.message, error.retryable)


@dataclass(frozen=True, slots=True)
class Empty:
    """A message without content."""


@dataclass(frozen=True, slots=True)
class StatusReply:
    """What a daemon tells of itself. metrics: JSON text of its counters and gauges."""

    name: str
    node: int
    version: str
    uptime_ms: int
    metrics: str


PING = Method(1, "ping", Empty, Empty)


@dataclass(frozen=True, slots=True)
class MetricsReply:
    """All that a process counts and times, as one JSON object: see fs3.watching.figures."""

    figures: str


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """listener: a random number of who asks, the same each time. From the first time on operations are gathered, until
    nobody has asked for a few seconds."""

    listener: int


@dataclass(frozen=True, slots=True)
class TraceReply:
    """The operations that have ended since the last time, as a JSON array of rows of fs3.watching. dropped: how many more
    there were than are kept."""

    operations: str
    dropped: int


STATUS = Method(2, "status", Empty, StatusReply)
METRICS = Method(3, "metrics", Empty, MetricsReply)
TRACE = Method(4, "trace", TraceRequest, TraceReply)
