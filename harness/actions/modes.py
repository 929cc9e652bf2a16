"""The modes of a migration: how the QEMU that the guest arrives at comes to be.

Source: QEMU ``qapi/migration.json``, ``MigMode``. Beside ``normal`` there are ``cpr-reboot`` (since 8.2),
``cpr-transfer`` (10.0) and ``cpr-exec`` (10.2): a new QEMU on the same host, after a reboot, beside the old
one, or in its place. The last two hand the guest's memory over as it is; what is not shared blocks them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from harness.errors import QemuError, Unsupported
from harness.qemu.machine import Machine

NORMAL = "normal"
MODES = (NORMAL, "cpr-reboot", "cpr-transfer", "cpr-exec")


def require_mode(machine: Machine, mode: str) -> None:
    """:raises Unsupported: when this QEMU has no such mode; with its reason. Nothing is changed."""
    with in_mode(machine, mode):
        pass


@contextmanager
def in_mode(machine: Machine, mode: str) -> Iterator[None]:
    """The machine's migrations are of that ``mode`` meanwhile.

    :raises Unsupported: when this QEMU has no such mode; with its reason.
    """
    if mode == NORMAL:  # A QEMU before 8.2 has no name for it.
        yield
        return
    try:
        machine.qmp.execute("migrate-set-parameters", {"mode": mode})
    except QemuError as exc:
        raise Unsupported(f"{mode}: {machine.name} has no such migration mode: {exc.desc}") from exc
    try:
        yield
    finally:
        if machine.running:
            machine.qmp.execute("migrate-set-parameters", {"mode": NORMAL})
