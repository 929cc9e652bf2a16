"""Bisection over the commits of a git tree of QEMU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.errors import SetupError
from harness.explore.bisect import CONFIDENCE, Find, Found, most_tests, search
from harness.explore.candidate import Ask, BehaveAlike, Report
from harness.explore.observations import Answer, Observation, Observations
from harness.explore.tree import Commit, Tree
from harness.explore.tree_builds import NotTestable, TreeBuilds
from harness.explore.trial import Trial


@dataclass(frozen=True)
class Result:
    """The result.

    :ivar among: the commits of which one is the first that behaves otherwise, oldest first. The last of them
        is known to behave otherwise. :ivar before: the last commit that is known not to.
    :ivar merge: the merge that brought the commit in, where the search went on inside of one.
    """

    among: tuple[Commit, ...]
    before: Commit
    found: Found
    merge: Commit | None = None

    @property
    def commit(self) -> Commit:
        """The first bad commit of the tree: the last of :attr:`among`, the answer where it is exact."""
        return self.among[-1]


def bisect(
    tree: Tree,
    history: Sequence[str],
    ask: Ask,
    *,
    find: Find = Find.BUG,
    observations: Observations | None = None,
    confidence: float = CONFIDENCE,
    any_failure: bool = False,
    report: Report = lambda _: None,
    names: Mapping[str, str] | None = None,
) -> Result:
    """Find the first commit of the git tree that behaves otherwise.

    When it is a merge the commits of the merged branch are searched as well. If the branch's ends behave
    alike the merge itself is the answer: both sides are well alone, or bad for another reason.

    :param history: as :meth:`harness.explore.tree.Tree.history` returns it.
    :param ask: makes one run of a commit.
    :param names: what some commits are called in messages, such as by the tags that the user gave.
    :raises UsageError: see :func:`harness.explore.bisect.search`. :raises SetupError: as well.
    """
    observations = observations or Observations()

    def searched(commits: Sequence[str]) -> Found:
        report(f"{len(commits)} commits: at most {most_tests(len(commits)) + 2} are tested, skips apart")
        return search(
            commits,
            ask,
            find=find,
            observations=observations,
            confidence=confidence,
            any_failure=any_failure,
            report=report,
            name=lambda commit: (names or {}).get(commit, commit[:12]),
        )

    found = searched(history)
    inside = tree.merged(found.among[0]) if found.exact else None
    if inside is None:
        return _result(tree, found)
    merge = tree.describe(found.among[0])
    report(f"{found.find.first}: the merge {merge}; searching what it merged")
    try:
        return _result(tree, searched(tree.history(*inside)), merge)
    except BehaveAlike as exc:
        report(f"the branch that was merged is not at fault alone: {exc.message}")
        return _result(tree, found)


def _result(tree: Tree, found: Found, merge: Commit | None = None) -> Result:
    commits = tuple(tree.describe(commit) for commit in found.among)
    return Result(commits, tree.describe(found.before), found, merge)


def ask_builds(builds: TreeBuilds, trial: Trial) -> Ask:
    """One run of a commit in a bisection: ``trial`` on its QEMU, which is built when it is missing."""

    def ask(commit: str) -> Observation:
        try:
            qemu = builds.qemu(commit)
        except NotTestable as exc:
            return Observation(Answer.SKIP, str(exc))
        return ask_trial(trial)(str(qemu))

    return ask


def ask_trial(trial: Trial) -> Ask:
    """One run in a bisection; an error of the host becomes an observation, so that it is tried again."""

    def ask(qemu: str) -> Observation:
        try:
            return trial(qemu)
        except SetupError as exc:
            return Observation(Answer.ERROR, exc.message)

    return ask
