"""The reasons that block the migration of a machine; before QEMU 6.0 found by trying to migrate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.errors import QemuError

if TYPE_CHECKING:
    from harness.qemu.machine import Machine

#: An address with an unknown protocol. If nothing blocks, ``migrate`` is refused because of it.
_NOWHERE = "nowhere:"
#: The major version since which ``query-migrate`` has ``blocked-reasons``.
_LISTED_SINCE = 6
#: The refusal of a migration that nothing blocks (QEMU: ``migration/migration.c``, ``qmp_migrate``).
_NOT_BLOCKED = "valid migration protocol"


def blocked_reasons(machine: Machine) -> list[str]:
    """``query-migrate``'s ``blocked-reasons`` (QEMU: ``qapi/migration.json``, since 6.0).

    On an older QEMU, a migration to an invalid address is tried: QEMU refuses it with the first blocker, or
    because of the address. So at most one reason is found, and the migration status is ``failed`` afterwards.

    :raises QemuError: when QEMU refuses for another reason, such as a migration in progress.
    """
    if lists_blocked_reasons(machine):
        answer = machine.qmp.execute("query-migrate", watch=machine.watch)
        return list(answer.get("blocked-reasons", []))
    try:
        machine.qmp.execute("migrate", {"uri": _NOWHERE}, watch=machine.watch)
    except QemuError as exc:
        if _NOT_BLOCKED in exc.desc:
            return []
        if "mounted" in exc.desc or "blocked" in exc.desc or "disabled" in exc.desc:
            return [exc.desc]
        raise
    raise AssertionError(f"migrate to {_NOWHERE} was accepted")


_VERSIONS: dict[str, int] = {}


def lists_blocked_reasons(machine: Machine) -> bool:
    """Whether this QEMU's ``query-migrate`` lists all reasons that block migration.

    It depends on the version, which is queried once for each binary. The QMP schema would be more exact, but
    takes more than a second while the heap is profiled. A development version that is taken for an older
    release still gives a correct answer.
    """
    key = machine.spec.qemu.key
    if key not in _VERSIONS:
        answer = machine.qmp.execute("query-version", watch=machine.watch)
        _VERSIONS[key] = int(answer["qemu"]["major"])
    return _VERSIONS[key] >= _LISTED_SINCE
