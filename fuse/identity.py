"""Under which registration a mount last ran, kept in a file: after a crash the next one says that this one is gone, so that
the lengths of files which it was writing are settled at once instead of when its lease has run out."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from fs3.errors import ConfigError


class IdentityFile:
    """A file with the node id and the incarnation of the mount that holds its lock, or held it last."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError where the file cannot be used, or another mount uses it."""
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be opened: {error.strerror}") from None
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._fd)
            raise ConfigError(f"{path}: another mount uses this file; give each mount its own") from None

    def last(self) -> tuple[int, int]:
        """Node id and incarnation; zeros where there is none, or none that makes sense."""
        words = os.pread(self._fd, 100, 0).split()
        if len(words) != 2 or not all(word.isdigit() for word in words):
            return 0, 0
        return int(words[0]), int(words[1])

    def save(self, node: int, incarnation: int) -> None:
        """A crash in between leaves something that makes no sense, or names nobody: no harm is done."""
        text = f"{node} {incarnation}\n".encode()
        os.pwrite(self._fd, text.ljust(64), 0)

    def close(self) -> None:
        os.close(self._fd)
