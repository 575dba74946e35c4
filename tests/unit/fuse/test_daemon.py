from __future__ import annotations

import pytest

from fs3.env import Env
from fs3.errors import ConfigError
from fs3.transport.memory import MemoryTransport
from fuse.daemon import MountConfig, run


@pytest.mark.parametrize(("strict", "write_behind"), [(True, False), (False, True)])
async def test_writeback_does_not_go_with_what_it_contradicts(strict: bool, write_behind: bool) -> None:
    config = MountConfig(
        mount="/nowhere", mgmtd=("tcp://127.0.0.1:1",), writeback=True, strict=strict, write_behind=write_behind
    )
    with pytest.raises(ConfigError, match="writeback excludes strict"):
        await run(config, Env(MemoryTransport()), lambda text: None)
