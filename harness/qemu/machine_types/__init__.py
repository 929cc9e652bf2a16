"""The machine types that the harness knows. To add one, write a module with its data and list it here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from harness.errors import UsageError
from harness.qemu.architectures import ARCHITECTURES, UNUSABLE, X86_64
from harness.qemu.machine_types.machine_type import MachineType
from harness.qemu.machine_types.microvm import MICROVM
from harness.qemu.machine_types.pc import PC
from harness.qemu.machine_types.q35 import Q35
from harness.qemu.machine_types.q35_pcie import Q35_PCIE
from harness.qemu.machine_types.s390_ccw import S390_CCW
from harness.qemu.machine_types.virt import VIRT
from harness.qemu.machine_types.virt_acpi import VIRT_ACPI

#: By the harness's name; the first is the default where one has to be chosen.
MACHINE_TYPES: Mapping[str, MachineType] = {
    kind.name: kind for kind in (PC, Q35, Q35_PCIE, S390_CCW, VIRT, VIRT_ACPI, MICROVM)
}


def of_architectures(*names: str) -> tuple[str, ...]:
    """The names of all known machine types of these architectures.

    :raises UsageError: for an unknown architecture.
    """
    for name in names:
        if name not in ARCHITECTURES:
            why = UNUSABLE.get(name, "unknown architecture")
            raise UsageError(f"--arch {name}: {why}; known: {', '.join(ARCHITECTURES)}")
    return tuple(name for name, kind in MACHINE_TYPES.items() if kind.architecture.name in names)


def chosen(architectures: Iterable[str], machines: Iterable[str]) -> tuple[str, ...]:
    """The names of the machine types for ``--arch`` and ``--machine``, of which either may be empty.

    :raises UsageError: for an unknown architecture, or a machine type that is of another one.
    """
    architectures, machines = tuple(architectures), tuple(machines)
    possible = of_architectures(*(architectures or (X86_64.name,)))
    if not machines:
        return tuple(name for name in possible if MACHINE_TYPES[name].by_default)
    for name in machines:
        if architectures and name in MACHINE_TYPES and name not in possible:
            own = MACHINE_TYPES[name].architecture.name
            raise UsageError(f"--machine {name}: is of architecture {own}, not {', '.join(architectures)}")
    return machines


#: The machine types of the default architecture that are used when none is named.
DEFAULT_MACHINE_TYPES = chosen((), ())


def known_machine_types(names: list[str]) -> list[str]:
    """Return ``names``, each of which has to be in :data:`MACHINE_TYPES`: a validator of pydantic's.

    :raises ValueError: when one is unknown.
    """
    unknown = sorted(set(names) - set(MACHINE_TYPES))
    if unknown:
        raise ValueError(f"unknown machine types: {', '.join(unknown)}")
    return names
