"""What each machine type is; what it renders to is in ``test_argv``."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from harness.errors import Unsupported, UsageError
from harness.qemu.machine_types import DEFAULT_MACHINE_TYPES, MACHINE_TYPES, chosen
from harness.qemu.machine_types.machine_type import (
    SLOTS,
    AcpiEject,
    MachineType,
    NoEject,
    SlotPowerOff,
    UnplugKind,
)
from harness.tests.qemu.specs import INSTALL

each = pytest.mark.parametrize("kind", MACHINE_TYPES.values(), ids=list(MACHINE_TYPES))


def test_all_of_them_in_order() -> None:
    """The first is the default where one has to be chosen."""
    assert list(MACHINE_TYPES) == ["pc", "q35", "q35-pcie", "s390-ccw", "virt", "virt-acpi", "microvm"]
    assert DEFAULT_MACHINE_TYPES == ("pc", "q35", "q35-pcie")
    assert chosen(["x86_64"], []) == DEFAULT_MACHINE_TYPES
    assert chosen([], ["microvm"]) == ("microvm",), "it is used where it is named"
    assert all(kind.name == name for name, kind in MACHINE_TYPES.items())


@pytest.mark.parametrize(
    ("machine", "first", "last"),
    [
        ("pc", {"bus": "pci.0", "addr": "0x10"}, {"bus": "pci.0", "addr": "0x13"}),
        ("q35", {"bus": "rp0", "addr": "0x0"}, {"bus": "rp3", "addr": "0x0"}),
        ("q35-pcie", {"bus": "rp0", "addr": "0x0"}, {"bus": "rp3", "addr": "0x0"}),
        ("s390-ccw", {"devno": "fe.0.0010"}, {"devno": "fe.0.0013"}),
        ("virt", {"bus": "rp0", "addr": "0x0"}, {"bus": "rp3", "addr": "0x0"}),
        ("virt-acpi", {"bus": "rp0", "addr": "0x0"}, {"bus": "rp3", "addr": "0x0"}),
        ("microvm", {"bus": "virtio-mmio-bus.1"}, {"bus": "virtio-mmio-bus.4"}),
    ],
)
def test_places(machine: str, first: dict[str, str], last: dict[str, str]) -> None:
    kind = MACHINE_TYPES[machine]
    assert (kind.place(0), kind.place(SLOTS - 1)) == (first, last)
    assert len({tuple(kind.place(slot).items()) for slot in range(SLOTS)}) == SLOTS


@each
def test_every_place_is_on_the_command_line_or_in_the_machine(kind: MachineType) -> None:
    assert len(kind.places) == SLOTS
    ports = {word.split(",")[1] for word in kind.place_arguments if "," in word}
    buses = {place.properties.get("bus", "pci.0") for place in kind.places}
    own = {bus for bus in buses if bus == "pci.0" or bus.startswith("virtio-mmio-bus.")}
    assert ports == {f"id={bus}" for bus in buses - own}


@pytest.mark.parametrize("slot", [-1, SLOTS])
def test_a_place_that_is_not_there(slot: int) -> None:
    with pytest.raises(UsageError, match=f"^machine q35 has places 0 to 3, not {slot}$"):
        MACHINE_TYPES["q35"].place(slot)


@pytest.mark.parametrize(
    ("machine", "bus", "addr", "arguments"),
    [
        ("pc", "pci.0", "0x18", ("-global", "PIIX4_PM.acpi-root-pci-hotplug=off")),
        ("q35", "pcie.0", "0x18", ()),
        (
            "q35-pcie",
            "fixed",
            "0x0",
            ("-device", "pcie-root-port,id=fixed,chassis=9,slot=9,hotplug=off,bus=pcie.0,addr=0x18"),
        ),
        ("virt", "pcie.0", "0x18", ()),
        (
            "virt-acpi",
            "fixed",
            "0x0",
            ("-device", "pcie-root-port,id=fixed,chassis=9,slot=9,hotplug=off,bus=pcie.0,addr=0x18"),
        ),
    ],
)
def test_a_place_that_forbids_hotplug(
    machine: str, bus: str, addr: str, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(
        "harness.qemu.machine_types.machine_type.require_property", lambda _, *what: asked.append(what)
    )
    fixed = MACHINE_TYPES[machine].require_fixed_place()
    fixed.require(INSTALL)
    assert (fixed.bus, fixed.addr, fixed.arguments) == (bus, addr, arguments)
    # Only pc needs a property that not every QEMU has.
    assert asked == ([("PIIX4_PM", "acpi-root-pci-hotplug")] if machine == "pc" else [])
    assert fixed.refusals[0] == f"Bus '{bus}' does not support hotplugging"


def test_how_a_guest_ejects() -> None:
    assert {name: kind.eject for name, kind in MACHINE_TYPES.items()} == {
        "pc": AcpiEject(0xAE00),
        "q35": AcpiEject(0xCC0),
        "q35-pcie": SlotPowerOff(),
        "s390-ccw": NoEject("a guest cannot eject a channel device"),
        "virt": SlotPowerOff(),
        "virt-acpi": AcpiEject(0x90C0000, in_memory=True),
        "microvm": NoEject("its devices cannot be ejected"),
    }
    assert AcpiEject(0xAE00).writes(2, 0x10) == [(0xAE10, 2), (0xAE08, 1 << 0x10)]


@pytest.mark.parametrize(
    ("machine", "path"),
    [
        ("pc", "/machine/i440fx/pci.0"),
        ("q35", "/machine/peripheral/rp0/rp0"),
        ("q35-pcie", "/machine/peripheral/rp0/rp0"),
    ],
)
def test_the_qom_path_of_a_bus(machine: str, path: str) -> None:
    kind = MACHINE_TYPES[machine]
    assert kind.bus_path.format(bus=kind.place(0)["bus"]) == path


@pytest.mark.parametrize(
    ("machine", "newest"),
    [
        ("pc", "pc-i440fx-7.2"),
        ("q35", "pc-q35-7.2"),
        ("q35-pcie", "pc-q35-7.2"),
        ("s390-ccw", "s390-ccw-virtio-7.2"),
        ("virt", "virt-7.2"),
        ("virt-acpi", "virt-7.2"),
    ],
)
def test_the_newest_version_that_all_know(machine: str, newest: str) -> None:
    old = {"pc", "q35", "pc-i440fx-2.12", "pc-i440fx-7.2", "pc-q35-2.12", "pc-q35-7.2", "isapc"}
    old |= {"s390-ccw-virtio", "s390-ccw-virtio-7.2", "virt", "virt-2.12", "virt-7.2"}
    new = {*old, "pc-i440fx-10.0", "pc-q35-10.0", "s390-ccw-virtio-10.0", "virt-10.0"}
    kind = MACHINE_TYPES[machine].known_to_all(new, old)
    assert (kind.qemu, kind.name, kind.eject) == (newest, machine, MACHINE_TYPES[machine].eject)
    assert kind.place(1) == MACHINE_TYPES[machine].place(1)


def test_no_version_that_all_know() -> None:
    with pytest.raises(Unsupported, match=r"^pc: these QEMUs have no machine type of one version in common"):
        MACHINE_TYPES["pc"].known_to_all({"pc", "pc-i440fx-11.0"}, {"pc", "pc-i440fx-5.2"})


@pytest.mark.parametrize(
    ("architectures", "machines", "expected"),
    [
        ([], [], ("pc", "q35", "q35-pcie")),
        (["s390x"], [], ("s390-ccw",)),
        (["aarch64", "s390x"], [], ("s390-ccw", "virt", "virt-acpi")),
        ([], ["virt", "pc"], ("virt", "pc")),
        (["x86_64"], ["q35"], ("q35",)),
    ],
)
def test_architectures_and_machine_types(
    architectures: list[str], machines: list[str], expected: tuple[str, ...]
) -> None:
    """A machine type says its architecture, so it is enough to name one of the two."""
    assert chosen(architectures, machines) == expected


def test_a_machine_type_of_another_architecture() -> None:
    with pytest.raises(UsageError, match=r"^--machine pc: is of architecture x86_64, not s390x$"):
        chosen(["s390x"], ["pc"])
    with pytest.raises(UsageError, match=r"^--arch pdp11: unknown architecture; known: x86_64, s390x, aa"):
        chosen(["pdp11"], [])


def test_what_a_machine_type_does_not_have() -> None:
    """A scenario asks for what it needs; the error is the reason of its skip."""
    kind = MACHINE_TYPES["s390-ccw"]
    with pytest.raises(Unsupported, match=r"^s390-ccw: has no bus that forbids hotplug$"):
        kind.require_fixed_place()
    with pytest.raises(Unsupported, match=r"^s390-ccw: its virtio devices are not on a PCI bus$"):
        kind.require_pci()
    with pytest.raises(
        Unsupported, match=r"^s390-ccw: device_del takes the device, without asking the guest$"
    ):
        kind.require_unplug(UnplugKind.ASKS)
    with pytest.raises(Unsupported, match=r"^virt: device_del asks the guest$"):
        MACHINE_TYPES["virt"].require_unplug(UnplugKind.TAKES)
    kind.require_unplug(UnplugKind.TAKES)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("riscv64", "Debian's kernel is built without PCI hotplug"),
        ("ppc64le", "a guest of pseries plugs PCI devices by the daemon"),
    ],
)
def test_an_architecture_that_was_tried_and_cannot_be_used(name: str, why: str) -> None:
    with pytest.raises(UsageError, match=rf"^--arch {name}: {why}.*; known: x86_64, s390x, aarch64$"):
        chosen([name], [])


def test_a_machine_type_without_hotplug() -> None:
    kind = MACHINE_TYPES["microvm"]
    kind.require_unplug(UnplugKind.REFUSED)
    refused = r"^microvm: has no hotplug: device_add and device_del are refused$"
    with pytest.raises(Unsupported, match=refused):
        kind.require_hotplug()
    with pytest.raises(Unsupported, match=refused):
        kind.require_unplug(UnplugKind.ASKS)
    for other in set(MACHINE_TYPES) - {"microvm"}:
        MACHINE_TYPES[other].require_hotplug()


@pytest.mark.parametrize(
    ("machine", "driver"),
    [("pc", "virtio-9p-pci"), ("s390-ccw", "virtio-9p-ccw"), ("microvm", "virtio-9p-device")],
)
def test_the_name_of_a_device(machine: str, driver: str) -> None:
    assert MACHINE_TYPES[machine].driver("virtio-9p-pci") == driver
    assert MACHINE_TYPES[machine].driver("e1000") == "e1000"


# A question about a machine type is answered by its data; nobody looks at its name.

_PACKAGE = Path(__file__).parents[2]
_SOURCES = [
    path
    for folder in (_PACKAGE, _PACKAGE.parent / "scenarios")
    for path in folder.rglob("*.py")
    if not {"tests", "machine_types"} & set(path.relative_to(_PACKAGE.parent).parts)
]


def _compared(source: str) -> list[int]:
    """The lines that compare something with the name of a machine type."""
    if not any(f'"{name}"' in source for name in MACHINE_TYPES):
        return []
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Compare)
        and any(isinstance(side, ast.Constant) and side.value in MACHINE_TYPES for side in ast.walk(node))
    ]


def test_no_module_compares_names_of_machine_types() -> None:
    assert len(_SOURCES) > 100
    assert {str(path): lines for path in _SOURCES if (lines := _compared(path.read_text()))} == {}


@pytest.mark.parametrize(
    "line", ['if kind.name == "pc": ...', 'x = "q35" in machines', 'kind in ("q35-pcie",)']
)
def test_a_comparison_is_found(line: str) -> None:
    assert _compared(line) == [1]
