"""Applies the known-bug ledger: an xfail for the one failure that an entry describes.

On a version that is known to have the bug the xfail is strict. Where the ledger does not know whether the
version has it, both outcomes are accepted and the result records which it was. Marks are set in the set-up
phase, because the version of QEMU is not known at collection.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import pytest

from harness.checkers import Judgement
from harness.checkers.guest_kernel_quiet import guest_kernel_quiet
from harness.errors import HarnessError, Violation
from harness.matrix import architecture_of
from harness.plugin.judging import JUDGEMENTS, counts_in_part
from harness.plugin.options import paths
from harness.plugin.provisioning import MATRIX, usage_errors
from harness.report import ledger
from harness.report.ledger import Bug, Ledger, Status

_AXES = ("qemu_name", "kernel_name", "machine_name")
#: The fields of a result that have the ids of bugs (``harness.report.summary.Result``).
_BUG, _UNKNOWN = "bug", "range_unknown"
#: The ids of a test's bugs, by those fields.
LISTED = pytest.StashKey[dict[str, str]]()


@dataclass(frozen=True)
class _Expected:
    """The bugs that a test meets, or may meet, on this version of QEMU."""

    version: str
    bugs: Sequence[Bug]

    def of(self, status: Status) -> list[Bug]:
        return [bug for bug in self.bugs if bug.status(self.version) is status]

    def explaining(self, failure: str) -> Bug | None:
        return next((bug for bug in self.bugs if bug.explains(failure)), None)


_EXPECTED = pytest.StashKey[_Expected]()
LEDGER = pytest.StashKey[Ledger]()
#: A note on a failure of a test that has known bugs begins with this.
OTHERWISE = "known bug "


class KnownBug(HarnessError):
    """A failure that the ledger explains."""


def pytest_configure(config: pytest.Config) -> None:
    """Read the project's ledger, and those that ``--known-bugs`` adds."""
    with usage_errors():
        config.stash[LEDGER] = ledger.load_all(paths(config, "known-bugs"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Expect the failures that the ledger lists for this scenario and this QEMU."""
    expected = _expected(item)
    if expected is None:
        return
    item.stash[_EXPECTED] = expected
    affected, unknown = expected.of(Status.AFFECTED), expected.of(Status.UNKNOWN)
    _list(item, _BUG, affected)
    _list(item, _UNKNOWN, unknown)
    if affected:
        reason = "; or ".join(_described(bug) for bug in affected)
        item.add_marker(pytest.mark.xfail(reason=reason, raises=KnownBug, strict=True))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Accept only the failure that an entry describes; any other stays a failure."""
    try:
        yield
    except (Exception, pytest.fail.Exception) as exc:  # What pytest.raises missed is the latter.
        expected = item.stash.get(_EXPECTED, None)
        bug = expected.explaining(str(exc)) if expected is not None else None
        if expected is None:
            raise
        if bug is None:
            for listed in expected.bugs:
                exc.add_note(f"{OTHERWISE}{listed.id} expects /{listed.failure}/ in the first line")
            raise
        _refuse_more(bug, item.stash.get(JUDGEMENTS, []), exc)
        _list(item, _BUG, [bug])
        known = f"{bug.id}: {str(exc).splitlines()[0]}"
        if bug.status(expected.version) is Status.UNKNOWN and not item.config.option.runxfail:
            # No mark: pytest has read them, and a strict one would forbid that the bug is absent.
            seen = f"range unknown: seen broken on {expected.version}"
            raise pytest.xfail.Exception(f"{_described(bug)}; {seen}: {known}") from exc
        raise KnownBug(known) from exc


def _refuse_more(bug: Bug, judgements: list[Judgement], seen: BaseException) -> None:
    """Fail when a checker found something besides the known bug, or has no result."""
    more = [(found, text) for found in judgements if counts_in_part(found) for text in _besides(bug, found)]
    if more:
        details = "\n".join(line for found, text in more for line in (text, *found.evidence))
        error = Violation(f"beside the known bug {bug.id}: {more[0][1]}", details=details)
        error.add_note(f"{bug.id} itself: {str(seen).splitlines()[0]}")
        raise error from None


def _besides(bug: Bug, found: Judgement) -> list[str]:
    """What a checker found that is not the known bug."""
    is_its = bug.explains_guest_kernel if found.checker == guest_kernel_quiet.__name__ else bug.explains
    return [text for text in (found.summary, *found.also) if not is_its(text)]


def _list(item: pytest.Item, name: str, bugs: Sequence[Bug]) -> None:
    """Put the known bugs' ids into the field of the test's result, in place of those it had."""
    listed = item.stash.setdefault(LISTED, {})
    listed.pop(name, None)
    if bugs:
        listed[name] = " ".join(bug.id for bug in bugs)


def _described(bug: Bug) -> str:
    fixed = f"; not in {', '.join(bug.seen_fixed)}" if bug.seen_fixed else ""
    return f"{bug.id}: {bug.title} (seen in {', '.join(bug.seen_broken)}{fixed})"


def _expected(item: pytest.Item) -> _Expected | None:
    callspec = getattr(item, "callspec", None)
    if callspec is None or not set(_AXES) <= callspec.params.keys():
        return None
    known, machine = item.config.stash[LEDGER], callspec.params["machine_name"]
    _, capabilities = item.config.stash[MATRIX].qemu(callspec.params["qemu_name"], architecture_of(machine))
    bugs = known.expected(*scenario_of(item), capabilities.version_text, machine)
    return _Expected(capabilities.version_text, bugs) if bugs else None


def scenario_of(item: pytest.Item) -> tuple[str, list[str]]:
    """A test and its parameters, as the ledger compares them: one by one, and together as in its node id."""
    test = item.nodeid.partition("::")[2].partition("[")[0]
    callspec = getattr(item, "callspec", None)
    parameters = [callspec.id, *callspec.id.split("-")] if callspec else []
    return f"{item.path.as_posix()}::{test}", parameters
