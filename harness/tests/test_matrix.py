from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import matrix
from harness.errors import SetupError, Unsupported, UsageError
from harness.guest.image import GuestImage
from harness.leaks import heap_profile
from harness.matrix import DEFAULT, Matrix, Selection
from harness.qemu import accel, binary
from harness.qemu.accel import Accel
from harness.qemu.architectures import X86_64, Architecture
from harness.qemu.binary import Capabilities, QemuInstall
from harness.qemu.spec import MachineSpec


class _Provisioner:
    """Knows three names, and records its downloads."""

    fetched: list[str]
    #: The heap libraries that can be fetched, and those of them that lie in the cache.
    can_fetch: tuple[str, ...] = ()
    in_cache: tuple[str, ...] = ()

    def __init__(self, cache: Any, *, report: Any, offline: bool = False, more_recipes: Any = ()) -> None:
        self.fetched, self._offline = [], offline

    def heap_libraries(self) -> Iterator[Path]:
        """As the real one; a download that is not possible is an error."""
        for name in self.can_fetch:
            if self._offline and name not in self.in_cache:
                break
            _Provisioner.in_cache += (name,)
            yield Path(name)
        raise SetupError("no network")

    def qemu_names(self, architecture: Architecture = X86_64) -> list[str]:
        return ["10.0", "7.2"] if architecture is X86_64 else ["7.2"]

    def built_qemus(self, version: tuple[int, int, int]) -> tuple[str, ...]:
        return (f"{version[0]}.{version[1]}-src",)

    def is_provisioned(self, name: str, architecture: Architecture = X86_64) -> bool:
        return name.partition("+")[0] in self.qemu_names(architecture)

    def guest_names(self, architecture: Architecture = X86_64) -> list[str]:
        return ["6.1"] if architecture is X86_64 else ["6.2"]

    def qemu_release(self, name: str | None, architecture: Architecture) -> QemuInstall:
        name = name or "7.2"
        self.fetched.append(f"qemu {name}")
        return _install(name)

    def guest_image(self, name: str | None, architecture: Architecture) -> GuestImage:
        name = name or self.guest_names(architecture)[0]
        self.fetched.append(f"guest {name}")
        here = Path("/c")
        return GuestImage(
            name, "6.1.0", here, here, here, "console=ttyS0", here, here, "ssh-ed25519 A", f"g{name}"
        )


def _install(name: str) -> QemuInstall:
    return QemuInstall(name, Path(name), (name,), key=f"q{name}")


def _profiler(install: QemuInstall) -> Path:
    """One library works; into a script none is preloaded."""
    if install.name == "/script":
        raise heap_profile.NotProfiled("a script")
    if Path("/fits") in install.profilers:
        return Path("/fits")
    raise heap_profile.NotFound("none works")


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The binaries that were probed: all are whole, but for one without 9p and one without q35."""
    names: list[str] = []

    def probe(install: QemuInstall) -> Capabilities:
        names.append(install.name)
        machines = {"pc"} if install.name == "/no-q35" else {"pc", "q35", "s390-ccw-virtio"}
        devices = set() if install.name == "/no-9p" else {"virtio-9p-pci"}
        return Capabilities("QEMU", (7, 2, 0), frozenset(machines), frozenset(devices))

    monkeypatch.setattr(matrix, "Provisioner", _Provisioner)
    monkeypatch.setattr(_Provisioner, "in_cache", ())
    monkeypatch.setattr(heap_profile, "library", _profiler)
    monkeypatch.setattr(binary, "probe", probe)
    monkeypatch.setattr(binary, "on_path", lambda data, architecture: None)
    monkeypatch.setattr(binary, "from_path", lambda path, data, architecture: _install(str(path)))
    return names


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The accelerator probes that were made: what was wanted, for which identity."""
    made: list[tuple[str, str]] = []

    def choose(
        wanted: str, spec: MachineSpec, identity: str, memory: Path, report: Any, *, host_factor: float
    ) -> Accel:
        made.append((wanted, identity))
        return Accel("tcg", "no", host_factor)

    monkeypatch.setattr(accel, "choose", choose)
    return made


