"""The first exchange with the kernel. A socket stands for the kernel's device."""

from __future__ import annotations

import os
import socket
import struct

import pytest

from fs3.errors import Code, FS3Error
from fuse.handshake import BACKGROUND_MAX, CONGESTED_FROM, DONT_MASK, HANDLE_KILLPRIV_V2, Handshake, asking_for, offered

WANTED = DONT_MASK | HANDLE_KILLPRIV_V2


def request(features: int, opcode: int = 26) -> bytes:
    header = struct.pack("<IIQQIIIHH", 104, opcode, 2, 1, 0, 0, 0, 0, 0)
    return header + struct.pack("<IIIII44x", 7, 40, 0, features, 0)


def reply(features: int, error: int = 0, background: int = 0, congested: int = 0) -> bytes:
    header = struct.pack("<IiQ", 80, error, 2)
    return header + struct.pack("<IIIIHHIIHHI28x", 7, 40, 0, features, background, congested, 4096, 1, 256, 0, 0)


def test_only_features_and_limits_of_a_reply_change() -> None:
    assert asking_for(reply(1), WANTED) == reply(1 | WANTED, 0, BACKGROUND_MAX, CONGESTED_FROM)
    assert asking_for(reply(1, error=-71), WANTED) == reply(1, error=-71)
    assert asking_for(reply(1)[:24], WANTED) == reply(1)[:24]


def test_any_other_first_request_is_an_error() -> None:
    with pytest.raises(FS3Error) as caught:
        offered(request(0, opcode=1))
    assert caught.value.code is Code.PROTOCOL


async def test_it_asks_for_what_is_offered_and_steps_aside(caplog: pytest.LogCaptureFixture) -> None:
    kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with kernel, device:
        handshake = Handshake(device.fileno(), WANTED)
        kernel.send(request(DONT_MASK | 4))
        await handshake.request()
        assert os.read(device.fileno(), 1000) == request(DONT_MASK | 4)
        os.write(device.fileno(), reply(4))
        await handshake.reply()
        assert kernel.recv(1000) == reply(DONT_MASK | 4, 0, BACKGROUND_MAX, CONGESTED_FROM)
        assert "too old" in caplog.text
        kernel.send(b"next")
        assert os.read(device.fileno(), 1000) == b"next"


async def test_a_mount_that_ends_at_once_is_left_to_libfuse() -> None:
    kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with device:
        handshake = Handshake(device.fileno(), WANTED)
        kernel.close()
        await handshake.request()
        assert handshake.done
