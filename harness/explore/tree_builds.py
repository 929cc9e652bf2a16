"""Builds commits of QEMU one after the other in one build folder, so that each compiles only what changed."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

from harness.errors import SetupError, UsageError
from harness.explore.candidate import Report
from harness.explore.compilers import Compiler
from harness.explore.tree import DEVICE, Tree, Worktree
from harness.provision.build_root import ScriptFailed
from harness.qemu import binary
from harness.qemu.binary import PROGRAM

#: For a git tree: nothing is fetched.
_TREE_OPTIONS = (
    *("--target-list=x86_64-softmmu", "--disable-werror"),
    *("--disable-download", "--with-git-submodules=ignore"),
)
#: ``configure`` is run again where one of these differs; ninja runs meson again by itself.
_CONFIGURED_BY = ("configure", "scripts/meson-buildoptions.sh", "pythondeps.toml", "python")
_NINJA = f"cd build && ninja {PROGRAM}"
#: A compiler's message: the commit is at fault, and not a build folder that another commit has left.
_COMPILER_ERROR = re.compile(r"^\S+:\d+(:\d+)?: (fatal )?error: |undefined reference to", re.MULTILINE)
#: What configure says of an option that it does not know yet, or no longer (QEMU: ``configure``).
_UNKNOWN_OPTION = re.compile(r"^ERROR: unknown option (\S+)", re.MULTILINE)
_LAST_LINES = 30


class NotTestable(Exception):
    """A commit cannot be tested: it has no 9p, or does not build. The message is one line."""


class TreeBuilds:
    """The QEMUs of a tree's commits.

    :param work: the folder with the worktree ``source`` and the build folder ``build``.
    :param into: each QEMU gets a folder of the commit's name there; one that is there is not built again.
    :param configured: the commit that the build folder was configured for, if it was.
    """

    def __init__(
        self,
        tree: Tree,
        worktree: Worktree,
        compiler: Compiler,
        work: Path,
        into: Path,
        report: Report,
        *,
        configured: str = "",
    ) -> None:
        self._tree, self._worktree, self._compiler = tree, worktree, compiler
        self._work, self._into, self._report = work, into, report
        self._configured = configured
        #: The number of builds that were begun here.
        self.builds = 0

    def qemu(self, commit: str) -> Path:
        """The QEMU of a commit, for ``--qemu PATH``; built when it is missing.

        :raises NotTestable: when the commit has no 9p or does not build; the end of the log is kept.
        :raises SetupError: when the host is at fault, such as for want of space.
        """
        folder = self._into / commit
        ready = folder / PROGRAM
        if ready.exists():
            return ready
        if not self._tree.has(commit, DEVICE):
            raise NotTestable(f"no 9p: it has no {DEVICE}")
        self.builds += 1
        self._report(f"building {self._tree.describe(commit)} …")
        self._worktree.check_out(commit)
        try:
            self._build(commit)
        except ScriptFailed as exc:
            raise self._does_not_build(commit, exc) from None
        return self._keep(folder)

    def forget_all_but(self, commits: set[str]) -> None:
        """Remove the QEMUs of other commits, which take some 70 MB each."""
        for folder in self._into.iterdir():
            if folder.is_dir() and folder.name not in commits:
                shutil.rmtree(folder, ignore_errors=True)

    def _build(self, commit: str) -> None:
        fresh = not (self._work / "build/build.ninja").exists()
        try:
            self._configure(commit)
            self._compiler.run(_NINJA, what="ninja")
        except ScriptFailed as exc:
            if fresh or _COMPILER_ERROR.search(self._log()) or _is_full(self._log()):
                raise
            self._report(f"  {exc.message}; building it from scratch")
            shutil.rmtree(self._work / "build")
            self._configured = ""
            self._configure(commit)
            self._compiler.run(_NINJA, what="ninja")

    def _configure(self, commit: str) -> None:
        if self._configured and not self._tree.differs(self._configured, commit, *_CONFIGURED_BY):
            return
        build = self._work / "build"
        build.mkdir(exist_ok=True)
        self._configured = ""
        (self._work / "ninja.log").unlink(missing_ok=True)
        self._run_configure([*self._compiler.options, *_TREE_OPTIONS])
        if not (build / "build.ninja").exists():
            raise ScriptFailed("configure made no build.ninja: only QEMU 5.2 and later can be built here")
        self._configured = commit

    def _run_configure(self, options: list[str]) -> None:
        """Run configure without the options that the one of this commit does not know."""
        while True:
            try:
                self._compiler.run(f"cd build && ../source/configure {shlex.join(options)}", what="configure")
                return
            except ScriptFailed:
                unknown = {option.partition("=")[0] for option in _UNKNOWN_OPTION.findall(self._log())}
                fewer = [option for option in options if option.partition("=")[0] not in unknown]
                if fewer == options:
                    raise
                options = fewer

    def _does_not_build(self, commit: str, exc: ScriptFailed) -> Exception:
        text = self._log()
        if _is_full(text):
            return SetupError(f"no space left in {self._work}, in which QEMU is built; free some")
        kept = self._into / f"{commit[:12]}.log"
        lines = (text or exc.message).splitlines()
        kept.write_text("".join(f"{line}\n" for line in lines[-_LAST_LINES:]))
        cause = _COMPILER_ERROR.search(text)
        line = text[cause.start() :].splitlines()[0] if cause else exc.message
        empty = "" if cause else ", ".join(self._worktree.empty)
        hint = f"; {self._tree.path} has nothing in {empty}: git submodule update --init" if empty else ""
        return NotTestable(f"does not build: {line[:200]}{hint} (see {kept})")

    def _log(self) -> str:
        for name in ("ninja.log", "configure.log"):
            log = self._work / name
            if log.exists():
                return log.read_text(errors="replace")
        return ""

    def _keep(self, folder: Path) -> Path:
        shutil.rmtree(folder, ignore_errors=True)  # A copy that was interrupted.
        folder.mkdir(parents=True)
        qemu = self._compiler.keep(self._work / "build" / PROGRAM, folder)
        try:
            require_9p(qemu)
        except NotTestable:
            shutil.rmtree(folder)
            raise
        return qemu


def require_9p(qemu: Path) -> None:
    """:raises NotTestable: when a QEMU that was built does not start or has no virtio-9p-pci."""
    try:
        install = binary.from_path(qemu)
        binary.probe(install).require_9p(install)
    except UsageError as exc:
        raise NotTestable(f"unusable: {exc.message}") from None


def _is_full(text: str) -> bool:
    return "No space left on device" in text
