"""Changes names in a mount, again and again, by calls that fail if they are done twice; appends to a log after each turn.

python -m tests.process.programs.names FOLDER LOG [--cut]

Ends when its standard input does, and prints how many turns it did. --cut: files also get shorter. A process of its own: its
open files must not be those of one that starts daemons, whose forks would close them too, and wait for the mount.
"""

from __future__ import annotations

import os
import select
import sys
from pathlib import Path

RECORD = b"%-8s %08d\n"
SIZE = 5000


def main(folder: Path, log: int, cut: bool) -> int:
    for made in (folder, folder / "chain", folder / "tidy"):
        made.mkdir()
    (folder / "chain/0").write_bytes(b"chained")
    turn = 0
    while not select.select([sys.stdin], [], [], 0)[0]:
        os.rename(folder / f"chain/{turn}", folder / f"chain/{turn + 1}")
        here = folder / f"tidy/{turn}"
        here.mkdir()
        (here / "f").write_bytes(b"f" * SIZE)
        if cut:
            os.truncate(here / "f", SIZE // 2)
        os.replace(here / "f", here / "g")
        assert os.stat(here / "g").st_size == SIZE // (1 + cut)
        os.unlink(here / "g")
        os.rmdir(here)
        record = RECORD % (b"mount", turn)
        assert os.write(log, record) == len(record)
        turn += 1
    os.close(log)
    return turn


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND), "--cut" in sys.argv))
