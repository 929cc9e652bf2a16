"""From a spec to QEMU's arguments: a pure function, and the same command as a shell script."""

from __future__ import annotations

import base64
import gzip
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.qemu.spec import MachineSpec, Value

#: Fixed, so that a destination's network card is its source's.
MAC = "52:54:00:9b:00:01"
DISK_NODE = "disk0"
#: Where the guest reaches the guestfwd socket (:mod:`harness.channel.guestfwd`) from inside.
GUESTFWD_ADDRESS, GUESTFWD_PORT = "10.0.2.100", 22


@dataclass(frozen=True)
class MachinePaths:
    """Where one machine's sockets, disk and logs are."""

    qmp: Path
    console: Path
    guestfwd: Path
    disk: Path
    kernel_log: Path
    console_log: Path

    @property
    def monitor(self) -> Path:
        """The path in QEMU's arguments of a second QMP socket, for people.

        Each serves one client at a time, and one is the harness's.
        """
        return self.qmp.with_name("qmp2.sock")


def render(spec: MachineSpec, paths: MachinePaths, ssh_port: int = 0) -> list[str]:
    """The complete argument vector for ``spec``.

    Only options that QEMU has had since 2.4 are used, in their long form (``server=on``), and those that
    ``spec.qemu`` says it has.

    :param ssh_port: the port on the host that leads to the guest's SSH; 0 for any that is free.
    """
    return spec.qemu.argv(
        *_machine(spec),
        *_monitor(spec, paths),
        *_serial(spec, paths),
        *_network(spec, paths, ssh_port),
        *_disk(paths),
        *_boot(spec),
        *spec.machine_type.place_arguments,
        *spec.extra,  # may have a bus that a share is plugged into
        *_devices(spec),
        *(("-incoming", "defer") if spec.incoming else ()),
    )


def _machine(spec: MachineSpec) -> Iterator[str]:
    yield from ("-name", f"harness-{spec.name}")
    # Guest memory stays out of core dumps: they are for QEMU's own state, and have to be quick.
    own = spec.memory_file or spec.shares_memory
    backend = f",memory-backend={spec.machine_type.ram_id}" if own else ""
    yield from ("-machine", f"{spec.machine_type.qemu},accel={spec.accel},dump-guest-core=off{backend}")
    yield from (
        "-cpu",
        spec.cpu or spec.machine_type.architecture.cpu,
        "-smp",
        "1",
        "-m",
        str(spec.memory_mib),
    )
    yield from _memory(spec)
    yield from ("-nodefaults", "-no-user-config", "-display", "none")
    yield from spec.machine_type.arguments


def _memory(spec: MachineSpec) -> Iterator[str]:
    if spec.memory_file:
        share = "on" if spec.memory_file.share else "off"
        ram, path = spec.machine_type.ram_id, _comma(spec.memory_file.path)
        yield "-object"
        yield f"memory-backend-file,id={ram},size={spec.memory_mib}M,mem-path={path},share={share}"
    elif spec.shares_memory:
        yield "-object"
        yield f"memory-backend-memfd,id={spec.machine_type.ram_id},size={spec.memory_mib}M,share=on"


def _monitor(spec: MachineSpec, paths: MachinePaths) -> Iterator[str]:
    yield from ("-chardev", f"socket,id=qmp,path={_comma(paths.qmp)},server=on,wait=off")
    yield from ("-mon", "chardev=qmp,mode=control")
    if spec.monitor:
        yield from ("-chardev", f"socket,id=qmp2,path={_comma(paths.monitor)},server=on,wait=off")
        yield from ("-mon", "chardev=qmp2,mode=control")


def _serial(spec: MachineSpec, paths: MachinePaths) -> Iterator[str]:
    # The first console is the kernel's alone and goes to a file, so no reader is needed for it to be
    # complete; the second is the guest's shell, logged by QEMU as it passes.
    kernel, shell = spec.machine_type.consoles
    append, log = "", ""
    if spec.qemu.chardev_logs:
        append, log = ",append=on", f",logfile={_comma(paths.console_log)},logappend=on"
    yield from ("-chardev", f"file,id={kernel.name},path={_comma(paths.kernel_log)}{append}")
    yield from kernel.arguments
    yield from ("-chardev", f"socket,id={shell.name},path={_comma(paths.console)},server=on,wait=off{log}")
    yield from shell.arguments


def _network(spec: MachineSpec, paths: MachinePaths, ssh_port: int) -> Iterator[str]:
    yield from ("-chardev", f"socket,id=guestfwd,path={_comma(paths.guestfwd)},server=on,wait=off")
    # Port 0: the kernel picks a free one, so two runs never race for a number (slirp: hostfwd).
    from_guest = f"guestfwd=tcp:{GUESTFWD_ADDRESS}:{GUESTFWD_PORT}-chardev:guestfwd"
    forwards = f"hostfwd=tcp:127.0.0.1:{ssh_port}-:22,{from_guest}"
    yield from ("-netdev", f"user,id=net0,restrict=on,{forwards}")
    # No announcement: a restored guest would send one first of all, and nobody needs it.
    # No offloads for the guest to change (a property since 1.6): the stream has eight bytes for them
    # that 2.4.0 writes and does not read, so no machine arrives (fixed in 2.4.1 and 2.5, 1f8828ef573c).
    driver, *place = _options(spec.machine_type.nic).split(",")
    card = (driver, "id=nic0", "netdev=net0", f"mac={MAC}", *place, "guest_announce=off")
    yield from ("-device", ",".join([*card, "ctrl_guest_offloads=off"]))


