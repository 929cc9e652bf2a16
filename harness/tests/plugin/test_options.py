"""Bad input is one usage error; collection never looks at what is installed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from harness.qemu.binary import FIRMWARE, PROGRAM
from harness.tests.plugin.conftest import Pytest

_SCENARIO = """
def test_it(guest):
    raise AssertionError("no guest should have been booted")

def test_other(qemu_name, kernel_name, machine_name):
    raise AssertionError("nothing should have run")
"""
_FAKE = """#!/bin/sh
case "$*" in
*--version) echo "QEMU emulator version 7.2.22" ;;
*"-L help"*) echo "${0%/*}" ;;
*"-machine help") echo "Supported machines are:"; echo "pc   Standard PC" ;;
*"-device help") echo 'name "virtio-net-pci", bus PCI' ;;
esac
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["harness.plugin"]\n')
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_it.py").write_text(_SCENARIO)
    return tmp_path


@pytest.fixture
def fake(folder: Path) -> Path:
    """A QEMU without 9p, whose only machine type is pc."""
    (folder / "bin").mkdir()
    program = folder / "bin" / PROGRAM
    program.write_text(_FAKE)
    program.chmod(0o755)
    (folder / "bin" / FIRMWARE).write_text("")
    return program


def _errors(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What a user sees, without pytest's own frame around it."""
    return [line for line in done.stderr.splitlines() if line.strip()]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--machine", "isapc"],
            "--machine isapc: unknown machine type; "
            "known: pc, q35, q35-pcie, s390-ccw, virt, virt-acpi, microvm",
        ),
        (["--arch", "pdp11"], "--arch pdp11: unknown architecture; known: x86_64, s390x, "),
        (
            ["--arch", "s390x", "--machine", "pc"],
            "--machine pc: is of architecture x86_64, not s390x",
        ),
        (["--arch", "s390x", "--kernel", "5.10"], "--kernel 5.10: unknown kernel for s390x; known: 6.1"),
        (["--accel", "hvf"], "--accel hvf: unknown accelerator; known: auto, kvm, tcg"),
        (["--kernel", "2.4"], "--kernel 2.4: unknown kernel; known: "),
        (["--qemu", "no/such"], "--qemu no/such: no such file (give a path"),
        (["--qemu", "0.9"], "--qemu 0.9: neither a path to a binary nor a provisioned name (known: "),
        (["--timeout-scale", "0"], "--timeout-scale 0: write a number above 0, such as 2"),
        (["--known-bugs", "pytest.ini"], "{folder}/pytest.ini:1: unknown key 'pytest'"),
        (["--recipes", "bin"], "--recipes {folder}/bin: has no guests/NAME.toml or qemu/NAME.toml"),
        (["--qemu", "bin"], "--qemu bin: is a folder; give the binary in it"),
        (["--qemu", "pytest.ini"], "--qemu pytest.ini: not executable"),
        (["--qemu", "bin/" + PROGRAM, "--machine", "pc"], f"--qemu bin/{PROGRAM}: "),
    ],
)
def test_bad_input_is_one_usage_error(
    folder: Path, fake: Path, run_pytest: Pytest, options: list[str], message: str
) -> None:
    done = run_pytest(folder, *options)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR, done.stdout
    (error,) = _errors(done)
    assert error.startswith("ERROR: " + message.replace("{folder}", str(folder))), error
    assert "test_it" not in done.stdout
    assert not (folder / "cache").exists()
    assert not (folder / "artifacts").exists()


def test_bad_input_is_one_usage_error_for_all_workers(folder: Path, fake: Path, run_pytest: Pytest) -> None:
    done = run_pytest(folder, "--qemu", str(fake), "-n", "2")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR, done.stdout
    (error,) = _errors(done)
    assert "has no virtio-9p-pci device" in error
    assert "gw0" not in done.stdout


def test_a_qemu_without_9p_says_how_to_build_one_with_it(
    folder: Path, fake: Path, run_pytest: Pytest
) -> None:
    """Given by path, or found on PATH."""
    by_path = run_pytest(folder, "--qemu", str(fake), "--machine", "pc")
    on_path = run_pytest(folder, "--machine", "pc", path=f"{fake.parent}:/bin:/usr/bin")
    for done in (by_path, on_path):
        (error,) = _errors(done)
        assert error.endswith(
            f"{fake} has no virtio-9p-pci device (built without 9p; configure QEMU with --enable-virtfs)"
        )
        assert done.returncode == pytest.ExitCode.USAGE_ERROR


def test_a_qemu_without_the_machine_type(folder: Path, fake: Path, run_pytest: Pytest) -> None:
    fake.write_text(_FAKE.replace("virtio-net-pci", "virtio-9p-pci"))
    done = run_pytest(folder, "--qemu", str(fake), "--machine", "q35")
    (error,) = _errors(done)
    assert error == (
        f"ERROR: --qemu {fake}: {fake} has no machine type 'q35' (see '{PROGRAM} -machine help')"
    )


def _collected(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 0, done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if "::" in line]


