"""Runs operations as transactions, and those that change something once only, however often they are asked for.

A mutating request carries a RequestTag. The transaction that does it also writes its reply to the record of the tag's
channel, so a repetition finds the record and is answered from it, whichever daemon it reaches, and also when the first
daemon died before it could reply or never learned whether its commit succeeded. A refusal is recorded as well: otherwise
a delayed duplicate of a refused request could still be done after its client has gone on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import trio

from fs3.api.common import ErrorBody, Method
from fs3.errors import Code, FS3Error
from fs3.ids import RequestTag
from fs3.kv.base import Txn
from fs3.kv.transact import transact
from fs3.wire.codec import decode, encode

from .context import Context
from .resolve import IntentPending
from .schema import pack_record, record_key, unpack_record

Rep = TypeVar("Rep")

READ_ATTEMPTS_MAX = 10
READ_PAUSE_MS = 20


class Tagged(Protocol):
    @property
    def tag(self) -> RequestTag: ...


TaggedReq = TypeVar("TaggedReq", bound=Tagged)
AnyReq = TypeVar("AnyReq")

Completer = Callable[[int], Awaitable[None]]
"""Puts the chunks of a file in order: see intents.Intents.complete."""


async def read(
    ctx: Context, operation: Callable[[Context, Txn, AnyReq], Awaitable[Rep]], request: AnyReq, complete: Completer
) -> Rep:
    """Run an operation that changes nothing."""
    failures = 0
    while True:
        try:
            return await operation(ctx, ctx.engine.transaction(), request)
        except IntentPending as pending:
            await complete(pending.inode)
        except FS3Error as error:
            failures += 1
            if error.code not in (Code.TRANSACTION_TOO_OLD, Code.KV_UNAVAILABLE) or failures == READ_ATTEMPTS_MAX:
                raise
            await trio.sleep(READ_PAUSE_MS / 1000)


async def mutate(
    ctx: Context,
    method: Method[TaggedReq, Rep],
    operation: Callable[[Context, Txn, TaggedReq], Awaitable[Rep]],
    request: TaggedReq,
    complete: Completer,
) -> Rep:
    """Run an operation once for its tag, or find out what came of it before. Raises STALE_WRITE for a tag whose channel
    has gone on, and what the operation raises."""
    tag = request.tag
    key = record_key(tag.client, tag.channel)

    async def once(txn: Txn) -> Rep | FS3Error:
        record = await txn.get(key)
        if record is not None:
            found = _replay(method, tag, record)
            if found is not None:
                return found
        reply = await operation(ctx, txn, request)
        txn.set(key, pack_record(tag.sequence, method.id, ctx.now_ns() // 1_000_000_000, False, encode(reply)))
        return reply

    while True:
        try:
            outcome = await transact(ctx.engine, once, env=ctx.env, idempotent=True)
            break
        except IntentPending as pending:
            await complete(pending.inode)
        except FS3Error as error:
            if error.retryable or error.code in _NOT_OF_THE_OPERATION:
                raise
            outcome = await _refuse(ctx, method, tag, key, error)
            break
    if isinstance(outcome, FS3Error):
        raise outcome
    return outcome


_NOT_OF_THE_OPERATION = frozenset({Code.STALE_WRITE, Code.TRANSACTION_TOO_LARGE, Code.FORMAT_VERSION, Code.INTERNAL})


async def _refuse(
    ctx: Context, method: Method[TaggedReq, Rep], tag: RequestTag, key: bytes, error: FS3Error
) -> Rep | FS3Error:
    """Record a refusal, unless a duplicate of the request was quicker: then what came of that one counts."""

    async def once(txn: Txn) -> Rep | FS3Error:
        record = await txn.get(key)
        if record is not None:
            found = _replay(method, tag, record)
            if found is not None:
                return found
        second = ctx.now_ns() // 1_000_000_000
        txn.set(key, pack_record(tag.sequence, method.id, second, True, encode(ErrorBody.of(error))))
        return error

    return await transact(ctx.engine, once, env=ctx.env, idempotent=True)


def _replay(method: Method[TaggedReq, Rep], tag: RequestTag, record: bytes) -> Rep | FS3Error | None:
    """What a record says about a tag: its reply, its refusal, or None where the tag is new."""
    sequence, recorded_method, _, is_error, body = unpack_record(record)
    if sequence < tag.sequence:
        return None
    if sequence > tag.sequence:
        raise FS3Error(Code.STALE_WRITE, f"{tag}: the channel is at {sequence} already")
    if recorded_method != method.id:
        raise FS3Error(Code.INVALID, f"{tag} was used for method {recorded_method} before", retryable=False)
    return decode(ErrorBody, body).to_error() if is_error else decode(method.reply, body)
