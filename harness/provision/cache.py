"""A folder of entries that are keyed by content, filled atomically, checked on use and repaired when damaged.

Any number of processes may share it. A process that finds an entry missing fills it under a file lock, in a
temporary folder, which is renamed into place when it is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from harness import reaper
from harness.deadline import Deadline
from harness.errors import SetupError, UsageError
from harness.provision import private
from harness.provision.space import reported_in_one_line

MANIFEST = "manifest.json"
#: Files up to this size are compared by content, larger files and entries of many files by size alone. Every
#: worker of every run checks its entries, so a check has to take milliseconds.
_HASH_LIMIT_BYTES = 32 << 20
_HASH_LIMIT_FILES = 50
_WAIT_S = 1800
#: The folders of a cache, by which a folder with other files in it is recognised as one. A cache that was
#: copied by hand may have any of them. ``tmp`` is left out: ``/`` and many others have one.
_FOLDERS = {"accel", "builds", "debs", "failed-template", "faults", "guests", "heap", "keys", "locks", "qemu"}
_FOLDERS |= {"qtests", "resolved", "template", "tools"}


def default_cache_root() -> Path:
    """``HARNESS_CACHE``, else the XDG cache folder's ``virtio-9p-harness``."""
    given = os.environ.get("HARNESS_CACHE")
    if given:
        return Path(given).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "virtio-9p-harness"


class Cache:
    """The cache at ``root``; made when it is first written to.

    Only its user may access it (see :mod:`harness.provision.private`). This is enforced on each use.

    :raises UsageError: for a path from which the programs of a release cannot be started.
    """

    def __init__(self, root: Path) -> None:
        # ld.so(8) splits its library path at : and ; and apt's configuration cannot escape a quotation mark.
        if set(str(root)) & set(':;"'):
            raise UsageError(f'the path of the cache {root} contains one of : ; " (HARNESS_CACHE moves it)')
        self.root = root

    def entry(self, kind: str, key: str, fill: Callable[[Path], None], report: Callable[[str], None]) -> Path:
        """The folder of the cache's entry ``key``; ``fill`` makes it when it is missing or damaged.

        :param fill: called with an empty folder, into which it writes the content.
        :raises SetupError: when ``fill`` raises it, the cache cannot be written, or it belongs to another
            user.
        """
        folder = self.root / kind / key
        with reported_in_one_line(self.root):
            self.check_owner()
        if not self.is_sound(folder):
            with self.lock(f"{kind}-{key}", report):
                if not self.is_sound(folder):
                    if folder.exists():
                        report(f"{folder} is damaged; making it again")
                    self._fill(folder, fill)
        with reported_in_one_line(self.root):
            self._folder(kind)
            private.entry(folder)
        return folder

    def check_owner(self) -> None:
        """Check that the cache, if it exists, belongs to this user; changes nothing.

        :raises SetupError: when it belongs to another user.
        """
        private.check_owner(self.root)

    def is_sound(self, folder: Path) -> bool:
        """Whether each file of a cache entry exists with its size and, in a small entry, with its content."""
        try:
            files = json.loads((folder / MANIFEST).read_text())
            return all(_matches(folder / name, facts) for name, facts in files.items())
        except (OSError, ValueError, AttributeError, TypeError, KeyError):
            return False

    @contextmanager
    def lock(self, name: str, report: Callable[[str], None]) -> Iterator[None]:
        """Hold the lock ``name`` among all processes that use this cache.

        :param report: called with the name of the process that is waited for.
        :raises SetupError: when another process holds it for too long, or the cache cannot be written.
        """
        with reported_in_one_line(self.root):
            folder = self._folder("locks")
            held = filelock.FileLock(folder / f"{name}.lock")
            owner = folder / f"{name}.owner"
            _acquire(held, owner, report)
            owner.write_text(f"process {os.getpid()} ({Path(sys.argv[0]).name})")
        try:
            yield
        finally:
            owner.unlink(missing_ok=True)
            held.release()

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A temporary folder inside the cache; removed afterwards, like those of dead processes."""
        with reported_in_one_line(self.root):
            parent = self._folder("tmp")
            _remove_abandoned(parent)
            folder = Path(tempfile.mkdtemp(prefix="fill-", dir=parent))
            lock = reaper.lock_folder(folder)
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
                reaper.unlock(lock)

    def _folder(self, name: str) -> Path:
        """The folder ``name`` of the cache, made if it is missing; other users get no access to it."""
        if self._is_foreign():
            raise SetupError(
                f"{self.root} (HARNESS_CACHE) is no cache: it contains other files, and other users would "
                "lose access to them; name a folder of its own"
            )
        folder = self.root / name
        private.folder(self.root)
        private.folder(folder)
        return folder

    def _is_foreign(self) -> bool:
        """Whether other users may access the cache's root, and it contains files but no folder of a cache."""
        if not self.root.is_dir() or not private.is_open(self.root):
            return False
        names = {path.name for path in self.root.iterdir() if not path.name.startswith(".")}
        return bool(names - {"lost+found"}) and not names & _FOLDERS

    def _fill(self, folder: Path, fill: Callable[[Path], None]) -> None:
        with self.scratch() as scratch:
            made = scratch / "entry"
            made.mkdir()
            fill(made)
            (made / MANIFEST).write_text(json.dumps(_manifest(made)))
            private.tree(made)
            self._folder(folder.parent.name)
            if folder.exists():
                folder.rename(scratch / "damaged")
            made.rename(folder)


def _manifest(folder: Path) -> dict[str, dict[str, object]]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_symlink() or path.is_file()]
    hashed = len(files) <= _HASH_LIMIT_FILES
    return {str(path.relative_to(folder)): _facts(path, hashed=hashed) for path in files}


def _facts(path: Path, *, hashed: bool) -> dict[str, object]:
    if path.is_symlink():
        return {"link": str(path.readlink())}
    size = path.stat().st_size
    return {"size": size, "sha256": _sha256(path) if hashed and size <= _HASH_LIMIT_BYTES else None}


def _matches(path: Path, facts: dict[str, object]) -> bool:
    if "link" in facts:
        return path.is_symlink() and str(path.readlink()) == facts["link"]
    if path.stat().st_size != facts["size"]:
        return False
    return facts["sha256"] is None or facts["sha256"] == _sha256(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _acquire(lock: filelock.BaseFileLock, owner: Path, report: Callable[[str], None]) -> None:
    deadline = Deadline.after(_WAIT_S)
    timeout_s = 0.2
    while True:
        try:
            lock.acquire(timeout=timeout_s)
            return
        except filelock.Timeout:
            holder = _read_text(owner) or "another process"
            if deadline.expired:
                raise SetupError(f"gave up after {_WAIT_S} s on {lock.lock_file}, held by {holder}") from None
            report(f"waiting for {holder}, which fills the same part of the cache ({owner.stem}) …")
            timeout_s = 10.0


def _read_text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _remove_abandoned(parent: Path) -> None:
    """Remove the cache's scratch folders whose process is gone."""
    for folder in parent.iterdir():
        with reaper.claim_if_abandoned(folder) as gone:
            if gone:
                shutil.rmtree(folder, ignore_errors=True)
