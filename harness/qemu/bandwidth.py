"""The bandwidth limit of a machine's migration, set in the way that this QEMU supports."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.errors import QemuError

if TYPE_CHECKING:
    from harness.qemu.machine import Machine

_PARAMETER = "max-bandwidth"
#: The default limit of a QEMU that does not report it, in bytes per second (QEMU 2.5:
#: ``migration/migration.c``, ``MAX_THROTTLE``).
_DEFAULT = 32 << 20


def bandwidth(machine: Machine) -> int:
    """The limit in bytes per second; the default limit for a QEMU before 2.8, which does not report it."""
    return int(machine.qmp.execute("query-migrate-parameters").get(_PARAMETER, _DEFAULT))


def limit_bandwidth(machine: Machine, limit: int) -> None:
    """Limit the migration to ``limit`` bytes per second.

    It is a migration parameter since 2.8. Before that it is the command ``migrate_set_speed`` (removed in
    6.0).
    """
    try:
        machine.qmp.execute("migrate-set-parameters", {_PARAMETER: limit})
    except QemuError as exc:
        if exc.desc != f"Invalid parameter '{_PARAMETER}'":
            raise
        machine.qmp.execute("migrate_set_speed", {"value": limit})