def _matrix(tmp_path: Path, **selection: Any) -> Matrix:
    return Matrix(Selection(**selection), cache=tmp_path)


def _fetched(made: Matrix) -> list[str]:
    provisioner = made._provisioner
    assert isinstance(provisioner, _Provisioner)
    return provisioner.fetched


def test_cells_are_all_combinations() -> None:
    selection = Selection(qemus=("a", "b"), machines=("pc", "q35"), kernels=("5.10", "6.1"))
    cells = list(selection.cells())
    assert len(cells) == len(set(cells)) == 8
    assert cells[0] == ("a", "5.10", "pc")
    assert ("b", "6.1", "q35") in cells


def test_by_default_every_machine_type_of_one_qemu_and_kernel() -> None:
    assert list(Selection().cells()) == [(DEFAULT, DEFAULT, name) for name in ("pc", "q35", "q35-pcie")]


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (
            {"machines": ("pc", "isapc")},
            "--machine isapc: unknown machine type; "
            "known: pc, q35, q35-pcie, s390-ccw, virt, virt-acpi, microvm",
        ),
        ({"accel": "hvf"}, "--accel hvf: unknown accelerator; known: auto, kvm, tcg"),
        ({"kernels": ("2.4",)}, "--kernel 2.4: unknown kernel; known: 6.1"),
        (
            {"qemus": ("7.1",)},
            "--qemu 7.1: neither a path to a binary nor a provisioned name (known: 10.0, 7.2)",
        ),
        (
            {"qemus": ("/no-9p",)},
            "--qemu /no-9p: /no-9p has no virtio-9p-pci device "
            "(built without 9p; configure QEMU with --enable-virtfs)",
        ),
        (
            {"qemus": ("/no-q35",), "machines": ("pc", "q35-pcie")},
            "--qemu /no-q35: /no-q35 has no machine type 'q35' (see 'no-q35 -machine help')",
        ),
    ],
)
def test_bad_input_is_one_line_before_anything_is_fetched_or_booted(
    tmp_path: Path,
    probed: list[str],
    chosen: list[tuple[str, str]],
    selection: dict[str, Any],
    message: str,
) -> None:
    made = _matrix(tmp_path, **selection)
    with pytest.raises(UsageError) as caught:
        made.prepare()
    assert str(caught.value) == message
    assert (_fetched(made), chosen) == ([], [])