def test_collection_does_not_depend_on_what_is_installed(
    folder: Path, fake: Path, run_pytest: Pytest
) -> None:
    """An empty host, a QEMU without 9p, one that is none: the same tests in one order; nothing is made."""
    empty = _collected(run_pytest(folder, "--collect-only", "-q"))
    without_9p = _collected(run_pytest(folder, "--collect-only", "-q", path=str(fake.parent)))
    fake.write_text("#!/bin/sh\nexit 1\n")
    broken = _collected(run_pytest(folder, "--collect-only", "-q", path=str(fake.parent)))
    assert empty == without_9p == broken
    assert len(empty) == 6
    assert set(empty) == {
        f"test_it.py::{test}[default-default-{machine}]"
        for test in ("test_it", "test_other")
        for machine in ("pc", "q35", "q35-pcie")
    }
    assert not (folder / "cache").exists()


def test_every_axis_is_crossed_from_names_alone(folder: Path, run_pytest: Pytest) -> None:
    axes = ["--qemu", "7.2", "--qemu", "no/such", "--machine", "pc", "--kernel", "5.10", "--kernel", "6.1"]
    collected = _collected(run_pytest(folder, "--collect-only", "-q", *axes, "-k", "test_other"))
    assert sorted(collected) == [
        f"test_it.py::test_other[{qemu}-{kernel}-pc]"
        for qemu in ("7.2", "no/such")
        for kernel in ("5.10", "6.1")
    ]


def test_the_options_are_explained(folder: Path, run_pytest: Pytest) -> None:
    shown = run_pytest(folder, "--help").stdout
    for option in ("--qemu", "--machine", "--kernel", "--accel", "--artifacts", "--keep-artifacts", "--cold"):
        assert f"  {option}" in shown


_PAIRS = """
def test_pair(peer, kernel_name, machine_name): pass
def test_chain(peers, kernel_name, machine_name): pass
"""


@pytest.mark.parametrize(
    ("qemus", "found"),
    [
        (["a"], ["test_pair[a-default-pc]", "test_chain[a-default-pc]"]),
        (
            ["a", "b"],
            ["test_pair[a-to-b-default-pc]", "test_pair[b-to-a-default-pc]", "test_chain[a-default-pc]"],
        ),
        (["a", "b", "c"], ["test_chain[a-and-2-more-default-pc]"]),
    ],
)
def test_two_qemus_at_once(folder: Path, run_pytest: Pytest, qemus: list[str], found: list[str]) -> None:
    (folder / "test_it.py").write_text(_PAIRS)
    axes = [word for name in qemus for word in ("--qemu", name)]
    collected = _collected(run_pytest(folder, "--collect-only", "-q", "--machine", "pc", *axes))
    names = [line.partition("::")[2] for line in collected]
    assert set(found) <= set(names)
    assert len(names) == max(1, len(qemus) * (len(qemus) - 1)) + 1


_ANY_PLUG = """
import pytest
@pytest.mark.any_plug
def test_it(machine_name): pass
@pytest.mark.any_plug
def test_another(machine_name): pass
"""


@pytest.mark.parametrize(
    ("options", "machines"),
    [
        ([], ["pc", "pc"]),
        (["--machine", "q35-pcie"], ["q35-pcie", "q35-pcie"]),
        (["--machine", "q35-pcie", "--machine", "q35"], ["q35-pcie", "q35-pcie"]),
        (["--machine", "pc", "--machine", "q35"], ["pc", "q35", "pc", "q35"]),
        (["--full"], ["pc", "q35", "q35-pcie", "pc", "q35", "q35-pcie"]),
    ],
)
def test_cells_that_cannot_differ_are_not_run_twice(
    folder: Path, run_pytest: Pytest, options: list[str], machines: list[str]
) -> None:
    """How a device is plugged is nothing to such a scenario: it is run once, unless more is asked for."""
    (folder / "test_it.py").write_text(_ANY_PLUG)
    collected = _collected(run_pytest(folder, "--collect-only", "-q", *options))
    assert sorted(one.split("[")[1] for one in collected) == sorted(f"{machine}]" for machine in machines)


def test_a_guest_has_a_kernel(folder: Path, run_pytest: Pytest) -> None:
    content = _NO_GUEST_KERNEL.replace("kernel_name, machine_name", "guest")
    (folder / "test_it.py").write_text(content)
    ended = run_pytest(folder, "--collect-only", "-q")
    assert ended.returncode != 0
    assert (
        "test_it.py::test_it is marked no_guest_kernel, and asks for a guest" in ended.stdout + ended.stderr
    )


_NO_GUEST_KERNEL = """
import pytest
@pytest.mark.no_guest_kernel
def test_it(kernel_name, machine_name): pass
"""


@pytest.mark.parametrize("options", [(), ("--full",)])
def test_no_kernel_is_run_once(folder: Path, run_pytest: Pytest, options: tuple[str, ...]) -> None:
    (folder / "test_it.py").write_text(_NO_GUEST_KERNEL)
    kernels = ("--kernel", "6.1", "--kernel", "6.12", "--machine", "pc")
    collected = _collected(run_pytest(folder, "--collect-only", "-q", *kernels, *options))
    assert collected == ["test_it.py::test_it[6.1-pc]"]
