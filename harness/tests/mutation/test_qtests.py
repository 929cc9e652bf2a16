"""QEMU's own tests beside a fault: the programs are scripts, and so are the loader and QEMU."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from harness.errors import SetupError
from harness.mutation import peers
from harness.mutation.peers import PeerFinding, Peers
from harness.qemu.binary import QemuInstall
from harness.reaper import MARK, PREFIX

#: A test program: ``-l`` lists; a case asks the QEMU that it is told of, which says what is wrong with it.
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
    """The test programs; and the scratch folders are below the test's own."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, cases in CASES.items():
        (programs / name).write_text(PROGRAM.format(form="", cases=cases, listed=0))
    return programs


def test_a_list_is_read_in_either_form(folder: Path) -> None:
    cases = Peers.of(folder, qemu(folder, ""), lambda _: None).cases
    for name, listed in CASES.items():
        (folder / name).write_text(PROGRAM.format(form="# ", cases=listed, listed=0))
    assert Peers.of(folder, qemu(folder, ""), lambda _: None).cases == cases
    assert cases["drive_del-test"] == ["/x86_64/drive_del"]


def qemu(folder: Path, fault: str) -> QemuInstall:
    """One that is started by a loader, as what is built here is; it says its fault, and its arguments."""
    binary = folder / f"qemu-{fault or 'without'}"
    binary.write_text(f'echo "$MODULES {fault} $@"\n')
    return QemuInstall(
        name=f"7.2-src+{fault}",
        binary=binary,
        command=("sh", str(binary)),
        environment={"MODULES": "modules"},
    )


def scratch(folder: Path) -> list[Path]:
    return list(folder.parent.glob(f"{PREFIX}*"))


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        ("none", PeerFinding("passed")),
        (
            "dies",
            PeerFinding(
                "caught",
                "device-plug-test /x86_64/last",
                "libqtest.c:165: kill_qemu() detected QEMU death",
            ),
        ),
        (
            "asserts",
            PeerFinding("caught", "qos-test /x86_64/pc/virtio-9p/local", "ERROR:9p.c:1: assertion failed"),
        ),
    ],
)
def test_what_they_say_of_a_fault(folder: Path, fault: str, found: PeerFinding) -> None:
    tests = Peers.of(folder, qemu(folder, ""), lambda _: None)
    assert tests.cases["qos-test"] == ["/x86_64/pc/virtio-9p/local"], "what is not about 9p is not run"
    assert tests.look(qemu(folder, fault)) == found
    assert scratch(folder) == []


def test_nothing_stays_behind(folder: Path) -> None:
    """Also where a test has left a file, and a process in a session of its own."""
    tests = Peers.of(folder, qemu(folder, ""), lambda _: None)
    assert tests.look(qemu(folder, "dies")).verdict == "caught"
    assert scratch(folder) == []
    assert [path.parent.name for path in Path("/proc").glob("[0-9]*/environ") if _is_of(path, folder)] == []


def _is_of(environ: Path, folder: Path) -> bool:
    """Whether a process was started for one of the scratch folders."""
    with contextlib.suppress(OSError):
        return f"{MARK}={folder.parent}/{PREFIX}".encode() in environ.read_bytes()
    return False


def test_one_that_does_not_end_is_ended(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "TIMEOUT_S", 0.5)
    tests = Peers(folder, {"device-plug-test": ["/x86_64/last"]})
    assert tests.look(qemu(folder, "hangs")) == PeerFinding(
        "caught", "device-plug-test /x86_64/last", "was not done after 0.5 s"
    )


def test_what_fails_without_a_fault_is_told_and_accuses_none(folder: Path) -> None:
    told: list[str] = []
    tests = Peers.of(folder, qemu(folder, "dies"), told.append)
    assert list(tests.broken) == ["/x86_64/last"]
    assert told[0].startswith("QEMU's own test /x86_64/last fails on 7.2-src+dies and is not counted: libq")
    assert tests.look(qemu(folder, "dies")) == PeerFinding("passed")


def test_where_none_passes_nothing_is_run(folder: Path) -> None:
    found = Peers(folder, {"qos-test": []}).look(qemu(folder, "dies"))
    assert found == PeerFinding("not run", why="none of them passes on the QEMU without a fault")


def test_a_program_that_does_not_list_its_tests(folder: Path) -> None:
    (folder / "qos-test").write_text(PROGRAM.format(form="", cases="", listed=1))
    with pytest.raises(SetupError, match="QEMU's own qos-test does not list its tests: # starting QEMU"):
        Peers.of(folder, qemu(folder, ""), lambda _: None)
