"""A git tree of QEMU, whose commits are checked out in a worktree of the harness's own.

The checkout of the user is only read: neither its files nor its branches change, so that it may have
uncommitted changes. Beside a worktree's entry in ``.git/worktrees``, which goes with the worktree, nothing is
written there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness.errors import SetupError, UsageError
from harness.explore.candidate import Report

#: A commit of QEMU that can be tested has this file; it is there since 1.7 (QEMU: ``hw/9pfs/``).
DEVICE = "hw/9pfs/virtio-9p-device.c"
#: Of the files of QEMU, those that only QEMU has.
_QEMU = ("qemu-options.hx", "hw/i386/pc.c")
#: Seconds. A checkout of QEMU takes some ten on a slow disk.
_TIMEOUT_S = 600.0
#: The user's hooks do not run, nothing is packed, and no helper is started.
_QUIETLY = ("-c", "core.hooksPath=/dev/null", "-c", "gc.auto=0", "-c", "core.fsmonitor=false")
_SHORT = 12


@dataclass(frozen=True)
class Commit:
    """One commit. ``date`` is the author's."""

    id: str
    subject: str
    author: str
    date: str

    @property
    def short(self) -> str:
        """The first characters of the id of a commit of the git tree."""
        return self.id[:_SHORT]

    def __str__(self) -> str:
        return f'{self.short} "{self.subject}" ({self.author}, {self.date})'


class Tree:
    """The git tree in the folder ``path``, which may also be a bare repository.

    :raises UsageError: when it is none.
    :raises SetupError: when there is no git.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        if shutil.which("git") is None:
            raise SetupError("git is not on PATH; install git")
        if not path.is_dir():
            raise UsageError(f"--tree {path}: {'not a folder' if path.exists() else 'no such folder'}")
        found = self._ask("rev-parse", "--git-dir")
        if found is None:
            raise UsageError(f"--tree {path}: not a git tree ({self._why('rev-parse', '--git-dir')})")
        self._shallow = self._git("rev-parse", "--is-shallow-repository") == "true"

    def commit(self, revision: str) -> str:
        """The id of the commit that a revision of the git tree names.

        :raises UsageError: when there is none, or its tree is not QEMU's.
        """
        found = self._ask("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
        if not found:
            raise UsageError(f"--tree {self.path}: no revision {revision}{self._if_shallow()}")
        if not any(self.has(found, file) for file in _QEMU):
            raise UsageError(
                f"--tree {self.path}: {revision} is no QEMU: it has neither {' nor '.join(_QEMU)}"
            )
        return found

    def history(self, old: str, new: str) -> list[str]:
        """The git tree's commits from ``old`` to ``new``, both included, oldest first: first parents only.

        A merge stands for what it merged; see :meth:`merged`.

        :raises UsageError: when ``old`` is not an ancestor of ``new``.
        """
        oldest, newest = self.commit(old), self.commit(new)
        if oldest == newest:
            raise UsageError(f"{old} and {new} are the same commit")
        if not self._is_ancestor(oldest, newest):
            raise UsageError(self._not_before(old, new, oldest, newest))
        listed = self._git("rev-list", "--first-parent", "--reverse", f"{oldest}..{newest}")
        return [oldest, *listed.split()]

    def merged(self, commit: str) -> tuple[str, str] | None:
        """What a merge brought into the git tree: where its branch began, and the branch's last commit.

        :returns: ``None`` for a commit that is no merge of one branch.
        """
        parents = self._git("rev-list", "--parents", "-n", "1", commit).split()[1:]
        if len(parents) != 2:
            return None
        begin = self._ask("merge-base", *parents)
        return (begin, parents[1]) if begin and begin != parents[1] else None

    def describe(self, commit: str) -> Commit:
        """Subject, author and the author's date of a commit."""
        shown = self._git("show", "--no-patch", "--format=%H%x00%s%x00%an%x00%as", commit)
        return Commit(*shown.split("\0"))

    def has(self, commit: str, file: str) -> bool:
        """Whether a commit of the git tree has this file or folder."""
        return self._ask("cat-file", "-e", f"{commit}:{file}") is not None

    def text(self, commit: str, file: str) -> str:
        """The content of a file of a commit, the empty string where the git tree has none."""
        return self._ask("show", f"{commit}:{file}") or ""

    def differs(self, one: str, other: str, *files: str) -> bool:
        """Whether any of these files differs between two commits of the git tree."""
        return self._ask("diff", "--quiet", one, other, "--", *files) is None

    def submodules(self, commit: str) -> list[str]:
        """The folders of a commit that another repository fills."""
        listed = self._git("ls-tree", "-r", commit)
        return [line.partition("\t")[2] for line in listed.splitlines() if line.startswith("160000 ")]

    @property
    def is_dirty(self) -> bool:
        """Whether the user's checkout has uncommitted changes to files that git knows."""
        changed = self._ask("status", "--porcelain", "--untracked-files=no", "--ignore-submodules")
        return bool(changed)  # A bare repository has no checkout, and git fails.

    @contextmanager
    def worktree(self, folder: Path, commit: str, report: Report = lambda _: None) -> Iterator[Worktree]:
        """A worktree in ``folder``, which must not exist; it is removed at the end, however that comes.

        It has no files before the first :meth:`Worktree.check_out`.

        Worktrees of the harness whose folder is gone, because a bisection was killed, are removed first.

        :raises SetupError: when git cannot make it.
        """
        self._remove_abandoned(folder.parent.parent)
        if self.is_dirty:
            report(f"{self.path} has uncommitted changes: they are left alone, and are in no build")
        try:
            self._git("worktree", "add", "--detach", "--no-checkout", str(folder), commit)
            yield Worktree(self, folder)
        finally:
            self._ask("worktree", "remove", "--force", "--force", str(folder))
            shutil.rmtree(folder, ignore_errors=True)

    def _remove_abandoned(self, parent: Path) -> None:
        listed = self._git("worktree", "list", "--porcelain").splitlines()
        folders = [Path(line.removeprefix("worktree ")) for line in listed if line.startswith("worktree ")]
        for folder in folders:
            if folder.is_relative_to(parent) and not folder.exists():
                self._ask("worktree", "remove", "--force", "--force", str(folder))

    def _is_ancestor(self, old: str, new: str) -> bool:
        return self._ask("merge-base", "--is-ancestor", old, new) is not None

    def _not_before(self, old: str, new: str, oldest: str, newest: str) -> str:
        if self._is_ancestor(newest, oldest):
            return (
                f"{old} and {new} are in the wrong order, as {new} is an ancestor of {old}: --good is the "
                "older one when a bug is searched for, and --bad with --find fix"
            )
        base = self._ask("merge-base", oldest, newest)
        if base is None:
            return f"{old} and {new} have no common history{self._if_shallow()}"
        return f"{old} is not an ancestor of {new}; both began at {base[:_SHORT]}: try that instead of {old}"

    def _if_shallow(self) -> str:
        return "; this is a shallow clone: git fetch --unshallow" if self._shallow else ""

    def _git(self, *arguments: str) -> str:
        done = run(self.path, *arguments)
        if done.returncode != 0:
            raise SetupError(f"git {arguments[0]} in {self.path} failed: {_last(done)}")
        return done.stdout.strip()

    def _ask(self, *arguments: str) -> str | None:
        """The answer of git about the tree; ``None`` when it fails."""
        done = run(self.path, *arguments)
        return done.stdout.strip() if done.returncode == 0 else None

    def _why(self, *arguments: str) -> str:
        return _last(run(self.path, *arguments))


