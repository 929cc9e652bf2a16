"""The lab over fake QEMU processes: what it starts, it ends, and what stays is told."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import deadline
from harness import testbed as lab_module
from harness.artifacts import Artifacts
from harness.background import Background
from harness.channel.guestfwd import Frozen
from harness.channel.qmp import QmpThread
from harness.checkers import Record, Verdict, judge
from harness.checkers.nothing_left_behind import nothing_left_behind
from harness.deadline import Pace, wait_until
from harness.errors import HarnessError, QemuDied, SetupError
from harness.guest.guest import Guest
from harness.guest.image import GuestImage
from harness.history import read
from harness.holds.hold import Hold
from harness.qemu.accel import Accel
from harness.qemu.binary import Capabilities, QemuInstall
from harness.qemu.machine import Machine
from harness.qemu.spec import MACHINE_TYPES, MachineSpec
from harness.reaper import RunFolder, start_time
from harness.restore.template import Template
from harness.testbed import Cell, Lab
from harness.tests.qemu import fake_qemu

_PROGRAM = Path(fake_qemu.__file__)


@pytest.fixture(scope="module")
def run() -> Iterator[RunFolder]:
    folder = RunFolder()
    yield folder
    folder.close()


@pytest.fixture
def cell(tmp_path: Path) -> Cell:
    disk = tmp_path / "disk"
    disk.write_text("a disk")
    install = QemuInstall("fake", _PROGRAM, (sys.executable, "-S", "-E", str(_PROGRAM)), key="q")
    capabilities = Capabilities("QEMU emulator version 7.2.22", (7, 2, 22), frozenset(), frozenset())
    image = GuestImage("6.1", "6.1.0-41", disk, disk, disk, "console=ttyS0", disk, disk, "ssh-ed25519 A", "g")
    return Cell(install, capabilities, image, MACHINE_TYPES["q35"], Accel("kvm", "for the tests"))


@pytest.fixture
def lab(cell: Cell, run: RunFolder, tmp_path: Path) -> Iterator[Lab]:
    made = Lab(cell, run, Artifacts.create(tmp_path, "test_lab"))
    yield made
    made.close()


def _leftovers(lab: Lab) -> dict[str, list[str]]:
    entries = read(lab.artifacts.history)
    assert entries[-1].f == "closed"
    (note,) = [entry for entry in entries if entry.f == "host:leftovers"]
    assert isinstance(note.value, dict)
    return note.value


def test_everything_it_started_is_gone_and_nothing_was_left(lab: Lab) -> None:
    source = lab.launch(lab.spec())
    successor = lab.launch_successor(source)
    lab.close()
    assert [start_time(machine.pid) for machine in (source, successor)] == [0, 0]
    assert not lab.folder.exists()
    left = _leftovers(lab)
    assert set(left) >= {"processes", "mounts", "sockets", "folders", "threads"}
    assert not any(left.values())
    before = lab.artifacts.history.read_bytes()
    lab.close()
    assert lab.artifacts.history.read_bytes() == before


def test_shares_are_empty_folders_one_for_each_place(lab: Lab) -> None:
    assert [share.slot for share in lab.shares] == [0, 1, 2, 3]
    assert len({share.path for share in lab.shares}) == len({share.mount_tag for share in lab.shares}) == 4
    for share in lab.shares:
        share.check()
        assert not list(share.path.iterdir())


def test_successors_are_numbered_and_get_what_is_plugged_then(lab: Lab) -> None:
    source = lab.launch(lab.spec(plugged=frozenset({"share0"})))
    source.plugged.add("share2")
    source.plugged.discard("share0")
    first = lab.launch_successor(source)
    second = lab.launch_successor(first)
    assert [machine.name for machine in lab.machines] == ["source", "successor-1", "successor-2"]
    assert (first.spec.plugged, first.spec.incoming) == (frozenset({"share2"}), True)
    assert second.plugged == {"share2"}
    assert second.paths.disk == source.paths.disk


def test_the_cell_is_described_from_the_start(lab: Lab) -> None:
    text = (lab.artifacts.folder / "cell.json").read_text()
    for fact in ("7.2.22", "6.1.0-41", "q35", "for the tests", str(_PROGRAM)):
        assert fact in text


def test_a_machine_that_died_does_not_keep_the_others_from_ending(lab: Lab) -> None:
    source = lab.launch(lab.spec())
    successor = lab.launch_successor(source)
    os.kill(source.pid, signal.SIGKILL)
    lab.close()
    assert not start_time(successor.pid)
    assert not any(_leftovers(lab).values())


def test_a_launch_that_failed_leaves_no_process(lab: Lab) -> None:
    spec = lab.spec()
    with pytest.raises(QemuDied):
        lab.launch(replace(spec, qemu=replace(spec.qemu, environment={"FAKE": "complains"})))
    lab.close()
    assert not any(_leftovers(lab).values())


def test_a_process_that_stayed_is_told_of(lab: Lab, run: RunFolder) -> None:
    """Something that a scenario started for this run, and forgot."""
    with subprocess.Popen(["sleep", "60"], env=run.environment()) as stray:
        try:
            # The kernel shows a process's environment only some way into its exec, after Popen has returned.
            wait_until(run.processes, what="the stray's mark", timeout_s=60)
            lab.close()
        finally:
            stray.kill()
    (left,) = _leftovers(lab)["processes"]
    assert left.strip() == f"{stray.pid} sleep 60"


@contextmanager
def _forgotten(name: str = "forgotten", *, daemon: bool = True) -> Iterator[threading.Thread]:
    """A thread that nobody ends before the block does."""
    done = threading.Event()
    thread = threading.Thread(target=done.wait, name=name, daemon=daemon)
    thread.start()
    try:
        yield thread
    finally:
        done.set()
        thread.join()


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab_module, "_THREADS_END_WITHIN_S", 0.1)


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize("daemon", [False, True])
def test_a_thread_that_stayed_is_told_of(lab: Lab, daemon: bool) -> None:
    with _forgotten(daemon=daemon):
        lab.close()
    assert _leftovers(lab)["threads"] == ["forgotten"]


@pytest.mark.usefixtures("_impatient")
def test_a_background_call_that_does_not_return_is_told_of(lab: Lab) -> None:
    done = threading.Event()
    calling = Background(done.wait)
    lab.close()
    done.set()
    calling.wait(timeout_s=60)
    assert _leftovers(lab)["threads"] == ["background: Event.wait"]


def test_a_thread_that_is_about_to_end_is_waited_for(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends only when somebody has begun to wait for it."""
    waits = threading.Event()

    def wait_until(probe: Callable[[], bool], **options: Any) -> bool:
        waits.set()
        return deadline.wait_until(probe, **options)

    monkeypatch.setattr(lab_module, "wait_until", wait_until)
    threading.Thread(target=waits.wait, daemon=True).start()
    lab.close()
    assert _leftovers(lab)["threads"] == []


