"""``harness faults``: mutation testing of the scenarios, on QEMUs with one fault each."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import NoReturn

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.cli.common import new_folder, progress
from harness.cli.recording import begin, record_option, recording
from harness.errors import UsageError
from harness.layout import checkout
from harness.mutation import cover, detection, exploration, runner
from harness.mutation.catalogue import Catalogue, Fault
from harness.mutation.detection import Detection
from harness.mutation.figures import Figures, figures
from harness.mutation.measurement import SCOPES, Measurement
from harness.mutation.qtests import PROGRAMS, QtestResult, Qtests
from harness.mutation.verdicts import Controls, Finding, RunQtests, run_all
from harness.provision import Cache, Provisioner, default_cache_root
from harness.qemu import binary
from harness.report import tables
from harness.report.nights.recorder import FAULTS, Lenient

_PAGE_WIDTH = 160
SCENARIOS, EXPLORATION = "scenarios", "exploration"
_EXPLORATION_S = 180.0
_flavour = click.option(
    "--qemu", "flavour", default="7.2", show_default=True, help="The release that is built: 7.2 or 10.0."
)
_named = click.option("--fault", "names", multiple=True, metavar="NAME", help="Only this fault; repeatable.")
_table = click.option(
    "--table",
    "path",
    type=click.Path(path_type=Path),
    help="The table of faults and scenarios; images/detection.json by default.",
)
_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(epilog="Example: harness faults run --fault tag-kept")
def faults() -> None:
    """Put faults into QEMU one at a time, and check that the scenarios find them."""


@faults.command("list", epilog="Example: harness faults list --json")
@_as_json
def list_faults(as_json: bool) -> None:
    """List the catalogue of faults."""
    found = {name: Catalogue().load(name) for name in Catalogue().names()}
    if as_json:
        print(json.dumps({name: fault.model_dump() for name, fault in found.items()}, indent=2))
        return
    table = Table("fault", "guarantee", "what is wrong", "resembles", title=f"{len(found)} faults")
    for name, fault in found.items():
        table.add_row(name, fault.guarantee, escape(fault.title), escape(fault.stands_for))
    tables.show(table)


@faults.command("build", epilog="Example: harness faults build --qemu 10.0")
@_flavour
@_named
@_as_json
def build_faults(flavour: str, names: tuple[str, ...], as_json: bool) -> None:
    """Build a QEMU for each fault.

    The QEMU without a fault is built first, which takes some minutes.
    """
    made = {name: str(path) for name, path in _build(_source(flavour), names).items()}
    print(json.dumps(made, indent=2) if as_json else "\n".join(f"{n}  {p}" for n, p in made.items()))


@faults.command(
    "run",
    epilog="Examples: harness faults run --qemu 10.0 --beside qtest --page faults.html; "
    "harness faults run --controls 5 --control-qemu 7.2 --control-qemu 7.2-stripped; "
    "harness faults run --per-test --scenarios caught-by",
)
@_flavour
@_named
@click.option(
    "--by",
    type=click.Choice([SCENARIOS, EXPLORATION]),
    default=SCENARIOS,
    show_default=True,
    help="What has to find a fault: its scenarios, or a search that knows none (see harness explore).",
)
@click.option(
    "--seconds",
    type=click.FloatRange(1),
    help=f"With --by exploration, how long to search for each fault; {_EXPLORATION_S:g} by default.",
)
@click.option(
    "--sample",
    is_flag=True,
    help=f"Run one fault of each guarantee; with --by exploration {exploration.SAMPLE}, at equal distances.",
)
@click.option(
    "-n",
    "at_once",
    type=click.IntRange(1),
    help="The number of faults that run at the same time; by default, of cores.",
)
@click.option("--beside", type=click.Choice(["qtest"]), help="Also run QEMU's own tests against each fault.")
@click.option(
    "--controls",
    type=click.IntRange(0),
    metavar="N",
    help="Run the scenarios N times against each QEMU without a fault; once by default.",
)
@click.option(
    "--control-qemu",
    "control_qemus",
    multiple=True,
    metavar="NAME|PATH",
    help="Also run the scenarios against this QEMU, which has no fault, such as Debian's own (7.2) or one "
    "without symbols; repeatable.",
)
@click.option(
    "--per-test",
    is_flag=True,
    help="Run all scenarios, also after one has failed, and write the results into --table. Results that the "
    "table has are not measured again, so this can be interrupted and started again.",
)
@click.option(
    "--scenarios",
    "scope",
    type=click.Choice(SCOPES),
    help="With --per-test, which scenarios to run: those that have to find the fault; these, and all of its "
    "guarantee; or all (the default).",
)
@click.option(
    "--default-set",
    is_flag=True,
    help="Run only the scenarios of a default run, as it runs them; without a fault, the whole default run.",
)
@_table
@click.option(
    "--artifacts",
    type=click.Path(path_type=Path),
    default=Path("artifacts/faults"),
    show_default=True,
    help="Folder for the artefacts of scenarios that fail.",
)
@click.option("--page", type=click.Path(path_type=Path), help="Also write the tables into this HTML file.")
@record_option
@_as_json
def run_faults(
    flavour: str,
    names: tuple[str, ...],
    by: str,
    seconds: float | None,
    sample: bool,
    at_once: int | None,
    beside: str | None,
    controls: int | None,
    control_qemus: tuple[str, ...],
    per_test: bool,
    scope: str | None,
    default_set: bool,
    path: Path | None,
    artifacts: Path,
    page: Path | None,
    record: Path | None,
    as_json: bool,
) -> None:
    """Run scenarios against QEMUs with a fault, and one without.

    The scenarios that have to find a fault are run against a QEMU that has it. All of them are then run
    against the QEMU without a fault.

    Exits with 1 when a fault is missed, when only scenarios of another guarantee than the broken one find it,
    when a scenario fails although there is no fault (a false positive), or when there is no result.
    """
    history = recording(record)
    if by == EXPLORATION:
        about_scenarios: dict[str, object] = {
            "--beside": beside,
            "--controls": controls,
            "--control-qemu": control_qemus or None,
            "--per-test": per_test or None,
            "--scenarios": scope,
            "--default-set": default_set or None,
            "--page": page,
        }
        for option, value in about_scenarios.items():
            if value is not None:
                raise UsageError(f"--by exploration: {option} is about scenarios")
        budget = seconds or _EXPLORATION_S
        _explore(flavour, names, sample, budget, at_once, artifacts, history, as_json=as_json)
    if seconds is not None:
        raise UsageError("--seconds can only be used with --by exploration")
    excluded = {"-n": at_once, "--beside": beside, "--controls": controls, "--control-qemu": control_qemus}
    excluded |= {"--default-set": default_set or None}
    for option, given in excluded.items():
        if per_test and given not in (None, ()):
            raise UsageError(
                f"--per-test measures one fault after the other: {option} cannot be used with it"
            )
    if scope and not per_test:
        raise UsageError("--scenarios can only be used with --per-test")
    if per_test and path is None and checkout() is None:
        raise UsageError(
            "--per-test changes a table, and that of an installed harness stays as it is: add --table PATH"
        )
    path = path or detection.default_path()
    data = detection.read(path, missing_is_empty=True)
    source = _source(flavour)
    others = [_control_qemu(name) for name in control_qemus]  # Before anything is built.
    chosen = {name: fault for name, fault in _chosen(source, names).items() if fault.sample or not sample}
    if not chosen:  # The run would assert nothing, and its controls would run every test that there is.
        raise UsageError("--sample: none of the faults that --fault names is in the sample")
    default = runner.collected()
    _build(source, tuple(chosen))
    folder = artifacts.absolute()
    begin(history, FAULTS)
    if per_test:
        hashes = detection.fingerprints(runner.files())
        measurement = Measurement(data, path, source, folder, progress, hashes)
        findings = list(_recorded(history, measurement.measure(chosen, scope or "all")))
    else:
        found = run_all(
            chosen,
            source,
            folder,
            at_once=at_once or len(os.sched_getaffinity(0)),
            report=progress,
            controls=Controls((source, *others), 1 if controls is None else controls),
            run_qtests=_run_qtests(source) if beside else None,
            by_default=_known_to_catch(data, source, chosen) if default_set else None,
        )
        findings = sorted(_recorded(history, found), key=lambda one: (not one.fault, one.fault))
    _show(findings, figures(findings, data, default), source, page=page, as_json=as_json)
    status = 0 if all(one.good for one in findings) else 1
    history.write(lambda recorder: recorder.end(status))
    sys.exit(status)


def _known_to_catch(table: Detection, qemu: str, faults: Iterable[str]) -> dict[str, list[str]]:
    """The scenarios that catch each fault, by the table; it may know more of them than the catalogue."""
    known = table.qemus.get(qemu)
    return {name: sorted(known.catches(name)) if known else [] for name in faults}


def _recorded(history: Lenient, findings: Iterable[Finding]) -> Iterator[Finding]:
    """``harness faults run --record``: each finding, when it is known."""
    for one in findings:
        _record(history, one.fault, one.qemu, one.verdict, one.detail)
        yield one


def _record(history: Lenient, fault: str, qemu: str, outcome: str, detail: str) -> None:
    kind, name = ("fault", f"{qemu}+{fault}") if fault else ("control", qemu)
    history.write(lambda recorder: recorder.find(kind, name, outcome, detail=detail))


def _explore(
    flavour: str,
    names: tuple[str, ...],
    sample: bool,
    seconds: float,
    workers: int | None,
    artifacts: Path,
    history: Lenient,
    *,
    as_json: bool,
) -> NoReturn:
    """``harness faults run --by exploration``."""
    source = _source(flavour)
    chosen = _chosen(source, names)
    if sample:
        chosen = {name: chosen[name] for name in exploration.sample(tuple(chosen))}
    _build(source, tuple(chosen))
    into = new_folder(artifacts.absolute() / EXPLORATION)
    begin(history, FAULTS)
    results = []
    for one in exploration.explore_all(
        chosen,
        source,
        into,
        seconds=seconds,
        workers=workers or len(os.sched_getaffinity(0)),
        report=progress,
    ):
        results.append(one)
        outcome = "found" if one.failure else "nothing found"
        _record(
            history, one.fault, one.qemu, f"{outcome} by exploration", f"{one.failure} {one.program}".strip()
        )
    if as_json:
        print(json.dumps([one.as_json() for one in results], indent=2))
    else:
        shown = Table("fault", "guarantee", "seconds", "programs", "failure", "program")
        for one in results:
            shown.add_row(
                one.fault or f"(none, {one.qemu})",
                one.guarantee,
                f"{one.seconds:.0f}",
                str(one.programs),
                escape(one.failure or one.problem) or "nothing found",
                escape(one.program),
            )
        tables.show(shown)
        faulty = [one for one in results if one.fault]
        found = sum(one.good for one in faulty)
        print(f"{found} of {len(faulty)} faults found by exploration; findings: {into}")
    status = 0 if all(one.good for one in results) else 1
    history.write(lambda recorder: recorder.end(status))
    sys.exit(status)


@faults.command("cover", epilog="Example: harness faults cover images/detection.json --budget 90")
@click.argument("path", metavar="[TABLE]", required=False, type=click.Path(path_type=Path))
@click.option(
    "--budget", type=click.FloatRange(0), metavar="SECONDS", help="The longest time of a default run."
)
@_as_json
def cover_faults(path: Path | None, budget: float | None, as_json: bool) -> None:
    """Compute the default set from a table, and list changes of marks.

    'harness faults run --per-test' writes TABLE, images/detection.json by default. The default set is the
    cheapest set of scenarios that catches every fault and has all scenarios that are marked 'always'. A
    scenario of today's default set that has to find a fault which was not measured stays in it.

    Exits with 1 when marks should change, when no scenario catches some fault, or when the set takes longer
    than the budget.
    """
    path = path or detection.default_path()
    data = detection.read(path)
    if not cover.targets(data):
        raise UsageError(f"{path}: no fault was measured; 'harness faults run --per-test' measures them")
    default, every = runner.collected(), runner.collected("--thorough")
    catalogue = {name: Catalogue().load(name) for name in Catalogue().names()}
    unmeasured = cover.unmeasured(data, every, {name: fault.key for name, fault in catalogue.items()})
    needed = {one.partition("[")[0] for name in unmeasured.faults for one in catalogue[name].caught_by}
    made = cover.plan(data, every, default, runner.collected("-m", "always"), needed)
    if as_json:
        print(json.dumps({**asdict(made), "unmeasured": asdict(unmeasured), "budget": budget}, indent=2))
    else:
        _show_plan(made, unmeasured, data, budget)
    late = budget is not None and made.seconds > budget
    sys.exit(1 if made.take or made.leave_out or made.never or late else 0)


def _source(name: str) -> str:
    """``harness faults --qemu``: the QEMU built from source (``7.2-src``) of a release (``7.2``)."""
    known = Provisioner(Cache(default_cache_root())).qemu_names()
    flavour = name if name in known and name.endswith("-src") else f"{name}-src"
    if flavour not in known:
        choices = ", ".join(one.removesuffix("-src") for one in known if one.endswith("-src"))
        raise UsageError(f"--qemu {name}: no QEMU of that name is built from source; known: {choices}")
    return flavour


def _chosen(flavour: str, names: tuple[str, ...]) -> dict[str, Fault]:
    """``harness faults --fault``: the faults with these names, or all that apply to that QEMU."""
    catalogue = Catalogue()
    version = binary.probe(_provisioner().qemu_release(flavour)).version_text
    found = {name: catalogue.load(name) for name in names or catalogue.names()}
    for name in names:
        if not found[name].applies_to(version):
            raise UsageError(f"--fault {name}: applies to QEMU {found[name].qemu}, not to {version}")
    return {name: fault for name, fault in found.items() if fault.applies_to(version)}


def _build(flavour: str, names: tuple[str, ...]) -> dict[str, Path]:
    provisioner = _provisioner()
    wanted = _chosen(flavour, names)
    return {name: provisioner.qemu_release(f"{flavour}+{name}").binary for name in wanted}


def _provisioner() -> Provisioner:
    return Provisioner(Cache(default_cache_root()), report=progress)


def _control_qemu(name: str) -> str:
    """A ``--control-qemu`` for pytest: a provisioned name, or an absolute path (pytest runs elsewhere).

    :raises UsageError: when it is neither a provisioned QEMU nor a file.
    """
    provisioner = _provisioner()
    if provisioner.is_provisioned(name):
        return name
    if not Path(name).is_file():
        known = ", ".join(provisioner.qemu_names())
        raise UsageError(f"--control-qemu {name}: neither a provisioned QEMU ({known}) nor a file")
    return str(Path(name).absolute())


def _run_qtests(flavour: str) -> RunQtests:
    """``--beside qtest``: run QEMU's own tests without a fault, and return what runs them against a fault."""
    provisioner = _provisioner()
    folder = provisioner.own_tests(flavour, tuple(PROGRAMS))
    tests = Qtests.of(folder, provisioner.qemu_release(flavour), progress)
    return lambda name: tests.run(provisioner.qemu_release(f"{flavour}+{name}"))