def test_a_machine_type_says_the_architecture(
    tmp_path: Path, probed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU and kernel are those of its architecture, and their speed is measured."""
    measured: list[str] = []

    def foreign(
        wanted: str, spec: MachineSpec, identity: str, memory: Path, report: Any, *, host_factor: float
    ) -> Accel:
        measured.append(identity)
        return Accel("tcg", "measured", host_factor, measured=9.0)

    monkeypatch.setattr(accel, "for_foreign_guest", foreign)
    (cell,) = _matrix(tmp_path, machines=("s390-ccw",)).prepare()
    assert (cell.machine_type.name, cell.image.name, cell.qemu.name) == ("s390-ccw", "6.2", "7.2")
    assert cell.accel.timeout_scale.factor == 9.0
    assert measured == ["q7.2/g6.2"]


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"kernels": ("6.1",)}, "--kernel 6.1: unknown kernel for s390x; known: 6.2"),
        (
            {"qemus": ("10.0",)},
            "--qemu 10.0: neither a path to a binary nor a provisioned name for s390x (known: 7.2)",
        ),
    ],
)
def test_what_an_architecture_does_not_have_is_one_line(
    tmp_path: Path, probed: list[str], selection: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        _matrix(tmp_path, machines=("s390-ccw",), **selection).prepare()
    assert str(caught.value) == message


def test_a_bad_path_is_reported_before_a_release_is_downloaded(tmp_path: Path, probed: list[str]) -> None:
    made = _matrix(tmp_path, qemus=("7.2", "/no-9p"))
    with pytest.raises(UsageError, match=r"^--qemu /no-9p"):
        made.prepare()
    assert _fetched(made) == []


def test_hotplug_that_a_qemu_does_not_have_is_no_cell(
    tmp_path: Path, probed: list[str], chosen: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = Capabilities("", (5, 2, 0), frozenset({"pc", "q35"}), frozenset({"virtio-9p-pci"}), False)
    monkeypatch.setattr(binary, "probe", lambda install: old)
    made = _matrix(tmp_path, qemus=("/q",))
    assert [cell.machine_type.name for cell in made.prepare()] == ["pc"]
    with pytest.raises(Unsupported, match=r"^q35: QEMU 5\.2\.0: no ACPI hotplug behind root ports"):
        made.cell("/q", DEFAULT, "q35")
    with pytest.raises(Unsupported, match=r"^q35-pcie: QEMU 5\.2\.0: a plugged device is ejected at once"):
        made.cell("/q", DEFAULT, "q35-pcie")


def test_each_thing_is_made_probed_and_judged_once(
    tmp_path: Path, probed: list[str], chosen: list[tuple[str, str]]
) -> None:
    made = _matrix(tmp_path, qemus=("7.2", "/q"), kernels=(DEFAULT,))
    cells = made.prepare()
    assert [(cell.qemu.name, cell.machine_type.name) for cell in cells] == [
        (qemu, machine) for qemu in ("7.2", "/q") for machine in ("pc", "q35", "q35-pcie")
    ]
    made.cell("7.2", DEFAULT, "pc")
    assert sorted(_fetched(made)) == ["guest 6.1", "qemu 7.2"]
    assert sorted(probed) == ["/q", "7.2"]
    # What a host does to guests does not depend on the machine type.
    assert sorted(chosen) == [("auto", "q/q/g6.1"), ("auto", "q7.2/g6.1")]


def test_the_default_qemu_is_the_one_on_path(
    tmp_path: Path, probed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binary, "on_path", lambda data, architecture: _install("/usr/bin/qemu"))
    made = _matrix(tmp_path)
    assert made.qemu(DEFAULT)[0].name == "/usr/bin/qemu"
    assert _fetched(made) == []


def test_without_one_on_path_it_is_the_default_release(tmp_path: Path, probed: list[str]) -> None:
    made = _matrix(tmp_path)
    assert made.qemu(DEFAULT)[0].name == "7.2"
    assert _fetched(made) == ["qemu 7.2"]


def test_firmware_goes_to_what_is_on_path_too(
    tmp_path: Path, probed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binary, "on_path", lambda data, architecture: _install(f"with {data}"))
    assert _matrix(tmp_path, qemu_data=Path("/bios")).qemu(DEFAULT)[0].name == "with /bios"


@pytest.mark.parametrize("names", [("7.2",), ("7.2", "10.0"), (DEFAULT,)])
def test_firmware_that_no_qemu_uses(tmp_path: Path, probed: list[str], names: tuple[str, ...]) -> None:
    made = _matrix(tmp_path, qemus=names, qemu_data=Path("/bios"))
    with pytest.raises(UsageError, match=r"^--qemu-data /bios: only for a QEMU given as a path"):
        made.qemu(names[0])
    assert _fetched(made) == []
    made = _matrix(tmp_path, qemus=(*names, "./build/qemu"), qemu_data=Path("/bios"))
    assert made.qemu(names[0])


def test_a_name_takes_precedence_over_a_file_of_that_name(
    tmp_path: Path, probed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "7.2").write_text("")
    (tmp_path / "mine").write_text("")
    made = _matrix(tmp_path)
    assert made.qemu("7.2")[0].name == "7.2"
    assert _fetched(made) == ["qemu 7.2"]
    assert made.qemu("mine")[0].name == "mine"


def test_a_release_with_a_fault_is_a_name_too(tmp_path: Path, probed: list[str]) -> None:
    made = _matrix(tmp_path)
    assert made.qemu("7.2+no-blocker")[0].name == "7.2+no-blocker"
    assert _fetched(made) == ["qemu 7.2+no-blocker"]


def test_the_test_guest_of_an_accelerator_has_no_shares(
    tmp_path: Path, probed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    specs: list[MachineSpec] = []

    def choose(wanted: str, spec: MachineSpec, *_: Any, **__: Any) -> Accel:
        specs.append(spec)
        return Accel("tcg", "no")

    monkeypatch.setattr(accel, "choose", choose)
    _matrix(tmp_path, machines=("q35",)).prepare()
    (spec,) = specs
    assert (spec.shares, spec.machine_type.name, spec.name) == ((), "q35", "probe")


@pytest.mark.parametrize(
    ("can_fetch", "profilers", "report"),
    [
        (("/fits", "/never asked for"), ("/fits",), None),
        (("/newer", "/fits"), ("/newer", "/fits"), None),
        (("/newer",), (), "leak hunts will not profile the heap of QEMU /q: no network"),
    ],
)
def test_heap_libraries_are_downloaded_in_the_main_process(
    tmp_path: Path,
    probed: list[str],
    chosen: list[tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    can_fetch: tuple[str, ...],
    profilers: tuple[str, ...],
    report: str | None,
) -> None:
    """For a QEMU given by path; without one the run continues."""
    monkeypatch.setattr(_Provisioner, "can_fetch", can_fetch)
    reports: list[str] = []
    made = Matrix(Selection(qemus=("/q",)), cache=tmp_path, report=reports.append)
    (install, *_) = {cell.qemu.name: cell.qemu for cell in made.prepare()}.values()
    assert install.profilers == tuple(map(Path, profilers))
    assert reports == ([report] if report else [])


def test_a_worker_takes_heap_libraries_from_the_cache(
    tmp_path: Path, probed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Provisioner, "can_fetch", ("/newer", "/fits", "/older"))
    assert _matrix(tmp_path, qemus=("/q",)).qemu("/q")[0].profilers == ()
    monkeypatch.setattr(_Provisioner, "in_cache", ("/newer", "/fits"))
    assert _matrix(tmp_path, qemus=("/q",)).qemu("/q")[0].profilers == (Path("/newer"), Path("/fits"))


def test_a_script_does_not_keep_the_next_qemu_from_being_profiled(
    tmp_path: Path, probed: list[str], chosen: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Provisioner, "can_fetch", ("/fits",))
    cells = _matrix(tmp_path, qemus=("/script", "/q")).prepare()
    assert {cell.qemu.name: cell.qemu.profilers for cell in cells} == {"/script": (), "/q": (Path("/fits"),)}


@pytest.mark.parametrize("given", ["0", "-1", "fast", "inf", "nan", ""])
def test_a_bad_timeout_scale_is_a_usage_error(given: str) -> None:
    with pytest.raises(UsageError) as error:
        Selection(timeout_scale=given).check()
    assert error.value.message == f"--timeout-scale {given}: write a number above 0, such as 2"


def test_a_slow_host_has_longer_timeouts_from_the_test_guest_on(
    tmp_path: Path, probed: list[str], chosen: list[tuple[str, str]]
) -> None:
    (cell,) = _matrix(tmp_path, machines=("q35",), timeout_scale="2.5").prepare()
    assert chosen
    assert cell.accel.host_factor == 2.5


def test_a_slow_host_has_longer_timeouts() -> None:
    assert Selection(timeout_scale="2.5").timeout_factor() == 2.5
    scale = Accel("tcg", "asked for", host_factor=2.5).timeout_scale
    assert scale.seconds(4.0) == 2.5 * accel.TIMEOUT_SCALES["tcg"].seconds(4.0)
