"""What Prometheus reads of a process: one page of text, by HTTP.

Counters are named `fs3_storage_read_bytes_total`, gauges without the ending, timings `fs3_fuse_seconds` with the label
`operation`. A number in a name becomes the label `chain`, since only chains have such.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping

import trio

from .env import Env
from .errors import ConfigError
from .metrics import STEPS, Buckets
from .watching import figures

logger = logging.getLogger("fs3.prometheus")

PATH = "/metrics"
TYPE = "text/plain; version=0.0.4; charset=utf-8"
REQUEST_MAX = 8192
REQUEST_S = 10.0
"""In which a request must come, and its answer be taken."""
AT_ONCE_MAX = 16

_LOWEST_BITS, _HIGHEST_BITS = 12, 36
"""Buckets are told as powers of 4 from 4 µs to 69 s."""


def page(env: Env) -> str:
    """All figures of a process."""
    found = figures(env)
    lines = [
        "# TYPE process_cpu_seconds_total counter",
        f"process_cpu_seconds_total {found['cpu_s']:.3f}",
        "# TYPE process_resident_memory_bytes gauge",
        f"process_resident_memory_bytes {found['memory_bytes']}",
    ]
    counters = set(env.metrics.counters)
    families: dict[tuple[str, str], list[str]] = {}
    for name, value in sorted(found["values"].items()):
        family, labels = _named(name)
        kind = "counter" if name in counters else "gauge"
        family += "_total" if kind == "counter" else ""
        families.setdefault((family, kind), []).append(f"{family}{labels} {value}")
    for (family, kind), values in families.items():
        lines += [f"# TYPE {family} {kind}", *values]
    lines += _timings({name: (total, buckets) for name, (total, buckets) in found["timings"].items()})
    return "\n".join(lines) + "\n"


def _named(name: str) -> tuple[str, str]:
    parts = name.split(".")
    number = next((part for part in parts if part.isdecimal()), None)
    family = "_".join(["fs3", *[part for part in parts if part is not number]])
    return re.sub(r"\W", "_", family), f'{{chain="{number}"}}' if number is not None else ""


def _timings(timings: Mapping[str, tuple[int, Buckets]]) -> Iterator[str]:
    told = ""
    for name, (total_ns, buckets) in sorted(timings.items()):
        part, _, operation = name.partition(".")
        family = f"fs3_{part}_seconds"
        if family != told:
            yield f"# TYPE {family} histogram"
            told = family
        count = sum(buckets.values())
        for bits in range(_LOWEST_BITS, _HIGHEST_BITS + 1, 2):
            below = sum([number for bucket, number in buckets.items() if bucket // STEPS <= bits])
            yield f'{family}_bucket{{operation="{operation}",le="{(1 << bits) / 1e9:g}"}} {below}'
        yield f'{family}_bucket{{operation="{operation}",le="+Inf"}} {count}'
        yield f'{family}_sum{{operation="{operation}"}} {total_ns / 1e9:.9f}'
        yield f'{family}_count{{operation="{operation}"}} {count}'


def parse_address(text: str) -> tuple[str, int]:
    """HOST:PORT, [IPV6]:PORT or :PORT (all addresses). Raises ConfigError."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535 or ("/" in host) or (":" in host and host[:1] != "["):
        raise ConfigError(f"metrics: expected HOST:PORT such as 127.0.0.1:9464, found {text!r}")
    return host.strip("[]"), int(port)


async def serve(env: Env, address: str, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
    """Answer until cancelled; started with the port. Raises CONFIG where the address is wrong or taken."""
    host, port = parse_address(address)
    try:
        listeners = await trio.open_tcp_listeners(port, host=host or None)
    except OSError as error:
        raise ConfigError(f"metrics: cannot listen on {address}: {error.strerror or error}") from None
    limit = trio.CapacityLimiter(AT_ONCE_MAX)

    async def visit(stream: trio.SocketStream) -> None:
        async with limit:
            await _answer(env, stream)

    chosen: int = listeners[0].socket.getsockname()[1]
    task_status.started(chosen)
    await trio.serve_listeners(visit, listeners)


async def _answer(env: Env, stream: trio.SocketStream) -> None:
    with trio.move_on_after(REQUEST_S):
        async with stream:
            try:
                request = b""
                while b"\r\n\r\n" not in request:
                    more = await stream.receive_some(REQUEST_MAX)
                    request += more
                    if not more or len(request) > REQUEST_MAX:
                        return
                await stream.send_all(response(request, env))
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                logger.debug("metrics: %s", error)
            except Exception:
                logger.exception("metrics")  # a bug, of which the daemon must not die


def response(request: bytes, env: Env) -> bytes:
    """The answer to an HTTP request, whose connection is then closed."""
    words = request.split(b"\r\n", 1)[0].split(b" ")
    if len(words) != 3 or words[0] not in (b"GET", b"HEAD"):
        status, text = "405 Method Not Allowed", "only GET\n"
    elif words[1].partition(b"?")[0] != PATH.encode():
        status, text = "404 Not Found", f"see {PATH}\n"
    else:
        status, text = "200 OK", page(env)
    body = text.encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: {TYPE}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + (b"" if words[0] == b"HEAD" else body)
