"""Builds QEMU from a Debian release's source package, in a tree that is rebuilt in seconds.

The tree is in the cache's ``builds/`` and is used under a lock. Binaries are copied out of it, so that a
running QEMU does not change when the tree is built again.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from harness.provision.apt import Report
from harness.provision.build_root import BuildRoot
from harness.provision.cache import Cache
from harness.provision.space import reported_in_one_line
from harness.qemu.binary import PROGRAM

#: Written when a tree is configured; a tree without it was interrupted and is prepared again.
_READY = "ready"
_UNPACK = "rm -rf source build && dpkg-source --no-check -x sources/*.dsc source && mkdir build"
_CONFIGURE = "cd build && ../source/configure --target-list=x86_64-softmmu --disable-werror {}"
_STRIPPED = "stripped"
_STRIP = f"strip --strip-all -o {_STRIPPED} build/{PROGRAM}"
_BUILD = f"cd build && ninja {PROGRAM}"
#: The folder of QEMU's own tests, below the build folder.
_TESTS = "tests/qtest"


class Build:
    """The tree of one flavour.

    :param name: the flavour's, such as ``7.2-src``.
    :param tools: an unpacked release (``root``) and QEMU's source package in it (``sources``).
    :param configure: QEMU's ``configure`` options.
    :param scripts: scripts that the build needs, by their names in the tree's folder (``/work``).
    """

    def __init__(
        self,
        cache: Cache,
        name: str,
        key: str,
        tools: Path,
        configure: list[str],
        report: Report,
        scripts: Mapping[str, str] | None = None,
    ) -> None:
        self._cache, self.name, self.key, self._tools = cache, name, key, tools
        self._configure, self._report, self._scripts = configure, report, dict(scripts or {})
        self._folder = cache.root / "builds" / f"{name}-{key}"
        self._root = BuildRoot(tools / "root", self._folder, report)

    @property
    def root(self) -> Path:
        """The unpacked release of a build, with libraries and firmware that its binaries run with."""
        return self._tools / "root"

    @property
    def configure(self) -> tuple[str, ...]:
        """QEMU's ``configure`` options."""
        return tuple(self._configure)

    @property
    def source(self) -> Path:
        """QEMU's source, as Debian patched it."""
        return self._folder / "source"

    def make(self, into: Path) -> None:
        """Build QEMU without edits, and copy the binary into the folder ``into``.

        :raises SetupError: when it does not compile, with the compiler's message.
        """
        with self.tree():
            self.compile(into)

    @contextmanager
    def tree(self) -> Iterator[Path]:
        """Lock the configured tree for the duration of the context; yields the folder with its source.

        Edits that a process which was killed has left in the source are undone first.
        """
        with (
            self._cache.lock(f"build-{self.name}-{self.key}", self._report),
            reported_in_one_line(self._folder),
        ):
            if not (self._folder / _READY).exists():
                self._prepare()
            self._restore_source()
            try:
                yield self.source
            finally:
                self._restore_source()

    def keep_original(self, file: str) -> None:
        """Inside :meth:`tree`, before ``file`` (a path in the source) is edited: keep what it is.

        The copy is complete on the disk before it gets its name. So a process that is killed at any moment
        leaves either no edit or an original.
        """
        kept = self._originals / file
        if kept.exists():
            return
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_name(f"{kept.name}.partial")
        with partial.open("wb") as copy:
            copy.write((self.source / file).read_bytes())
            copy.flush()
            os.fsync(copy.fileno())
        partial.rename(kept)

    def _restore_source(self) -> None:
        for kept in sorted(path for path in self._originals.rglob("*") if path.is_file()):
            if kept.suffix != ".partial":  # Its original was never edited.
                (self.source / kept.relative_to(self._originals)).write_bytes(kept.read_bytes())
            kept.unlink()

    @property
    def _originals(self) -> Path:
        return self._folder / "originals"

    def compile(self, into: Path) -> None:
        """Inside :meth:`tree`: build the binary, and copy it into the folder ``into``."""
        self._root.run(_BUILD, what="ninja")
        shutil.copyfile(self._folder / "build" / PROGRAM, into / PROGRAM)
        (into / PROGRAM).chmod(0o755)

    def strip(self, into: Path) -> None:
        """Build QEMU, and copy the binary without its symbols into the folder ``into``."""
        with self.tree():
            self.compile(into)
            self.run(_STRIP, what="strip")
            shutil.copyfile(self._folder / _STRIPPED, into / PROGRAM)

    def make_tests(self, programs: Iterable[str], into: Path) -> None:
        """Build these test programs of QEMU's own (``tests/qtest``), and copy them into the folder ``into``.

        :raises SetupError: when they do not compile, with the compiler's message.
        """
        with self.tree():
            wanted = [f"{_TESTS}/{program}" for program in programs]
            self.run(f"cd build && ninja {shlex.join(wanted)}", what="ninja")
            for name in wanted:
                made = into / Path(name).name
                shutil.copyfile(self._folder / "build" / name, made)
                made.chmod(0o755)

    def run(self, script: str, *, what: str) -> str:
        """Inside :meth:`tree`: run a shell script in the build's root, in the tree's folder."""
        return self._root.run(script, what=what)

    def _prepare(self) -> None:
        self._report(f"unpacking and configuring the source of QEMU {self.name} …")
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        shutil.copytree(self._tools / "sources", self._folder / "sources")
        for script, content in self._scripts.items():
            (self._folder / script).write_text(content)
            (self._folder / script).chmod(0o755)
        self._root.run(_UNPACK, what="dpkg-source")
        self._root.run(_CONFIGURE.format(shlex.join(self._configure)), what="configure")
        self._report(f"building QEMU {self.name}: three minutes on two cores …")
        (self._folder / _READY).touch()
