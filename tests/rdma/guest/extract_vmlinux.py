"""Unpack the ELF image from a bzImage, so that QEMU boots it by PVH and the guest need not decompress it.

Layout: the kernel's Documentation/arch/x86/boot.rst.
"""

from __future__ import annotations

import lzma
import struct
import sys
import zlib
from pathlib import Path


def extract(image: bytes) -> bytes:
    assert image[0x202:0x206] == b"HdrS", "no bzImage"
    sectors = (image[0x1F1] or 4) + 1
    (offset,) = struct.unpack_from("<I", image, 0x248)
    (length,) = struct.unpack_from("<I", image, 0x24C)
    payload = image[sectors * 512 + offset :][:length]
    if payload.startswith(b"\xfd7zXZ\0"):
        found = lzma.LZMADecompressor().decompress(payload)
    elif payload.startswith(b"\x1f\x8b"):
        found = zlib.decompressobj(31).decompress(payload)
    else:
        raise SystemExit(f"the kernel is compressed in a way unknown here: {payload[:8].hex()}")
    assert found.startswith(b"\x7fELF"), "no ELF image inside"
    return found


if __name__ == "__main__":
    Path(sys.argv[2]).write_bytes(extract(Path(sys.argv[1]).read_bytes()))
