"""One QEMU binary: how to start it, where its firmware is, and what it can do.

Everything is asked of the binary itself (``--version``, ``-machine help``, ``-device help``, ``-L help``),
never looked up by version.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness.errors import SetupError, Unsupported, UsageError
from harness.qemu import sanitizers

#: A file of QEMU's firmware without which no PC boots (QEMU: ``pc-bios/``, ``hw/i386/x86.c``).
FIRMWARE = "bios-256k.bin"
#: What QEMU puts in front of a kernel that is not packed (QEMU: ``pc-bios/optionrom/pvh.S``).
_PVH = "pvh.bin"
PROGRAM = "qemu-system-x86_64"
#: What is preloaded to profile a QEMU's heap: jemalloc, as Debian's libjemalloc2 names it.
HEAP_LIBRARY = "libjemalloc.so.2"
#: The property of ``ICH9-LPC`` for it, since 6.1 (QEMU: ``hw/acpi/ich9.c``).
ACPI_ROOT_PORTS = "acpi-pci-hotplug-with-bridge-support"
_PROBE_TIMEOUT_S = 60
#: A machine without anything, and an option that ends it once the others have been acted upon.
_NOTHING = ("-machine", "none", "-nodefaults", "-display", "none")
_END = ("-device", "harness-ends-here")
_IN_QUESTION = (
    *("-chardev", f"null,id=log,logfile={os.devnull}"),
    *("-netdev", "user,id=net,hostfwd=tcp:127.0.0.1:0-:22"),
)
#: Where a Linux host keeps the libraries of its own programs (Debian and multiarch; Fedora; the rest).
HOST_LIBRARIES = tuple(
    Path(folder) for folder in ("/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/local/lib", "/usr/lib")
)


@dataclass(frozen=True)
class QemuInstall:
    """How to start one QEMU.

    ``name`` is what the user called it; ``binary`` the ELF file, or a script that starts it; ``command`` what
    to execute (for an unpacked release its own dynamic loader, the library path, and the binary);
    ``arguments`` follow the command on every call (firmware folders); ``key`` identifies the content for
    caches; ``libraries`` are the folders that its shared libraries come from (of a script, none are known);
    ``profilers`` are further libraries that may profile its heap (:mod:`harness.leaks.heap_profile`);
    ``sanitized``: it was built with AddressSanitizer; ``chardev_logs``: ``-chardev`` has ``logfile`` and
    ``append`` (since 2.6); ``any_port``: ``hostfwd`` takes port 0, for any that is free; ``boots_elf``:
    ``-kernel`` takes one that is not packed (since 4.0); ``unstripped``: names of provisioned QEMUs of
    the same release that have symbols.
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
    """What a binary said of itself; ``version`` is ``(major, minor, micro)``, ``banner`` its first line.

    ``acpi_root_ports``: Q35 has ACPI hotplug behind root ports as well, and a property to switch it off.
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
        """:raises UsageError: when this QEMU has no ``virtio-9p-pci`` device."""
        if "virtio-9p-pci" not in self.devices:
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


def from_path(path: Path, data: Path | None = None) -> QemuInstall:
    """The QEMU at ``path``: installed, or in a build tree, whose firmware is then found beside it.

    :param data: the folder with its firmware (QEMU's ``-L``), where it is elsewhere.
    :raises UsageError: when it is missing, not executable, not QEMU, or has no firmware.
    """
    name = str(path)
    if not path.exists():
        raise UsageError(f"--qemu {name}: no such file (give a path to a binary, or a provisioned name)")
    if path.is_dir():
        raise UsageError(f"--qemu {name}: is a folder; give the binary in it, such as {path / PROGRAM}")
    if not os.access(path, os.X_OK):
        raise UsageError(f"--qemu {name}: not executable (chmod +x, or give another path)")
    path = path.absolute()
    if _is_elf(path):
        install = QemuInstall(name=name, binary=path, command=(str(path),), key=content_key(path))
    else:
        # What a script starts may need another libc than this host's: nothing of ours can be preloaded there.
        key = _key_of_script(path)
        install = QemuInstall(name=name, binary=path, command=(str(path),), key=key, libraries=())
    read_banner(install)
    install = replace(install, arguments=_given(data) if data else _firmware_arguments(install))
    return examined(install)


def examined(install: QemuInstall) -> QemuInstall:
    """The same QEMU, with what its binary shows: whether it has a sanitizer, and which options it lacks."""
    if sanitizers.is_sanitized(install.binary):
        options = {**install.environment, **sanitizers.environment()}
        install = replace(install, sanitized=True, environment=options)
    return _with_options(install)


def _with_options(install: QemuInstall) -> QemuInstall:
    """Start it with the options in question; its complaint tells.

    Options are read before anything is made of them, so a QEMU that does not know ``logfile`` complains of
    that alone; it is older than port 0, too. With both it ends at a device that does not exist.
    """
    _, _, said = _begin(install, *_IN_QUESTION)
    logs = "logfile" not in said
    any_port = logs and "forwarding rule" not in said
    boots_elf = any((folder / _PVH).exists() for folder in _data(install))
    return replace(install, chardev_logs=logs, any_port=any_port, boots_elf=boots_elf)


def on_path(data: Path | None = None) -> QemuInstall | None:
    """The ``qemu-system-x86_64`` on PATH, if there is one.

    :param data: see :func:`from_path`. :raises UsageError: when there is one that is no QEMU.
    """
    found = shutil.which(PROGRAM)
    return from_path(Path(found), data) if found else None


def content_key(path: Path) -> str:
    """A short content hash of a binary, to key what is remembered about it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def _key_of_script(path: Path) -> str:
    """Of a script that starts QEMU: its own content, and that of every file that it names."""
    named = [Path(word) for word in re.findall(r"/[^\s\"':;]+", path.read_text(errors="replace"))]
    keys = [content_key(file) for file in (path, *named) if file.is_file()]
    return hashlib.sha256(" ".join(keys).encode()).hexdigest()[:16]


def probe(install: QemuInstall) -> Capabilities:
    """Ask the binary for its version, machine types and devices.

    :raises UsageError: when it does not answer as a QEMU does.
    """
    banner, version = read_banner(install)
    machines = frozenset(
        line.split()[0] for line in _ask(install, "-machine", "help").splitlines()[1:] if line.split()
    )
    devices = frozenset(re.findall(r'^name "([^"]+)"', _ask(install, "-device", "help"), re.MULTILINE))
    acpi_root_ports = "q35" in machines and ACPI_ROOT_PORTS in _ask(install, "-device", "ICH9-LPC,help")
    return Capabilities(banner, version, machines, devices, acpi_root_ports)


def require_options(install: QemuInstall, *arguments: str) -> None:
    """:raises Unsupported: with QEMU's own words, when it does not know one of these options."""
    _, _, said = _begin(install, *arguments)
    unknown = re.search(r"^.*(invalid option|Invalid parameter '[^']*')$", said, re.MULTILINE)
    if unknown is not None:
        raise Unsupported(f"this QEMU: {unknown[0]}")


def require_property(install: QemuInstall, device: str, name: str) -> None:
    """:raises Unsupported: when its ``device`` has no property of that ``name``."""
    if name not in _ask(install, "-device", f"{device},help"):
        raise Unsupported(f"this QEMU's {device} has no property {name}")


def require_netdev(install: QemuInstall, kind: str) -> None:
    """:raises Unsupported: when it has no such network backend (``-netdev help``)."""
    if kind not in _ask(install, "-netdev", "help").split():
        raise Unsupported(f"this QEMU has no netdev {kind}")


def properties(install: QemuInstall, device: str) -> frozenset[str]:
    """The properties that its ``device`` has."""
    return frozenset(re.findall(r"^ *(?:\S+\.)?([\w-]+)=<", _ask(install, "-device", f"{device},help"), re.M))


def require_named_fds(install: QemuInstall) -> None:
    """:raises Unsupported: when ``fd:`` of an incoming migration takes numbers alone (before 4.1)."""
    name = "harness-has-none"
    _, _, said = _call(install, *_NOTHING, "-incoming", f"fd:{name}")
    if f"'{name}'" not in said:
        raise Unsupported("this QEMU's incoming fd: takes no name of a descriptor")


def has_memory_backend(install: QemuInstall) -> bool:
    """Whether the guest's memory can be an object of ours (``-machine memory-backend=``, since 5.0)."""
    try:
        return "memory-backend" in _ask(install, "-machine", "none,help")
    except UsageError:
        return False


def read_banner(install: QemuInstall) -> tuple[str, tuple[int, int, int]]:
    """The first line of ``--version`` and the version in it.

    :raises UsageError: when it is not the line of a QEMU system emulator.
    """
    answer = _ask(install, "--version")
    banner = answer.splitlines()[0].strip() if answer.strip() else ""
    match = re.match(r"QEMU emulator version (\d+)\.(\d+)\.(\d+)", banner)
    if match is None:
        raise UsageError(
            f"--qemu {install.name}: not a QEMU system emulator: --version printed {banner[:120]!r}"
        )
    return banner, (int(match[1]), int(match[2]), int(match[3]))


def _ask(install: QemuInstall, *arguments: str) -> str:
    """What it prints; a QEMU up to some release after 2.11 prints its help on stderr."""
    code, output, complaint = _call(install, *arguments)
    if code == 0:
        return output or complaint
    complaint = complaint.strip() or output.strip()
    last = complaint.splitlines()[-1] if complaint else "it printed nothing"
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
    raise UsageError(f"--qemu {install.name}: '{' '.join(arguments)}' {how}: {last}")


def _begin(install: QemuInstall, *arguments: str) -> tuple[int, str, str]:
    """:func:`_call` of a machine without anything that has these options, and ends at once."""
    return _call(install, *_NOTHING, *arguments, *_END)


def _call(install: QemuInstall, *arguments: str) -> tuple[int, str, str]:
    """How it ends, and what it prints on stdout and stderr."""
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
            f"--qemu {install.name}: '{' '.join(arguments)}' gave no answer in {_PROBE_TIMEOUT_S} s"
        ) from exc
    except OSError as exc:
        raise UsageError(f"--qemu {install.name}: cannot be executed: {exc.strerror}") from exc
    output, complaint = (stream.decode("utf-8", "replace") for stream in (answer.stdout, answer.stderr))
    return answer.returncode, output, complaint


