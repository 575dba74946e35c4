from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fs3.integrations.kv_options import KEYS, open_store


def test_a_plain_folder_is_used_as_it_is(tmp_path: Path) -> None:
    made = open_store(
        {"place": str(tmp_path / "kv"), "capacity": "64MiB", "segment": 2**20, "verify": False, "refresh_s": 0}
    )
    assert made.capacity_bytes == 64 * 2**20
    assert made.put(["a"], [b"bytes"]) == [True]
    made.close()
    again = open_store({"place": str(tmp_path / "kv"), "rings": False})
    assert again.lengths(["a"]) == [5]
    again.close()


@pytest.mark.parametrize(
    "options, why",
    [
        ({}, "give `place`"),
        ({"place": 5}, "give `place`"),
        ({"place": "/x", "size": 1, "also": 2}, "no option also, size; there are place"),
        ({"place": "/x", "capacity": "much"}, "capacity: expected a number of bytes"),
        ({"place": "/x", "segment": -1}, "segment: expected"),
        ({"place": "/x", "refresh_s": "1"}, "refresh_s: expected"),
        ({"place": "/x", "verify": 1}, "verify: expected true or false"),
        ({"place": "fs3://host/x"}, "with mgmtd's host and port"),
    ],
)
def test_what_cannot_be_is_named(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        open_store(options)


def test_a_bound_below_what_a_store_needs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="capacity_bytes: at least"):
        open_store({"place": str(tmp_path), "capacity": 1000})


def test_all_options_are_described() -> None:
    assert set(KEYS) == {"place", "capacity", "segment", "refresh_s", "verify", "rings"}
