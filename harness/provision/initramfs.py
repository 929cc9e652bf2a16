"""Builds the guest's initramfs: busybox, dropbear, programs, kernel modules, and the recipe's own files."""

from __future__ import annotations

import lzma
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from harness.errors import SetupError
from harness.provision import cpio
from harness.provision.keys import Keys

#: The folder that Debian's dynamic loader searches (``ld.so(8)``); all libraries are put there.
_LIBRARIES = "lib/x86_64-linux-gnu"
#: The dynamic loader's path in every program (the x86-64 psABI).
_LOADER = "lib64/ld-linux-x86-64.so.2"
_DROPBEAR = "usr/sbin/dropbear"


def build(
    packages: Path,
    kernel: Path,
    programs: list[str],
    modules: list[str],
    overlay: Path,
    keys: Keys,
    *,
    on_demand: Sequence[str] = (),
) -> bytes:
    """The initramfs, as a cpio archive.

    :param packages: a root with the unpacked packages of busybox, dropbear, the programs and their libraries.
    :param kernel: a root with the unpacked packages of a kernel.
    :param programs: further programs, as paths in the packages.
    :param modules: the modules to load at boot; their dependencies are added.
    :param overlay: a folder whose files replace all others of the same path.
    :param on_demand: modules that are not loaded at boot. The file ``lib/modules/NAME.order`` lists the files
        that ``insmod`` has to load for one of them, in that order. It is empty when the kernel has the module
        built in.
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
        members |= _libraries(packages, inside(packages, name))
    members |= _modules(kernel, modules, on_demand)
    members |= _overlay(overlay)
    return cpio.archive(members)


def _read(root: Path, *candidates: str) -> bytes:
    for name in candidates:
        path = inside(root, name)
        if path.is_file():
            return path.read_bytes()
    raise SetupError(f"the packages contain none of {', '.join(candidates)}")


def inside(root: Path, name: str) -> Path:
    """``name`` below ``root``; absolute symbolic links are resolved inside ``root``."""
    path = root
    for part in Path(name).parts:
        path = path / part
        for _ in range(8):
            if not path.is_symlink():
                break
            target = path.readlink()
            path = inside(root, str(target)[1:]) if target.is_absolute() else path.parent / target
    return path


def loader(root: Path) -> Path:
    """The dynamic loader of the packages in ``root`` (in trixie it is in ``usr``, with no link to it).

    :raises SetupError: when there is none.
    """
    for name in (_LOADER, f"usr/{_LOADER}", f"{_LIBRARIES}/{Path(_LOADER).name}"):
        path = inside(root, name)
        if path.is_file():
            return path
    raise SetupError(f"the packages contain no /{_LOADER}")


def _libraries(packages: Path, program: Path) -> dict[str, cpio.Member]:
    """The libraries that a program needs, as listed by the packages' own loader (``ld.so --list``)."""
    if not program.read_bytes().startswith(b"\x7fELF"):
        return {}  # A script needs none.
    dynamic = loader(packages)
    search = ":".join(str(packages / folder) for folder in (_LIBRARIES, f"usr/{_LIBRARIES}"))
    listed = subprocess.run(
        [str(dynamic), "--library-path", search, "--list", str(program)],
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.findall(r"^\s*(\S+) => (.+) \(0x", listed.stdout, re.MULTILINE)
    if listed.returncode != 0 or not found:
        printed = (listed.stdout + listed.stderr).strip()
        raise SetupError(f"cannot list the libraries of {program.name}: {printed}")
    libraries = {f"{_LIBRARIES}/{name}": cpio.file(Path(path).read_bytes(), 0o755) for name, path in found}
    return libraries | {_LOADER: cpio.file(dynamic.read_bytes(), 0o755)}


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
    """The modules that a module depends on (kernel: ``MODULE_INFO(depends, …)``, made by modpost)."""
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