def _given(data: Path) -> tuple[str, ...]:
    if not (data / FIRMWARE).exists():
        raise UsageError(f"--qemu-data {data}: no firmware ({FIRMWARE}) there; give QEMU's pc-bios folder")
    return "-L", str(data.absolute())


def _firmware_arguments(install: QemuInstall) -> tuple[str, ...]:
    """``-L`` with the firmware's folder, when the binary does not find it by itself."""
    own = _data(install)
    if any((folder / FIRMWARE).exists() for folder in own):
        return ()
    # A build tree: build/qemu-system-x86_64 or, of old, build/x86_64-softmmu/qemu-system-x86_64.
    here = install.binary.resolve().parent
    candidates = [parent / "pc-bios" for parent in (here, here.parent, here.parent.parent)]
    # Installed (Debian: seabios has a folder of its own), and too old to tell.
    candidates += [here.parent / "share" / name for name in ("qemu", "seabios")]
    for folder in candidates:
        if (folder / FIRMWARE).exists():
            return ("-L", str(folder))
    looked = ", ".join(str(folder) for folder in [*own, *candidates])
    raise SetupError(
        f"--qemu {install.name}: no firmware ({FIRMWARE}); looked in {looked}; --qemu-data DIR names another"
    )


def _data(install: QemuInstall) -> list[Path]:
    """Where it looks for firmware; a QEMU before 2.6 or so takes ``help`` for a folder, and ends."""
    code, output, _ = _begin(install, "-L", "help")
    return [Path(line.strip()) for line in output.splitlines() if line.strip()] if code == 0 else []
