"""The cache is its user's own: it holds private keys, SSH sessions and the memory of guests.

Whoever made a folder, and with whatever umask: what is found with permissions for others loses them. What
belongs to somebody else is refused, since they could read it, or change what is started from it.
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
    """See that ``path``, if there is such a thing, is this user's own, and what it links to as well.

    :raises SetupError: when it is not.
    """
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for owner in (path.lstat().st_uid, path.stat().st_uid):
            if owner != os.geteuid():
                raise SetupError(
                    f"{path} in the cache belongs to {_user(owner)}, and this is {_user(os.geteuid())}: "
                    "they could read its keys, or change what it starts; set HARNESS_CACHE to a folder of "
                    f"your own (or, if it is yours, chown -R it to uid {os.geteuid()})"
                )


def is_open(path: Path) -> bool:
    """Whether others have any permission for ``path``."""
    return bool(path.stat().st_mode & _OTHERS)


def folder(path: Path) -> None:
    """Make the folder ``path`` with mode 0700, missing parents likewise, or give it that mode.

    :raises SetupError: when it belongs to somebody else, or keeps another mode.
    """
    for missing in reversed([p for p in (path, *path.parents) if not p.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)
    check_owner(path)
    _close(path)


def file(path: Path) -> None:
    """Take others' permissions from a file, 0600 being what is left of 0644; as :func:`folder`."""
    check_owner(path)
    _close(path)


def tree(path: Path) -> None:
    """The same for a folder and all that is in it, but not for what links in it lead to."""
    for inner in path.rglob("*"):
        if not inner.is_symlink():
            _close(inner)
    folder(path)


def entry(path: Path) -> None:
    """The same for a complete entry of the cache, on each use of it, so it has to be quick.

    The files directly in it are looked at; what lies deeper only when the folder is still open to others,
    as an older version of the harness left it.
    """
    check_owner(path)
    with contextlib.suppress(FileNotFoundError):  # It was just removed; whoever uses it will say so.
        if is_open(path):
            tree(path)
        for inner in path.iterdir():
            if not inner.is_symlink():
                _close(inner)


def _close(path: Path) -> None:
    """Nothing for the group and others. A file that goes meanwhile needs nothing."""
    with contextlib.suppress(FileNotFoundError):
        mode = stat.S_IMODE(path.stat().st_mode)
        if not mode & _OTHERS:
            return
        try:
            path.chmod(mode & ~_OTHERS)
        except OSError as exc:
            raise SetupError(
                f"{path} in the cache is open to others (mode {mode:04o}), and stays so: {exc.strerror}; "
                "chmod -R go= the cache, or set HARNESS_CACHE to another folder"
            ) from exc


def _user(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"
