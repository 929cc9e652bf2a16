"""Introspection of QMP: which commands a QEMU has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.errors import QemuError, Unsupported

if TYPE_CHECKING:
    from harness.qemu.machine import Machine


def qmp_schema(machine: Machine) -> list[dict[str, Any]]:
    """The answer to ``query-qmp-schema``; empty for a QEMU before 2.5, which does not have the command."""
    try:
        return list(machine.qmp.execute("query-qmp-schema", watch=machine.watch))
    except QemuError as exc:
        if exc.command_not_found:
            return []
        raise


def has_command(machine: Machine, name: str) -> bool:
    """Whether this QEMU has the QMP command ``name`` (``query-commands``)."""
    known = machine.qmp.execute("query-commands", watch=machine.watch)
    return any(command["name"] == name for command in known)


def require_command(machine: Machine, name: str, why: str) -> None:
    """Require the QMP command ``name``.

    :param why: the reason why a QEMU may lack it, in a few words.
    :raises Unsupported: when this QEMU does not have it.
    """
    if not has_command(machine, name):
        raise Unsupported(f"this QEMU has no {name} ({why})")


def knows_file_uris(machine: Machine) -> bool:
    """Whether ``MigrationAddressType`` has ``file`` (``query-qmp-schema``)."""
    enums = [kind for kind in qmp_schema(machine) if kind["meta-type"] == "enum"]
    transports = ({str(v) for v in kind.get("values", ())} for kind in enums)
    return any({"socket", "exec", "rdma", "file"} <= values for values in transports)
