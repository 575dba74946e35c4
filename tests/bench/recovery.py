"""How fast a target that lost its data is filled again, and what reads see of it: `python -m tests.bench.recovery`.

Two storage daemons with two targets each hold a file. One daemon is killed and its data removed; once mgmtd has noticed it
starts again, empty. The time counts from when its targets are being filled until all of them serve. Reads of 1 MiB, four at
a time, run before and all the while; they are measured in short slices. The target: 200 MiB/s, and half the rate of before.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from tests.bench.storage_cluster import CHECKOUT, FIRST_NODE, MIB, Cluster, Load, wait_until

REBUILD_MIB_S = 200.0
READS_KEPT = 0.5
VICTIM = FIRST_NODE + 1
ROW = "read-1m:4"


def rebuild(load: Load, cluster: Cluster, options: argparse.Namespace) -> dict[str, float]:
    """Seconds that it took, and MiB/s of reads before and during."""
    load.fill()
    before = [_reads(load, options.slice) for _ in range(options.before)]
    cluster.wipe_storage(VICTIM)
    wait_until("the dead daemon is noticed", lambda: "OFFLINE" in "".join(load.states().get(VICTIM, ["OFFLINE"])))
    cluster.start_storage(VICTIM)
    wait_until("it is being filled", lambda: "SYNCING" in load.states().get(VICTIM, []))
    began = time.monotonic()
    during = []
    while any(state != "SERVING" for state in load.states().get(VICTIM, [""])):
        during.append(_reads(load, options.slice))
        if time.monotonic() - began > 60 + options.mib / 10:
            raise SystemExit("it does not come to an end")
    took = time.monotonic() - began
    return {
        "seconds": took,
        "rebuild_mib_s": options.mib / took,
        "reads_before_mib_s": statistics.median(before),
        "reads_during_mib_s": statistics.median(during),
        "reads_worst_mib_s": min(during),
    }


def _reads(load: Load, seconds: float) -> float:
    found = load.run(ROW, seconds)
    return found.bytes / found.seconds / MIB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=2048, help="how much is lost; 20480 for the 20 GiB of a real target")
    parser.add_argument("--folder", default="/dev/shm", help="where the data goes, twice")
    parser.add_argument("--slice", type=float, default=0.5, help="seconds of reads at a time")
    parser.add_argument("--before", type=int, default=6, help="slices of reads before")
    parser.add_argument("--checkout", default=str(CHECKOUT), help="of the programs to be measured")
    parser.add_argument("--storage-option", nargs="+", default=[], help="flags for the storage daemons")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, {options.mib} MiB", flush=True)
    flags = ["--log-level=warning", *options.storage_option]
    with (
        tempfile.TemporaryDirectory(dir=options.folder, prefix="fs3-bench-") as folder,
        Cluster(Path(options.checkout), Path(folder) / "cluster", 2, 2, flags, lease_ms=2000) as cluster,
    ):
        found = rebuild(cluster.load(options.mib), cluster, options)
    kept = found["reads_during_mib_s"] / found["reads_before_mib_s"]
    print(
        f"rebuilt in {found['seconds']:.1f} s: {found['rebuild_mib_s']:.0f} MiB/s "
        f"({'reaches' if found['rebuild_mib_s'] >= REBUILD_MIB_S else 'MISSES'} {REBUILD_MIB_S:.0f})\n"
        f"reads: {found['reads_before_mib_s']:.0f} MiB/s before, {found['reads_during_mib_s']:.0f} during, "
        f"{found['reads_worst_mib_s']:.0f} in the worst slice; {kept:.2f} are kept "
        f"({'reaches' if kept >= READS_KEPT else 'MISSES'} {READS_KEPT:.1f})"
    )
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
