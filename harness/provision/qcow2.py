"""Writes an empty qcow2 image without qemu-img, so that no QEMU has to be provided first.

Format: QEMU ``docs/interop/qcow2.txt``, version 2: header, refcount table, one refcount block, L1 table.
"""

from __future__ import annotations

import struct
from pathlib import Path

_CLUSTER_BITS = 16
_CLUSTER = 1 << _CLUSTER_BITS


def create(path: Path, size_mib: int) -> None:
    """Write an empty image of ``size_mib`` MiB (at most 4 TiB), which takes 256 KiB on disk."""
    size = size_mib << 20
    # An L2 table fills one cluster with entries of 8 bytes, each of which maps one cluster.
    l1_size = -(-size // (_CLUSTER * (_CLUSTER // 8)))
    header = struct.pack(
        ">4sIQIIQIIQQIIQ",
        b"QFI\xfb",
        2,  # version
        0,  # backing_file_offset
        0,  # backing_file_size
        _CLUSTER_BITS,
        size,
        0,  # crypt_method
        l1_size,
        3 * _CLUSTER,  # l1_table_offset
        1 * _CLUSTER,  # refcount_table_offset
        1,  # refcount_table_clusters
        0,  # nb_snapshots
        0,  # snapshots_offset
    )
    refcount_table = struct.pack(">Q", 2 * _CLUSTER)
    refcount_block = struct.pack(">HHHH", 1, 1, 1, 1)  # the four clusters of this file
    with path.open("wb") as image:
        for number, content in enumerate((header, refcount_table, refcount_block)):
            image.seek(number * _CLUSTER)
            image.write(content)
        image.truncate(4 * _CLUSTER)
