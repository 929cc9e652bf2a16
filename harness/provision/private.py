"""Keeps other users out of the cache, which contains private keys, SSH sessions and the memory of guests.

Files and folders lose their permissions for group and others, whichever process made them and with whatever
umask. Those of another user are refused: that user could read them, or change the programs that are started.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import stat
from pathlib import Path

from harness.errors import SetupError

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def check_owner(path: Path) -> None:
    """Check that ``path``, if it exists, belongs to this user, and the target of a link as well.

    :raises SetupError: when it belongs to another user.
    """
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for owner in (path.lstat().st_uid, path.stat().st_uid):
            if owner != os.geteuid():
                raise SetupError(
                    f"{path} in the cache belongs to {_user(owner)}, and this process runs as "
                    f"{_user(os.geteuid())}: the owner could read the keys, or change the programs that are "
                    "started; set HARNESS_CACHE to a folder of your own (or, if the cache is yours, chown -R "
                    f"it to uid {os.geteuid()})"
                )


def is_open(path: Path) -> bool:
    """Whether group or others have any permission for ``path`` in the cache."""
    return bool(path.stat().st_mode & _OTHERS)


def folder(path: Path) -> None:
    """Make the folder ``path`` and its missing parents with mode 0700, or give it that mode.

    :raises SetupError: when it belongs to another user, or its mode cannot be changed.
    """
    for missing in reversed([p for p in (path, *path.parents) if not p.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)
    check_owner(path)
    _close(path)


def file(path: Path) -> None:
    """Remove the permissions of group and others from a file: 0644 becomes 0600. Raises as :func:`folder`."""
    check_owner(path)
    _close(path)


def tree(path: Path) -> None:
    """As :func:`folder`, for a folder and all that it contains, except for the targets of links."""
    for inner in path.rglob("*"):
        if not inner.is_symlink():
            _close(inner)
    folder(path)


def entry(path: Path) -> None:
    """As :func:`tree`, for a complete entry of the cache; called on each use, so it has to be fast.

    The files directly in the entry are checked on each use. Deeper ones are checked only when the folder is
    still open to others, as older versions of the harness left it.
    """
    check_owner(path)
    with contextlib.suppress(FileNotFoundError):  # It was just removed; its user reports that.
        if is_open(path):
            tree(path)
        for inner in path.iterdir():
            if not inner.is_symlink():
                _close(inner)


def _close(path: Path) -> None:
    """Remove the permissions of group and others. A file that is removed meanwhile is ignored."""
    with contextlib.suppress(FileNotFoundError):
        mode = stat.S_IMODE(path.stat().st_mode)
        if not mode & _OTHERS:
            return
        try:
            path.chmod(mode & ~_OTHERS)
        except OSError as exc:
            raise SetupError(
                f"{path} in the cache is open to others (mode {mode:04o}), and this cannot be changed: "
                f"{exc.strerror}; "
                "chmod -R go= the cache, or set HARNESS_CACHE to another folder"
            ) from exc


def _user(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"
