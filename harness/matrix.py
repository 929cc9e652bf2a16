"""The axes of a run, and their crossing: names from the command line to cells that can be booted."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from harness.errors import SetupError, Unsupported, UsageError
from harness.guest.image import GuestImage
from harness.leaks import heap_profile
from harness.provision import Cache, Provisioner, default_cache_root
from harness.qemu import accel, binary
from harness.qemu.accel import Accel
from harness.qemu.binary import Capabilities, QemuInstall
from harness.qemu.machine_types import MACHINE_TYPES
from harness.qemu.machine_types.machine_type import MachineType
from harness.restore.store import TemplateStore
from harness.testbed import Cell, TemplateSource

#: What an axis that nobody narrowed is called: the QEMU on PATH or the default release, the default kernel.
DEFAULT = "default"
ACCELS = ("auto", "kvm", "tcg")


@dataclass(frozen=True)
class Selection:
    """What a user asked for: names only, so that asking costs nothing and collection never probes."""

    qemus: tuple[str, ...] = (DEFAULT,)
    machines: tuple[str, ...] = tuple(MACHINE_TYPES)
    kernels: tuple[str, ...] = (DEFAULT,)
    accel: str = "auto"
    cold: bool = False
    qemu_data: Path | None = None

    def check(self) -> None:
        """:raises UsageError: for a machine type or accelerator that does not exist."""
        for name in self.machines:
            machine_type(name)
        if self.accel not in ACCELS:
            raise UsageError(f"--accel {self.accel}: unknown accelerator; known: {', '.join(ACCELS)}")

    def cells(self) -> Iterator[tuple[str, str, str]]:
        """Every combination, as names: QEMU, kernel, machine type."""
        for qemu in self.qemus:
            for kernel in self.kernels:
                for machine in self.machines:
                    yield qemu, kernel, machine


def machine_type(name: str) -> MachineType:
    """:raises UsageError: when there is no such machine type."""
    if name not in MACHINE_TYPES:
        raise UsageError(f"--machine {name}: unknown machine type; known: {', '.join(MACHINE_TYPES)}")
    return MACHINE_TYPES[name]


def _require_hotplug(kind: MachineType, capabilities: Capabilities) -> None:
    if kind.acpi_root_ports and not capabilities.acpi_root_ports:
        why = f"{kind.acpi_root_ports} (ACPI came with 6.1)"
        raise Unsupported(f"{kind.name}: QEMU {capabilities.version_text}: {why}")


def _until_error(found: Iterator[Path]) -> Iterator[Path]:
    with contextlib.suppress(SetupError):
        yield from found


class Matrix:
    """Turns names into cells, each name once; provisions what is missing on the way.

    :param report: told of everything that takes more than a moment.
    """

    def __init__(
        self,
        selection: Selection,
        cache: Path | None = None,
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.selection, self._report = selection, report
        self._root = cache or default_cache_root()
        self._qemus: dict[str, tuple[QemuInstall, Capabilities]] = {}
        #: Whether what profiles a heap may be fetched: by the process that the user started, and seen.
        self._may_fetch = False
        self._images: dict[str, GuestImage] = {}
        self._accels: dict[tuple[str, str], Accel] = {}

    @cached_property
    def _provisioner(self) -> Provisioner:
        return Provisioner(Cache(self._root), report=self._report)

    @cached_property
    def _templates(self) -> TemplateSource | None:
        return None if self.selection.cold else TemplateStore(Cache(self._root), self._report)

    def prepare(self) -> list[Cell]:
        """Every cell of the selection, ready to boot.

        :raises UsageError: for names, paths and binaries that will not do, before any guest is booted.
        :raises SetupError: when something cannot be provisioned.
        """
        self.selection.check()
        self._may_fetch = True
        for name in self.selection.kernels:
            self._check_kernel(name)
        # What costs nothing comes first: a path that will not do is told of before anything is fetched.
        for name in sorted(self.selection.qemus, key=self._is_provisioned):
            install, capabilities = self.qemu(name)
            capabilities.require_9p(install)
            for machine in self.selection.machines:
                capabilities.require_machine(install, machine_type(machine).qemu)
        for name, (install, capabilities) in self._qemus.items():
            self._qemus[name] = (self._with_profilers(install), capabilities)
        cells = []
        for names in self.selection.cells():
            with contextlib.suppress(Unsupported):
                cells.append(self.cell(*names))
        return cells

    def cell(self, qemu: str, kernel: str, machine: str) -> Cell:
        """One combination, by names.

        :raises Unsupported: when this QEMU's machine type has no hotplug of that kind.
        """
        install, capabilities = self.qemu(qemu)
        kind = machine_type(machine)
        _require_hotplug(kind, capabilities)
        image = self.image(kernel)
        accelerator = self._accel(install, capabilities, image, kind)
        return Cell(install, capabilities, image, kind, accelerator, self._templates)

    def qemu(self, name: str) -> tuple[QemuInstall, Capabilities]:
        """The QEMU called ``name``: a provisioned release, a path, or the default."""
        if name not in self._qemus:
            install = self._find_qemu(name)
            capabilities = binary.probe(install)
            unstripped = self._provisioner.built_qemus(capabilities.version)
            install = replace(install, unstripped=unstripped)
            if not self._may_fetch:
                install = self._with_cached_profilers(install)
            self._qemus[name] = (install, capabilities)
        return self._qemus[name]

    def _is_provisioned(self, name: str) -> bool:
        return name == DEFAULT or self._provisioner.is_provisioned(name)

    def _find_qemu(self, name: str) -> QemuInstall:
        data = self.selection.qemu_data
        found = binary.on_path(data) if name == DEFAULT else None
        if found is not None:
            return found
        if self._is_provisioned(name):
            self._refuse_data_for_nobody()
            return self._provisioner.qemu_release(*(() if name == DEFAULT else (name,)))
        if "/" in name or Path(name).exists():
            return binary.from_path(Path(name), data)
        known = ", ".join(self._provisioner.qemu_names())
        raise UsageError(f"--qemu {name}: neither a path to a binary nor a provisioned name (known: {known})")

    def _with_profilers(self, install: QemuInstall) -> QemuInstall:
        """The same QEMU, with libraries that may profile its heap, where it is not one of ours.

        The process that the user started fetches them, until one works, and says when none does: leak hunts
        do without, and say it again. Its workers find in the cache what it has fetched.
        """
        if install.origin != "path" or not self._may_fetch:
            return install
        try:
            return self._profiled(install)
        except SetupError as exc:
            self._report(f"leak hunts will not profile the heap of QEMU {install.name}: {exc.message}")
            # What cannot be fetched for one cannot be fetched for the next.
            self._may_fetch = isinstance(exc, heap_profile.NotProfiled)
            return install

    def _with_cached_profilers(self, install: QemuInstall) -> QemuInstall:
        if install.origin != "path":
            return install
        return replace(install, profilers=tuple(_until_error(self._heap_libraries(offline=True))))

    def _profiled(self, install: QemuInstall) -> QemuInstall:
        """:raises NotProfiled: why it cannot be. :raises SetupError: when no library can be fetched."""
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

    def _refuse_data_for_nobody(self) -> None:
        """:raises UsageError: when ``--qemu-data`` was given, and every QEMU has its own firmware."""
        data, names = self.selection.qemu_data, self.selection.qemus
        if data is not None and all(map(self._is_provisioned, names)):
            raise UsageError(
                f"--qemu-data {data}: is for a QEMU that is given as a path; provisioned ones have their own"
            )

    def image(self, name: str) -> GuestImage:
        """The guest image called ``name``."""
        if name not in self._images:
            self._check_kernel(name)
            made = self._provisioner
            self._images[name] = made.guest_image() if name == DEFAULT else made.guest_image(name)
        return self._images[name]

    def _check_kernel(self, name: str) -> None:
        known = self._provisioner.guest_names()
        if name != DEFAULT and name not in known:
            raise UsageError(f"--kernel {name}: unknown kernel; known: {', '.join(known)}")

    def _accel(
        self, install: QemuInstall, capabilities: Capabilities, image: GuestImage, kind: MachineType
    ) -> Accel:
        """One verdict for a binary and a kernel: it does not depend on the machine type."""
        key = (install.key, image.key)
        if key not in self._accels:
            probe = Cell(install, capabilities, image, kind, Accel("tcg", "")).spec("probe", (), frozenset())
            self._accels[key] = accel.choose(
                self.selection.accel, probe, "/".join(key), self._root / "accel", self._report
            )
        return self._accels[key]
