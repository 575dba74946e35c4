from __future__ import annotations

import errno

import pytest

from fs3.api.common import ErrorBody
from fs3.errors import Code, ConfigError, FS3Error, ProtocolError
from fs3.wire.codec import decode, encode


def test_text_names_the_code_and_the_reason() -> None:
    assert str(FS3Error(Code.NOT_FOUND, "no such entry: x")) == "NOT_FOUND: no such entry: x"
    assert str(FS3Error(Code.NOT_FOUND)) == "NOT_FOUND"


@pytest.mark.parametrize(
    ("code", "number"),
    [(Code.NOT_FOUND, errno.ENOENT), (Code.NO_SPACE, errno.ENOSPC), (Code.DEADLINE_EXCEEDED, errno.ETIMEDOUT),
     (Code.CONNECTION_LOST, errno.EIO), (Code.INTERNAL, errno.EIO)],
)  # fmt: skip
def test_errno(code: Code, number: int) -> None:
    assert FS3Error(code).errno == number


def test_every_error_of_the_namespace_has_an_errno_of_its_own() -> None:
    """EIO from a metadata call would tell a program that its disk is bad."""
    assert [code.name for code in Code if 300 <= code < 400 and FS3Error(code).errno == errno.EIO] == []


def test_retryable_follows_the_code_unless_told() -> None:
    assert FS3Error(Code.CONNECTION_LOST).retryable and not FS3Error(Code.NOT_FOUND).retryable
    assert not FS3Error(Code.CONNECTION_LOST, retryable=False).retryable
    assert not ProtocolError("x").retryable and not ConfigError("x").retryable


@pytest.mark.parametrize("code", list(Code))
def test_errors_travel(code: Code) -> None:
    error = decode(ErrorBody, encode(ErrorBody.of(FS3Error(code, "why", retryable=True)))).to_error()
    assert (error.code, error.message, error.retryable) == (code, "why", True)


def test_error_of_a_newer_peer() -> None:
    error = ErrorBody(4242, "why", True).to_error()
    assert error.code is Code.INTERNAL and error.retryable and "4242" in error.message and "why" in error.message
