"""Which cluster is meant: by a URL, an option, or the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from ..cli.folder import DataFolder

MGMTD, DATA = "FS3_MGMTD", "FS3_DATA"
"""Variables of the environment, as the `fs3` command has them: addresses of mgmtd, or the data folder of `fs3 up`."""
PROTOCOL = "fs3://"

_PLACE = re.compile(r"[^/,:]+:\d+|\[[0-9a-fA-F:]+\]:\d+")


def split_url(url: str) -> tuple[tuple[str, ...], str]:
    """fs3://HOST:PORT[,HOST:PORT...]/PATH -> (addresses of mgmtd, /PATH); without hosts, as in fs3:///PATH, there are none.

    A text that is no URL is a path. Raises ValueError where hosts have no port.
    """
    if not url.startswith(PROTOCOL):
        return (), _absolute(url)
    hosts, _, path = url[len(PROTOCOL) :].partition("/")
    places = [place for place in hosts.split(",") if place]
    if not all(_PLACE.fullmatch(place) for place in places):
        raise ValueError(f"{url}: expected fs3://HOST:PORT/PATH with mgmtd's host and port, or fs3:///PATH")
    return tuple([f"tcp://{place}" for place in places]), _absolute(path)


def _absolute(path: str) -> str:
    """Without slashes that mean nothing."""
    return "/" + "/".join([part for part in path.split("/") if part not in ("", ".")])


def addresses(mgmtd: str | Sequence[str] | None) -> tuple[str, ...]:
    """The addresses of mgmtd: as given ("tcp://HOST:PORT" or "HOST:PORT", several with commas or in a list), or else by the
    environment. Raises ValueError where neither says."""
    if not mgmtd:
        mgmtd = os.environ.get(MGMTD, "")
    if not mgmtd and os.environ.get(DATA):
        return DataFolder(Path(os.environ[DATA]).absolute()).mgmtd()
    parts = mgmtd.split(",") if isinstance(mgmtd, str) else mgmtd
    found = tuple([part.strip() if "://" in part else f"tcp://{part.strip()}" for part in parts if part.strip()])
    if not found:
        raise ValueError(
            f"which cluster? Give mgmtd='tcp://HOST:PORT' or a URL fs3://HOST:PORT/PATH, or set {MGMTD} or {DATA}"
        )
    return found
