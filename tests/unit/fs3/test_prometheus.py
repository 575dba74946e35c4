from __future__ import annotations

import re

import pytest
import trio

from fs3.env import Env
from fs3.errors import ConfigError
from fs3.prometheus import page, parse_address, response, serve
from fs3.transport.registry import Transports


def env() -> Env:
    made = Env(Transports())
    made.metrics.count("storage.reads", 3)
    made.metrics.gauge("storage.resync.7.bytes_total", 100)
    made.metrics.gauge("storage.resync.9.bytes_total", 200)
    for took_ns in (1_000, 3_000_000, 100_000_000_000):
        made.metrics.timing("fuse.read").observe(took_ns)
    made.metrics.timing("rpc.meta.lookup").observe(1000)
    return made


async def test_the_page_is_what_prometheus_reads() -> None:
    text = page(env())
    lines = text.splitlines()
    assert "fs3_storage_reads_total 3" in lines and "# TYPE fs3_storage_reads_total counter" in lines
    assert lines.count("# TYPE fs3_storage_resync_bytes_total gauge") == 1
    assert 'fs3_storage_resync_bytes_total{chain="7"} 100' in lines
    sample = re.compile(r'[a-z_]\w*(\{\w+="[^"]*"(,\w+="[^"]*")*\})? [-+.e\d]+')
    assert all(line.startswith("# TYPE ") or sample.fullmatch(line) for line in lines)
    kinds = [line.split()[2] for line in lines if line.startswith("#")]
    assert len(kinds) == len(set(kinds)), "each family is told once"


async def test_histograms_count_up() -> None:
    found = dict(re.findall(r'fs3_fuse_seconds_bucket\{operation="read",le="([^"]+)"\} (\d+)', page(env())))
    assert [int(count) for count in found.values()] == sorted(int(count) for count in found.values())
    assert found["4.096e-06"] == "1" and found["1.07374"] == "2" and found["+Inf"] == "3"
    assert 'fs3_fuse_seconds_count{operation="read"} 3' in page(env())
    assert 'fs3_rpc_seconds_count{operation="meta.lookup"} 1' in page(env())


async def test_requests_over_http() -> None:
    made = env()
    async with trio.open_nursery() as nursery:
        port = await nursery.start(serve, made, "127.0.0.1:0")
        answers = []
        for line in (b"GET /metrics HTTP/1.1\r\nHost: x", b"GET /else HTTP/1.0", b"POST / HTTP/1.1"):
            request = line + b"\r\n\r\n"
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(request[:10])
                await stream.send_all(request[10:])
                answer = b""
                while more := await stream.receive_some():
                    answer += more
                answers.append(answer)
        with pytest.raises(ConfigError, match="cannot listen"):
            await serve(made, f"127.0.0.1:{port}")
        nursery.cancel_scope.cancel()
    assert [answer.split(b" ")[1] for answer in answers] == [b"200", b"404", b"405"]
    head, _, body = answers[0].partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head and b"fs3_storage_reads_total" in body


@pytest.mark.expects_error_log
async def test_a_page_that_cannot_be_made_hurts_nobody() -> None:
    made = env()
    made.metrics.sources.append(lambda: 1 // 0)  # type: ignore[arg-type, return-value]
    async with trio.open_nursery() as nursery:
        port = await nursery.start(serve, made, "127.0.0.1:0")
        for _ in range(2):
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(b"GET /metrics HTTP/1.1\r\n\r\n")
                assert await stream.receive_some() == b""
        nursery.cancel_scope.cancel()


async def test_head_has_no_body_and_nonsense_is_refused() -> None:
    assert response(b"HEAD /metrics HTTP/1.1\r\n\r\n", env()).endswith(b"\r\n\r\n")
    assert response(b"\x16\x03\x01\r\n\r\n", env()).startswith(b"HTTP/1.1 405")


def test_addresses() -> None:
    assert parse_address("127.0.0.1:9464") == ("127.0.0.1", 9464)
    assert parse_address(":9464") == ("", 9464)
    assert parse_address("[::1]:80") == ("::1", 80)
    for text in ("9464", "host:", "http://host:1", "::1:80", "host:99999"):
        with pytest.raises(ConfigError, match="expected HOST:PORT"):
            parse_address(text)
