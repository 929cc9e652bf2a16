"""A QEMU binary: how to start it, where its firmware is, and what it supports.

All of this is probed by running the binary (``--version``, ``-machine help``, ``-device help``, ``-L help``),
never looked up by version.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise, product
from pathlib import Path

from harness.errors import SetupError, Unsupported, UsageError, Violation
from harness.qemu import sanitizers
from harness.qemu.architectures import X86_64, Architecture

#: The firmware file that every PC needs (QEMU: ``pc-bios/``, ``hw/i386/x86.c``).
FIRMWARE = X86_64.firmware
#: The option ROM that boots an uncompressed kernel (QEMU: ``pc-bios/optionrom/pvh.S``).
_PVH = "pvh.bin"
PROGRAM = X86_64.program
#: The library that is preloaded to profile QEMU's heap: jemalloc, as named in Debian's libjemalloc2.
HEAP_LIBRARY = "libjemalloc.so.2"
#: The property of ``ICH9-LPC`` for ACPI hotplug behind root ports, since 6.1 (QEMU: ``hw/acpi/ich9.c``).
ACPI_ROOT_PORTS = "acpi-pci-hotplug-with-bridge-support"
#: Where Debian has EDK2 for aarch64 (package qemu-efi-aarch64); QEMU itself does not look there.
_EFI = Path("/usr/share/qemu-efi-aarch64")
_PROBE_TIMEOUT_S = 60
#: A machine without devices, and an option whose error makes QEMU exit after it has processed the others.
_EMPTY_MACHINE = ("-machine", "none", "-nodefaults", "-display", "none")
_EXIT = ("-device", "harness-ends-here")
#: Options that not every QEMU knows.
_PROBED_OPTIONS = (
    *("-chardev", f"null,id=log,logfile={os.devnull}"),
    *("-netdev", "user,id=net,hostfwd=tcp:127.0.0.1:0-:22"),
)
#: The library folders of a Linux host (Debian with multiarch; Fedora; others).
HOST_LIBRARIES = tuple(
    Path(folder) for folder in ("/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/local/lib", "/usr/lib")
)


@dataclass(frozen=True)
class QemuInstall:
    """How to start a QEMU.

    :ivar name: the name or path that the user gave.
    :ivar binary: the ELF file, or a script that starts QEMU.
    :ivar command: what to execute; for an unpacked release its own dynamic loader, the library path and the
        binary.
    :ivar arguments: arguments that follow the command on every call, such as firmware folders.
    :ivar environment: variables to add to the environment.
    :ivar origin: ``path`` for a QEMU of the user, else how it was provisioned.
    :ivar key: identifies the content of the binary, for caches.
    :ivar libraries: the folders of its shared libraries; empty for a script.
    :ivar profilers: further libraries that may profile its heap (:mod:`harness.leaks.heap_profile`).
    :ivar sanitized: whether it was built with AddressSanitizer.
    :ivar chardev_logs: whether ``-chardev`` has ``logfile`` and ``append`` (since 2.6).
    :ivar any_port: whether ``hostfwd`` accepts port 0, for any free port.
    :ivar boots_elf: whether ``-kernel`` accepts an uncompressed kernel (since 4.0).
    :ivar unstripped: the names of provisioned QEMUs of the same release that have symbols.
    """

    name: str
    binary: Path
    command: tuple[str, ...]
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    origin: str = "path"
    key: str = ""
    libraries: tuple[Path, ...] = HOST_LIBRARIES
    profilers: tuple[Path, ...] = ()
    sanitized: bool = False
    chardev_logs: bool = True
    any_port: bool = True
    boots_elf: bool = True
    unstripped: tuple[str, ...] = ()

    def argv(self, *rest: str) -> list[str]:
        """The argument vector that runs this QEMU with ``rest``."""
        return [*self.command, *self.arguments, *rest]


@dataclass(frozen=True)
class Capabilities:
    """What a binary supports, according to itself.

    :ivar banner: the first line of ``--version``. :ivar version: ``(major, minor, micro)``.
    :ivar machines: its machine types. :ivar devices: its devices.
    :ivar acpi_root_ports: whether Q35 has ACPI hotplug behind root ports, and a property to switch it off.
    """

    banner: str
    version: tuple[int, int, int]
    machines: frozenset[str]
    devices: frozenset[str]
    acpi_root_ports: bool = True

    @property
    def version_text(self) -> str:
        """The version as ``7.2.22``."""
        return ".".join(str(part) for part in self.version)

    def require_9p(self, install: QemuInstall) -> None:
        """:raises UsageError: when this QEMU has neither ``virtio-9p-pci`` nor ``virtio-9p-ccw``."""
        if self.devices.isdisjoint(("virtio-9p-pci", "virtio-9p-ccw")):
            raise UsageError(
                f"--qemu {install.name}: {install.binary} has no virtio-9p-pci device "
                "(built without 9p; configure QEMU with --enable-virtfs)"
            )

    def require_machine(self, install: QemuInstall, machine: str) -> None:
        """:raises UsageError: when ``-machine help`` does not list ``machine``."""
        if machine not in self.machines:
            raise UsageError(
                f"--qemu {install.name}: {install.binary} has no machine type {machine!r} "
                f"(see '{install.binary.name} -machine help')"
            )


def from_path(path: Path, data: Path | None = None, architecture: Architecture = X86_64) -> QemuInstall:
    """The QEMU binary at ``path``: installed, or in a build tree, whose firmware is used.

    :param data: the folder with its firmware (QEMU's ``-L``), if it is elsewhere.
    :param architecture: that of its guests.
    :raises UsageError: when the file is missing, not executable or not QEMU.
    :raises SetupError: when no firmware is found.
    """
    name = str(path)
    if not path.exists():
        raise UsageError(f"--qemu {name}: no such file (give a path to a binary, or a provisioned name)")
    if path.is_dir():
        raise UsageError(
            f"--qemu {name}: is a folder; give the binary in it, such as {path / architecture.program}"
        )
    if not os.access(path, os.X_OK):
        raise UsageError(f"--qemu {name}: not executable (chmod +x, or give another path)")
    path = path.absolute()
    if _is_elf(path):
        install = QemuInstall(name=name, binary=path, command=(str(path),), key=content_key(path))
    else:
        # The program that a script starts may use another libc than the host's, so no library can be
        # preloaded.
        key = _key_of_script(path)
        install = QemuInstall(name=name, binary=path, command=(str(path),), key=key, libraries=())
    read_banner(install)
    install = replace(
        install,
        arguments=_data_arguments(data, architecture) if data else _firmware_arguments(install, architecture),
    )
    return examined(install)


def examined(install: QemuInstall) -> QemuInstall:
    """``install`` with the probed facts: whether it has a sanitizer, and which options it supports."""
    if sanitizers.is_sanitized(install.binary):
        options = {**install.environment, **sanitizers.environment()}
        install = replace(install, sanitized=True, environment=options)
    return _with_options(install)


def _with_options(install: QemuInstall) -> QemuInstall:
    """``install`` with the options that the binary supports, found by starting it with all of them.

    QEMU parses all options before it processes any, so one that does not know ``logfile`` reports only that;
    such a QEMU does not accept port 0 either. A QEMU that supports both fails at the device that does not
    exist.
    """
    _, _, errors = _run_empty_machine(install, *_PROBED_OPTIONS)
    logs = "logfile" not in errors
    any_port = logs and "forwarding rule" not in errors
    boots_elf = any((folder / _PVH).exists() for folder in _data(install))
    return replace(install, chardev_logs=logs, any_port=any_port, boots_elf=boots_elf)


def on_path(data: Path | None = None, architecture: Architecture = X86_64) -> QemuInstall | None:
    """The binary ``qemu-system-ARCHITECTURE`` on PATH, or ``None``.

    :param data: see :func:`from_path`. :raises UsageError: when that file is not a QEMU.
    """
    found = shutil.which(architecture.program)
    return from_path(Path(found), data, architecture) if found else None


def content_key(path: Path) -> str:
    """A short hash of a file's content, such as that of a QEMU binary, for the keys of caches."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def _key_of_script(path: Path) -> str:
    """A hash of a QEMU binary that is a script, and of every file that the script names."""
    named = [Path(word) for word in re.findall(r"/[^\s\"':;]+", path.read_text(errors="replace"))]
    keys = [content_key(file) for file in (path, *named) if file.is_file()]
    return hashlib.sha256(" ".join(keys).encode()).hexdigest()[:16]


def probe(install: QemuInstall) -> Capabilities:
    """Probe the binary's version, machine types and devices.

    :raises UsageError: when its answers are not those of a QEMU.
    """
    banner, version = read_banner(install)
    machines = frozenset(
        line.split()[0] for line in _ask(install, "-machine", "help").splitlines()[1:] if line.split()
    )
    devices = frozenset(re.findall(r'^name "([^"]+)"', _ask(install, "-device", "help"), re.MULTILINE))
    return Capabilities(banner, version, machines, devices, _has_acpi_root_ports(install))


def _has_acpi_root_ports(install: QemuInstall) -> bool:
    try:
        return ACPI_ROOT_PORTS in _ask(install, "-device", "ICH9-LPC,help")
    except UsageError:
        return False  # Built without Q35.


def require_options(install: QemuInstall, *arguments: str) -> None:
    """:raises Unsupported: with QEMU's message, when the binary does not know one of these options."""
    _, _, errors = _run_empty_machine(install, *arguments)
    unknown = re.search(r"^.*(invalid option|Invalid parameter '[^']*')$", errors, re.MULTILINE)
    if unknown is not None:
        raise Unsupported(f"this QEMU: {unknown[0]}")


def require_device(install: QemuInstall, device: str) -> None:
    """Check that this QEMU binary has a ``device``; a build may be configured without it.

    :raises Unsupported: when it has not.
    """
    if f'name "{device}"' not in _ask(install, "-device", "help"):
        raise Unsupported(f"this QEMU has no device {device}")


def require_property(install: QemuInstall, device: str, name: str) -> None:
    """Check that the ``device`` of this QEMU binary has a property ``name``.

    :raises Unsupported: when it has not, or QEMU is killed by the question, as 7.2.22 for aarch64 is if asked
        for ``acpi-ged``: it tries to allocate a random amount of memory.
    """
    try:
        known = _ask(install, "-device", f"{device},help")
    except _KilledError as exc:
        raise Unsupported(f"this QEMU cannot tell the properties of {device}: {exc.message}") from None
    if name not in known:
        raise Unsupported(f"this QEMU's {device} has no property {name}")


def refusal_to_start(install: QemuInstall, *arguments: str) -> str:
    """What QEMU prints when it refuses ``arguments``; it is started with an empty machine.

    Where it accepts them, that is the error of an option after them that no QEMU accepts.

    :raises Violation: when it does not exit with 1.
    """
    code, _, errors = _run_empty_machine(install, *arguments)
    if code != 1:
        raise Violation(f"QEMU with {' '.join(arguments)} ended with {code}, not 1", details=errors)
    return errors.strip()


def require_netdev(install: QemuInstall, kind: str) -> None:
    """:raises Unsupported: when this QEMU binary has no such network backend (``-netdev help``)."""
    if kind not in _ask(install, "-netdev", "help").split():
        raise Unsupported(f"this QEMU has no netdev {kind}")


def properties(install: QemuInstall, device: str) -> frozenset[str]:
    """The names of the properties that a QEMU binary's ``device`` has."""
    return frozenset(re.findall(r"^ *(?:\S+\.)?([\w-]+)=<", _ask(install, "-device", f"{device},help"), re.M))


def require_named_fds(install: QemuInstall) -> None:
    """:raises Unsupported: when ``fd:`` of an incoming migration accepts only numbers (before 4.1)."""
    name = "harness-has-none"
    _, _, errors = _call(install, *_EMPTY_MACHINE, "-incoming", f"fd:{name}")
    if f"'{name}'" not in errors:
        raise Unsupported("this QEMU's -incoming fd: accepts no named file descriptor")


def has_memory_backend(install: QemuInstall) -> bool:
    """Whether the guest's memory can be a memory backend object (``-machine memory-backend=``, since 5.0)."""
    try:
        return "memory-backend" in _ask(install, "-machine", "none,help")
    except UsageError:
        return False


def read_banner(install: QemuInstall) -> tuple[str, tuple[int, int, int]]:
    """The first line of a QEMU binary's ``--version`` and the version in it.

    :raises UsageError: when it is not that of a QEMU system emulator.
    """
    answer = _ask(install, "--version")
    banner = answer.splitlines()[0].strip() if answer.strip() else ""
    match = re.match(r"QEMU emulator version (\d+)\.(\d+)\.(\d+)", banner)
    if match is None:
        raise UsageError(
            f"--qemu {install.name}: not a QEMU system emulator: --version printed {banner[:120]!r}"
        )
    return banner, (int(match[1]), int(match[2]), int(match[3]))


class _KilledError(UsageError):
    """A QEMU binary was killed by a signal when it was asked something."""


def _ask(install: QemuInstall, *arguments: str) -> str:
    """The output of a QEMU binary; old releases (2.11 and some after it) print help on stderr.

    :raises UsageError: when it fails.
    """
    code, output, errors = _call(install, *arguments)
    if code == 0:
        return output or errors
    message = errors.strip() or output.strip()
    last = message.splitlines()[-1] if message else "it printed nothing"
    asked = f"--qemu {install.name}: '{' '.join(arguments)}'"
    if code < 0:
        raise _KilledError(f"{asked} was killed by {signal.Signals(-code).name}: {last}")
    raise UsageError(f"{asked} exited with {code}: {last}")


def _run_empty_machine(install: QemuInstall, *arguments: str) -> tuple[int, str, str]:
    """:func:`_call` with an empty machine and ``arguments``; it exits at once."""
    return _call(install, *_EMPTY_MACHINE, *arguments, *_EXIT)


def _call(install: QemuInstall, *arguments: str) -> tuple[int, str, str]:
    """Run a QEMU binary; returns its exit status, stdout and stderr.

    :raises UsageError: when it cannot be executed, or does not end.
    """
    try:
        answer = subprocess.run(
            install.argv(*arguments),
            env={**os.environ, **install.environment, **sanitizers.silent()},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PROBE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise UsageError(
            f"--qemu {install.name}: '{' '.join(arguments)}' did not end within {_PROBE_TIMEOUT_S} s"
        ) from exc
    except OSError as exc:
        raise UsageError(f"--qemu {install.name}: cannot be executed: {exc.strerror}") from exc
    output, errors = (stream.decode("utf-8", "replace") for stream in (answer.stdout, answer.stderr))
    return answer.returncode, output, errors


def _data_arguments(data: Path, architecture: Architecture) -> tuple[str, ...]:
    firmware = architecture.firmware
    if not (data / firmware).exists():
        raise UsageError(f"--qemu-data {data}: no firmware ({firmware}) in it; give QEMU's pc-bios folder")
    return "-L", str(data.absolute())


def _firmware_arguments(install: QemuInstall, architecture: Architecture) -> tuple[str, ...]:
    """``-L`` with the firmware's folder; empty if the binary finds its firmware without it."""
    own, firmware = _data(install), architecture.firmware
    if any((folder / firmware).exists() for folder in own):
        return ()
    # A build tree: build/qemu-system-x86_64 or, in old releases, build/x86_64-softmmu/qemu-system-x86_64.
    here = install.binary.resolve().parent
    candidates = [parent / "pc-bios" for parent in (here, here.parent, here.parent.parent)]
    # An installed QEMU that is too old for "-L help" (on Debian seabios has its own folder).
    candidates += [here.parent / "share" / name for name in ("qemu", "seabios")]
    for folder in candidates:
        if (folder / firmware).exists():
            return ("-L", str(folder))
    looked = ", ".join(str(folder) for folder in [*own, *candidates])
    raise SetupError(
        f"--qemu {install.name}: no firmware ({firmware}); looked in {looked}; "
        "give its folder with --qemu-data DIR"
    )


def find_firmware(install: QemuInstall, names: Sequence[str]) -> Path:
    """The first of the files ``names`` that is in a folder of QEMU's firmware, or of a distribution's.

    :raises Unsupported: when there is none.
    """
    given = [Path(folder) for word, folder in pairwise(install.arguments) if word == "-L"]
    folders = [*given, *_data(install), _EFI]
    for folder, name in product(folders, names):
        if (folder / name).exists():
            return folder / name
    raise Unsupported(f"no firmware {' or '.join(names)} in {', '.join(map(str, dict.fromkeys(folders)))}")


def _data(install: QemuInstall) -> list[Path]:
    """The folders in which QEMU looks for firmware; empty for a QEMU before about 2.6.

    Such a QEMU takes ``help`` for a folder, and fails.
    """
    code, output, _ = _run_empty_machine(install, "-L", "help")
    return [Path(line.strip()) for line in output.splitlines() if line.strip()] if code == 0 else []
