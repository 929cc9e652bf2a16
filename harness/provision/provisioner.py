"""From recipes to files in the cache.

Which versions of its packages a recipe means is resolved once and remembered in the cache (``resolved/``), so
that a filled cache needs no network and no apt; ``refresh`` resolves again. The key of an entry is the
recipe's content, those versions, the keys of the cache, and :data:`FORMAT`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.errors import SetupError
from harness.guest.image import GuestImage
from harness.provision import initramfs, keys, qcow2, recipes
from harness.provision.apt import Apt, Package, Report, unpack
from harness.provision.cache import Cache
from harness.provision.recipes import GuestRecipe, QemuRecipe, Recipe
from harness.qemu.binary import QemuInstall

#: Changed whenever the code makes other files of the same recipe.
FORMAT = 1
_DISK_MIB = 1024
_QEMU = "usr/bin/qemu-system-x86_64"
_LIBRARY_FOLDERS = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/pulseaudio")
#: What no program reads; a third of an unpacked QEMU.
_BALLAST = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/icons", "usr/share/info")


class Provisioner:
    """Provides guest images and QEMU releases by the names of their recipes.

    :param recipes: the folder of recipes; the project's own by default.
    :param report: told, in lines for a person, of everything that takes more than a moment.
    :param refresh: resolve package versions again, which needs a network.
    """

    def __init__(
        self,
        cache: Cache,
        *,
        recipes: Path | None = None,
        report: Report = lambda _: None,
        refresh: bool = False,
    ) -> None:
        self.cache, self._report, self._refresh = cache, report, refresh
        self._folder = recipes or recipes_folder()

    def guest_names(self) -> list[str]:
        """The names of the guest images that there are recipes for."""
        return recipes.names(self._folder / "guests")

    def qemu_names(self) -> list[str]:
        """The names of the QEMU releases that there are recipes for."""
        return recipes.names(self._folder / "qemu")

    def guest_image(self, name: str | None = None) -> GuestImage:
        """The guest image called ``name`` (the default recipe's without one); made when it is missing.

        :raises UsageError: for an unknown name or a bad recipe. :raises SetupError: when it cannot be made.
        """
        folder = self._folder / "guests"
        name = name or recipes.default_name(folder, GuestRecipe)
        recipe = recipes.load(folder, name, GuestRecipe)
        with self.cache.lock("keys", self._report):
            pair = keys.load_or_make(self.cache.root / "keys")
        overlay = folder / recipe.root
        content = [
            recipe.model_dump(exclude={"default"}),
            _tree(overlay),
            pair.client_public,
            pair.host_public,
        ]

        def fill(into: Path, packages: dict[str, list[Package]]) -> None:
            self._make_guest(into, recipe, packages, overlay, pair)

        entry, key = self._entry("guests", name, content, recipe, fill)
        version = (entry / "kernel-version").read_text()
        return GuestImage(
            name=name,
            kernel_version=version,
            kernel=entry / "vmlinuz",
            initramfs=entry / "initramfs.gz",
            cmdline=recipe.cmdline,
            disk=entry / "disk.qcow2",
            client_key=pair.client,
            host_key=pair.host_public,
            key=key,
        )

    def qemu_release(self, name: str | None = None) -> QemuInstall:
        """The QEMU release called ``name`` (the default recipe's without one); unpacked when it is missing.

        :raises UsageError: for an unknown name or a bad recipe. :raises SetupError: when it cannot be made.
        """
        folder = self._folder / "qemu"
        name = name or recipes.default_name(folder, QemuRecipe)
        recipe = recipes.load(folder, name, QemuRecipe)

        def fill(into: Path, packages: dict[str, list[Package]]) -> None:
            self._unpack(recipe.release, packages["packages"], into / "root")
            for ballast in _BALLAST:
                shutil.rmtree(into / "root" / ballast, ignore_errors=True)

        content = [recipe.model_dump(exclude={"default"})]
        entry, key = self._entry("qemu", name, content, recipe, fill)
        return _install(name, entry / "root", key)

    def _make_guest(
        self,
        into: Path,
        recipe: GuestRecipe,
        packages: dict[str, list[Package]],
        overlay: Path,
        pair: keys.Keys,
    ) -> None:
        with self.cache.scratch() as scratch:
            self._unpack(recipe.release, packages["packages"], scratch / "packages")
            self._unpack(recipe.release, packages["kernel"], scratch / "kernel")
            (kernel,) = (scratch / "kernel/boot").glob("vmlinuz-*")
            shutil.copyfile(kernel, into / "vmlinuz")
            (into / "kernel-version").write_text(kernel.name.removeprefix("vmlinuz-"))
            self._report("building the initramfs …")
            image = initramfs.build(scratch / "packages", scratch / "kernel", recipe.modules, overlay, pair)
            (into / "initramfs.gz").write_bytes(image)
            qcow2.create(into / "disk.qcow2", _DISK_MIB)

    def _entry(
        self,
        kind: str,
        name: str,
        content: list[Any],
        recipe: Recipe,
        fill: Callable[[Path, dict[str, list[Package]]], None],
    ) -> tuple[Path, str]:
        packages = self._resolved(kind, name, recipe)
        versions = {what: [(p.name, p.version) for p in found] for what, found in packages.items()}
        key = _hash([FORMAT, content, versions])
        entry = self.cache.entry(kind, f"{name}-{key}", lambda into: fill(into, packages), self._report)
        return entry, key

    def _resolved(self, kind: str, name: str, recipe: Recipe) -> dict[str, list[Package]]:
        """The packages that ``recipe`` means: remembered, or asked of apt and remembered."""
        wanted = {"packages": recipe.packages}
        if isinstance(recipe, GuestRecipe):
            wanted["kernel"] = [recipe.kernel]
        path = self.cache.root / "resolved" / f"{kind}-{name}-{_hash([recipe.release, wanted])}.json"
        with self.cache.lock(f"resolve-{kind}-{name}", self._report):
            if not self._refresh:
                try:
                    known = json.loads(path.read_text())
                    return {what: [Package(**facts) for facts in found] for what, found in known.items()}
                except (OSError, ValueError, TypeError, AttributeError):
                    pass
            found = self._resolve(recipe.release, wanted)
            path.parent.mkdir(exist_ok=True)
            partial = path.with_suffix(f".{os.getpid()}")
            partial.write_text(json.dumps({k: [vars(p) for p in v] for k, v in found.items()}))
            partial.replace(path)
        return found

    def _resolve(self, release: str, wanted: dict[str, list[str]]) -> dict[str, list[Package]]:
        with self.cache.scratch() as scratch:
            apt = Apt(scratch / "apt", release, self._report)
            apt.update()
            found = {what: apt.resolve(*names) for what, names in wanted.items()}
        if "kernel" in found:
            # Of all that a kernel's metapackage depends on, only the kernel itself is unpacked.
            found["kernel"] = [p for p in found["kernel"] if re.match(r"linux-image-\d", p.name)]
            if len(found["kernel"]) != 1:
                raise SetupError(f"{wanted['kernel'][0]} of {release} does not stand for one kernel package")
        return found

    def _unpack(self, release: str, packages: list[Package], root: Path) -> None:
        with self.cache.scratch() as scratch:
            apt = Apt(scratch / "apt", release, self._report)
            apt.update()
            unpack(apt.download(packages), root, self._report)


def recipes_folder() -> Path:
    """The project's own recipes (see :func:`harness.provision.recipes.recipes_folder`)."""
    return recipes.recipes_folder()


def _install(name: str, root: Path, key: str) -> QemuInstall:
    """How to start the QEMU that is unpacked in ``root``: with its own loader, libraries and firmware."""
    loader = initramfs.inside(root, "lib64/ld-linux-x86-64.so.2")
    libraries = ":".join(str(root / folder) for folder in _LIBRARY_FOLDERS)
    binary = root / _QEMU
    firmware = [word for share in ("qemu", "seabios") for word in ("-L", str(root / "usr/share" / share))]
    return QemuInstall(
        name=name,
        binary=binary,
        command=(str(loader), "--library-path", libraries, str(binary)),
        arguments=tuple(firmware),
        environment={"QEMU_MODULE_DIR": str(root / "usr/lib/x86_64-linux-gnu/qemu")},
        origin="provisioned",
        key=key,
    )


def _tree(folder: Path) -> list[tuple[str, int, str]]:
    """Every file of a folder, by path, permissions and content."""
    return [
        (
            str(path.relative_to(folder)),
            path.stat().st_mode & 0o777,
            hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
