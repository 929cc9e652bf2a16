"""``harness faults``: what the scenarios are worth, shown on QEMUs with one fault each."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from harness import detection
from harness.cli.report import progress
from harness.detection import CAUGHT, SILENT, Finding
from harness.errors import UsageError
from harness.provision import Cache, Provisioner, default_cache_root
from harness.provision.faults import Catalogue, Fault
from harness.qemu import binary

_flavour = click.option(
    "--qemu", "flavour", default="7.2", show_default=True, help="The release to build: 7.2 or 10.0."
)
_named = click.option("--fault", "names", multiple=True, metavar="NAME", help="Only this one; repeatable.")
_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(epilog="Example: harness faults run --fault tag-kept")
def faults() -> None:
    """Faults that are put into QEMU one at a time, and the scenarios that have to find them."""


@faults.command("list", epilog="Example: harness faults list --json")
@_as_json
def list_faults(as_json: bool) -> None:
    """What there is in the catalogue."""
    found = {name: Catalogue().load(name) for name in Catalogue().names()}
    if as_json:
        print(json.dumps({name: fault.model_dump() for name, fault in found.items()}, indent=2))
        return
    table = Table("fault", "guarantee", "what is wrong", "like", title=f"{len(found)} faults")
    for name, fault in found.items():
        table.add_row(name, fault.guarantee, fault.title, fault.stands_for)
    Console().print(table)


@faults.command("build", epilog="Example: harness faults build --qemu 10.0")
@_flavour
@_named
@_as_json
def build_faults(flavour: str, names: tuple[str, ...], as_json: bool) -> None:
    """Build every fault; QEMU itself first, which takes some minutes."""
    made = {name: str(path) for name, path in _build(_source(flavour), names).items()}
    print(json.dumps(made, indent=2) if as_json else "\n".join(f"{n}  {p}" for n, p in made.items()))


@faults.command("run", epilog="Example: harness faults run --qemu 10.0 --page faults.html")
@_flavour
@_named
@click.option("--sample", is_flag=True, help="Only one fault of each guarantee.")
@click.option("-n", "at_once", type=click.IntRange(1), help="Faults at the same time; one a core by default.")
@click.option(
    "--artifacts", type=click.Path(path_type=Path), default=Path("artifacts/faults"), show_default=True
)
@click.option("--page", type=click.Path(path_type=Path), help="Write the table as a page, too.")
@_as_json
def run_faults(
    flavour: str,
    names: tuple[str, ...],
    sample: bool,
    at_once: int | None,
    artifacts: Path,
    page: Path | None,
    as_json: bool,
) -> None:
    """Run each fault's scenarios against a QEMU that has it, and all of them against one that has none.

    Exits with 1 when a fault is missed, is caught by another guarantee than the one it breaks, or when
    there is an alarm without a fault.
    """
    source = _source(flavour)
    chosen = {name: fault for name, fault in _chosen(source, names).items() if fault.sample or not sample}
    _build(source, tuple(chosen))
    found = list(
        detection.look_for_all(
            chosen,
            source,
            artifacts.absolute(),
            at_once=at_once or len(os.sched_getaffinity(0)),
            report=progress,
        )
    )
    if as_json:
        print(json.dumps([{**asdict(one), "verdict": one.verdict} for one in found], indent=2))
    console = Console(record=page is not None, stderr=as_json)
    console.print(_table(found, source))
    if page is not None:
        console.save_html(str(page))
    sys.exit(0 if all(one.verdict in (CAUGHT, SILENT) for one in found) else 1)


def _source(name: str) -> str:
    """The flavour that is meant by a release's name."""
    known = Provisioner(Cache(default_cache_root())).qemu_names()
    flavour = name if name in known and name.endswith("-src") else f"{name}-src"
    if flavour not in known:
        choices = ", ".join(one.removesuffix("-src") for one in known if one.endswith("-src"))
        raise UsageError(f"--qemu {name}: no QEMU by that name is built from source; known: {choices}")
    return flavour


def _chosen(flavour: str, names: tuple[str, ...]) -> dict[str, Fault]:
    """The faults that were named, or all that can be put into that QEMU."""
    catalogue = Catalogue()
    version = binary.probe(_provisioner().qemu_release(flavour)).version_text
    found = {name: catalogue.load(name) for name in names or catalogue.names()}
    for name in names:
        if not found[name].applies_to(version):
            raise UsageError(f"--fault {name}: it is for QEMU {found[name].qemu}, not {version}")
    return {name: fault for name, fault in found.items() if fault.applies_to(version)}


def _build(flavour: str, names: tuple[str, ...]) -> dict[str, Path]:
    provisioner = _provisioner()
    wanted = _chosen(flavour, names)
    return {name: provisioner.qemu_release(f"{flavour}+{name}").binary for name in wanted}


def _provisioner() -> Provisioner:
    return Provisioner(Cache(default_cache_root()), report=progress)


def _table(found: list[Finding], flavour: str) -> Table:
    wanted = [one for one in found if one.fault]
    caught = sum(one.verdict == CAUGHT for one in wanted)
    title = f"QEMU {flavour}: {caught} of {len(wanted)} faults caught by the guarantee that they break"
    table = Table("fault", "breaks", "verdict", "failed", title=title)
    for one in found:
        failed = "; ".join(f"{failure.name}: {failure.why}" for failure in one.failures[:1])
        good = one.verdict in (CAUGHT, SILENT)
        verdict = f"[{'green' if good else 'red'}]{one.verdict}[/]"
        table.add_row(one.fault or "(none)", one.guarantee, verdict, failed or f"{one.ran} passed")
    return table
