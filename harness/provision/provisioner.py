"""Makes the files in the cache from recipes.

The versions of a recipe's packages are resolved once and stored in the cache (``resolved/``). The packages
are kept as well (``debs/``), so that a filled cache needs no network, not even to repair a damaged entry.
They are resolved again with ``refresh``, and when a repair finds that the archive no longer has a version.
The key of an entry is a hash of the recipe's content, its root's files, those versions, the cache's SSH keys,
and :data:`FORMAT`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from harness.errors import SetupError, UsageError
from harness.guest.image import GuestImage
from harness.provision import build_root, edits, gcov, initramfs, keys, qcow2, recipes, vmlinux
from harness.provision.apt import Apt, Package, Report, Withdrawn, require_tools, unpack
from harness.provision.builds import Build
from harness.provision.cache import Cache
from harness.provision.edits import Edited
from harness.provision.kernels import kernels_in, only_kernel
from harness.provision.recipes import (
    BuildRecipe,
    Folders,
    GuestRecipe,
    HeapRecipe,
    QemuRecipe,
    Recipe,
    kind_of,
)
from harness.provision.recipes import recipes_folder as find_recipes
from harness.provision.space import reported_in_one_line
from harness.provision.unpacked import command_in, installed
from harness.qemu.architectures import X86_64, Architecture
from harness.qemu.binary import HEAP_LIBRARY, PROGRAM, QemuInstall

#: To be incremented whenever the code makes different files from the same recipe.
FORMAT = 2
_DISK_MIB = 1024
_KERNEL, _BZIMAGE = "kernel", "bzImage"
_VIRTIOFSD = "usr/libexec/virtiofsd"
#: Folders that no program reads: a third of an unpacked QEMU.
_UNUSED = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/icons", "usr/share/info")

Packages = dict[str, list[Package]]


class Provisioner:
    """Provides guest images and QEMU releases by the names of their recipes.

    :param recipes: the folder of recipes; the project's own by default.
    :param more_recipes: see :class:`harness.provision.recipes.Folders`.
    :param report: called with a line of text before everything that takes longer than a moment.
    :param refresh: resolve package versions again, which needs a network.
    :param offline: fetch nothing; whatever needs a network is an error.
    """

    def __init__(
        self,
        cache: Cache,
        *,
        recipes: Path | None = None,
        more_recipes: Sequence[Path] = (),
        report: Report = lambda _: None,
        refresh: bool = False,
        offline: bool = False,
    ) -> None:
        self.cache, self._report, self._refresh, self._offline = cache, report, refresh, offline
        self._folder = recipes or find_recipes()
        self._recipes = Folders(self._folder, more_recipes)

    def guest_names(self, architecture: Architecture = X86_64) -> list[str]:
        """The names of the recipes for guest images of an architecture."""
        return self._recipes.names(kind_of("guests", architecture))

    def is_provisioned(self, name: str, architecture: Architecture = X86_64) -> bool:
        """Whether ``name`` is one of :meth:`qemu_names`, or one of them with a fault (``NAME+FAULT``).

        ``NAME+coverage`` is one of them as well.
        """
        return name.partition("+")[0] in self.qemu_names(architecture)

    def qemu_names(self, architecture: Architecture = X86_64) -> list[str]:
        """The names of the recipes for QEMU releases that emulate an architecture."""
        return self._recipes.names(kind_of("qemu", architecture))

    def built_qemus(self, version: tuple[int, int, int]) -> tuple[str, ...]:
        """The names of the flavours of a QEMU release that are built from source, and so have symbols."""
        release = f"{version[0]}.{version[1]}-"
        names = [name for name in self.qemu_names() if name.startswith(release)]
        return tuple(name for name in names if self._recipes.load("qemu", name, QemuRecipe).configure)

    def guest_image(self, name: str | None = None, architecture: Architecture = X86_64) -> GuestImage:
        """The guest image ``name`` (by default the default recipe's); made when it is missing.

        Of another architecture than the host's, packages are unpacked, and none of their programs is run.

        :raises UsageError: for an unknown name or a bad recipe. :raises SetupError: when it cannot be made.
        """
        kind = kind_of("guests", architecture)
        name = name or self._recipes.default(kind, GuestRecipe)
        recipe = self._recipes.load(kind, name, GuestRecipe)
        overlays = recipes.roots_of(self._recipes.folder(kind, name), name, recipe)
        pair = self._keys()

        def fill(into: Path, packages: dict[str, Path]) -> None:
            _make_guest(into, recipe, packages, overlays, pair, architecture)

        content = [pair.client_public, pair.host_public, _tree(overlays[0]), [_KERNEL, _BZIMAGE]]
        content += [_tree(more) for more in overlays[1:]]
        entry, key = self._provide(
            "guests", name, recipe, content, fill, guests=architecture, packages_of=architecture
        )
        return GuestImage(
            name=name,
            kernel_version=(entry / "kernel-version").read_text(),
            kernel=entry / _KERNEL,
            bzimage=entry / _BZIMAGE,
            initramfs=entry / "initramfs.cpio",
            cmdline=recipe.cmdline,
            disk=entry / "disk.qcow2",
            client_key=pair.client,
            host_key=pair.host_public,
            key=key,
        )

    def qemu_release(self, name: str | None = None, architecture: Architecture = X86_64) -> QemuInstall:
        """The QEMU release ``name`` (by default the default recipe's); made when it is missing.

        ``FLAVOUR+FAULT``, such as ``7.2-src+tag-kept``, is a QEMU built with that fault of the catalogue;
        ``FLAVOUR+coverage`` is one that counts what runs (:mod:`harness.provision.gcov`).

        :raises UsageError: for an unknown name or a bad recipe. :raises SetupError: when it cannot be made.
        """
        kind = kind_of("qemu", architecture)
        name = name or self._recipes.default(kind, QemuRecipe)
        flavour, with_fault, fault = name.partition("+")
        if fault == gcov.FLAVOUR:
            return self._counting(self.coverage_build(flavour))
        if with_fault:
            return self._faulty(self.build(flavour), fault)
        recipe = self._recipes.load(kind, name, QemuRecipe)
        if recipe.configure:
            return self._built(self.build(name))
        if recipe.stripped:
            return self._stripped(name, self.build(recipe.stripped))

        def fill(into: Path, packages: dict[str, Path]) -> None:
            root = packages["packages"].rename(into / "root")
            _remove_unused(root)
            if not (root / program).is_file():
                raise SetupError(f"the packages of QEMU {name} contain no /{program}")

        program = f"usr/bin/{architecture.program}"
        entry, key = self._provide("qemu", name, recipe, [], fill, guests=architecture)
        return installed(name, entry / "root", key, entry / "root" / program)

    def heap_names(self) -> list[str]:
        """The names of the heap libraries that a QEMU with this host's libc can load, the newest first."""
        host, folder = _host_glibc(), self._folder / "heap"
        needs = {name: recipes.load(folder, name, HeapRecipe).glibc_version for name in recipes.names(folder)}
        fitting = [name for name, needed in needs.items() if needed <= host]
        return sorted(fitting, key=lambda name: needs[name], reverse=True)

    def heap_library(self, name: str) -> Path:
        """The heap library ``name``, for a QEMU that runs with this host's libc; made when it is missing.

        :raises UsageError: for an unknown name or a bad recipe. :raises SetupError: when it cannot be made.
        """

        def fill(into: Path, packages: dict[str, Path]) -> None:
            found = list(packages["packages"].glob(f"usr/lib/*/{HEAP_LIBRARY}"))
            if len(found) != 1:
                raise SetupError(f"the packages of the heap library contain {len(found)} {HEAP_LIBRARY}")
            shutil.copyfile(found[0], into / HEAP_LIBRARY)

        recipe = recipes.load(self._folder / "heap", name, HeapRecipe)
        entry, _ = self._provide("heap", name, recipe, [], fill)
        return entry / HEAP_LIBRARY

    def heap_libraries(self) -> Iterator[Path]:
        """The heap libraries, the newest first; the iterator makes each one that is missing.

        :raises SetupError: when the host has no glibc that is new enough, or a library cannot be made.
        """
        names = self.heap_names()
        if not names:
            raise SetupError(
                "no recipe for libjemalloc2 fits this host's libc, which is not glibc or is too old"
            )
        for name in names:
            yield self.heap_library(name)

    def virtiofsd_names(self) -> list[str]:
        """The names of the recipes for virtiofsd."""
        return self._recipes.names("virtiofsd")

    def virtiofsd(self, name: str | None = None) -> tuple[str, ...]:
        """The command of virtiofsd, without arguments; made when it is missing.

        :raises UsageError: for an unknown name or a bad recipe. :raises SetupError: when it cannot be made.
        """
        name = name or self._recipes.default("virtiofsd", Recipe)
        recipe = self._recipes.load("virtiofsd", name, Recipe)

        def fill(into: Path, packages: dict[str, Path]) -> None:
            root = packages["packages"].rename(into / "root")
            _remove_unused(root)
            if not (root / _VIRTIOFSD).is_file():
                raise SetupError(f"the packages of virtiofsd {name} contain no /{_VIRTIOFSD}")

        entry, _ = self._provide("virtiofsd", name, recipe, [], fill)
        return command_in(entry / "root", entry / "root" / _VIRTIOFSD)

    def build(self, name: str) -> Build:
        """The build tree of the QEMU flavour ``name``, such as ``7.2-src``, with its tools unpacked.

        :raises UsageError: when there is no such recipe, or it is not built from source.
        :raises SetupError: when the tools cannot be made.
        """
        return self._build(name, name)

    def coverage_build(self, name: str) -> Build:
        """The build tree of the flavour ``name`` with the compiler's counters (``NAME+coverage``).

        :raises UsageError: see :meth:`build`. :raises SetupError: see :meth:`build`.
        """
        script = gcov.compiler(gcov.load(self._folder).part)
        return self._build(name, f"{name}+{gcov.FLAVOUR}", gcov.CONFIGURE, {gcov.COMPILER: script})

    def _build(
        self, name: str, called: str, more: Sequence[str] = (), scripts: Mapping[str, str] | None = None
    ) -> Build:
        flavour = self._recipes.load("qemu", name, QemuRecipe)
        if not flavour.configure:
            raise UsageError(f"QEMU {name} is not built from source: its recipe has no 'configure'")
        recipe = self._recipes.load("builds", flavour.release, BuildRecipe)

        def fill(into: Path, packages: dict[str, Path]) -> None:
            packages["packages"].rename(into / "root")
            packages["source"].rename(into / "sources")
            _remove_unused(into / "root")
            build_root.complete(into / "root")

        entry, key = self._provide("tools", flavour.release, recipe, [], fill)
        configure = [*flavour.configure, *more]
        content = _hash([key, configure, scripts] if scripts else [key, configure])
        return Build(self.cache, called, content, entry, configure, self._report, scripts)

    def build_options(self, name: str) -> tuple[str, ...]:
        """QEMU's ``configure`` options of the flavour ``name``; empty when it is not built from source."""
        return tuple(self._recipes.load("qemu", name, QemuRecipe).configure)

    def own_tests(self, name: str, programs: Sequence[str]) -> Path:
        """The folder with QEMU's own test programs, built from the tree of the flavour ``name``.

        They run with the loader and libraries of :meth:`qemu_release` of that name.

        :raises UsageError: when that flavour is not built from source.
        :raises SetupError: when they do not compile, with the compiler's message.
        """
        build = self.build(name)
        key = _hash([build.key, *programs])

        def fill(into: Path) -> None:
            self._report(f"building QEMU {name}'s own tests: half a minute …")
            build.make_tests(programs, into)

        return self.cache.entry("qtests", f"{name}-{key}", fill, self._report)

    def _built(self, build: Build) -> QemuInstall:
        entry = self.cache.entry("qemu", f"{build.name}-{build.key}", build.make, self._report)
        return installed(build.name, build.root, build.key, binary=entry / PROGRAM)

    def _counting(self, build: Build) -> QemuInstall:
        install = self._built(build)
        unwanted = build.source.parent / "counters"
        return replace(install, environment={**install.environment, **gcov.environment(unwanted)})

    def _stripped(self, name: str, build: Build) -> QemuInstall:
        key = _hash([build.key, "stripped"])
        entry = self.cache.entry("qemu", f"{name}-{key}", build.strip, self._report)
        return installed(name, build.root, key, binary=entry / PROGRAM)

    def _faulty(self, build: Build, name: str) -> QemuInstall:
        folder = self._folder / "faults"
        fault = recipes.load(folder, name, Edited)

        def fill(into: Path) -> None:
            self._report(f"building QEMU {build.name} with the fault {name} …")
            edits.build(build, name, fault, (folder / edits.MACROS).read_text(), into)

        key = _hash([build.key, fault.key])
        entry = self.cache.entry("faults", f"{build.name}+{name}-{key}", fill, self._report)
        return installed(f"{build.name}+{name}", build.root, key, binary=entry / PROGRAM)

    def _keys(self) -> keys.Keys:
        folder = self.cache.root / "keys"
        with reported_in_one_line(self.cache.root):
            pair = keys.load(folder)
            if pair is None:
                with self.cache.lock("keys", self._report):
                    pair = keys.load_or_make(folder)
        return pair

    def _provide(
        self,
        kind: str,
        name: str,
        recipe: Recipe,
        content: list[Any],
        fill: Callable[[Path, dict[str, Path]], None],
        *,
        guests: Architecture = X86_64,
        packages_of: Architecture = X86_64,
    ) -> tuple[Path, str]:
        """The cache entry for a recipe, and its key.

        :param content: further values that the key depends on.
        :param fill: called with an empty folder, and with the roots of the recipe's unpacked packages.
        :param guests: the architecture of the guests for which it is; part of the entry's name unless x86_64.
        :param packages_of: that of the packages.
        """
        name = name if guests is X86_64 else f"{guests.name}-{name}"
        with ExitStack() as stack:

            @cache
            def apt() -> Apt:
                if self._offline:
                    raise SetupError(f"{kind} {name} is not in the cache")
                scratch = stack.enter_context(self.cache.scratch())
                built = isinstance(recipe, BuildRecipe)
                return Apt(
                    scratch / "apt",
                    recipe.release,
                    self._report,
                    suite=recipe.suite,
                    sources_too=built,
                    architecture=packages_of.debian,
                )

            def provide(packages: Packages) -> tuple[Path, str]:
                versions = {what: [(p.name, p.version) for p in found] for what, found in packages.items()}
                values = recipe.model_dump(exclude={"default"}, exclude_none=True)
                key = _hash([FORMAT, values, content, versions])

                def make(into: Path) -> None:
                    with self.cache.scratch() as scratch:
                        fill(into, self._unpack(apt, packages, scratch))

                return self.cache.entry(kind, f"{name}-{key}", make, self._report), key

            packages = self._resolved(kind, name, recipe, apt, again=self._refresh)
            try:
                return provide(packages)
            except Withdrawn:
                self._report(f"packages of {kind} {name} were replaced in the archive; resolving again")
                return provide(self._resolved(kind, name, recipe, apt, again=True))

    def _resolved(
        self, kind: str, name: str, recipe: Recipe, apt: Callable[[], Apt], *, again: bool
    ) -> Packages:
        """The resolved packages of ``recipe``, as stored in the cache, or as resolved by apt and stored."""
        wanted = recipe.wanted()
        path = self.cache.root / "resolved" / f"{kind}-{name}-{_hash([*recipe.suites, wanted])}.json"
        known = None if again else _stored(path)
        if known is not None:
            return known
        with self.cache.lock(f"resolve-{kind}-{name}", self._report):
            known = None if again else _stored(path)  # Another process may just have stored them.
            if known is not None:
                return known
            found = {what: apt().resolve(*names) for what, names in wanted.items()}
            if isinstance(recipe, BuildRecipe):
                found["source"] = apt().resolve_source(recipe.source)
            if "kernel" in found:
                found["kernel"] = only_kernel(found["kernel"], wanted["kernel"])
            _write(path, json.dumps({what: [vars(p) for p in of] for what, of in found.items()}))
        return found

    def _unpack(self, apt: Callable[[], Apt], packages: Packages, scratch: Path) -> dict[str, Path]:
        """Fetch what is missing, and unpack each group of ``packages`` into a root below ``scratch``."""
        require_tools()
        debs = self.cache.root / "debs"
        debs.mkdir(exist_ok=True)
        needed = {p.filename: p for found in packages.values() for p in found}.values()
        missing = [package for package in needed if not package.is_intact(debs / package.filename)]
        if missing:
            total_mb = sum(package.size for package in missing) / 1e6
            connection = apt()
            self._report(f"fetching {len(missing)} packages, {total_mb:.0f} MB …")
            fetched = scratch / "fetched"
            fetched.mkdir()
            connection.download(missing, fetched, self._report)
            for package in missing:
                (fetched / package.filename).replace(debs / package.filename)
        for what, found in packages.items():
            _lay_out([debs / package.filename for package in found], scratch / what, self._report)
        return {what: scratch / what for what in packages}


def _make_guest(
    into: Path,
    recipe: GuestRecipe,
    packages: dict[str, Path],
    overlays: list[Path],
    pair: keys.Keys,
    architecture: Architecture,
) -> None:
    found = kernels_in(packages["kernel"])
    if len(found) != 1:
        raise SetupError(f"{recipe.kernel} of {recipe.release} contains {len(found)} kernels, not one")
    ((version, path),) = found.items()
    packed = path.read_bytes()
    (into / _BZIMAGE).write_bytes(packed)
    (into / _KERNEL).write_bytes(vmlinux.extract(packed) if recipe.uncompressed else packed)
    (into / "kernel-version").write_text(version)
    image = initramfs.build(
        packages["packages"],
        packages["kernel"],
        recipe.programs,
        recipe.modules,
        overlays,
        pair,
        on_demand=recipe.modules_on_demand,
        architecture=architecture,
    )
    (into / "initramfs.cpio").write_bytes(image)
    qcow2.create(into / "disk.qcow2", _DISK_MIB)


def _lay_out(files: list[Path], folder: Path, report: Report) -> None:
    """Unpack a recipe's packages into a folder; the files of a source package are copied instead."""
    if all(file.suffix == ".deb" for file in files):
        unpack(files, folder, report)
        return
    folder.mkdir()
    for file in files:
        shutil.copyfile(file, folder / file.name)


def _stored(path: Path) -> Packages | None:
    try:
        known = json.loads(path.read_text())
        return {what: [Package(**facts) for facts in found] for what, found in known.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(text)
    partial.replace(path)


def _remove_unused(root: Path) -> None:
    for unused in _UNUSED:
        shutil.rmtree(root / unused, ignore_errors=True)


def _host_glibc() -> tuple[int, ...]:
    """The version of this host's glibc, for heap libraries (``man 3 confstr``); empty with another libc."""
    try:
        words = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
    except (ValueError, OSError):
        return ()
    return tuple(int(part) for part in words[1].split(".")) if len(words) == 2 else ()


def _tree(folder: Path) -> list[tuple[str, bool, str]]:
    """The files of a recipe's folder: path, whether it is executable, and the hash of its content."""
    return [
        (
            str(path.relative_to(folder)),
            bool(path.stat().st_mode & 0o100),
            hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
