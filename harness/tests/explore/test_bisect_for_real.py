"""Bisections of a real git tree of QEMU: 48 commits on QEMU 7.2's source package, built one after the other.

Each takes two to three minutes on two idle cores when the cache has ``7.2-src`` built: the configured tree of
the cache is copied, with its objects, so that even the first build compiles only what differs. Otherwise that
is built first, in three minutes.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.explore.bisect import Find
from harness.explore.compilers import ReleaseCompiler
from harness.explore.fresh_guests import FreshGuests
from harness.explore.program import AlphabetName, Program, Step
from harness.explore.tree import Tree
from harness.explore.tree_bisect import Result, ask_builds, bisect
from harness.explore.tree_builds import TreeBuilds
from harness.explore.trial import ProgramTrial
from harness.provision import Cache, Provisioner, default_cache_root, edits, recipes
from harness.provision.edits import Edited
from harness.reaper import RunFolder
from harness.tests.explore.git_tree import commit_files, git

pytestmark = pytest.mark.slow
FLAVOUR, FAULT = "7.2-src", "blocker-kept"
MOST_BUILDS = 15
COMMITS, BUG, FIX = 48, 17, 37
#: The commits in the middle of what is searched for the bug and for the fix do not build.
BROKEN = (18, 33)
NINEP = "hw/9pfs/9p.c"
#: Of these one gets a comment with each commit.
EDITED = (
    "hw/9pfs/9p-local.c",
    "hw/9pfs/cofile.c",
    "hw/9pfs/xen-9p-backend.c",
    "hw/9pfs/codir.c",
    "README.rst",
)
DELETES = "if (pdu->s->migration_blocker) {"
#: The blocker goes with the session in half of the cases.
IN_HALF = "if (pdu->s->migration_blocker && (g_random_int() & 1)) {"
PROGRAM = Program(
    alphabet=AlphabetName.RAW,
    steps=(
        *(Step(do="plug", share=0), Step(do="version", share=0), Step(do="attach", share=0)),
        Step(do="clunk", share=0, value="root"),
    ),
)


@dataclass(frozen=True)
class History:
    """The branch ``master`` has the fault of the catalogue, ``half`` one that shows in half of the runs.

    :ivar seed: a copy of the configured tree with its objects.
    """

    repo: Path
    seed: Path
    commits: dict[str, list[str]]


@pytest.fixture(scope="module")
def provisioner() -> Provisioner:
    return Provisioner(Cache(default_cache_root()), report=print)


@pytest.fixture(scope="module")
def history(provisioner: Provisioner) -> Iterator[History]:
    with tempfile.TemporaryDirectory(prefix="bisect-") as name:
        yield _history(Path(name), provisioner)


def _history(folder: Path, provisioner: Provisioner) -> History:
    build = provisioner.build(FLAVOUR)
    provisioner.qemu_release(FLAVOUR)
    repo, seed = folder / "qemu", folder / "seed"
    with build.tree() as source:
        shutil.copytree(source, repo, symlinks=True)
        shutil.copytree(source.parent / "build", seed, symlinks=True)
        faults = recipes.recipes_folder() / "faults"
        fault = recipes.load(faults, FAULT, Edited)
        edits.apply(build, FAULT, fault, (faults / edits.MACROS).read_text(), source)
        faulty = (source / NINEP).read_text()
    (repo / ".gitignore").unlink(missing_ok=True)
    git(repo, "init", "--quiet", "--initial-branch=master")
    git(repo, "add", "--all", "--force")
    git(repo, "commit", "--quiet", "-m", "QEMU as it is packaged")
    good = (repo / NINEP).read_text()
    assert DELETES in good
    start = git(repo, "rev-parse", "HEAD")
    commits = {"master": _commits(repo, start, good, faulty)}
    git(repo, "checkout", "--quiet", "-b", "half", start)
    commits["half"] = _commits(repo, start, good, good.replace(DELETES, IN_HALF))
    git(repo, "checkout", "--quiet", "--detach", start)
    return History(repo, seed, commits)


def _commits(repo: Path, start: str, good: str, faulty: str) -> list[str]:
    commits = [start]
    for number in range(1, COMMITS):
        name = EDITED[number % len(EDITED)]
        files = {name: (repo / name).read_text() + f"/* {number} */\n"}
        subject = f"9pfs: harmless edit {number}"
        if number in BROKEN:
            files["hw/9pfs/cofs.c"] = (repo / "hw/9pfs/cofs.c").read_text() + "#error half a change\n"
            subject = "9pfs: half a change"
        if number - 1 in BROKEN:
            text = (repo / "hw/9pfs/cofs.c").read_text()
            files["hw/9pfs/cofs.c"] = text.replace("#error half a change\n", "")
            subject = "9pfs: the other half"
        if number == BUG:
            files, subject = {NINEP: faulty}, "9pfs: simplify put_fid"
        if number == FIX:
            files, subject = {NINEP: good}, "9pfs: delete the migration blocker again"
        commits.append(commit_files(repo, subject, files))
    return commits


def searched(
    history: History, branch: str, find: Find, first: int, last: int, provisioner: Provisioner, into: Path
) -> tuple[Result, int]:
    """A bisection between two commits; returns its result and the number of builds."""
    tree, commits = Tree(history.repo), history.commits[branch]
    qemus = into / "qemu"
    qemus.mkdir()
    with (
        closing(RunFolder()) as run,
        provisioner.cache.scratch() as work,
        tree.worktree(work / "source", commits[first], print) as worktree,
    ):
        worktree.check_out(commits[0])
        shutil.copytree(history.seed, work / "build", symlinks=True)
        _as_old_as(provisioner.build(FLAVOUR).source, worktree.folder)
        compiler = ReleaseCompiler(FLAVOUR, provisioner, work, print)
        builds = TreeBuilds(tree, worktree, compiler, work, qemus, print, configured=commits[0])
        trial = ProgramTrial(PROGRAM, FreshGuests(into / "runs", "tcg")(run))
        result = bisect(
            tree,
            tree.history(commits[first], commits[last]),
            ask_builds(builds, trial),
            find=find,
            report=print,
        )
        return result, builds.builds


def _as_old_as(original: Path, copy: Path) -> None:
    """Give unchanged files the times by which ninja knows them."""
    for path in original.rglob("*"):
        here = copy / path.relative_to(original)
        if path.is_file() and not path.is_symlink() and here.is_file():
            times = path.stat()
            os.utime(here, ns=(times.st_atime_ns, times.st_mtime_ns))
    git(copy, "update-index", "--refresh")  # Otherwise git writes files again whose times are new.


@pytest.mark.parametrize(
    ("branch", "find", "first", "last", "answer"),
    [
        ("master", Find.BUG, 0, FIX - 1, BUG),
        ("master", Find.FIX, BUG + 3, COMMITS - 1, FIX),
        ("half", Find.BUG, 0, FIX - 1, BUG),
    ],
    ids=["bug", "fix", "in half of the runs"],
)
def test_the_right_commit(
    branch: str,
    find: Find,
    first: int,
    last: int,
    answer: int,
    history: History,
    provisioner: Provisioner,
    tmp_path: Path,
) -> None:
    result, builds = searched(history, branch, find, first, last, provisioner, tmp_path)
    runs = sum(tally.runs for tally in result.found.tallies.values())
    print(f"{find.first}: {result.commit}: {builds} builds, {runs} runs, {result.found.confidence:.1%}")
    assert [one.id for one in result.among] == [history.commits[branch][answer]]
    assert result.found.confidence >= 0.95
    assert builds <= MOST_BUILDS
    skipped = [tally.skip for tally in result.found.tallies.values() if tally.skip]
    assert skipped
    assert all("half a change" in why for why in skipped)
    assert git(history.repo, "worktree", "list").count("\n") == 0
    assert git(history.repo, "status", "--porcelain") == ""
