"""Extracts the ELF kernel from a bzImage, so that no guest has to decompress it under TCG.

It does the same as the kernel's ``scripts/extract-vmlinux``. QEMU boots the result through its PVH entry
point (``hw/i386/x86.c``: ``load_elfboot``), which Debian's kernels have (``CONFIG_PVH``).
"""

from __future__ import annotations

import lzma
import struct
import zlib

import zstandard

from harness.errors import SetupError

_XZ, _GZIP, _ZSTD, _ELF = b"\xfd7zXZ\0", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"\x7fELF"


def extract(bzimage: bytes) -> bytes:
    """The uncompressed kernel in a bzImage.

    Source: ``Documentation/arch/x86/boot.rst``: ``setup_sects`` at 0x1f1, ``payload_offset`` and
    ``payload_length`` at 0x248 and 0x24c, from the end of the setup sectors.

    :raises SetupError: when it is no bzImage, or not compressed with xz, gzip or zstd.
    """
    if len(bzimage) < 0x250 or bzimage[0x202:0x206] != b"HdrS":
        raise SetupError("the kernel is no bzImage")
    offset, length = struct.unpack_from("<II", bzimage, 0x248)
    start = (bzimage[0x1F1] + 1) * 512 + offset
    payload = bzimage[start : start + length]
    try:
        if payload.startswith(_XZ):
            elf = lzma.LZMADecompressor().decompress(payload)
        elif payload.startswith(_GZIP):
            elf = zlib.decompressobj(31).decompress(payload)
        elif payload.startswith(_ZSTD):
            elf = zstandard.ZstdDecompressor().decompressobj().decompress(payload)
        else:
            raise SetupError(
                f"the kernel is not compressed with xz, gzip or zstd (it begins with {payload[:4].hex()})"
            )
    except (lzma.LZMAError, zlib.error, zstandard.ZstdError) as exc:
        raise SetupError(f"the kernel cannot be decompressed: {exc}") from exc
    if not elf.startswith(_ELF):
        raise SetupError("the kernel's payload is no ELF file")
    return elf