def _disk(paths: MachinePaths) -> Iterator[str]:
    # No guest device: it exists to hold the snapshots of savevm.
    yield "-drive"
    yield f"if=none,id=drive0,node-name={DISK_NODE},file={_comma(paths.disk)},format=qcow2,cache=unsafe"


def _boot(spec: MachineSpec) -> Iterator[str]:
    if spec.firmware is not None:
        yield from ("-bios", str(spec.firmware))
    if not spec.boots:
        return
    kernel = spec.boot.kernel if spec.qemu.boots_elf else spec.boot.bzimage
    yield from ("-kernel", str(kernel), "-initrd", str(spec.boot.initramfs))
    yield from ("-append", " ".join(filter(None, (spec.boot.cmdline, spec.machine_type.cmdline))))


def _devices(spec: MachineSpec) -> Iterator[str]:
    for device in spec.pluggable:
        for option, properties in device.declared():
            yield from (option, _options(properties))
        if device.id in spec.plugged:
            yield from ("-device", _options(device.device(spec.machine_type)))


def _options(properties: Mapping[str, Value]) -> str:
    """``name=value`` pairs as one option of QEMU's arguments; the first property has no name."""
    (_, first), *rest = properties.items()
    return ",".join([str(first), *(f"{name}={_comma(_text(value))}" for name, value in rest)])


def _text(value: Value) -> str:
    """A value as an option of QEMU's arguments says it."""
    return ("on" if value else "off") if isinstance(value, bool) else str(value)


def _comma(value: str | Path) -> str:
    """A value inside an option of QEMU's arguments: a comma is doubled (``util/qemu-option.c``)."""
    return str(value).replace(",", ",,")


def script(spec: MachineSpec, run_folder: Path, ssh_port: int = 0) -> str:
    """A shell script that starts the same machine again by itself, in a new folder.

    Every path inside ``run_folder`` (sockets, disk, shares) is moved to a fresh temporary folder, made
    when the script runs and removed when QEMU ends; kernel, initramfs and QEMU stay where the cache has them.
    """

    # Inside an option the folder's commas are doubled; that spelling is looked for first.
    inside = "|".join(re.escape(spelling) for spelling in (_comma(run_folder), str(run_folder)))

    def here(text: str) -> str:
        return '"$RUN"'.join(part and shlex.quote(part) for part in re.split(inside, text))

    scratch = MachinePaths(
        qmp=run_folder / "qmp.sock",
        console=run_folder / "console.sock",
        guestfwd=run_folder / "guestfwd.sock",
        disk=run_folder / "disk.qcow2",
        kernel_log=run_folder / "guest-kernel.log",
        console_log=run_folder / "console.log",
    )
    words = [here(word) for word in render(spec, scratch, ssh_port)]
    lines = [
        "#!/bin/sh",
        f"# Starts the QEMU {spec.name!r} of this test again ({spec.qemu.name}, {spec.machine_type.name}).",
        "set -eu",
        'RUN=$(mktemp -d "${TMPDIR:-/tmp}/argv-XXXXXX")',
        "trap 'rm -rf \"$RUN\"' EXIT",
        # dash runs the EXIT trap only when it exits, not when a signal ends it.
        "trap 'exit 130' HUP INT TERM",
        f'cp {shlex.quote(str(spec.disk))} "$RUN/disk.qcow2"',
        *(f"mkdir -p {here(str(share.path))}" for share in spec.shares),
        *_made_firmware(spec, run_folder, here),
        'echo "QMP: $RUN/qmp.sock  shell: $RUN/console.sock  kernel: $RUN/guest-kernel.log" >&2',
        *(f"export {name}={shlex.quote(value)}" for name, value in spec.qemu.environment.items()),
        _wrapped(words),
    ]
    return "\n".join(lines) + "\n"


def _made_firmware(spec: MachineSpec, run_folder: Path, here: Callable[[str], str]) -> Iterator[str]:
    """A command of the script that makes the firmware, if that is a file of the run, which ends with it."""
    if spec.firmware is not None and spec.firmware.is_relative_to(run_folder):
        packed = base64.b64encode(gzip.compress(spec.firmware.read_bytes(), mtime=0)).decode()
        yield f"echo {packed} | base64 -d | gunzip > {here(str(spec.firmware))}"


def _wrapped(words: list[str]) -> str:
    """QEMU's arguments over several lines: each option that takes a value stands with it on one."""
    first, *rest = words
    return first + "".join(f" \\\n    {word}" if word.startswith("-") else f" {word}" for word in rest)
