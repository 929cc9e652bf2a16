"""Builds the guest's initramfs: busybox, dropbear, programs, kernel modules, and the recipe's own files."""

from __future__ import annotations

import lzma
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from elftools.common.exceptions import ELFError
from elftools.elf.dynamic import DynamicSegment
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import InterpSegment

from harness.errors import SetupError
from harness.provision import cpio
from harness.provision.keys import Keys
from harness.provision.unpacked import inside
from harness.qemu.architectures import X86_64, Architecture

#: The folder that Debian's dynamic loader searches (``ld.so(8)``); all libraries are put there.
_LIBRARIES = "lib/{triplet}"
_DROPBEAR = "usr/sbin/dropbear"
#: The file names of dynamic loaders: ld-linux-x86-64.so.2, ld64.so.1.
_LOADERS = r"ld(64|-linux[\w-]*)\.so\.\d"


def build(
    packages: Path,
    kernel: Path,
    programs: list[str],
    modules: list[str],
    overlays: Sequence[Path],
    keys: Keys,
    *,
    on_demand: Sequence[str] = (),
    architecture: Architecture = X86_64,
) -> bytes:
    """The initramfs, as a cpio archive.

    :param packages: a root with the unpacked packages of busybox, dropbear, the programs and their libraries.
    :param kernel: a root with the unpacked packages of a kernel.
    :param programs: further programs, as paths in the packages.
    :param modules: the modules to load at boot; their dependencies are added.
    :param overlays: folders whose files replace all others of the same path, the last ones first.
    :param on_demand: modules that are not loaded at boot. The file ``lib/modules/NAME.order`` lists the files
        that ``insmod`` has to load for one of them, in that order. It is empty when the kernel has the module
        built in.
    :param architecture: that of the packages. None of their programs is run.
    :raises SetupError: when a program or module is not in the packages.
    """
    members = {
        "bin/busybox": cpio.file(_read(packages, "bin/busybox", "usr/bin/busybox"), 0o755),
        "bin/sh": cpio.symlink("busybox"),
        "bin/mount": cpio.symlink("busybox"),
        "init": cpio.symlink("bin/busybox"),
        "sbin/dropbear": cpio.file(_read(packages, _DROPBEAR), 0o755),
        "etc/dropbear/host_key": cpio.file(keys.host_dropbear, 0o600),
        "root": cpio.folder(0o700),
        "root/.ssh": cpio.folder(0o700),
        "root/.ssh/authorized_keys": cpio.file(f"{keys.client_public}\n".encode(), 0o600),
        **{name: cpio.folder() for name in ("proc", "sys", "dev", "tmp", "run", "mnt", "sbin")},
    }
    members |= {name: cpio.file(_read(packages, name), 0o755) for name in programs}
    for name in (_DROPBEAR, *programs):
        members |= _libraries(packages, inside(packages, name), architecture.triplet)
    members |= _modules(kernel, modules, on_demand)
    for overlay in overlays:
        members |= _overlay(overlay)
    return cpio.archive(members)


def _read(root: Path, *candidates: str) -> bytes:
    for name in candidates:
        path = inside(root, name)
        if path.is_file():
            return path.read_bytes()
    raise SetupError(f"the packages contain none of {', '.join(candidates)}")


def _libraries(packages: Path, program: Path, triplet: str) -> dict[str, cpio.Member]:
    """The libraries that an initramfs's program needs, with those that they need, and its loader."""
    folder = _LIBRARIES.format(triplet=triplet)
    needed, interpreter = _dynamic(program)
    found: dict[str, cpio.Member] = {}
    while needed:
        name = needed.pop()
        if re.fullmatch(_LOADERS, name):
            continue  # Every program names it as well, by its path.
        path = next(
            (p for f in (folder, f"usr/{folder}") if (p := inside(packages, f"{f}/{name}")).is_file()), None
        )
        if path is None:
            raise SetupError(f"the packages contain no {name}, which {program.name} needs")
        found[f"{folder}/{name}"] = cpio.file(path.read_bytes(), 0o755)
        needed += [other for other in _dynamic(path)[0] if f"{folder}/{other}" not in found]
    if interpreter:
        # In trixie it is in usr, with no link to it.
        found[interpreter] = cpio.file(
            _read(packages, interpreter, f"usr/{interpreter}", f"{folder}/{Path(interpreter).name}"), 0o755
        )
    return found


def _dynamic(program: Path) -> tuple[list[str], str]:
    """The libraries that an ELF file names, and its dynamic loader below the root; none for a script.

    :raises SetupError: when it is a damaged ELF file.
    """
    with program.open("rb") as file:
        if file.read(4) != b"\x7fELF":
            return [], ""
        try:
            segments = list(ELFFile(file).iter_segments())
            interpreters = [s.get_interp_name() for s in segments if isinstance(s, InterpSegment)]
            tags = [
                tag for s in segments if isinstance(s, DynamicSegment) for tag in s.iter_tags("DT_NEEDED")
            ]
            # pyelftools gives each tag the attribute of the tag's type.
            return [cast(Any, tag).needed for tag in tags], "".join(interpreters).lstrip("/")
        except ELFError as exc:
            raise SetupError(f"cannot list the libraries of {program.name}: {exc}") from exc


def _modules(kernel: Path, wanted: Sequence[str], on_demand: Sequence[str]) -> dict[str, cpio.Member]:
    folders = [kernel / folder for folder in ("lib/modules", "usr/lib/modules")]
    files = {_module_name(path.name): path for folder in folders for path in folder.rglob("*.ko*")}
    # A module of one kernel may be built into another, which lists it in modules.builtin.
    lists = [path.read_text() for folder in folders for path in folder.glob("*/modules.builtin")]
    builtin = {_module_name(Path(line).name) for text in lists for line in text.splitlines()}

    def add(name: str, contents: dict[str, bytes]) -> None:
        if name in contents or name in builtin:
            return
        if name not in files:
            raise SetupError(f"the kernel package has no module {name} (Debian's cloud kernels have no 9p)")
        content = _module(files[name])
        for dependency in _depends(content):
            add(dependency, contents)
        contents[name] = content

    def with_dependencies(*names: str) -> dict[str, bytes]:
        contents: dict[str, bytes] = {}
        for name in names:
            add(name, contents)
        return contents

    lists_of = {"order": with_dependencies(*wanted)}
    lists_of |= {f"{name}.order": with_dependencies(name) for name in on_demand}
    members: dict[str, cpio.Member] = {}
    for file, contents in lists_of.items():
        members |= {f"lib/modules/{name}.ko": cpio.file(content) for name, content in contents.items()}
        members[f"lib/modules/{file}"] = cpio.file("".join(f"{name}.ko\n" for name in contents).encode())
    return members


def _module_name(file: str) -> str:
    return file.split(".ko")[0].replace("-", "_")


def _module(path: Path) -> bytes:
    content = path.read_bytes()
    return lzma.decompress(content) if path.suffix == ".xz" else content


def _depends(module: bytes) -> list[str]:
    """The kernel modules that a module in the initramfs depends on (kernel: ``MODULE_INFO(depends, …)``)."""
    found = re.search(rb"\0depends=([^\0]*)\0", module)
    return [name.decode().replace("-", "_") for name in found[1].split(b",") if name] if found else []


def _overlay(folder: Path) -> dict[str, cpio.Member]:
    return {
        str(path.relative_to(folder)): cpio.file(
            path.read_bytes(), 0o755 if path.stat().st_mode & 0o100 else 0o644
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
