"""The machine types that the harness knows. To add one, write a module with its data and list it here."""

from __future__ import annotations

from collections.abc import Mapping

from harness.qemu.machine_types.machine_type import MachineType
from harness.qemu.machine_types.pc import PC
from harness.qemu.machine_types.q35 import Q35
from harness.qemu.machine_types.q35_pcie import Q35_PCIE

#: By the harness's name; the first is the default where one has to be chosen.
MACHINE_TYPES: Mapping[str, MachineType] = {kind.name: kind for kind in (PC, Q35, Q35_PCIE)}


def known_machine_types(names: list[str]) -> list[str]:
    """Return ``names``, each of which has to be in :data:`MACHINE_TYPES`: a validator of pydantic's.

    :raises ValueError: when one is unknown.
    """
    unknown = sorted(set(names) - set(MACHINE_TYPES))
    if unknown:
        raise ValueError(f"unknown machine types: {', '.join(unknown)}")
    return names
