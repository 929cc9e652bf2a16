"""The marks of the scenarios, and the table that they come from (``images/detection.json``), agree.

What the table does not know is no failure: it can be measured later, and ``harness faults cover`` names it.
"""

from __future__ import annotations

import pytest

from harness.guarantees import BY_FILE
from harness.mutation import cover, runner, table
from harness.mutation.catalogue import Catalogue
from harness.mutation.figures import by_default

TABLE = table.read(table.default_path())
CATALOGUE = Catalogue()
KEYS = {name: CATALOGUE.load(name).key for name in CATALOGUE.names()}
#: The faults as they are in the catalogue today, on each QEMU that they were measured on.
KNOWN = [
    (qemu, name)
    for qemu, on in TABLE.qemus.items()
    for name, measured in on.faults.items()
    if measured.key == KEYS.get(name)
]


@pytest.fixture(scope="session")
def default() -> tuple[str, ...]:
    return runner.collected()


@pytest.fixture(scope="session")
def always() -> tuple[str, ...]:
    return runner.collected("-m", "always")


@pytest.mark.parametrize(("qemu", "fault"), KNOWN, ids=lambda value: value)
def test_a_default_run_catches_every_fault(qemu: str, fault: str, default: tuple[str, ...]) -> None:
    caught = TABLE.on(qemu).catches(fault)
    assert caught, f"no scenario that was measured catches {fault} on {qemu}"
    if by_default(TABLE, default, qemu, fault) is None:
        pytest.skip(f"not measured with all of a default run; caught by {', '.join(sorted(caught))}")
    assert caught & set(default), (
        f"a default run does not catch {fault} on {qemu}; these do: {', '.join(sorted(caught))} "
        "('harness faults cover' says which marks should change)"
    )


def test_a_default_run_has_a_scenario_of_every_guarantee_in_any_case(always: tuple[str, ...]) -> None:
    """Whatever is computed. A guarantee that has no scenarios yet has no file either."""
    there = {BY_FILE[path.name] for path in runner.files()}
    assert {BY_FILE[scenario.partition("::")[0]] for scenario in always} == there


@pytest.mark.parametrize("machine", ["pc", "q35"])
def test_a_default_run_plugs_in_every_way_that_is_quick(machine: str, always: tuple[str, ...]) -> None:
    """Native PCIe takes five seconds a device (the button); there a leak hunt without a guest is quick."""
    assert f"test_lifecycle.py::test_plug_mount_use_unmount_unplug[{machine}]" in always
    assert "test_leak.py::test_plug_and_unplug_without_a_guest[q35-pcie-plain]" in always


def test_what_is_always_run_is_run_by_default(default: tuple[str, ...], always: tuple[str, ...]) -> None:
    assert always
    assert set(always) <= set(default)


def test_the_table_is_written_as_the_command_writes_it() -> None:
    """Sorted, an entry a line: two versions of it can be compared."""
    path = table.default_path()
    assert path.read_text() == table.text(TABLE)


def test_the_table_names_scenarios_and_faults_that_exist() -> None:
    """One that was renamed is measured anew; its old name is taken out by hand or by a new table."""
    every = set(runner.collected("--thorough"))
    assert sorted(set(cover.seconds_of(TABLE)) - every) == []
    assert sorted({name for on in TABLE.qemus.values() for name in on.faults} - set(KEYS)) == []
