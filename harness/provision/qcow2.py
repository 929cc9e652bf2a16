"""An empty qcow2 image, written by hand: any QEMU reads it, and none is needed to make it.

Format: QEMU ``docs/interop/qcow2.txt``, version 2: header, refcount table, one refcount block, L1 table.
"""

from __future__ import annotations

import struct
from pathlib import Path

_CLUSTER_BITS = 16
_CLUSTER = 1 << _CLUSTER_BITS


def create(path: Path, size_mib: int) -> None:
    """Write an image of ``size_mib`` MiB (at most 4 TiB) without content; 256 KiB on disk."""
    size = size_mib << 20
    # One L2 table of 8-byte entries maps a cluster's worth of them.
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
