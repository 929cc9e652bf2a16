"""What a QEMU says of its own QMP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.errors import QemuError

if TYPE_CHECKING:
    from harness.qemu.machine import Machine


def qmp_schema(machine: Machine) -> list[dict[str, Any]]:
    """The answer to ``query-qmp-schema``; of a QEMU before 2.5, which has no such command, nothing."""
    try:
        return list(machine.qmp.execute("query-qmp-schema", watch=machine.watch))
    except QemuError as exc:
        if exc.command_not_found:
            return []
        raise
