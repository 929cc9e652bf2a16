"""Reports errors of the file system under the cache, such as a full disk, in one line."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.errors import SetupError

#: Measured: the size of the archives, the package lists and one unpacked QEMU release together.
_NEEDED_MB = 700


@contextmanager
def reported_in_one_line(where: Path) -> Iterator[None]:
    """Turn a full disk, or another :class:`OSError` of the block, into a :class:`SetupError` about the cache.

    :raises SetupError: with what to do about it.
    """
    try:
        yield
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            free = f"{shutil.disk_usage(where).free / 1e6:.0f} MB free, " if where.exists() else ""
            raise SetupError(
                f"no space left in the cache {where} ({free}filling it takes up to {_NEEDED_MB} MB); "
                "free some, or move the cache with HARNESS_CACHE"
            ) from exc
        name = exc.filename or where
        raise SetupError(
            f"cannot use the cache {where}: {name}: {exc.strerror}; HARNESS_CACHE moves it"
        ) from exc
