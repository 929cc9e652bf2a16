"""The matrix of a run: turns the names of QEMUs, kernels and machine types into cells that can be booted."""

from __future__ import annotations

import contextlib
import math
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from harness.errors import SetupError, Unsupported, UsageError
from harness.guest.image import GuestImage
from harness.leaks import heap_profile
from harness.provision import Cache, Provisioner, default_cache_root
from harness.provision.recipes import Folders, recipes_folder
from harness.qemu import accel, binary
from harness.qemu.accel import Accel
from harness.qemu.architectures import X86_64, Architecture
from harness.qemu.binary import Capabilities, QemuInstall
from harness.qemu.machine_types import DEFAULT_MACHINE_TYPES, MACHINE_TYPES
from harness.qemu.machine_types.machine_type import MachineType
from harness.restore.store import TemplateStore
from harness.testbed import Cell, TemplateSource

#: The name of the default on an axis: the QEMU on PATH or else the default release; the default kernel.
DEFAULT = "default"
ACCELS = ("auto", "kvm", "tcg")


@dataclass(frozen=True)
class Selection:
    """What the user selected. It holds names only, so that pytest's collection probes nothing."""

    qemus: tuple[str, ...] = (DEFAULT,)
    machines: tuple[str, ...] = DEFAULT_MACHINE_TYPES
    kernels: tuple[str, ...] = (DEFAULT,)
    accel: str = "auto"
    cold: bool = False
    qemu_data: Path | None = None
    recipes: tuple[Path, ...] = ()
    timeout_scale: str = "1"

    def check(self) -> None:
        """Check the axes. :raises UsageError: for a bad machine type, accelerator, factor or recipe."""
        for name in self.machines:
            machine_type(name)
        if self.accel not in ACCELS:
            raise UsageError(f"--accel {self.accel}: unknown accelerator; known: {', '.join(ACCELS)}")
        self.timeout_factor()
        Folders(recipes_folder(), self.recipes).check_added()

    def timeout_factor(self) -> float:
        """``timeout_scale`` as a number.

        :raises UsageError: when it is none, or not above 0.
        """
        try:
            factor = float(self.timeout_scale)
        except ValueError:
            factor = 0.0
        if not 0 < factor < math.inf:
            raise UsageError(f"--timeout-scale {self.timeout_scale}: write a number above 0, such as 2")
        return factor

    def cells(self) -> Iterator[tuple[str, str, str]]:
        """Every combination of the selection, as names: QEMU, kernel, machine type."""
        for qemu in self.qemus:
            for kernel in self.kernels:
                for machine in self.machines:
                    yield qemu, kernel, machine


def machine_type(name: str) -> MachineType:
    """The machine type of a cell. :raises UsageError: when there is no such machine type."""
    if name not in MACHINE_TYPES:
        raise UsageError(f"--machine {name}: unknown machine type; known: {', '.join(MACHINE_TYPES)}")
    return MACHINE_TYPES[name]


def architecture_of(machine: str) -> Architecture:
    """The architecture of a cell's machine type; the default one for a name that is none."""
    return MACHINE_TYPES[machine].architecture if machine in MACHINE_TYPES else X86_64


def _require_hotplug(kind: MachineType, capabilities: Capabilities) -> None:
    """Require a QEMU whose hotplug works on this machine type.

    Before 6.1 Q35 had only native PCIe hotplug, which loses devices. Seen in 5.2 with kernels 5.10, 6.1 and
    6.12: ``device_add`` presses the slot's attention button, the guest's driver sees it pressed twice or the
    slot empty, powers the slot off, and QEMU deletes the device. 9p is not involved.

    :raises Unsupported: when this QEMU has no ACPI hotplug behind root ports.
    """
    if kind.acpi_root_ports and not capabilities.acpi_root_ports:
        why = f"{kind.acpi_root_ports} (ACPI came with 6.1)"
        raise Unsupported(f"{kind.name}: QEMU {capabilities.version_text}: {why}")


def _until_error(found: Iterator[Path]) -> Iterator[Path]:
    with contextlib.suppress(SetupError):
        yield from found


