"""The marks of the scenarios agree with the table from which they were computed (``images/detection.json``).

Faults and scenarios that are not in the table do not fail these tests. ``harness faults cover`` lists them.
"""

from __future__ import annotations

import pytest

from harness.guarantees import BY_FILE
from harness.mutation import cover, detection, runner
from harness.mutation.catalogue import Catalogue
from harness.mutation.figures import by_default
from harness.qemu.machine_types import MACHINE_TYPES
from harness.tests.mutation.collecting import collected

TABLE = detection.read(detection.default_path())
CATALOGUE = Catalogue()
KEYS = {name: CATALOGUE.load(name).key for name in CATALOGUE.names()}
#: The QEMU and the name of each measured fault that has not changed since.
KNOWN = [
    (qemu, name)
    for qemu, on in TABLE.qemus.items()
    for name, measured in on.faults.items()
    if measured.key == KEYS.get(name)
]


@pytest.fixture(scope="session")
def collections(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, ...]]:
    return collected(tmp_path_factory)


@pytest.fixture
def default(collections: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    return collections["default"]


@pytest.fixture
def always(collections: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    return collections["always"]


@pytest.fixture
def every(collections: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    return collections["every"]


@pytest.mark.parametrize(("qemu", "fault"), KNOWN, ids=lambda value: value)
def test_a_default_run_catches_every_fault(qemu: str, fault: str, default: tuple[str, ...]) -> None:
    caught = TABLE.on(qemu).catches(fault)
    assert caught, f"no scenario that was measured catches {fault} on {qemu}"
    if by_default(TABLE, default, qemu, fault) is None:
        pytest.skip(f"not measured with all of a default run; caught by {', '.join(sorted(caught))}")
    assert caught & set(default), (
        f"a default run does not catch {fault} on {qemu}; these do: {', '.join(sorted(caught))} "
        "('harness faults cover' lists the marks that should change)"
    )


def _machine(scenario: str) -> str:
    """The machine type of a collected scenario, which is one of its parameters."""
    parameters = f"-{scenario.partition('[')[2].rstrip(']')}-"
    fitting = [name for name in MACHINE_TYPES if f"-{name}-" in parameters]
    return max(fitting, key=len, default="")


def test_every_fault_can_be_caught_without_choosing_a_machine_type(every: tuple[str, ...]) -> None:
    """With ``--thorough`` alone one of its scenarios runs on a machine type that shows the fault."""
    blind = []
    for name in CATALOGUE.names():
        fault = CATALOGUE.load(name)
        named = [wanted.partition("[") for wanted in fault.caught_by]
        if not any(
            scenario.startswith(f"{test}[")
            and _machine(scenario) in fault.machines
            and (not parameter or scenario.endswith((f"-{parameter}", f"[{parameter}")))
            for scenario in every
            for test, _, parameter in named
        ):
            blind.append(name)
    assert blind == []


def test_the_scenarios_marked_always_cover_every_guarantee(always: tuple[str, ...]) -> None:
    """A guarantee without scenarios has no file, and does not count."""
    existing = {BY_FILE[path.name] for path in runner.files()}
    assert {BY_FILE[scenario.partition("::")[0]] for scenario in always} == existing


@pytest.mark.parametrize("machine", ["pc", "q35"])
def test_a_default_run_has_every_quick_way_of_hotplug(machine: str, always: tuple[str, ...]) -> None:
    """Native PCIe hotplug takes five seconds a device (the attention button); without a guest it is quick."""
    assert f"test_lifecycle.py::test_plug_mount_use_unmount_unplug[{machine}]" in always
    assert "test_leak.py::test_plug_and_unplug_without_a_guest[q35-pcie-plain]" in always


def test_scenarios_marked_always_run_by_default(default: tuple[str, ...], always: tuple[str, ...]) -> None:
    assert always
    assert set(always) <= set(default)


def test_the_file_of_the_table_has_the_form_that_the_command_writes() -> None:
    """Sorted and one line an entry, so that ``diff`` shows what changed."""
    path = detection.default_path()
    assert path.read_text() == detection.text(TABLE)


def test_the_table_names_scenarios_and_faults_that_exist(every: tuple[str, ...]) -> None:
    """The old name of a renamed scenario or fault has to be removed from the table."""
    assert sorted(set(cover.seconds_of(TABLE)) - set(every)) == []
    assert sorted({name for on in TABLE.qemus.values() for name in on.faults} - set(KEYS)) == []
