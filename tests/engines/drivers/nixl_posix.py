"""NIXL's POSIX plugin by its Python interface: registered memory is written to files and read back, in each way it knows.

Arguments: a folder; the way of input and output (use_aio: Linux AIO, use_uring: io_uring, use_posix_aio: the C library's
threads). Run by NIXL's environment.
"""

from __future__ import annotations

import mmap
import os
import sys
import time
from pathlib import Path

import numpy as np
from nixl_cu12._api import nixl_agent, nixl_agent_config
from nixl_cu12._bindings import nixlBackendError

KIB, MIB = 1 << 10, 1 << 20
TIMEOUT_S = 60.0
# Bytes and number of transfers of one request, whether O_DIRECT, files, and the bytes by which offsets in files are off.
SHAPES = [
    (4 * KIB, 512, True, 1, 0),
    (64 * KIB, 256, True, 4, 0),
    (MIB, 48, True, 3, 0),
    (64 * KIB, 256, False, 4, 0),
    (MIB + 4096, 32, False, 2, 4096),
    (100_003, 64, False, 2, 17),
]


def moved(agent: nixl_agent, how: str, memory: object, files: object) -> float:
    """One request, waited for; returns how many seconds it took."""
    handle = agent.initialize_xfer(how, memory, files, agent.name)
    start = time.monotonic()
    state = agent.transfer(handle)
    while state == "PROC":
        assert time.monotonic() - start < TIMEOUT_S, f"{how} did not end"
        state = agent.check_xfer_state(handle)
    took_s = time.monotonic() - start
    assert state == "DONE", f"{how} ended as {state}"
    agent.release_xfer_handle(handle)
    return took_s


def there_and_back(agent: nixl_agent, folder: Path, size: int, count: int, direct: bool, files: int, skew: int) -> str:
    memory = mmap.mmap(-1, 2 * size * count)
    data = np.frombuffer(memory, dtype=np.uint8)
    source, target = data[: size * count], data[size * count :]
    source[:] = np.random.default_rng(size + count).integers(0, 256, size * count, dtype=np.uint8)
    flags = os.O_RDWR | os.O_CREAT | (os.O_DIRECT if direct else 0)
    fds = [os.open(folder / f"{size}-{count}-{direct}-{number}", flags, 0o644) for number in range(files)]
    places = [(skew + (turn // files) * size, size, fds[turn % files]) for turn in range(count)]
    registered = agent.register_memory([(data.ctypes.data, data.nbytes, 0, "")], "DRAM")
    listed = agent.register_memory([(0, skew + size * count, fd, "") for fd in fds], "FILE")
    try:
        on_disk = agent.get_xfer_descs(places, "FILE")
        wrote_s = moved(agent, "WRITE", views(agent, source, size), on_disk)
        read_s = moved(agent, "READ", views(agent, target, size), on_disk)
        assert np.array_equal(source, target), "what came back is not what was written"
        for turn, (offset, _, fd) in enumerate(places):
            with open(f"/proc/self/fd/{fd}", "rb") as seen:
                seen.seek(offset)
                assert seen.read(size) == source[turn * size : (turn + 1) * size].tobytes(), f"transfer {turn}"
    finally:
        agent.deregister_memory(listed)
        agent.deregister_memory(registered)
        for fd in fds:
            os.close(fd)
    mib = size * count / MIB
    return f"{size} x {count} direct={direct}: write {mib / wrote_s:.0f}, read {mib / read_s:.0f} MiB/s"


def views(agent: nixl_agent, data: np.ndarray, size: int) -> object:
    start = data.ctypes.data
    return agent.get_xfer_descs([(start + offset, size, 0) for offset in range(0, data.nbytes, size)], "DRAM")


def past_the_end(agent: nixl_agent, folder: Path) -> None:
    """A read that finds less than it asks for must not count as done."""
    path = folder / "short"
    path.write_bytes(bytes(1000))
    data = np.ones(8192, dtype=np.uint8)
    fd = os.open(path, os.O_RDWR)
    registered = agent.register_memory([(data.ctypes.data, data.nbytes, 0, "")], "DRAM")
    listed = agent.register_memory([(0, 8192, fd, "")], "FILE")
    on_disk = agent.get_xfer_descs([(0, 8192, fd)], "FILE")
    try:
        moved(agent, "READ", views(agent, data, 8192), on_disk)
    except nixlBackendError:
        pass
    else:
        raise AssertionError("a read across the end of a file counts as done")
    agent.deregister_memory(listed)
    agent.deregister_memory(registered)
    os.close(fd)


def main() -> None:
    folder, way = Path(sys.argv[1]), sys.argv[2]
    agent = nixl_agent("fs3", nixl_agent_config(backends=[]))
    agent.create_backend("POSIX", {name: str(name == way).lower() for name in ("use_aio", "use_uring", "use_posix_aio")})
    for shape in SHAPES:
        print(way, there_and_back(agent, folder, *shape))
    past_the_end(agent, folder)


if __name__ == "__main__":
    main()
