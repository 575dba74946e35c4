"""Asks the kernel for features that pyfuse3 does not ask for, in the first request and reply of a mount.

pyfuse3 lets libfuse answer FUSE_INIT and offers no way to say more. So the kernel's device is kept aside at first, and a
socket stands in its place: the kernel's request is carried to libfuse and libfuse's reply to the kernel, with the wanted
features added. Then the device takes its place again, and nothing is between libfuse and the kernel any more.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
from contextlib import suppress

import trio

from fs3.errors import Code, FS3Error

logger = logging.getLogger("fs3.fuse.handshake")

PARALLEL_DIROPS = 1 << 18
"""Look-ups and listings in one directory need not wait for each other."""
DONT_MASK = 1 << 6
"""The umask is left to us, which has to leave it out in directories that have a default ACL."""
HANDLE_KILLPRIV_V2 = 1 << 28
"""Set-id bits and capabilities of a file that is written are our business: the kernel then remembers of a file that it has
none, and asks for them no more before every write."""

BACKGROUND_MAX = 64
"""Requests that the kernel may have under way for its own purposes, such as reading ahead and writing back; by itself it
takes 12, which are the windows of three sequential readers."""
CONGESTED_FROM = 48
"""So many of them, and it begins to hold back."""

_INIT = 26
_IN_HEADER = struct.Struct("<IIQQIIIHH")
_IN_FLAGS = _IN_HEADER.size + 12
_OUT_HEADER = struct.Struct("<IiQ")
_OUT_FLAGS = _OUT_HEADER.size + 12
_FLAGS = struct.Struct("<I")
_LIMITS = struct.Struct("<HH")
_REQUEST_MAX = 1 << 20


def offered(request: bytes) -> int:
    """The features that the kernel offers in FUSE_INIT. Raises FS3Error(PROTOCOL) for any other request."""
    if len(request) < _IN_FLAGS + _FLAGS.size or _IN_HEADER.unpack_from(request)[1] != _INIT:
        raise FS3Error(Code.PROTOCOL, "the kernel's first request is not FUSE_INIT")
    return int(_FLAGS.unpack_from(request, _IN_FLAGS)[0])


def asking_for(reply: bytes, features: int) -> bytes:
    """A reply to FUSE_INIT that asks for more features, and for our limits. One that is an error, or from before there were
    such, stays as it is."""
    if len(reply) < _OUT_FLAGS + _FLAGS.size + _LIMITS.size or _OUT_HEADER.unpack_from(reply)[1] != 0:
        return reply
    changed = bytearray(reply)
    _FLAGS.pack_into(changed, _OUT_FLAGS, _FLAGS.unpack_from(reply, _OUT_FLAGS)[0] | features)
    _LIMITS.pack_into(changed, _OUT_FLAGS + _FLAGS.size, BACKGROUND_MAX, CONGESTED_FROM)
    return bytes(changed)


class Handshake:
    """The first exchange on a mount that libfuse has just made. descriptor: libfuse's, for the kernel's device."""

    def __init__(self, descriptor: int, wanted: int) -> None:
        self._descriptor = descriptor
        self._wanted = wanted
        self._granted = 0
        self.requested = False
        self.done = False
        self._device = os.dup(descriptor)
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            os.dup2(theirs.fileno(), descriptor, inheritable=False)

    async def request(self) -> None:
        """Carry the kernel's request to libfuse, which may read it then. Where the mount has ended already, libfuse is to
        find that out."""
        await trio.lowlevel.wait_readable(self._device)
        request = b""
        with suppress(OSError):
            request = os.read(self._device, _REQUEST_MAX)
        if not request:
            self._step_aside()
            return
        self._granted = offered(request) & self._wanted
        if self._granted != self._wanted:
            # Linux 5.11 has them all.
            logger.warning("this kernel is too old for extended attributes without one more request for each write")
        self._ours.send(request)
        self.requested = True

    async def reply(self) -> None:
        """Carry libfuse's reply to the kernel, and step aside."""
        await trio.lowlevel.wait_readable(self._ours)
        reply = asking_for(self._ours.recv(_REQUEST_MAX), self._granted)
        with suppress(OSError):  # the mount has ended, which libfuse will find out
            os.write(self._device, reply)
        self._step_aside()

    def _step_aside(self) -> None:
        os.dup2(self._device, self._descriptor, inheritable=False)
        os.close(self._device)
        self._ours.close()
        self.done = True


def devices() -> set[int]:
    """This process's descriptors of the kernel's FUSE device."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}") == "/dev/fuse":
                found.add(int(name))
        except FileNotFoundError:
            continue  # the one by which the folder was listed
    return found
