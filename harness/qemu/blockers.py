"""What blocks a machine's migration now: asked of QEMU, and of one before 6.0 found out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.errors import QemuError

if TYPE_CHECKING:
    from harness.qemu.machine import Machine

#: No protocol that any QEMU knows: where nothing blocks, this is what ``migrate`` is refused for.
_NOWHERE = "nowhere:"
#: The major version since which ``query-migrate`` has ``blocked-reasons``.
_LISTED_SINCE = 6
#: What a migration that could have begun is refused for (QEMU: ``migration/migration.c``, ``qmp_migrate``).
_BEGUN = "valid migration protocol"


def blocked_reasons(machine: Machine) -> list[str]:
    """``query-migrate``'s ``blocked-reasons`` (QEMU: ``qapi/migration.json``, since 6.0).

    An older QEMU is asked to migrate to nowhere: its refusal is the first of the reasons, or the address. So
    at most one is found, and its status is ``failed`` afterwards.

    :raises QemuError: when that is refused for another reason, such as a migration under way.
    """
    if lists_blocked_reasons(machine):
        answer = machine.qmp.execute("query-migrate", watch=machine.watch)
        return list(answer.get("blocked-reasons", []))
    try:
        machine.qmp.execute("migrate", {"uri": _NOWHERE}, watch=machine.watch)
    except QemuError as exc:
        if _BEGUN in exc.desc:
            return []
        if "mounted" in exc.desc or "blocked" in exc.desc or "disabled" in exc.desc:
            return [exc.desc]
        raise
    raise AssertionError(f"migrate to {_NOWHERE} was accepted")


_VERSIONS: dict[str, int] = {}


def lists_blocked_reasons(machine: Machine) -> bool:
    """Whether this QEMU lists every reason.

    Each binary is asked for its version once. The schema would say it too, and under a heap that is profiled
    takes QEMU more than a second; a QEMU between two releases that is taken for an older one answers as well.
    """
    key = machine.spec.qemu.key
    if key not in _VERSIONS:
        answer = machine.qmp.execute("query-version", watch=machine.watch)
        _VERSIONS[key] = int(answer["qemu"]["major"])
    return _VERSIONS[key] >= _LISTED_SINCE
