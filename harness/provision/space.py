"""A full disk, said in one line."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.errors import SetupError


def no_space(where: Path | None) -> SetupError:
    """The error for a full disk at ``where``."""
    if where is None:
        return SetupError("no space left in the cache; free some, or move it with HARNESS_CACHE")
    free_mb = shutil.disk_usage(where if where.exists() else where.parent).free / 1e6
    return SetupError(
        f"no space left in {where} ({free_mb:.0f} MB free, about 700 MB are needed); "
        "free some, or move the cache with HARNESS_CACHE"
    )


@contextmanager
def told_in_one_line(where: Path) -> Iterator[None]:
    """Turns an :class:`OSError` of the block into one :class:`SetupError` about the cache at ``where``."""
    try:
        yield
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise no_space(where) from exc
        name = exc.filename or where
        raise SetupError(f"cannot write the cache {where}: {name}: {exc.strerror}") from exc
