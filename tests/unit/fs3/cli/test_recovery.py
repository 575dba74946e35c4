from __future__ import annotations

from fs3.api.admin import ConfigVersion, Setting
from fs3.cli.recovery import limits, progress


def test_limits_in_words() -> None:
    central = ConfigVersion("storage", 3, (Setting("resync_rate_bytes", "0"),))
    assert limits(central) == "recovery not limited, scrubbing at most 32MiB/s"


def test_each_recovery_is_a_line() -> None:
    metrics = {
        "storage.reads": 7,
        "storage.resync.12.bytes_total": 20 << 30,
        "storage.resync.12.bytes_compared": 1 << 30,
        "storage.resync.12.bytes_sent": 300 << 20,
        "storage.resync.12.chunks_sent": 300,
        "storage.resync.7.bytes_total": 0,
    }
    assert progress(metrics) == [
        "  chain 7: 0 MiB of 0 MiB compared, 0 MiB in 0 chunks sent",
        "  chain 12: 1024 MiB of 20480 MiB compared, 300 MiB in 300 chunks sent",
    ]
