from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from harness.qemu.malloc_perturb import MallocPerturb
from harness.tests.qemu.specs import spec

#: Reads a block that was freed; beyond the list pointers that glibc keeps at its beginning.
_USE_AFTER_FREE = """
import ctypes
c = ctypes.CDLL(None)
c.malloc.restype = ctypes.c_void_p
block = c.malloc(2000)
ctypes.memset(block, 7, 2000)
c.free(ctypes.c_void_p(block))
print(ctypes.string_at(block + 1000, 4).hex())
"""


def test_freed_memory_is_overwritten(tmp_path: Path) -> None:
    environment = {**os.environ, **MallocPerturb().wrap(spec(), tmp_path).environment}
    done = subprocess.run(
        [sys.executable, "-c", _USE_AFTER_FREE], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "a5a5a5a5\n"