class Worktree:
    """A checkout of our own. It has one commit after the other.

    :ivar empty: the submodules and subprojects of the present commit that the user's checkout does not have.
    """

    def __init__(self, tree: Tree, folder: Path) -> None:
        self._tree, self.folder = tree, folder
        self.empty: list[str] = []

    def check_out(self, commit: str) -> None:
        """Change the worktree's files to those of ``commit``. Files that do not differ keep their time.

        Submodules (and, since 8.1, meson's subprojects) are copied from the user's checkout, where it has
        them: what a build needs of them changes rarely, and the network is not asked.

        :raises SetupError: when git cannot do it, such as for want of space.
        """
        done = run(self.folder, "checkout", "--quiet", "--force", "--detach", commit)
        if done.returncode != 0:
            raise SetupError(f"git checkout {commit[:_SHORT]} in {self.folder} failed: {_last(done)}")
        names = [*self._tree.submodules(commit), *_subprojects(self.folder)]
        needed = [name for name in names if not name.startswith("roms/")]  # No build compiles firmware.
        for name in needed:
            self._fill_in(name)
        self.empty = [name for name in needed if not _has_files(self.folder / name)]

    def _fill_in(self, name: str) -> None:
        there, here = self._tree.path / name, self.folder / name
        if _has_files(here) or not _has_files(there):
            return
        shutil.copytree(there, here, symlinks=True, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".git"))


def _subprojects(folder: Path) -> list[str]:
    return [f"subprojects/{path.stem}" for path in sorted(folder.glob("subprojects/*.wrap"))]


def _has_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run git in a folder of a tree, without the user's hooks.

    :raises SetupError: when it does not end.
    """
    # GIT_DIR and its like would name another repository; a hook of git has them.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        return subprocess.run(
            ["git", "-C", str(folder), *_QUIETLY, *arguments],
            env={**environment, "LC_ALL": "C.UTF-8", "GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise SetupError(f"git {arguments[0]} in {folder} did not end within {_TIMEOUT_S:.0f} s") from None


def _last(done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return lines[-1] if lines else f"it exited with {done.returncode}"
