"""How a person reaches a machine that runs: console, QMP, gdb and SSH, as commands to copy."""

from __future__ import annotations

import sys
from pathlib import Path

from harness.guest.guest import Guest
from harness.qemu.machine import Machine

_WIDTH = 9


def ways_in(machine: Machine, guest: Guest | None = None) -> list[str]:
    """One line for each way into a machine, with the command.

    :param machine: with a second QMP socket (:attr:`harness.qemu.spec.MachineSpec.monitor`).
    :param guest: the Linux inside, if one runs there.
    """
    qmp_shell = Path(sys.executable).parent / "qmp-shell"
    ways = {
        "QMP": f"{qmp_shell} {machine.paths.monitor}" if machine.spec.monitor else "",
        "gdb": f"gdb -p {machine.pid}",
    }
    if guest is not None:
        ways = {
            "console": f"socat -,raw,echo=0 UNIX-CONNECT:{machine.paths.console}",
            "kernel": f"tail -f {machine.paths.kernel_log}",
            **ways,
            "SSH": f"ssh -i {guest.image.client_key} -p {machine.ssh_port} root@127.0.0.1",
        }
    return [line(name, way) for name, way in ways.items() if way]


def line(name: str, way: str) -> str:
    """One line of :func:`ways_in`, about one way into a machine."""
    return f"{name + ':':{_WIDTH}}{way}"
