"""What a mount remembers of the one before it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fs3.errors import ConfigError
from fuse.identity import IdentityFile


def test_the_next_mount_finds_who_was_before(tmp_path: Path) -> None:
    path = tmp_path / "state"
    first = IdentityFile(path)
    assert first.last() == (0, 0)
    first.save(1_000_001, (1 << 63) - 1)
    first.save(1_000_001, 7)
    first.close()
    second = IdentityFile(path)
    assert second.last() == (1_000_001, 7)
    second.close()


def test_two_mounts_do_not_share_a_file(tmp_path: Path) -> None:
    first = IdentityFile(tmp_path / "state")
    with pytest.raises(ConfigError, match="another mount uses this file"):
        IdentityFile(tmp_path / "state")
    first.close()


def test_a_file_that_cannot_be_had_or_makes_no_sense(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be opened"):
        IdentityFile(tmp_path / "absent" / "state")
    (tmp_path / "state").write_bytes(b"\xff\x00 nonsense 5 7")
    odd = IdentityFile(tmp_path / "state")
    assert odd.last() == (0, 0)
    odd.close()
