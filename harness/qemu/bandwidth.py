"""How fast a machine's migration stream may flow, in whatever words this QEMU has for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.errors import QemuError

if TYPE_CHECKING:
    from harness.qemu.machine import Machine

_PARAMETER = "max-bandwidth"
#: What a QEMU that does not tell begins with, bytes a second (QEMU 2.5: ``migration/migration.c``,
#: ``MAX_THROTTLE``).
_DEFAULT = 32 << 20


def bandwidth(machine: Machine) -> int:
    """The limit in bytes a second; of a QEMU before 2.8, the one that it begins with."""
    return int(machine.qmp.execute("query-migrate-parameters").get(_PARAMETER, _DEFAULT))


def limit_bandwidth(machine: Machine, limit: int) -> None:
    """Limit the stream to so many bytes a second.

    A parameter since 2.8, and a command before (``migrate_set_speed``, until 6.0).
    """
    try:
        machine.qmp.execute("migrate-set-parameters", {_PARAMETER: limit})
    except QemuError as exc:
        if exc.desc != f"Invalid parameter '{_PARAMETER}'":
            raise
        machine.qmp.execute("migrate_set_speed", {"value": limit})