def _show(
    findings: list[Finding], numbers: list[Figures], flavour: str, *, page: Path | None, as_json: bool
) -> None:
    if as_json:
        found = [{**asdict(one), "verdict": one.verdict} for one in findings]
        print(json.dumps({"findings": found, "figures": [asdict(one) for one in numbers]}, indent=2))
    made = [_findings_table(findings, flavour), _figures_table(numbers)]
    tables.show(*made, stderr=as_json)
    if page is not None:
        console = Console(record=True, file=io.StringIO(), width=_PAGE_WIDTH)
        for one in made:
            tables.put(one, console)
        console.save_html(str(page))


def _findings_table(findings: list[Finding], flavour: str) -> Table:
    with_qtests = any(one.qtests for one in findings)
    shown = Table("fault", "guarantee", "verdict", "first failure", title=f"QEMU {flavour}")
    if with_qtests:
        shown.add_column("QEMU's own tests")
    for one in findings:
        failed = replace(one, failures=one.failures[:1]).detail
        verdict = f"[{'green' if one.good else 'red'}]{one.verdict}[/]"
        row = [escape(one.name), one.guarantee, verdict, escape(failed) or f"{one.ran} passed"]
        shown.add_row(*row, *([escape(_qtests(one.qtests))] if with_qtests else []))
    return shown


