"""Where a path is mounted."""

from __future__ import annotations

from fs3.usrbio import mount_point_of

__all__ = ["get_mount_point"]


def get_mount_point(p: str) -> str:
    """The mount point of the fs3 file system that a path lies in, whether or not the path exists. Raises ValueError."""
    return mount_point_of(p)
