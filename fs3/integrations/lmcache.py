"""LMCache's second level (L2) on fs3, by its door for adapters of others, in multi-process mode:

    lmcache server ... --l2-adapter '{"type": "plugin", "module_path": "fs3.integrations.lmcache", "class_name":
      "FS3L2Adapter", "adapter_params": {"place": "/mnt/fs3/kv", "capacity": "1TiB"}}'

place: a folder on a mount, whose rings are used, or fs3://HOST:PORT/FOLDER to do without a mount. The other parameters are
those of kv_options, and `workers`: batches that are under way at once (4). Several servers may share one folder: what one
has put, the others find. docs/kv-cache.md has more.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lmcache.lmcache_native import Bitmap
from lmcache.v1.distributed.api import MemoryLayoutDesc, ObjectKey
from lmcache.v1.distributed.internal_api import L2StoreResult
from lmcache.v1.distributed.l2_adapters.base import AdapterUsage, L2AdapterInterface
from lmcache.v1.distributed.l2_adapters.config import L2AdapterConfigBase
from lmcache.v1.memory_management import MemoryObj
from lmcache.v1.platform import create_event_notifier

from .kv_options import KEYS, open_store
from .kv_segments import memory_at, view_of

logger = logging.getLogger("fs3.integrations.lmcache")

WORKERS = 4


class FS3L2AdapterConfig(L2AdapterConfigBase):
    """What `adapter_params` says."""

    def __init__(self, options: dict[str, Any], workers: int = WORKERS) -> None:
        self.options = options
        self.workers = workers

    @classmethod
    def from_dict(cls, d: dict[str, Any]) -> FS3L2AdapterConfig:
        """Raises ValueError."""
        options = {key: value for key, value in d.items() if key not in ("type", "workers")}
        workers = d.get("workers", WORKERS)
        if type(workers) is not int or not 0 < workers <= 64:
            raise ValueError("fs3: workers: expected a number from 1 to 64")
        return cls(options, workers)

    @classmethod
    def help(cls) -> str:
        lines = [f"- {name}: {text}" for name, text in KEYS.items()]
        return "\n".join(["fs3 L2 adapter, adapter_params:", *lines, f"- workers: batches at once; default {WORKERS}"])


class FS3L2Adapter(L2AdapterInterface):
    """Objects as blocks of a store. Objects are not locked: one that is evicted between lookup and load is a miss.

    The store bounds itself, for all who write there; so LMCache's own eviction, which knows of one server only, is not
    offered a capacity, and need not be configured.
    """

    def __init__(self, config: FS3L2AdapterConfig, l1_memory_desc: Any = None) -> None:
        """Raises ValueError for a configuration of no use, OSError where its place is not."""
        super().__init__()
        self._store = open_store(config.options)
        if l1_memory_desc is not None and l1_memory_desc.ptr and l1_memory_desc.size:
            self._store.register(memory_at(l1_memory_desc.ptr, l1_memory_desc.size))
        self._notifiers = {kind: create_event_notifier() for kind in ("store", "lookup", "load")}
        self._done: dict[str, dict[int, Any]] = {kind: {} for kind in self._notifiers}
        self._lock = threading.Lock()
        self._tasks = 0
        self._workers = ThreadPoolExecutor(config.workers, thread_name_prefix="fs3-l2")
        self._closed = False

    def get_store_event_fd(self) -> int:
        return self._fd("store")

    def get_lookup_and_lock_event_fd(self) -> int:
        return self._fd("lookup")

    def get_load_event_fd(self) -> int:
        return self._fd("load")

    def _fd(self, kind: str) -> int:
        found: int = self._notifiers[kind].fileno()
        return found

    def _submit(self, kind: str, act: Callable[[], Any], failed: Any) -> int:
        """Do it in a worker; `failed` is what came out where that raises."""
        with self._lock:
            self._tasks += 1
            task = self._tasks
        self._workers.submit(self._run, kind, task, act, failed)
        return task

    def _run(self, kind: str, task: int, act: Callable[[], Any], failed: Any) -> None:
        try:
            result = act()
        except Exception:
            logger.exception("%s of a batch failed", kind)
            result = failed
        with self._lock:
            self._done[kind][task] = result
        self._notifiers[kind].notify()

    def _result(self, kind: str, task: int) -> Any:
        with self._lock:
            return self._done[kind].pop(task, None)

    def submit_store_task(self, keys: list[ObjectKey], objects: list[MemoryObj]) -> int:
        return self._submit("store", lambda: self._put(keys, objects), L2StoreResult(False, 0))

    def _put(self, keys: list[ObjectKey], objects: list[MemoryObj]) -> L2StoreResult:
        views = [view_of(each.byte_array) for each in objects]
        names = [_name(key) for key in keys]
        before = self._store.exists(names)
        kept = self._store.put(names, views)
        fresh = [n for n, (was, done) in enumerate(zip(before, kept, strict=True)) if done and not was]
        sizes = [len(views[n]) for n in fresh]
        if fresh:
            self._notify_keys_stored([keys[n] for n in fresh], sizes)
        return L2StoreResult(all(kept), sum(sizes))

    def pop_completed_store_tasks(self) -> dict[int, L2StoreResult]:
        with self._lock:
            done, self._done["store"] = self._done["store"], {}
        return done

    def submit_lookup_and_lock_task(self, keys: list[ObjectKey], group_layout_descs: dict[int, MemoryLayoutDesc]) -> int:
        return self._submit("lookup", lambda: _bits(self._store.exists([_name(key) for key in keys])), Bitmap(len(keys)))

    def query_lookup_and_lock_result(self, task_id: int) -> Bitmap | None:
        return self._result("lookup", task_id)

    def submit_unlock(self, keys: list[ObjectKey]) -> None:
        pass

    def submit_load_task(self, keys: list[ObjectKey], objects: list[MemoryObj]) -> int:
        return self._submit("load", lambda: self._get(keys, objects), Bitmap(len(keys)))

    def _get(self, keys: list[ObjectKey], objects: list[MemoryObj]) -> Bitmap:
        views = [view_of(each.byte_array) for each in objects]
        got = self._store.get([_name(key) for key in keys], views)
        found = [count == len(view) for count, view in zip(got, views, strict=True)]
        loaded = [key for key, there in zip(keys, found, strict=True) if there]
        if loaded:
            self._notify_keys_accessed(loaded)
        return _bits(found)

    def query_load_result(self, task_id: int) -> Bitmap | None:
        return self._result("load", task_id)

    def delete(self, keys: list[ObjectKey]) -> None:
        names = [_name(key) for key in keys]
        sizes = self._store.lengths(names)
        self._store.delete(names)
        gone = [(key, size) for key, size in zip(keys, sizes, strict=True) if size is not None]
        if gone:  # what others stored, or this one before it was started again, has never been counted here
            with self._usage_lock:
                left = dict(self._bytes_by_cache_salt)
            counted = []
            for key, size in gone:
                counted.append(min(size, left.get(key.cache_salt, 0)))
                left[key.cache_salt] = left.get(key.cache_salt, 0) - counted[-1]
            self._notify_keys_deleted([key for key, _ in gone], counted)

    def get_usage(self) -> AdapterUsage:
        """Of all who write to the folder; by salts nothing is known."""
        used, _ = self._store.usage()
        return AdapterUsage(used, self._store.capacity_bytes)

    def report_status(self) -> dict[str, Any]:
        try:
            used, blocks = self._store.usage()
        except OSError as error:
            return {"is_healthy": False, "type": type(self).__name__, "error": str(error)}
        return {"is_healthy": not self._closed, "type": type(self).__name__, "bytes": used, "blocks": blocks}

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._workers.shutdown(wait=True)
            self._store.close()
            for notifier in self._notifiers.values():
                notifier.close()


def _name(key: ObjectKey) -> str:
    """What an object is called in the store. A model's name has no "@"."""
    return f"lmcache {key.model_name}@{key.kv_rank:08x}@{key.object_group_id:x}@{key.chunk_hash.hex()}@{key.cache_salt}"


def _bits(found: Sequence[bool]) -> Bitmap:
    made = Bitmap(len(found))
    for number, there in enumerate(found):
        if there:
            made.set(number)
    return made
