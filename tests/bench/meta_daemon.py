"""What a call costs a meta daemon: `python -m tests.bench.meta_daemon [--files 5000] [--outstanding 1 8] [--rounds 3]`.

A service, without storage, in a process of its own; calls come over TCP from this process, which encodes them beforehand and
keeps so many outstanding. Prints the CPU time of the service's process per call (medians), and how many calls it answers.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import trio

from fs3.api import meta as api
from fs3.api.common import PING, Empty, Method
from fs3.direct import DirectWaits
from fs3.env import SystemEnv
from fs3.ids import ROOT_INODE, RequestTag
from fs3.kv.registry import open_engine
from fs3.rpc.server import RpcServer
from fs3.transport.registry import Transports
from fs3.transport.tcp import split_address
from fs3.wire.codec import decode, encode
from fs3.wire.frame import Frame, Framer, Kind, encode_head, fresh_payload
from meta.service import MetaService
from tests.bench.meta_service import CALLER, CLIENT, NoChunks, static_mgmtd

CHANNELS = 64
TIMEOUT_MS = 10_000


async def serve(folder: Path) -> None:
    env = SystemEnv(Transports())
    async with open_engine(f"embedded:{folder / 'store'}", env) as engine, trio.open_nursery() as nursery:
        service = MetaService(env, engine, static_mgmtd(), NoChunks(), nursery)
        server = RpcServer(env, direct=DirectWaits.here())
        service.bind(server)
        await service.prepare()
        listener = await env.transport.listen("tcp://127.0.0.1:0")
        print(listener.address, flush=True)
        await server.serve(listener)


class Client:
    """Calls over one blocking socket."""

    def __init__(self, address: str, pid: int) -> None:
        self._socket = socket.create_connection(split_address(address))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._framer = Framer(fresh_payload)
        self._schedule = Path(f"/proc/{pid}/schedstat")  # nanoseconds on a CPU
        self._sequence = 0

    def tag(self) -> RequestTag:
        """Channels in turn: calls outstanding at once must not share one."""
        self._sequence += 1
        return RequestTag(CLIENT, self._sequence % CHANNELS, self._sequence)

    def call(self, method: Method[Any, Any], requests: list[Any], outstanding: int) -> tuple[list[Any], float, float]:
        """The replies, CPU us of the server per call, and calls per second."""
        frames = [
            encode_head(Kind.REQUEST, method.id, 0, number, TIMEOUT_MS, encode(request), 0)
            for number, request in enumerate(requests)
        ]
        waiting = iter(frames)
        replies: dict[int, Frame] = {}
        cpu, began = self._cpu(), time.perf_counter()
        self._send(waiting, outstanding)
        while len(replies) < len(frames):
            arrived = self._framer.received(self._socket.recv_into(self._framer.buffer()))
            self._send(waiting, len(arrived))
            replies.update([(frame.request_id, frame) for frame in arrived])
        rate = len(frames) / (time.perf_counter() - began)
        cpu = self._cpu() - cpu
        assert all(frame.kind is Kind.REPLY for frame in replies.values()), method.name
        found = [decode(method.reply, replies[number].body) for number in range(len(frames))]
        return found, cpu * 1e6 / len(frames), rate

    def _send(self, waiting: Iterator[bytes], count: int) -> None:
        """Each in a call of its own, as from requests that came at different times."""
        for _, frame in zip(range(count), waiting, strict=False):
            self._socket.sendall(frame)

    def _cpu(self) -> float:
        return int(self._schedule.read_text().split()[0]) / 1e9


def measure(client: Client, files: int, outstanding: int, tell: dict[str, list[tuple[float, float]]]) -> None:
    def run(name: str, method: Method[Any, Any], requests: list[Any]) -> list[Any]:
        replies, cpu_us, rate = client.call(method, requests, outstanding)
        tell.setdefault(f"{name:9} {outstanding:2} outstanding", []).append((cpu_us, rate))
        return replies

    name = b"d%d" % time.monotonic_ns()
    made = client.call(
        api.MKNOD, [api.MknodRequest(client.tag(), CALLER, ROOT_INODE, name, api.FileKind.DIRECTORY, 0o755)], 1
    )
    folder = made[0][0].attr.inode
    names = [b"file-%07d" % number for number in range(files)]
    run("ping", PING, [Empty()] * files)
    creates = [
        api.CreateRequest(client.tag(), CALLER, CLIENT, folder, name, 0o644, api.Access.WRITE, True, False, number + 1)
        for number, name in enumerate(names)
    ]
    inodes = [reply.attr.inode for reply in run("create", api.CREATE, creates)]
    run("lookup", api.LOOKUP, [api.LookupRequest(CALLER, folder, name) for name in names])
    run("getattr", api.GETATTR, [api.GetattrRequest(inode) for inode in inodes])
    reports = [
        api.ReportRequest(client.tag(), CLIENT, inode, number + 1, 4096, 0, True, False)
        for number, inode in enumerate(inodes)
    ]
    run("report", api.REPORT, reports)
    groups = [range(at, min(at + 16, files)) for at in range(0, files, 16)]
    releases = [
        api.ReleaseRequest(client.tag(), CLIENT, tuple([api.SessionRef(inodes[n], n + 1) for n in group]))
        for group in groups
    ]
    run("release16", api.RELEASE, releases)
    renames = [
        api.RenameRequest(client.tag(), CALLER, folder, name, folder, b"x" + name, api.RenameFlags.NONE) for name in names
    ]
    run("rename", api.RENAME, renames)
    run("unlink", api.REMOVE, [api.RemoveRequest(client.tag(), CALLER, folder, b"x" + name, False) for name in names])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=3000)
    parser.add_argument("--outstanding", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", type=Path, metavar="FOLDER", help="be the server process")
    options = parser.parse_args()
    if options.serve:
        trio.run(serve, options.serve)
        return
    tell: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.bench.meta_daemon", "--serve", folder]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            try:
                client = Client(server.stdout.readline().strip(), server.pid)
                for _ in range(options.rounds):
                    for outstanding in options.outstanding:
                        measure(client, options.files, outstanding, tell)
            finally:
                server.kill()
    for name, found in tell.items():
        cpu_us, rate = (statistics.median(values) for values in zip(*found, strict=True))
        print(f"{name:28} {cpu_us:7.1f} us CPU {rate:8.0f} /s", flush=True)


if __name__ == "__main__":
    main()
