"""LMCache's second level with the adapter of fs3, made by LMCache's own registry from the JSON that its server takes.

Arguments: the folder, as `place`. Run by LMCache's environment.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

from lmcache.v1.distributed.api import ObjectKey
from lmcache.v1.distributed.l2_adapters.base import L2AdapterInterface
from lmcache.v1.distributed.l2_adapters.config import add_l2_adapters_args, parse_args_to_l2_adapters_config
from lmcache.v1.distributed.l2_adapters.factory import create_l2_adapter_from_registry

SIZE, COUNT = 1 << 18, 32


def adapter(place: str, **parameters: object) -> L2AdapterInterface:
    spec = {
        "type": "plugin",
        "module_path": "fs3.integrations.lmcache",
        "class_name": "FS3L2Adapter",
        "adapter_params": {"place": place, "refresh_s": 0, **parameters},
    }
    parser = add_l2_adapters_args(argparse.ArgumentParser())
    config = parse_args_to_l2_adapters_config(parser.parse_args(["--l2-adapter", json.dumps(spec)]))
    return create_l2_adapter_from_registry(config.adapters[0], None)


def keys(model: str, count: int = COUNT) -> list[ObjectKey]:
    return [ObjectKey(number.to_bytes(8, "big"), model, 0x01000100) for number in range(count)]


def objects(*numbers: int) -> list[Any]:
    """Memory objects as far as adapters look at them."""
    return [SimpleNamespace(byte_array=memoryview(bytearray(number.to_bytes(4, "big") * (SIZE // 4)))) for number in numbers]


def same(one: Any, other: Any) -> bool:
    return bytes(one.byte_array) == bytes(other.byte_array)


def waited(fd: int) -> None:
    assert select.select([fd], [], [], 60)[0], "no answer within a minute"
    os.read(fd, 8)


def store(to: L2AdapterInterface, names: list[ObjectKey], content: list[Any]) -> bool:
    task = to.submit_store_task(names, content)
    done: dict[int, Any] = {}
    while task not in done:
        waited(to.get_store_event_fd())
        done |= to.pop_completed_store_tasks()
    return bool(done[task].is_successful())


def lookup(at: L2AdapterInterface, names: list[ObjectKey]) -> list[int]:
    task = at.submit_lookup_and_lock_task(names, {})
    waited(at.get_lookup_and_lock_event_fd())
    found = at.query_lookup_and_lock_result(task)
    assert found is not None and at.query_lookup_and_lock_result(task) is None
    at.submit_unlock(names)
    return list(found.get_indices_list())


def load(at: L2AdapterInterface, names: list[ObjectKey], into: list[Any]) -> list[int]:
    task = at.submit_load_task(names, into)
    waited(at.get_load_event_fd())
    found = at.query_load_result(task)
    assert found is not None
    return list(found.get_indices_list())


def kept(place: str) -> None:
    """What is stored is found by others and after a restart; other models, ranks and salts are others."""
    first = adapter(place, workers=2)
    assert store(first, keys("org/model"), objects(*range(COUNT)))
    second = adapter(place)
    deadline = time.monotonic() + 10  # until it is known how long the index is that the first has open
    while lookup(second, [*keys("org/model"), *keys("other", 2)]) != list(range(COUNT)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    salted = ObjectKey((0).to_bytes(8, "big"), "org/model", 0x01000100, 0, "somebody")
    ranked = ObjectKey((0).to_bytes(8, "big"), "org/model", 0x01010100)
    assert lookup(second, [salted, ranked]) == []
    first.close()
    into = objects(*[0] * (COUNT + 1))
    assert load(second, [*keys("org/model"), salted], into) == list(range(COUNT))
    assert all(map(same, into, objects(*range(COUNT))))
    small = [SimpleNamespace(byte_array=bytearray(SIZE // 2)), SimpleNamespace(byte_array=bytearray(SIZE * 2))]
    assert load(second, keys("org/model", 2), small) == []  # another layout's objects
    second.delete(keys("org/model", 3))
    assert lookup(second, keys("org/model")) == list(range(3, COUNT))
    assert second.report_status()["is_healthy"] and second.get_usage().total_bytes_used > 0
    second.close()


def bounded(place: str) -> None:
    """Two servers fill one folder: it holds no more than it may, the newest stay, and loads are right or misses."""
    servers = [adapter(place, capacity="8MiB") for _ in range(2)]
    wrong: list[str] = []

    def work(number: int) -> None:
        for turn in range(12):
            names = keys(f"m{number}-{turn}", 8)
            if not store(servers[number], names, objects(*range(turn, turn + 8))):
                wrong.append(f"server {number} did not store")
            into = objects(*[99] * 8)
            found = load(servers[number], keys(f"m{1 - number}-{turn}", 8), into)
            wrong.extend([f"{got} of turn {turn}" for got in found if not same(into[got], objects(turn + got)[0])])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong
    for number, server in enumerate(servers):
        assert server.get_usage().total_bytes_used <= 8 << 20
        assert lookup(server, keys(f"m{number}-11", 8)) == list(range(8))
        server.close()


def refused(place: str) -> None:
    for parameters, why in (({"size": 1}, "no option size"), ({"workers": 0}, "workers: expected")):
        try:
            adapter(place, **parameters)
        except ValueError as error:
            assert why in str(error), error
        else:
            raise AssertionError(f"{parameters} were taken")


def main() -> None:
    for part in (kept, bounded, refused):
        part(f"{sys.argv[1]}/{part.__name__}")
        print(f"{part.__name__} done", flush=True)


if __name__ == "__main__":
    main()
