"""What the daemon makes of operations that no honest program would ask for: the checks of fs3.usrbio are passed by."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fs3 import usrbio
from fs3.usrbio import Ior, Iov
from tests.unit.client.live import Live
from tests.unit.fuse.test_rings import call, mounted, results


@pytest.fixture
async def live(tmp_path: Path) -> AsyncIterator[Live]:
    async with Live(tmp_path, storages=1, replicas=1).running() as cluster:
        yield cluster


@pytest.mark.parametrize("for_read", [True, False])
async def test_what_may_not_be_is_refused(
    live: Live, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, for_read: bool
) -> None:
    async with mounted(live, monkeypatch, tmp_path) as made:
        allowed, other = (
            await made.file(b"f", b"secret"),
            await made.file(b"g", b"other", os.O_WRONLY if for_read else os.O_RDONLY),
        )
        good, forbidden = usrbio._process.files[allowed].id, usrbio._process.files[other].id
        iov = await call(lambda: Iov.create(made.place, 8192))
        ring = await call(lambda: Ior(made.place, 16, for_read=for_read))
        asked = [
            (iov._id, 0, 6, good, 0, 6),
            (iov._id, 0, 6, forbidden, 0, -errno.EACCES),
            (iov._id, 0, 6, 4711, 0, -errno.EBADF),
            (4711, 0, 6, good, 0, -errno.EINVAL),
            (iov._id, 8192, 1, good, 0, -errno.EINVAL),
            (iov._id, 8000, 193, good, 0, -errno.EINVAL),
            (iov._id, 2**64 - 1, 1, good, 0, -errno.EINVAL),
            (iov._id, 0, 2**64 - 1, good, 0, -errno.EINVAL),
            (iov._id, 0, 0, good, 0, -errno.EINVAL),
            (iov._id, 0, 6, good, 2**63 - 3, -errno.EINVAL),
        ]
        for memory, at, length, file, offset, _ in asked:
            ring._ring.prepare(memory, at, length, file, offset, None)
        ring.submit()
        assert results(await call(lambda: ring.wait(min_results=len(asked)))) == [each[-1] for each in asked]
