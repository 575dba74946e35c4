"""One error for what operations meet. Our own bugs are assertions, not errors. Pure."""

from __future__ import annotations

import errno
from enum import IntEnum


class Code(IntEnum):
    """Numeric bands: 1xx wire and rpc, 2xx management, 3xx metadata, 4xx storage, 5xx key-value store, 9xx general."""

    # 1xx: wire, transport, rpc
    PROTOCOL = 100
    CONNECTION_LOST = 101
    CONNECT_FAILED = 102
    DEADLINE_EXCEEDED = 103
    OVERLOADED = 104
    UNKNOWN_METHOD = 105
    SHUTTING_DOWN = 106
    # 2xx: management
    NOT_PRIMARY = 200
    STALE_INCARNATION = 201
    UNKNOWN_NODE = 202
    NO_ROUTING = 203
    ALREADY_FORMATTED = 204
    BAD_PLACEMENT = 205
    BAD_PLAN = 206
    TABLE_IN_USE = 207
    CONFIG_CHANGED = 208
    # 3xx: metadata
    NOT_FOUND = 300
    EXISTS = 301
    NOT_DIRECTORY = 302
    IS_DIRECTORY = 303
    NOT_EMPTY = 304
    PERMISSION_DENIED = 305
    NOT_PERMITTED = 306
    NAME_TOO_LONG = 307
    TOO_MANY_LINKS = 308
    LOOP = 309
    STALE_HANDLE = 310
    INVALID = 311
    FILE_TOO_LARGE = 312
    CROSS_DEVICE = 313
    NO_ATTRIBUTE = 314
    BAD_HANDLE = 315
    ATTRIBUTE_TOO_LARGE = 316
    BUSY = 317
    NOT_SUPPORTED = 318
    OUT_OF_RANGE = 319
    TEXT_BUSY = 320
    NO_LOCKS = 321
    # 4xx: storage
    CHAIN_VERSION = 400
    NOT_HEAD = 401
    NOT_SERVING = 402
    CHUNK_NOT_FOUND = 403
    CHUNK_PENDING = 404
    STALE_WRITE = 405
    CHECKSUM = 406
    NO_SPACE = 407
    DISK_FAILED = 408
    UNKNOWN_TARGET = 409
    VERSION_GAP = 410
    CHAIN_UNAVAILABLE = 411
    READ_FAILED = 412
    DATA_LOST = 413
    RECORDS_DAMAGED = 414
    # 5xx: key-value store
    CONFLICT = 500
    COMMIT_UNKNOWN = 501
    TRANSACTION_TOO_OLD = 502
    TRANSACTION_TOO_LARGE = 503
    KEY_TOO_LARGE = 504
    VALUE_TOO_LARGE = 505
    KV_UNAVAILABLE = 506
    # 9xx: general
    INTERNAL = 900
    CONFIG = 901
    FORMAT_VERSION = 902
    IO = 903


_RETRYABLE = frozenset(
    {
        Code.CONNECTION_LOST,
        Code.CONNECT_FAILED,
        Code.OVERLOADED,
        Code.SHUTTING_DOWN,
        Code.NOT_PRIMARY,
        Code.NO_ROUTING,
        Code.CHAIN_VERSION,
        Code.NOT_HEAD,
        Code.NOT_SERVING,
        Code.CHUNK_PENDING,
        Code.CHECKSUM,
        Code.DISK_FAILED,
        Code.READ_FAILED,
        Code.UNKNOWN_TARGET,
        Code.VERSION_GAP,
        Code.CHAIN_UNAVAILABLE,
        Code.CONFLICT,
        Code.COMMIT_UNKNOWN,
        Code.TRANSACTION_TOO_OLD,
        Code.KV_UNAVAILABLE,
    }
)

_ERRNO = {
    Code.DEADLINE_EXCEEDED: errno.ETIMEDOUT,
    Code.NOT_FOUND: errno.ENOENT,
    Code.EXISTS: errno.EEXIST,
    Code.NOT_DIRECTORY: errno.ENOTDIR,
    Code.IS_DIRECTORY: errno.EISDIR,
    Code.NOT_EMPTY: errno.ENOTEMPTY,
    Code.PERMISSION_DENIED: errno.EACCES,
    Code.NOT_PERMITTED: errno.EPERM,
    Code.NAME_TOO_LONG: errno.ENAMETOOLONG,
    Code.TOO_MANY_LINKS: errno.EMLINK,
    Code.LOOP: errno.ELOOP,
    Code.STALE_HANDLE: errno.ESTALE,
    Code.INVALID: errno.EINVAL,
    Code.FILE_TOO_LARGE: errno.EFBIG,
    Code.CROSS_DEVICE: errno.EXDEV,
    Code.NO_ATTRIBUTE: errno.ENODATA,
    Code.BAD_HANDLE: errno.EBADF,
    Code.ATTRIBUTE_TOO_LARGE: errno.ERANGE,
    Code.BUSY: errno.EBUSY,
    Code.NOT_SUPPORTED: errno.EOPNOTSUPP,
    Code.OUT_OF_RANGE: errno.ERANGE,
    Code.TEXT_BUSY: errno.ETXTBSY,
    Code.NO_LOCKS: errno.ENOLCK,
    Code.NO_SPACE: errno.ENOSPC,
}


class FS3Error(Exception):
    """What an operation met: a code, a sentence for people, and what a caller may do about it."""

    def __init__(self, code: Code, message: str = "", *, retryable: bool | None = None) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.retryable = code in _RETRYABLE if retryable is None else retryable
        """Whether the same request, sent again (elsewhere, later, or after a refresh), may succeed."""

    @property
    def errno(self) -> int:
        """The POSIX number that a file system call reports for this error; EIO where none says more."""
        return _ERRNO.get(self.code, errno.EIO)

    def __str__(self) -> str:
        return f"{self.code.name}: {self.message}" if self.message else self.code.name


class ProtocolError(FS3Error):
    """A peer sent what the protocol does not allow; its connection ends."""

    def __init__(self, message: str) -> None:
        super().__init__(Code.PROTOCOL, message, retryable=False)


class ConfigError(FS3Error):
    """A configuration that cannot be used: says the file, the key and what was expected."""

    def __init__(self, message: str) -> None:
        super().__init__(Code.CONFIG, message, retryable=False)