@pytest.mark.usefixtures("_impatient")
def test_a_thread_is_reported_once(lab: Lab, cell: Cell, run: RunFolder, tmp_path: Path) -> None:
    """By the test that left it, and not by the next."""
    with _forgotten():
        lab.close()
        following = Lab(cell, run, Artifacts.create(tmp_path, "following"))
        following.close()
    assert _leftovers(lab)["threads"] == ["forgotten"]
    assert _leftovers(following)["threads"] == []


def test_the_thread_of_all_qmp_clients_is_nobodys(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(QmpThread, "_shared", None)
    lab.launch(lab.spec())
    lab.close()
    assert _leftovers(lab)["threads"] == []
    QmpThread.shared().loop.call_soon_threadsafe(QmpThread.shared().loop.stop)


@pytest.mark.parametrize("removed", [False, True])
def test_a_socket_that_somebody_listens_on_is_told_of(lab: Lab, removed: bool) -> None:
    """Even when its file has gone."""
    path = lab.folder / "forgotten.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        if removed:
            path.unlink()
        lab.close()
    assert _leftovers(lab)["sockets"] == [f"{path} (listening)"]
    assert nothing_left_behind(Record.load(lab.artifacts.folder))[0] is Verdict.INVALID


def test_the_file_of_a_socket_that_nobody_has_is_none(lab: Lab) -> None:
    """As a QEMU that is killed leaves them."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(lab.folder / "dead.sock"))
    lab.close()
    assert not any(_leftovers(lab).values())


def test_a_real_mount_that_stayed_is_told_of(lab: Lab) -> None:
    mounted = lab.shares[0].path
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "none", mounted], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"cannot mount: {done.stderr.strip()}")
    try:
        lab.close()
    finally:
        subprocess.run(["umount", mounted], check=True)
    assert _leftovers(lab)["mounts"] == [str(mounted)]
    assert _leftovers(lab)["folders"] == [str(lab.folder)]


def test_a_mount_that_stayed_is_told_of_and_not_emptied(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Removing the folder would remove what is mounted there."""
    (lab.shares[0].path / "precious").write_text("")
    mounted = str(lab.shares[0].path)
    monkeypatch.setattr(lab_module, "_mounts_below", lambda folder: [mounted])
    lab.close()
    assert (lab.shares[0].path / "precious").exists()
    assert _leftovers(lab)["mounts"] == [mounted]
    assert _leftovers(lab)["folders"] == [str(lab.folder)]


def test_a_share_whose_folder_cannot_be_made(
    cell: Cell, run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, *args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    artifacts = Artifacts.create(tmp_path, "full")
    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(SetupError, match=r"^cannot make the share's folder .*: No space left on device$"):
        Lab(cell, run, artifacts)


class Source:
    """A store of templates that knows one, or says why not."""

    def __init__(self, found: Template | str) -> None:
        self.found = found
        self.asked: list[str] = []

    def find(self, spec: MachineSpec, image: GuestImage, pace: Pace) -> Template | str:
        self.asked.append(spec.name)
        return self.found

    damage: str | None = None

    def damage_of(self, found: Template) -> str | None:
        return self.damage


def _born(lab: Lab) -> object:
    (note,) = [entry for entry in read(lab.artifacts.history) if entry.f == "guest:born"]
    return note.value


@pytest.fixture
def boots(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the guests of this test went through, instead of doing it."""
    done: list[str] = []
    monkeypatch.setattr(Guest, "wait_booted", lambda _: done.append("booted"))
    monkeypatch.setattr(lab_module, "wait_restored", lambda *_: done.append("answered"))

    def restore(*_: object) -> Callable[[], None]:
        done.append("restored")
        return lambda: done.append("finished")

    monkeypatch.setattr(lab_module, "restore", restore)
    return done


def test_a_guest_is_restored_where_there_is_a_template(
    cell: Cell, run: RunFolder, tmp_path: Path, boots: list[str]
) -> None:
    template = Template(tmp_path)
    template.kernel_log.write_text("what was printed while it booted\n")
    Frozen(bytes(16), bytes(32)).write(template.session)
    lab = Lab(replace(cell, templates=Source(template)), run, Artifacts.create(tmp_path, "restored"))
    guest = lab.boot()
    assert boots == ["restored", "answered", "finished"]
    assert guest.machine.spec == lab.spec().restored(template.memory)
    assert guest.machine.kernel_log.text() == "what was printed while it booted\n"
    lab.close()
    assert _born(lab) == "restored"
    assert not any(_leftovers(lab).values())


def _dies_while_it_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    def restore(machine: Machine, _: Template) -> Callable[[], None]:
        machine.artifacts.kernel.write_text("[ 1.0] Oops: of the damage\n")
        os.kill(machine.pid, signal.SIGSEGV)
        wait_until(lambda: not machine.running, what="its end", timeout_s=10)
        machine.watch_process()
        raise AssertionError

    monkeypatch.setattr(lab_module, "restore", restore)


@pytest.mark.parametrize("damage", ["its memory has changed", None])
def test_who_is_accused_when_a_guest_cannot_be_restored(
    cell: Cell,
    run: RunFolder,
    tmp_path: Path,
    boots: list[str],
    monkeypatch: pytest.MonkeyPatch,
    damage: str | None,
) -> None:
    """A template that is shown to be damaged; else QEMU, as ever."""
    template = Template(tmp_path)
    template.kernel_log.write_text("what was printed while it booted\n")
    Frozen(bytes(16), bytes(32)).write(template.session)
    _dies_while_it_is_restored(monkeypatch)
    source = Source(template)
    source.damage = damage
    lab = Lab(replace(cell, templates=source), run, Artifacts.create(tmp_path, "damaged"))
    if damage is None:
        with pytest.raises(QemuDied):
            lab.boot()
    else:
        guest = lab.boot()
        assert boots == ["booted"]
        assert (guest.machine.name, lab.machines) == ("source", [guest.machine])
        assert guest.machine.kernel_log.text() == ""
        guest.machine.artifacts.kernel.write_text("booted\n")
    lab.close()
    verdicts = {j.checker: j.verdict for j in judge(lab.artifacts.folder)}
    assert verdicts["qemu_alive"] is (Verdict.INVALID if damage is None else Verdict.VALID)
    assert verdicts["history_well_formed"] is verdicts["nothing_left_behind"] is Verdict.VALID
    if damage is not None:
        assert verdicts["guest_kernel_quiet"] is Verdict.VALID
        born = [entry.value for entry in read(lab.artifacts.history) if entry.f == "guest:born"]
        assert born == ["restored", {"cold": "its template was damaged: its memory has changed"}]
        kept = lab.artifacts.folder / "source-discarded" / "guest-kernel.log"
        assert kept.read_text() == "[ 1.0] Oops: of the damage\n"


@pytest.mark.parametrize(
    ("why", "found", "cold", "changes"),
    [
        ("the scenario asks for it", None, True, {}),
        ("devices of its own", None, False, {"plugged": frozenset(["share0"])}),
        ("no such capability", "no such capability", False, {}),
    ],
)
def test_a_guest_is_booted_where_it_has_to_be(
    cell: Cell,
    run: RunFolder,
    tmp_path: Path,
    boots: list[str],
    why: str,
    found: str | None,
    cold: bool,
    changes: dict[str, Any],
) -> None:
    source = Source(found or Template(tmp_path))
    lab = Lab(replace(cell, templates=source), run, Artifacts.create(tmp_path, "booted"))
    guest = lab.boot(replace(lab.spec(), **changes), cold=cold)
    assert boots == ["booted"]
    assert guest.machine.spec.memory_file is None
    lab.close()
    assert why in str(_born(lab))
    assert bool(source.asked) == bool(found)


def test_without_templates_every_guest_is_booted(lab: Lab, boots: list[str]) -> None:
    lab.boot()
    lab.close()
    assert boots == ["booted"]
    assert _born(lab) == {"cold": "templates are switched off"}


def test_a_process_that_stayed_is_reported(lab: Lab, run: RunFolder) -> None:
    """Whatever it works in: it belongs to the run."""
    stray = subprocess.Popen(["sleep", "60"], env=run.environment(), cwd="/")
    try:
        lab.close()
        assert [line.split()[0] for line in _leftovers(lab)["processes"]] == [str(stray.pid)]
    finally:
        stray.kill()
        stray.wait()


def test_a_tool_for_machines_that_run_already(lab: Lab) -> None:
    lab.launch(lab.spec())
    with pytest.raises(HarnessError, match="comes too late: source was started"):
        Hold(lab)
