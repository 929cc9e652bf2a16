"""``harness bisect``: the first QEMU that has a bug, or that no longer has it."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from harness import reaper
from harness.artifacts import HISTORY
from harness.cli.common import progress
from harness.cli.programs import load
from harness.cli.signals import ended_by_sigterm
from harness.errors import SetupError, Unsupported, UsageError
from harness.explore import tree_bisect
from harness.explore.bisect import CONFIDENCE, Find, most_tests
from harness.explore.candidate import Verdict
from harness.explore.compilers import Compiler, HostCompiler, ReleaseCompiler, flavour_for
from harness.explore.fresh_guests import FreshGuests
from harness.explore.observations import Observations
from harness.explore.program import AlphabetName
from harness.explore.program import text as program_text
from harness.explore.releases import Releases, run_all
from harness.explore.run import PROGRAM, states
from harness.explore.scenario import Scenario, recorded, scenario, test_of
from harness.explore.tree import Commit, Tree
from harness.explore.tree_bisect import Result, ask_builds, ask_trial
from harness.explore.tree_builds import TreeBuilds
from harness.explore.trial import ProgramTrial, ScenarioTrial, Trial
from harness.matrix import ACCELS, DEFAULT
from harness.provision import Cache, Provisioner, default_cache_root
from harness.qemu import binary
from harness.qemu.machine_types import MACHINE_TYPES
from harness.reaper import RunFolder
from harness.report import tables

_LOG, _RESULT, _QEMUS, _RUNS = "log.ndjson", "result.json", "qemu", "runs"
_HOST = "host"
_STYLES = {Verdict.GOOD: "green", Verdict.BAD: "bold red", Verdict.SKIPPED: "dim"}


@dataclass(frozen=True)
class Subject:
    """What is bisected.

    :ivar name: for people. :ivar content: a hash of its file: the runs of another content do not count.
    :ivar trial: makes one run. :ivar command: shows it on the QEMU at the path that is filled in.
    """

    name: str
    content: str
    trial: Trial
    command: Callable[[str], str]


@click.command(
    epilog="Examples: harness bisect test_hostile_guest.py::test_a_forced_eject_while_mounted --releases; "
    "harness bisect program.json --tree ~/qemu --good v7.1.0 --bad v7.2.0; "
    "harness bisect artifacts/latest/test_x --tree ~/qemu --bad v10.0.0 --good master --find fix"
)
@click.argument("subject", metavar="PROGRAM|ARTEFACTS|SCENARIO")
@click.option("--releases", is_flag=True, help="Bisect over the provisioned QEMUs.")
@click.option(
    "--qemu", "qemus", multiple=True, metavar="NAME|PATH", help="With --releases: only these; repeatable."
)
@click.option(
    "--tree", type=click.Path(path_type=Path), metavar="DIR", help="Bisect over a git tree of QEMU."
)
@click.option("--good", metavar="REV", help="A revision of the tree that is known to be good.")
@click.option("--bad", metavar="REV", help="A revision of the tree that is known to be bad.")
@click.option(
    "--find",
    type=click.Choice([find.value for find in Find]),
    default=Find.BUG.value,
    show_default=True,
    help="The first bad commit after --good, or the first good one (the fix) after --bad.",
)
@click.option(
    "--compiler",
    metavar="NAME|host",
    help="Build with the tools of this QEMU (7.2-src, 10.0-src), or with the host's; by default by version.",
)
@click.option(
    "--machine", default="pc", metavar="|".join(MACHINE_TYPES), help="For a scenario: machine type."
)
@click.option("--kernel", default=DEFAULT, metavar="NAME", help="Of a scenario: a provisioned guest kernel.")
@click.option("--accel", default="auto", metavar="|".join(ACCELS), help="Accelerator.")
@click.option(
    "--confidence",
    type=click.FloatRange(0.5, 0.9999),
    default=CONFIDENCE,
    show_default=True,
    help="How certain the answer has to be; a flaky program gets more runs.",
)
@click.option("--any-failure", is_flag=True, help="Count every failure, not only the one of the bad end.")
@click.option(
    "--into",
    type=click.Path(path_type=Path),
    default=Path("artifacts/bisect"),
    show_default=True,
    metavar="DIR",
    help="Folder for the log, the result and the QEMUs. A log that is there is resumed.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def bisect(
    subject: str,
    releases: bool,
    qemus: tuple[str, ...],
    tree: Path | None,
    good: str | None,
    bad: str | None,
    find: str,
    compiler: str | None,
    machine: str,
    kernel: str,
    accel: str,
    confidence: float,
    any_failure: bool,
    into: Path,
    as_json: bool,
) -> None:
    """Find the first QEMU that has a bug, or with --find fix the first that does not have it any more.

    The bug is shown by a program, by a scenario (file.py::test or file.py::test[parameter]), or by the folder
    that a failed test left. One that fails in some runs only is run more often.

    With --tree the commits are checked out in a worktree of the harness's own and built out of tree. Those
    that do not build or have no 9p are skipped. Ctrl-C keeps what was run: the same command goes on.
    """
    _check_options(releases, tree, good, bad, qemus, compiler)
    provisioner = Provisioner(Cache(default_cache_root()), report=progress)
    reaper.sweep()
    run = RunFolder()
    try:
        into.mkdir(parents=True, exist_ok=True)
        with ended_by_sigterm():
            if accel not in ACCELS:
                raise UsageError(f"--accel {accel}: unknown accelerator; known: {', '.join(ACCELS)}")
            what = _subject(subject, machine, kernel, accel, run, into / _RUNS, provisioner)
            options = _Options(Find(find), confidence, any_failure, into.absolute(), as_json)
            if releases:
                _over_releases(what, qemus, provisioner, options)
            else:
                _over_tree(what, Tree(tree or Path()), good or "", bad or "", compiler, provisioner, options)
    except OSError as exc:
        raise SetupError(f"{exc.filename or into}: {exc.strerror}; the runs so far are in {into}") from None
    finally:
        run.close()


def _check_options(
    releases: bool,
    tree: Path | None,
    good: str | None,
    bad: str | None,
    qemus: Sequence[str],
    compiler: str | None,
) -> None:
    if releases == (tree is not None):
        raise UsageError("give either --releases or --tree DIR")
    if tree is not None and not (good and bad):
        raise UsageError("--tree needs --good REV and --bad REV")
    if tree is not None and qemus:
        raise UsageError("--qemu can only be used with --releases: a tree's QEMUs are built")
    if releases and (good or bad or compiler):
        raise UsageError("--good, --bad and --compiler can only be used with --tree")


@dataclass(frozen=True)
class _Options:
    find: Find
    confidence: float
    any_failure: bool
    into: Path
    as_json: bool

    def observations(self, what: Subject, **more: str) -> Observations:
        """The log of runs in the folder of ``harness bisect``, resumed if there is one."""
        about = {"what": what.name, "content": what.content, **more}
        log = Observations(self.into / _LOG, about)
        if log.resumed:
            progress(f"{log.resumed} runs of {self.into / _LOG} are used again")
        return log


def _subject(
    text: str,
    machine: str,
    kernel: str,
    accel: str,
    run: RunFolder,
    artifacts: Path,
    provisioner: Provisioner,
) -> Subject:
    """What the user of ``harness bisect`` named: a program, or a scenario.

    :raises UsageError: when it is neither a program, nor a folder with a record, nor a scenario.
    """
    path = Path(text)
    if path.is_file() or (path / PROGRAM).is_file():
        return _of_program(path, accel, run, artifacts)
    if "::" in text and not path.exists():
        return _of_scenario(scenario(text, machine, kernel, accel), run, artifacts)
    if path.is_dir():
        if not (path / HISTORY).exists():
            raise UsageError(f"{path}: not the folder of a failed test: it has no {HISTORY}")
        chosen = recorded(test_of(path), provisioner.qemu_names(), provisioner.guest_names())
        return _of_scenario(replace(chosen, accel=accel), run, artifacts)
    raise UsageError(f"{text}: neither a program, nor the folder of a failed test, nor file.py::test")


def _of_program(path: Path, accel: str, run: RunFolder, artifacts: Path) -> Subject:
    program = load(path)
    states(program)
    content = hashlib.sha256(program_text(program).encode()).hexdigest()[:16]

    def command(qemu: str) -> str:
        return shlex.join(["harness", "replay", str(path), "--qemu", qemu])

    # Trying KVM takes ten seconds for each QEMU, and no guest runs under the raw client.
    accel = "tcg" if program.alphabet is AlphabetName.RAW else accel
    guests = FreshGuests(artifacts.absolute(), accel)(run)
    return Subject(path.name, content, ProgramTrial(program, guests), command)


def _of_scenario(chosen: Scenario, run: RunFolder, artifacts: Path) -> Subject:
    file = Path(chosen.test.partition("::")[0])
    content = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    name = f"{file.name}{str(chosen).removeprefix(str(file))} on {chosen.machine}, kernel {chosen.kernel}"

    def command(qemu: str) -> str:
        return shlex.join(["pytest", *chosen.arguments(), "--qemu", qemu])

    return Subject(name, content, ScenarioTrial(chosen, run, artifacts), command)


def _over_releases(what: Subject, qemus: Sequence[str], provisioner: Provisioner, options: _Options) -> None:
    versions = {name: _version(name, provisioner) for name in qemus} or _available(provisioner)
    observations = options.observations(what, qemus=json.dumps(versions, sort_keys=True))
    found = run_all(
        versions,
        ask_trial(what.trial),
        observations=observations,
        confidence=options.confidence,
        any_failure=options.any_failure,
        report=progress,
    )
    result = {
        "signature": found.signature,
        "confidence": found.confidence,
        "results": [asdict(one) for one in found.results],
        "changes": [[one.name, other.name] for one, other in found.changes()],
    }
    _write(options, result)
    if not options.as_json:
        _print_releases(found)


def _released(provisioner: Provisioner) -> list[str]:
    """The releases for ``harness bisect --releases``: those without ``-src`` and the like."""
    return [name for name in provisioner.qemu_names() if "-" not in name]


def _version(name: str, provisioner: Provisioner) -> str:
    """The version of a QEMU to bisect over; one that is missing is provisioned."""
    named = provisioner.is_provisioned(name)
    install = provisioner.qemu_release(name) if named else binary.from_path(Path(name))
    capabilities = binary.probe(install)
    capabilities.require_9p(install)
    return capabilities.version_text


def _available(provisioner: Provisioner) -> dict[str, str]:
    """The version of each release that ``harness bisect`` can have here; the user has named none.

    :raises SetupError: when there is none.
    """
    found, why = dict[str, str](), ""
    for name in _released(provisioner):
        try:
            found[name] = _version(name, provisioner)
        except (SetupError, UsageError, Unsupported) as exc:
            why = exc.message.splitlines()[0]
            progress(f"QEMU {name} is left out: {why}")
    if not found:
        raise SetupError(f"none of the releases can be had: {why}")
    return found


def _print_releases(found: Releases) -> None:
    table = Table("QEMU", "version", "result", "runs", title=Text(found.signature) or None)
    for one in found.results:
        style = _STYLES[one.verdict]
        table.add_row(one.name, one.version, Text(one.verdict.value, style), Text(str(one.tally)))
    tables.show(table)
    for one, other in found.changes():
        first = Find.BUG.first if other.verdict is Verdict.BAD else Find.FIX.first
        print(f"{first}: {other} (after {one})")
    if found.signature:
        print(f"confidence: at least {found.confidence:.1%}\n\nfor images/known-bugs.toml:\n{found.ledger()}")
    else:
        print("it fails on none of them")


def _over_tree(
    what: Subject,
    tree: Tree,
    good: str,
    bad: str,
    compiler: str | None,
    provisioner: Provisioner,
    options: _Options,
) -> None:
    old, new = (good, bad) if options.find is Find.BUG else (bad, good)
    history = tree.history(old, new)
    observations = options.observations(what, find=options.find.value, oldest=history[0], newest=history[-1])
    progress(f"{len(history)} commits from {old} to {new}; about {most_tests(len(history)) + 2} builds")
    with _builds(tree, history[0], compiler, provisioner, options.into) as builds:
        result = tree_bisect.bisect(
            tree,
            history,
            ask_builds(builds, what.trial),
            find=options.find,
            observations=observations,
            confidence=options.confidence,
            any_failure=options.any_failure,
            report=progress,
            names={history[0]: old, history[-1]: new},
        )
        builds.forget_all_but({result.before.id, *(commit.id for commit in result.among)})
    _write(options, _plain(result, builds.builds))
    if not options.as_json:
        _print_result(result, builds.builds, what, options)


@contextmanager
def _builds(
    tree: Tree, oldest: str, compiler: str | None, provisioner: Provisioner, into: Path
) -> Iterator[TreeBuilds]:
    qemus = into / _QEMUS
    qemus.mkdir(exist_ok=True)
    with provisioner.cache.scratch() as work, tree.worktree(work / "source", oldest, progress) as worktree:
        tools = _compiler(compiler, tree, oldest, provisioner, work)
        progress(f"building with {tools.name}; the first build takes some minutes")
        yield TreeBuilds(tree, worktree, tools, work, qemus, progress)


def _compiler(name: str | None, tree: Tree, oldest: str, provisioner: Provisioner, work: Path) -> Compiler:
    flavour = flavour_for(tree.text(oldest, "VERSION"))
    if name == _HOST:
        return HostCompiler(provisioner.build_options(flavour), work)
    try:
        return ReleaseCompiler(name or flavour, provisioner, work, progress)
    except SetupError as exc:
        if name:
            raise
        progress(f"no tools of {flavour}: {exc.message}; the host's compiler is used")
        return HostCompiler(provisioner.build_options(flavour), work)


def _plain(result: Result, builds: int) -> dict[str, Any]:
    found = result.found
    return {
        "find": found.find.value,
        "exact": found.exact,
        "among": [asdict(commit) for commit in result.among],
        "before": asdict(result.before),
        "merge": asdict(result.merge) if result.merge else None,
        "signature": found.signature,
        "reliability": asdict(found.reliability),
        "confidence": found.confidence,
        "builds": builds,
        "errors": found.errors,
        "runs": {commit: asdict(tally) for commit, tally in found.tallies.items()},
    }


def _print_result(result: Result, builds: int, what: Subject, options: _Options) -> None:
    found = result.found
    print("\n".join(_answer(result, found.find)))
    print(f"failure: {found.signature}\nof the bad end: {found.reliability}")
    runs = sum(tally.runs for tally in found.tallies.values())
    print(
        f"confidence: at least {found.confidence:.1%} ({builds} builds, {runs} runs, "
        f"{found.errors} errors of the host)"
    )
    skipped = {commit: tally.skip for commit, tally in found.tallies.items() if tally.skip}
    for commit, why in skipped.items():
        print(f"skipped: {commit[:12]}: {why}")
    ends = (result.before, result.commit) if found.find is Find.FIX else (result.commit, result.before)
    for word, end in zip(("it fails", "it passes"), ends, strict=True):
        print(f"{word}: {what.command(str(_path_of(end, options)))}")


def _answer(result: Result, find: Find) -> list[str]:
    if result.found.exact:
        lines = [f"{find.first} commit: {result.commit}"]
    else:
        lines = [f"{find.first} commit: one of these {len(result.among)} (the others cannot be tested):"]
        lines += [f"  {commit}" for commit in result.among]
    if result.merge is not None:
        lines.append(f"merged by: {result.merge}")
    return lines


def _path_of(commit: Commit, options: _Options) -> Path:
    return options.into / _QEMUS / commit.id / binary.PROGRAM


def _write(options: _Options, result: dict[str, Any]) -> None:
    text = json.dumps(result, indent=2, ensure_ascii=False)
    (options.into / _RESULT).write_text(text + "\n")
    if options.as_json:
        print(text)
