"""The modes of a migration (QEMU: ``qapi/migration.json``, ``MigMode``).

Beside ``normal`` there are three modes with a new QEMU on the same host: ``cpr-reboot`` (since 8.2) starts
it after a reboot, ``cpr-transfer`` (10.0) beside the old QEMU, and ``cpr-exec`` (10.2) in the old QEMU's
process. The last two keep the guest's memory in place; memory that is not shared blocks them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from harness.errors import QemuError, QmpLost, Unsupported
from harness.qemu.machine import Machine

NORMAL, CPR_TRANSFER, CPR_EXEC = "normal", "cpr-transfer", "cpr-exec"
MODES = (NORMAL, "cpr-reboot", CPR_TRANSFER, CPR_EXEC)
#: What a mode needs, or QEMU refuses to migrate for that reason: the program that replaces QEMU. This one
#: ends at once, so a migration that should have been refused ends QEMU.
_PARAMETERS: Mapping[str, Mapping[str, Any]] = {CPR_EXEC: {"cpr-exec-command": ["false"]}}


def require_mode(machine: Machine, mode: str) -> None:
    """Check that this QEMU has the ``mode``; nothing is changed.

    :raises Unsupported: when it does not, with QEMU's reason.
    """
    with in_mode(machine, mode):
        pass


@contextmanager
def in_mode(machine: Machine, mode: str, parameters: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Set the mode of the machine's migrations for the duration of the context.

    :param parameters: what the mode needs, if not what every machine can be given.
    :raises Unsupported: when this QEMU does not have the ``mode``, with QEMU's reason.
    """
    if mode == NORMAL:  # A QEMU before 8.2 has no parameter for it.
        yield
        return
    try:
        machine.qmp.execute(
            "migrate-set-parameters", {"mode": mode, **(parameters or _PARAMETERS.get(mode, {}))}
        )
    except QemuError as exc:
        raise Unsupported(f"{mode}: {machine.name} has no such migration mode: {exc.desc}") from exc
    try:
        yield
    finally:
        with suppress(QmpLost):  # QEMU has ended, or is about to.
            machine.qmp.execute("migrate-set-parameters", {"mode": NORMAL})
