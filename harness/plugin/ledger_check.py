"""Compares the entries that ``--known-bugs`` adds with the tests that were collected.

An entry that names no test, a parameter that its test does not have, or another guarantee than its tests do,
is a mistake that would otherwise show only when a failure is not expected. It is printed at the end, and with
``--strict`` the run fails. The project's own entries are not compared: another repository may have files of
the same names.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from harness.guest.variant import VARIANTS
from harness.matrix import DEFAULT
from harness.plugin.known_bugs import LEDGER, scenario_of
from harness.plugin.marks import guarantee_of
from harness.plugin.strict import is_strict
from harness.qemu.machine_types import MACHINE_TYPES
from harness.report import ledger
from harness.report.ledger import Bug

_WRONG = pytest.StashKey[list[str]]()
_WORKER_KEY = "harness_ledger_check"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Compare the ledger's entries with the tests before anything is deselected.

    Without ``known_bugs`` (``-p no:``) there is no ledger.
    """
    used = config.stash.get(LEDGER, None)
    own = {bug.id for bug in ledger.load().bug}
    added = [bug for bug in used.bug if bug.id not in own] if used is not None else []
    # "pytest test_it.py::test_it[one]" collects none of the test's other parameters.
    whole = not any("[" in argument for argument in config.args)
    config.stash[_WRONG] = [text for bug in added for text in _complaints(bug, items, whole)]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Send what is wrong with ledger entries from a worker, which has collected; with ``--strict``, fail."""
    config = session.config
    wrong = config.stash.get(_WRONG, [])
    if hasattr(config, "workeroutput"):
        config.workeroutput[_WORKER_KEY] = wrong
    elif wrong and is_strict(config) and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Receive what is wrong with ledger entries from a worker: all workers collect the same tests."""
    sent = getattr(node, "workeroutput", {}).get(_WORKER_KEY)
    if sent is not None:
        node.config.stash[_WRONG] = sent


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print what is wrong with the entries of ``--known-bugs``."""
    strict = is_strict(config)
    for text in config.stash.get(_WRONG, []):
        terminalreporter.write_line(text, red=strict, yellow=not strict, bold=True)


def _complaints(bug: Bug, items: Sequence[pytest.Item], whole: bool) -> Iterator[str]:
    found = {text: [item for item in items if _is(item, text)] for text in bug.scenarios}
    for text, tests in found.items():
        modules = _modules(text, items)
        if not tests and modules and not any(_has(module, text) for module in modules):
            yield f"known bug {bug.id}: {modules[0].path} has no test {_test(text)}"
        elif not tests and whole and (known := _parameters(text, items)):
            yield f"known bug {bug.id}: {text}: no such parameter; {_test(text)} has {', '.join(known)}"
    guarantees = {guarantee_of(item) for tests in found.values() for item in tests}
    if all(found.values()) and bug.guarantee not in guarantees:
        theirs = ", ".join(repr(name) for name in sorted(str(name) for name in guarantees))
        yield f"known bug {bug.id}: its guarantee is {bug.guarantee!r}, that of its scenarios {theirs}"


def _is(item: pytest.Item, text: str) -> bool:
    scenario, parameters = scenario_of(item)
    return ledger.is_named(text, scenario, parameters)


def _parameters(text: str, items: Sequence[pytest.Item]) -> list[str]:
    """The parameters of an entry's test, none of which is the entry's; none if it may be in another run.

    The names of QEMUs, kernels, machine types and kinds of share depend on the run's options.
    """
    name, _, parameter = text.partition("[")
    found = {one for item in items if _is(item, name) for one in scenario_of(item)[1]}
    own = sorted(one for one in found if not _is_of_a_run(one))
    return [] if _is_of_a_run(parameter.removesuffix("]")) else own


def _is_of_a_run(parameter: str) -> bool:
    return "-" in parameter or parameter[:1].isdigit() or parameter in {DEFAULT, *MACHINE_TYPES, *VARIANTS}


def _test(text: str) -> str:
    """The name of the test that a ledger entry is compared with: with its classes, without its parameter."""
    return text.partition("::")[2].partition("[")[0]


def _modules(text: str, items: Sequence[pytest.Item]) -> list[pytest.Module]:
    """The collected modules with the file name that a ledger entry has."""
    file, test = text.partition("::")[0], _test(text)
    modules = dict.fromkeys(item.getparent(pytest.Module) for item in items)
    return [m for m in modules if m and ledger.is_named(f"{file}::{test}", f"{m.path}::{test}", ())]


def _has(module: pytest.Module, text: str) -> bool:
    """Whether a module defines the test of a ledger entry.

    It is perhaps not selected (``pytest file.py::another``).
    """
    names = _test(text).split("::")
    owners = [module.obj, *(owner for owner in vars(module.obj).values() if isinstance(owner, type))]
    return any(functools.reduce(_member, names, owner) is not None for owner in owners)


def _member(owner: object, name: str) -> object:
    return getattr(owner, name, None)
