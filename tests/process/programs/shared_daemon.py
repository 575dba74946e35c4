"""fs3-mgmtd or fs3-meta on a store that other processes share.

python -m tests.process.programs.shared_daemon mgmtd|meta SOCKET [the daemon's own flags]
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import meta.daemon
import mgmtd.daemon
from fs3.daemon import main
from tests.process.shared_store import SharedEngine

KINDS = {
    "mgmtd": (mgmtd.daemon.MgmtdConfig, mgmtd.daemon.run),
    "meta": (meta.daemon.MetaConfig, meta.daemon.run),
}

if __name__ == "__main__":
    kind, socket, *arguments = sys.argv[1:]
    config, run = KINDS[kind]
    main(f"fs3-{kind}", config, partial(run, engine=SharedEngine(Path(socket))), __doc__, arguments)
