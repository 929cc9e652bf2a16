"""``harness coverage``: runs the scenarios on a QEMU that counts its lines, and reports what they reach."""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from signal import SIGKILL

import click

from harness import history
from harness.artifacts import HISTORY, slug
from harness.cli.common import progress
from harness.errors import SetupError, UsageError
from harness.layout import pytest_command, pytest_folder, scenarios_folder
from harness.provision import Cache, Provisioner, default_cache_root, gcov
from harness.provision.builds import Build
from harness.provision.unpacked import command_in
from harness.report import coverage as reached
from harness.report import summary, tables
from harness.report.coverage import FileReport
from harness.report.pytest_run import run_pytest
from harness.report.summary import Outcome, Run

#: pytest's exit codes for "all passed" and "some failed"; anything else is no result.
_RESULTS = (0, 1)
_ARTIFACTS, _COMPLAINTS = "artifacts", "complaints.txt"


#: The sets of scenarios that ``--both`` runs, each into the folder of its name; and the option for each.
_SETS: dict[str, tuple[str, ...]] = {"default": (), "thorough": ("--thorough",)}


@click.command(
    epilog="Example: harness coverage --both --into coverage -n 2",
    context_settings={"ignore_unknown_options": True},
)
@click.option("--thorough", is_flag=True, help="Run every scenario, not only the default set.")
@click.option(
    "--both",
    is_flag=True,
    help="Run the default set into DIR/default and every scenario into DIR/thorough; show both side by side.",
)
@click.option(
    "--qemu", default="7.2-src", show_default=True, metavar="NAME", help="A QEMU built from source."
)
@click.option(
    "--into",
    default="coverage",
    show_default=True,
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="The folder of the report. Counters that are in it are added to.",
)
@click.option("--no-run", is_flag=True, help="Make the report again from the counters in DIR.")
@click.argument("arguments", nargs=-1, metavar="[PYTEST ARGUMENTS]...", type=click.UNPROCESSED)
def coverage(
    thorough: bool, both: bool, qemu: str, into: Path, no_run: bool, arguments: tuple[str, ...]
) -> None:
    """Report which lines, branches and functions of QEMU's 9p, unplug and migration code the scenarios reach.

    The scenarios run on a QEMU that counts them (NAME+coverage, built when it is missing).
    images/coverage.toml says which parts of QEMU are reported, and why some lines are not reached. All other
    arguments are pytest's: files, -k, -n. What is not reached is listed in DIR/not-reached.txt, the page is
    DIR/page/index.html.

    A QEMU writes its counters when it exits. Those of machines that a scenario kills, or that crash, are
    lost; their number is printed. Exits with 1 when a scenario failed.
    """
    if thorough and both:
        raise UsageError("--thorough and --both: --both runs every scenario as well; give one of them")
    reached.require_gcovr()
    provisioner = Provisioner(Cache(default_cache_root()), report=progress)
    build = provisioner.coverage_build(qemu)
    install = provisioner.qemu_release(f"{qemu}+{gcov.FLAVOUR}")
    into = into.absolute()
    if both:
        sets = {name: (into / name, [*options, *arguments]) for name, options in _SETS.items()}
    else:
        sets = {"": (into, [*(["--thorough"] if thorough else []), *arguments])}
    found, failed = {}, False
    for name, (folder, options) in sets.items():
        folder.mkdir(parents=True, exist_ok=True)
        run = None if no_run else _run(install.name, folder, options)
        found[name] = _report(folder, build, run)
        failed = failed or (run is not None and bool(run.counts[Outcome.FAILED] or run.counts[Outcome.FIXED]))
    tables.show(reached.compared(found) if both else reached.table(found[""]))
    sys.exit(1 if failed else 0)


def _report(into: Path, build: Build, run: Run | None) -> list[FileReport]:
    """Read the counters in a folder, write the report there, and say where it is and what is missing."""
    facts = gcov.load()
    program = command_in(build.root, build.root / "usr/bin/gcov")
    data = reached.gather(into, build.source.parent / "build", build.source, program, facts.part)
    found = reached.write(into, data, facts)
    click.echo(f"page: {into / reached.PAGE}; what is not reached: {into / reached.NOT_REACHED}")
    for line in _complaints(into):
        click.echo(f"gcov: {line}")
    if run is not None:
        click.echo(_ends(into / _ARTIFACTS))
        _keep_failures(into / _ARTIFACTS, run)
    return found


def _run(qemu: str, into: Path, options: list[str]) -> Run:
    folder = scenarios_folder()
    shutil.rmtree(into / _ARTIFACTS, ignore_errors=True)
    argv = [*pytest_command(), "--qemu", qemu, "--summary", str(into)]
    argv += ["--artifacts", str(into / _ARTIFACTS), "--keep-artifacts", *_with_paths(options, folder)]
    counters = {gcov.PREFIX: str(into / reached.COUNTERS), gcov.COMPLAINTS: str(into / _COMPLAINTS)}
    what = f"the scenarios against QEMU {qemu}"
    done = run_pytest(
        argv, pytest_folder(folder), what=what, show=sys.stderr.buffer, environment={**os.environ, **counters}
    )
    if done.returncode not in _RESULTS:
        raise SetupError(f"{what} gave no result (pytest: {done.returncode})")
    return summary.read(into)


def _with_paths(options: Iterable[str], scenarios: Path) -> list[str]:
    """pytest's arguments of ``harness coverage``, with absolute paths; without a path, all scenarios."""
    given = [(option, Path(option.partition("::")[0])) for option in options]
    made = [
        option.replace(str(path), str(path.absolute()), 1) if path.exists() else option
        for option, path in given
    ]
    return made if any(path.exists() for _, path in given) else [str(scenarios), *made]


def _complaints(into: Path) -> Iterator[str]:
    """``harness coverage``: what the library that writes the counters could not do, each once."""
    path = into / _COMPLAINTS
    yield from dict.fromkeys(path.read_text(errors="replace").splitlines() if path.exists() else ())


def _ends(artifacts: Path) -> str:
    """How the machines of a coverage run ended: those that did not exit have lost their counters."""
    ends = Counter(end for path in artifacts.rglob(HISTORY) for end in ends_of(path))
    lost = ", ".join(f"{number} {how}" for how, number in sorted(ends.items()) if how != "exited")
    return f"machines: {ends.total()}; without counters: {lost or 'none'}"


def ends_of(path: Path) -> list[str]:
    """How each machine in a history ended, for coverage.

    ``exited``, ``killed`` by the harness, or ``crashed``.
    """
    ends, killed = [], set()
    for entry in history.read(path):
        value = history.as_mapping(entry.value)
        if entry.f == "machine:expect-exit" and value.get("reason") == "kill":
            killed.add(entry.actor)
        if entry.f == "machine:exit":
            code, expected = int(value["returncode"]), entry.actor in killed
            ends.append("exited" if code >= 0 else "killed" if -code == SIGKILL and expected else "crashed")
    return ends


def _keep_failures(artifacts: Path, run: Run) -> None:
    """Remove the folders of tests that passed, which ``harness coverage`` needed for the count alone."""
    failed = {
        slug(result.test) for result in run.results if result.outcome in (Outcome.FAILED, Outcome.FIXED)
    }
    for folder in artifacts.iterdir():
        if folder.is_dir() and folder.name not in failed:
            shutil.rmtree(folder, ignore_errors=True)
