"""Baselines of the benchmark ``start``: a bare script and labgrid, on the same QEMU, kernel and initramfs."""

from __future__ import annotations

import importlib.util
import itertools
import json
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import paramiko

from harness.deadline import Deadline, wait_until
from harness.errors import SetupError
from harness.guest.guest import BOOT_TIMEOUT_S, NETWORK_IS_UP
from harness.qemu.argv import MachinePaths, render
from harness.qemu.machine import reserved_port
from harness.qemu.spec import MachineSpec
from harness.reaper import MARK, RunFolder
from harness.testbed import Cell

_numbers = itertools.count(1)


def bare_boot(cell: Cell, run: RunFolder) -> float:
    """Start a guest as a plain script does: start QEMU, try SSH until a command is answered, kill QEMU.

    :returns: the seconds until the answer.
    """
    folder = run.path / f"bare{next(_numbers)}"
    folder.mkdir()
    paths = MachinePaths(
        *(folder / name for name in ("qmp", "console", "guestfwd", "disk", "kernel.log", "console.log"))
    )
    spec, port = cell.spec("bare", (), frozenset()), free_port()
    shutil.copyfile(spec.disk, paths.disk)
    argv = render(spec, paths, ssh_port=port)
    key = paramiko.Ed25519Key.from_private_key_file(str(cell.image.client_key))
    clock = Deadline.after(0)
    with (folder / "qemu.log").open("wb") as log:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**run.environment(), **spec.qemu.environment},
        )
    try:
        wait_until(
            lambda: _answers(port, key),
            what="the bare script's guest",
            timeout_s=cell.accel.timeout_scale.seconds(BOOT_TIMEOUT_S),
            interval_s=0.1,
        )
        return clock.elapsed_s
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _answers(port: int, key: paramiko.PKey) -> bool:
    with paramiko.SSHClient() as client:
        client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
        try:
            client.connect(
                "127.0.0.1", port, "root", pkey=key, allow_agent=False, look_for_keys=False, timeout=2
            )
            return client.exec_command("true")[1].channel.recv_exit_status() == 0
        except (OSError, EOFError, paramiko.SSHException):
            return False


def free_port() -> int:
    """A TCP port that is free now. Another process may take it before it is used, as in any script."""
    with reserved_port() as port:
        return port


def has_labgrid() -> bool:
    """Whether labgrid is installed (``pip install 'virtio-9p-harness[bench]'``)."""
    return importlib.util.find_spec("labgrid") is not None


def labgrid_boot(cell: Cell, run: RunFolder) -> float:
    """Start a guest with labgrid: QEMUDriver starts QEMU and reads its console, SSHDriver runs a command.

    :returns: the seconds until the command's answer.
    :raises SetupError: when labgrid raises any exception.
    """
    from labgrid import Environment

    folder = run.path / f"labgrid{next(_numbers)}"
    folder.mkdir()
    config = folder / "environment.yaml"
    # JSON is YAML too.
    config.write_text(json.dumps(_labgrid_config(cell, run, folder)))
    environment = Environment(str(config))
    target = environment.get_target("main")
    qemu, ssh = (target.get_driver(name, activate=False) for name in ("QEMUDriver", "SSHDriver"))
    clock = Deadline.after(0)
    try:
        target.activate(qemu)
        qemu.on()
        # The guest blocks when nothing reads its console.
        qemu.expect(NETWORK_IS_UP, timeout=cell.accel.timeout_scale.seconds(BOOT_TIMEOUT_S))
        target.activate(ssh)
        ssh.run_check("true")
        return clock.elapsed_s
    except Exception as exc:  # labgrid's exceptions, pexpect's and built-in ones.
        raise SetupError(f"labgrid failed: {exc}") from exc
    finally:
        environment.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


def _labgrid_config(cell: Cell, run: RunFolder, folder: Path) -> dict[str, Any]:
    spec, port = cell.spec("labgrid", (), frozenset()), free_port()
    network = f"user,id=net0,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22"
    arguments = ["-nodefaults", "-no-user-config", "-smp", "1", "-initrd", str(spec.boot.initramfs)]
    nic = spec.machine_type.nic
    place = "".join(f",{name}={value}" for name, value in nic.items() if name != "driver")
    arguments += ["-netdev", network, "-device", f"{nic['driver']},netdev=net0{place}"]
    return {
        "targets": {
            "main": {
                "resources": {"NetworkService": {"address": "127.0.0.1", "username": "root", "port": port}},
                "drivers": {
                    "QEMUDriver": {
                        "qemu_bin": "qemu",
                        "machine": f"{spec.machine_type.qemu},accel={spec.accel}",
                        "cpu": spec.cpu or spec.machine_type.architecture.cpu,
                        "memory": f"{spec.memory_mib}M",
                        "kernel": "kernel",
                        "boot_args": spec.boot.cmdline,
                        "extra_args": shlex.join(arguments),
                    },
                    "SSHDriver": {
                        "keyfile": str(cell.image.client_key),
                        "connection_timeout": cell.accel.timeout_scale.seconds(BOOT_TIMEOUT_S),
                    },
                },
            }
        },
        "tools": {"qemu": str(_wrapper(spec, run, folder))},
        "images": {"kernel": str(spec.boot.kernel)},
    }


def _wrapper(spec: MachineSpec, run: RunFolder, folder: Path) -> Path:
    """A script that starts QEMU for labgrid.

    labgrid takes a tool as one path, and a provisioned QEMU has arguments.
    """
    given = {**spec.qemu.environment, MARK: str(run.path)}
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in given.items())
    script = folder / "qemu"
    script.write_text(f'#!/bin/sh\n{exports}exec {shlex.join(spec.qemu.argv())} "$@"\n')
    script.chmod(0o700)
    return script
