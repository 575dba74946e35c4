"""Logging of a daemon: to standard error, one line per record, with UTC time stamps."""

from __future__ import annotations

import logging
import sys
import time

logger = logging.getLogger("fs3.log")

LEVELS = ("debug", "info", "warning", "error")


class OneLine(logging.Formatter):
    """`2026-01-31T12:00:00.123Z INFO fs3.storage.update: text`. Line breaks, of tracebacks too, become " | "."""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        lines = super().format(record).splitlines()
        return " | ".join(line.strip() for line in lines if line.strip())


def setup(name: str, level: str) -> None:
    """Send this process's records to standard error. name: of the daemon, opens the log. level: one of LEVELS."""
    assert level in LEVELS, level
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine())
    root = logging.getLogger()
    # Whatever else watches (a test's capture) stays; a second call replaces what the first one made.
    root.handlers[:] = [other for other in root.handlers if not isinstance(other.formatter, OneLine)] + [handler]
    set_level(level)
    logging.captureWarnings(True)


def set_level(level: str) -> None:
    """Log from now on what is of this level or above; it is one of LEVELS."""
    assert level in LEVELS, level
    logging.getLogger().setLevel(level.upper())
    logger.debug("log level %s", level)
