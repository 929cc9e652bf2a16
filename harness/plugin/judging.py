"""At the end of a test's set-up (when that failed) or call: end its machines, then judge its record.

Judging is part of the call and not of a later teardown, so that a test has one outcome, and the strict
xfail of a known bug covers what the checkers find as well as what the scenario asserts.

A skipped test is judged as well once a machine was started. When its record is not valid, the test fails,
and the reason of the skip is a note on the failure.
"""

from __future__ import annotations

import unittest
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from harness.checkers import Judgement, Record, Verdict, judge
from harness.errors import HarnessError, SetupError, Unsupported, UsageError, Violation
from harness.plugin.fixtures import TESTBED
from harness.plugin.staying import stay
from harness.testbed import Testbed

JUDGEMENTS = pytest.StashKey[list[Judgement]]()
#: What ``pytest.fail``, ``pytest.skip`` and ``pytest.exit`` raise; not each of them is an ``Exception``.
_OUTCOMES = (pytest.fail.Exception, pytest.skip.Exception, pytest.exit.Exception)
#: Everything that pytest reports as a skip or an expected failure, without a failed assertion.
_SKIPS = (pytest.skip.Exception, pytest.xfail.Exception, unittest.SkipTest, Unsupported)
#: The checker that has no result for a leak hunt that was interrupted, for example by a skip.
_NEEDS_THE_WHOLE_HUNT = "no_leak"
#: The checker whose finding is the root cause of every other failure.
_CAUSE = "qemu_alive"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    """Judge a set-up that failed as well: the record may have the root cause of a guest that did not boot."""
    try:
        yield
    except (Exception, *_OUTCOMES) as exc:
        _stay(item, exc)
        _conclude(item, exc)
        raise _alone(exc) from None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Judge after the test's body, however it ended."""
    try:
        yield
    except (Exception, *_OUTCOMES) as exc:
        _stay(item, exc)
        _conclude(item, exc)
        raise _alone(exc) from None
    _conclude(item, None)


def _stay(item: pytest.Item, failure: BaseException) -> None:
    """With ``--stay-on-failure``: the machines of a test that failed run on until the user lets them end."""
    testbed = item.stash.get(TESTBED, None)
    if testbed is not None and not isinstance(failure, (*_SKIPS, pytest.exit.Exception)):
        stay(item, testbed, failure)


def _conclude(item: pytest.Item, failure: BaseException | None) -> None:
    testbed = item.stash.get(TESTBED, None)
    if testbed is None:
        return
    not_closed = _close(testbed, failure)
    if not_closed is not None and (failure is None or isinstance(failure, _SKIPS)):
        _raise_worse(item, testbed, not_closed)
        raise not_closed from None
    _raise_worse(item, testbed, failure)


def _close(testbed: Testbed, failure: BaseException | None) -> Exception | None:
    """End the machines of a test before it is judged.

    What an object of the user's raises when it is closed never hides ``failure``.
    """
    if failure is not None:
        testbed.history.note("host", "test:failed", {"error": str(failure).splitlines()[:1]})
    try:
        testbed.close()
    except Exception as exc:  # Whatever a user's own object raises.
        if failure is not None:
            failure.add_note(f"and when the testbed was closed: {type(exc).__name__}: {exc}")
            exc.add_note(f"the test itself: {type(failure).__name__}: {failure}")
        return exc
    return None


def _raise_worse(item: pytest.Item, testbed: Testbed, failure: BaseException | None) -> None:
    """Judge the record of a test, and raise what is a cause of ``failure``, or worse than it."""
    judgements = _judge(testbed, failure)
    item.stash[JUDGEMENTS] = judgements
    bad = [found for found in judgements if found.verdict is not Verdict.VALID]
    if not bad:
        return
    if isinstance(failure, pytest.exit.Exception):
        raise _as_no_success(failure, _as_error(bad)) from None
    if isinstance(failure, _SKIPS):
        _refuse_skip(testbed.artifacts.folder, bad, failure)
        return
    if failure is None:
        raise _as_error(bad) from None
    cause = [found for found in bad if found.checker == _CAUSE and found.verdict is Verdict.INVALID]
    if cause and not isinstance(failure, Violation):
        died = _as_error(cause)
        died.add_note(f"seen as: {failure}")
        raise died.with_traceback(failure.__traceback__) from None


def _as_no_success(exit_: Any, found: HarnessError) -> BaseException:
    """When a test is judged: ``pytest.exit`` still ends the run, but not with the status of a success."""
    code = exit_.returncode or pytest.ExitCode.TESTS_FAILED
    return pytest.exit.Exception(f"{exit_.msg}; {found.message}", returncode=code)


def _refuse_skip(folder: Path, bad: list[Judgement], skip: BaseException) -> None:
    """Fail instead of a skip when the record is invalid or unknown (*unknown* never passes).

    Where no machine was started there is nothing to judge.
    """
    counts = [found for found in bad if counts_in_part(found)]
    if counts and _has_started_a_machine(folder):
        error = _as_error(counts)
        error.add_note(f"the test would have been skipped: {skip}")
        raise error.with_traceback(skip.__traceback__) from None


def counts_in_part(found: Judgement) -> bool:
    """Whether a judgement counts where the test did not run to its end: a skip, or a known bug."""
    if found.verdict is Verdict.UNKNOWN:
        return found.checker != _NEEDS_THE_WHOLE_HUNT
    return found.verdict is Verdict.INVALID


def _has_started_a_machine(folder: Path) -> bool:
    """Whether the record to judge has a machine. A record that cannot be read may have one."""
    try:
        return bool(Record.load(folder).machines)
    except UsageError:
        return True


def _alone(exc: BaseException) -> BaseException:
    """The error of a judged test without its chain, because pytest prints the chain first.

    ``Unsupported`` becomes a skip.
    """
    if isinstance(exc, Unsupported):
        return pytest.skip.Exception(exc.message, _use_item_location=True)
    link = exc.__cause__ or (None if exc.__suppress_context__ else exc.__context__)
    if isinstance(exc, HarnessError) and link is not None:
        exc.add_note(f"seen as: {link}")
        exc.__cause__, exc.__context__ = None, None
    return exc


def _judge(testbed: Testbed, failure: BaseException | None) -> list[Judgement]:
    try:
        testbed.history.check()
        return judge(testbed.artifacts.folder)
    except (SetupError, OSError) as exc:
        why = exc.message if isinstance(exc, SetupError) else f"cannot write the verdict: {exc}"
        full = SetupError(f"{why}; free some space, or give --artifacts another folder")
        if failure is not None:
            full.add_note(f"seen as: {failure}")
        raise full from None


def _also(found: Judgement) -> list[str]:
    return [f"{found.checker}, also: {text}" for text in found.also]


def _as_error(bad: list[Judgement]) -> HarnessError:
    """The judgements as an error, the worst first. Where none is invalid it is inconclusive, which fails."""
    bad = sorted(bad, key=lambda found: (found.verdict is not Verdict.INVALID, found.checker != _CAUSE))
    details = "\n".join(
        line
        for found in bad
        for line in (f"{found.checker}: {found.summary}", *found.evidence, *_also(found))
    )
    first = bad[0]
    if first.verdict is Verdict.INVALID:
        return Violation(first.summary, details=details)
    return HarnessError(f"inconclusive: {first.checker}: {first.summary}", details=details)