def _qtests(found: QtestResult | None) -> str:
    if found is None:
        return ""
    return ": ".join(part for part in (found.verdict, found.test, found.why) if part)


def _figures_table(numbers: list[Figures]) -> Table:
    names = (
        "faults",
        "caught",
        "by the broken guarantee",
        "by the default set",
        "by QEMU's own tests",
    )
    table = Table("", *names, title="faults that were caught")
    for one in numbers:
        parts = [(one.caught, one.faults), (one.by_guarantee, one.faults)]
        parts += [(one.by_default, one.in_table), (one.by_qtests, one.with_qtests)]
        table.add_row(one.of, str(one.faults), *(_share(*part) for part in parts))
    return table


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({100 * part / whole:.0f} %)" if whole else "not measured"


def _show_plan(made: cover.Plan, unmeasured: cover.Unmeasured, data: Detection, budget: float | None) -> None:
    costs = cover.seconds_of(data)
    finds = cover.catches(data, (*made.chosen, *made.leave_out))
    changes = Table("mark", "scenario", "seconds", "faults", title="marks that should change")
    for mark, names in (("by default", made.take), ("thorough", made.leave_out)):
        for name in names:
            changes.add_row(mark, escape(name), f"{costs[name]:.1f}", str(len(finds[name])))
    if changes.row_count:
        tables.show(changes)
    for qemu, fault in made.never:
        click.echo(f"no measured scenario catches {fault} on {qemu}")
    for what, names in asdict(unmeasured).items():
        if names:
            click.echo(f"{len(names)} {what} were not measured: {', '.join(names)}")
    click.echo(
        f"default set: {len(made.chosen)} scenarios catch {len(made.caught)} faults in {made.seconds:.0f} s"
        + (f" (budget: {budget:g} s)" if budget is not None else "")
    )
