"""How engines come to import hf3fs_fuse: as it is installed, beside fs3. It needs numpy, which they have."""

from __future__ import annotations

from pathlib import Path

from tests.process import harness


def importable(folder: Path) -> tuple[Path, ...]:
    """Folders to import from. folder: a new one is made there."""
    site = folder / "site"
    site.mkdir()
    (site / "fs3").symlink_to(harness.REPOSITORY / "fs3")
    (site / "hf3fs_fuse").symlink_to(harness.REPOSITORY / "fs3" / "hf3fs_fuse")
    return (site,)
