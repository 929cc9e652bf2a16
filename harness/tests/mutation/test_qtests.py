"""QEMU's own tests against a fault. The test programs, the loader and QEMU are shell scripts here."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from harness.errors import SetupError
from harness.mutation import qtests
from harness.mutation.qtests import QtestResult, Qtests
from harness.qemu.binary import QemuInstall
from harness.reaper import MARK, PREFIX

#: A test program. ``-l`` lists its cases. A case starts QEMU, which prints the name of its fault.
PROGRAM = """
case "$*" in
*-l*) echo "# starting QEMU"; printf '{form}%s\\n' {cases}; exit {listed};;
esac
case "$QTEST_QEMU_BINARY" in *-x86_64) ;; *) exit 9;; esac
fault=$("$QTEST_QEMU_BINARY" -machine none)
case "$fault $*" in
*modules*dies*-L*/roms*-p*/last*) echo "Broken pipe" >&2
    echo "libqtest.c:165: kill_qemu() detected QEMU death" >&2
    touch left-behind; setsid sleep 1000 & exit 134;;
*asserts*-p*/virtio-9p/local*) echo "not ok /p - ERROR:9p.c:1: assertion failed"; echo "Bail out!"; exit 134;;
*hangs*-p*/last*) sleep 1000;;
esac
echo "ok 1"
"""
CASES = {
    "qos-test": "/x86_64/pc/virtio-9p/local /x86_64/pc/virtio-net/rx",
    "device-plug-test": "/x86_64/first /x86_64/last",
    "drive_del-test": "/x86_64/drive_del",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the test programs. Run folders are made beside it."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, cases in CASES.items():
        (programs / name).write_text(PROGRAM.format(form="", cases=cases, listed=0))
    return programs


def test_both_forms_of_a_list_are_read(folder: Path) -> None:
    cases = Qtests.of(folder, qemu(folder, ""), lambda _: None).cases
    for name, listed in CASES.items():
        (folder / name).write_text(PROGRAM.format(form="# ", cases=listed, listed=0))
    assert Qtests.of(folder, qemu(folder, ""), lambda _: None).cases == cases
    assert cases["drive_del-test"] == ["/x86_64/drive_del"]


def qemu(folder: Path, fault: str) -> QemuInstall:
    """A QEMU that is started through a loader. It prints its environment, fault and arguments."""
    binary = folder / f"qemu-{fault or 'without'}"
    binary.write_text(f'echo "$MODULES {fault} $@"\n')
    return QemuInstall(
        name=f"7.2-src+{fault}",
        binary=binary,
        command=("sh", str(binary)),
        environment={"MODULES": "modules"},
    )


def run_folders(folder: Path) -> list[Path]:
    return list(folder.parent.glob(f"{PREFIX}*"))


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        ("none", QtestResult("passed")),
        (
            "dies",
            QtestResult(
                "caught",
                "device-plug-test /x86_64/last",
                "libqtest.c:165: kill_qemu() detected QEMU death",
            ),
        ),
        (
            "asserts",
            QtestResult("caught", "qos-test /x86_64/pc/virtio-9p/local", "ERROR:9p.c:1: assertion failed"),
        ),
    ],
)
def test_the_result_of_a_fault(folder: Path, fault: str, found: QtestResult) -> None:
    tests = Qtests.of(folder, qemu(folder, ""), lambda _: None)
    assert tests.cases["qos-test"] == ["/x86_64/pc/virtio-9p/local"], "other cases of qos-test are not run"
    assert tests.run(qemu(folder, fault)) == found
    assert run_folders(folder) == []


@pytest.mark.parametrize("printed", ["1..0", "ok 1 /x86_64/last # SKIP no such device"])
def test_a_case_that_does_not_run_does_not_count(folder: Path, printed: str) -> None:
    """The program exits with 0, whatever QEMU does; so it would pass against every fault."""
    program = folder / "device-plug-test"
    nothing = f'case "$*" in *-p*/last*) echo "{printed}"; exit 0;; esac\n'
    program.write_text(nothing + program.read_text())
    lines: list[str] = []
    tests = Qtests.of(folder, qemu(folder, ""), lines.append)
    assert tests.cases["device-plug-test"] == ["/x86_64/first"]
    assert tests.broken == {"/x86_64/last": "it was skipped, or did not run"}
    assert lines[-1] == "QEMU's own tests: 3 pass on 7.2-src+"


def test_no_file_and_no_process_is_left(folder: Path) -> None:
    """Not even a file that the case left, and a process in another session."""
    tests = Qtests.of(folder, qemu(folder, ""), lambda _: None)
    assert tests.run(qemu(folder, "dies")).verdict == "caught"
    assert run_folders(folder) == []
    assert [path.parent.name for path in Path("/proc").glob("[0-9]*/environ") if _is_of(path, folder)] == []


def _is_of(environ: Path, folder: Path) -> bool:
    """Whether a process was started for one of the run folders."""
    with contextlib.suppress(OSError):
        return f"{MARK}={folder.parent}/{PREFIX}".encode() in environ.read_bytes()
    return False


def test_a_case_that_hangs_is_ended(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qtests, "TIMEOUT_S", 0.5)
    tests = Qtests(folder, {"device-plug-test": ["/x86_64/last"]})
    assert tests.run(qemu(folder, "hangs")) == QtestResult(
        "caught", "device-plug-test /x86_64/last", "did not end within 0.5 s"
    )


def test_a_case_that_fails_without_a_fault_is_reported_and_not_counted(folder: Path) -> None:
    reported: list[str] = []
    tests = Qtests.of(folder, qemu(folder, "dies"), reported.append)
    assert list(tests.broken) == ["/x86_64/last"]
    assert reported[0].startswith(
        "QEMU's own test /x86_64/last fails on 7.2-src+dies and is not counted: libq"
    )
    assert tests.run(qemu(folder, "dies")) == QtestResult("passed")


def test_nothing_is_run_when_no_case_passes_without_a_fault(folder: Path) -> None:
    found = Qtests(folder, {"qos-test": []}).run(qemu(folder, "dies"))
    assert found == QtestResult("not run", why="no case passes on the QEMU without a fault")


def test_a_program_that_does_not_list_its_cases(folder: Path) -> None:
    (folder / "qos-test").write_text(PROGRAM.format(form="", cases="", listed=1))
    with pytest.raises(SetupError, match="QEMU's own qos-test does not list its tests: # starting QEMU"):
        Qtests.of(folder, qemu(folder, ""), lambda _: None)