class Matrix:
    """Turns names into cells, and provisions what is missing. The result for each name is kept.

    :param report: called with a message before anything that takes more than a moment.
    """

    def __init__(
        self,
        selection: Selection,
        cache: Path | None = None,
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.selection, self._report = selection, report
        self._root = cache or default_cache_root()
        self._qemus: dict[tuple[str, str], tuple[QemuInstall, Capabilities]] = {}
        #: Whether libraries that profile a heap may be downloaded: only in the process that the user started,
        #: which shows progress.
        self._may_fetch = False
        self._images: dict[tuple[str, str], GuestImage] = {}
        self._accels: dict[tuple[str, str], Accel] = {}

    @cached_property
    def _provisioner(self) -> Provisioner:
        return Provisioner(Cache(self._root), more_recipes=self.selection.recipes, report=self._report)

    @cached_property
    def _templates(self) -> TemplateSource | None:
        return None if self.selection.cold else TemplateStore(Cache(self._root), self._report)

    def prepare(self) -> list[Cell]:
        """Every cell of the matrix, ready to boot.

        :raises UsageError: for unusable names, paths and binaries, before any guest is booted.
        :raises SetupError: when something cannot be provisioned.
        """
        self.selection.check()
        self._may_fetch = True
        kinds = [machine_type(name) for name in self.selection.machines]
        architectures = list({kind.architecture.name: kind.architecture for kind in kinds}.values())
        for architecture in architectures:
            for name in self.selection.kernels:
                self._check_kernel(name, architecture)
        # Paths are checked before provisioned names, so that a wrong path is reported before any download.
        for name in sorted(self.selection.qemus, key=self._is_provisioned):
            for architecture in architectures:
                install, capabilities = self.qemu(name, architecture)
                capabilities.require_9p(install)
                for kind in kinds:
                    if kind.architecture is architecture:
                        capabilities.require_machine(install, kind.qemu)
        for names_of_one, (install, capabilities) in self._qemus.items():
            self._qemus[names_of_one] = (self._with_profilers(install), capabilities)
        cells = []
        for names in self.selection.cells():
            with contextlib.suppress(Unsupported):
                cells.append(self.cell(*names))
        return cells

    def cell(self, qemu: str, kernel: str, machine: str) -> Cell:
        """The cell for these names.

        :raises Unsupported: when hotplug does not work on this QEMU's machine type, or firmware is missing.
        """
        kind = machine_type(machine)
        install, capabilities = self.qemu(qemu, kind.architecture)
        _require_hotplug(kind, capabilities)
        if kind.property is not None:
            binary.require_property(install, *kind.property)
        firmware = binary.find_firmware(install, kind.firmware) if kind.firmware else None
        image = self.image(kernel, kind.architecture)
        accelerator = self._accel(install, capabilities, image, kind)
        return Cell(install, capabilities, image, kind, accelerator, self._templates, firmware)

    def qemu(self, name: str, architecture: Architecture = X86_64) -> tuple[QemuInstall, Capabilities]:
        """The QEMU ``name`` for guests of an architecture: a provisioned release, a path, or the default."""
        key = (name, architecture.name)
        if key not in self._qemus:
            install = self._find_qemu(name, architecture)
            capabilities = binary.probe(install)
            if architecture is X86_64:
                unstripped = self._provisioner.built_qemus(capabilities.version)
                install = replace(install, unstripped=unstripped)
            if not self._may_fetch:
                install = self._with_cached_profilers(install)
            self._qemus[key] = (install, capabilities)
        return self._qemus[key]

    def _is_provisioned(self, name: str, architecture: Architecture = X86_64) -> bool:
        return name == DEFAULT or self._provisioner.is_provisioned(name, architecture)

    def _find_qemu(self, name: str, architecture: Architecture) -> QemuInstall:
        data = self.selection.qemu_data
        found = binary.on_path(data, architecture) if name == DEFAULT else None
        if found is not None:
            return found
        if self._is_provisioned(name, architecture):
            self._refuse_unused_data()
            return self._provisioner.qemu_release(None if name == DEFAULT else name, architecture)
        if "/" in name or Path(name).exists():
            return binary.from_path(Path(name), data, architecture)
        known = ", ".join(self._provisioner.qemu_names(architecture))
        of = "" if architecture is X86_64 else f" for {architecture.name}"
        raise UsageError(
            f"--qemu {name}: neither a path to a binary nor a provisioned name{of} (known: {known})"
        )

    def _with_profilers(self, install: QemuInstall) -> QemuInstall:
        """``install`` with libraries that can profile its heap; provisioned QEMUs have theirs already.

        The process that the user started downloads candidates until one works. If none does, it reports the
        reason, and leak hunts run without a heap profile. Workers find the libraries in the cache.
        """
        if install.origin != "path" or not self._may_fetch:
            return install
        try:
            return self._profiled(install)
        except SetupError as exc:
            self._report(f"leak hunts will not profile the heap of QEMU {install.name}: {exc.message}")
            # If a download failed, it would fail for the next QEMU, too.
            self._may_fetch = isinstance(exc, heap_profile.NotProfiled)
            return install

    def _with_cached_profilers(self, install: QemuInstall) -> QemuInstall:
        if install.origin != "path":
            return install
        return replace(install, profilers=tuple(_until_error(self._heap_libraries(offline=True))))

    def _profiled(self, install: QemuInstall) -> QemuInstall:
        """Add libraries to ``install`` until its heap can be profiled.

        :raises NotProfiled: when no library works. :raises SetupError: when no library can be downloaded.
        """
        found = self._heap_libraries(offline=False)
        while True:
            try:
                heap_profile.library(install)
                return install
            except heap_profile.NotFound as exc:
                library = next(found, None)
                if library is None:
                    raise exc from None
                install = replace(install, profilers=(*install.profilers, library))

    def _heap_libraries(self, *, offline: bool) -> Iterator[Path]:
        return Provisioner(Cache(self._root), report=self._report, offline=offline).heap_libraries()

    def virtiofsd(self) -> tuple[str, ...]:
        """The command of virtiofsd, without arguments; fetched on first use.

        :raises SetupError: when it cannot be provisioned.
        """
        return self._provisioner.virtiofsd()

    def _refuse_unused_data(self) -> None:
        """:raises UsageError: when ``--qemu-data`` is given, but every selected QEMU has its own."""
        data, names = self.selection.qemu_data, self.selection.qemus
        if data is not None and all(map(self._is_provisioned, names)):
            raise UsageError(
                f"--qemu-data {data}: only for a QEMU given as a path; provisioned ones have their own"
            )

    def image(self, name: str, architecture: Architecture = X86_64) -> GuestImage:
        """The guest image ``name`` of an architecture."""
        key = (name, architecture.name)
        if key not in self._images:
            self._check_kernel(name, architecture)
            wanted = None if name == DEFAULT else name
            self._images[key] = self._provisioner.guest_image(wanted, architecture)
        return self._images[key]

    def _check_kernel(self, name: str, architecture: Architecture) -> None:
        known = self._provisioner.guest_names(architecture)
        if name != DEFAULT and name not in known:
            of = "" if architecture is X86_64 else f" for {architecture.name}"
            raise UsageError(f"--kernel {name}: unknown kernel{of}; known: {', '.join(known)}")

    def _accel(
        self, install: QemuInstall, capabilities: Capabilities, image: GuestImage, kind: MachineType
    ) -> Accel:
        """The accelerator for a binary and a kernel; it does not depend on the machine type."""
        key = (install.key, image.key)
        if key not in self._accels:
            probe = Cell(install, capabilities, image, kind, Accel("tcg", "")).spec("probe", (), frozenset())
            own = kind.architecture.name == platform.machine()
            self._accels[key] = (accel.choose if own else accel.for_foreign_guest)(
                self.selection.accel,
                probe,
                "/".join(key),
                self._root / "accel",
                self._report,
                host_factor=self.selection.timeout_factor(),
            )
        return self._accels[key]
