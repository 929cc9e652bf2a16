"""Programs of packages that are unpacked in a folder: they start with the loader and libraries from there."""

from __future__ import annotations

from pathlib import Path

from harness.errors import SetupError
from harness.qemu.architectures import X86_64
from harness.qemu.binary import QemuInstall, examined

_LIBRARY_FOLDERS = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/pulseaudio")
#: The folder of EDK2 in ``usr/share``: of a Debian package, which a recipe may name.
_EFI = "qemu-efi-aarch64"
#: The dynamic loader's path in every program of the host (the x86-64 psABI).
_LOADER = "lib64/ld-linux-x86-64.so.2"


def installed(name: str, root: Path, key: str, binary: Path) -> QemuInstall:
    """The QEMU ``binary``, started with the loader, libraries and firmware that are unpacked in ``root``.

    :param binary: a QEMU in ``root``, or one that was built against its libraries.
    """
    folders = [root / "usr/share" / share for share in ("qemu", "seabios")]
    folders += [folder for folder in (root / "usr/share" / _EFI,) if folder.is_dir()]
    firmware = [word for folder in folders for word in ("-L", str(folder))]
    install = QemuInstall(
        name=name,
        binary=binary,
        command=command_in(root, binary),
        arguments=tuple(firmware),
        environment={"QEMU_MODULE_DIR": str(root / "usr/lib/x86_64-linux-gnu/qemu")},
        origin="provisioned",
        key=key,
        libraries=_libraries(root),
    )
    return examined(install)


def command_in(root: Path, program: Path) -> tuple[str, ...]:
    """The command of a program that runs with the loader and the libraries of the packages in ``root``.

    :raises SetupError: when there is no loader.
    """
    libraries = ":".join(map(str, _libraries(root)))
    return str(_loader(root)), "--library-path", libraries, str(program)


def _libraries(root: Path) -> tuple[Path, ...]:
    return tuple(root / folder for folder in _LIBRARY_FOLDERS)


def _loader(root: Path) -> Path:
    """The host's dynamic loader in the packages in ``root`` (in trixie it is in ``usr``, with no link to it).

    :raises SetupError: when there is none.
    """
    for name in (_LOADER, f"usr/{_LOADER}", f"lib/{X86_64.triplet}/{Path(_LOADER).name}"):
        path = inside(root, name)
        if path.is_file():
            return path
    raise SetupError(f"the packages contain no /{_LOADER}")


def inside(root: Path, name: str) -> Path:
    """``name`` below ``root`` of packages; absolute symbolic links are resolved inside ``root``."""
    path = root
    for part in Path(name).parts:
        path = path / part
        for _ in range(8):
            if not path.is_symlink():
                break
            target = path.readlink()
            path = inside(root, str(target)[1:]) if target.is_absolute() else path.parent / target
    return path
