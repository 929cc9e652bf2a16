"""The testbed with fake QEMU processes: it ends what it starts, and reports what is left."""

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
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness import deadline
from harness import testbed as testbed_module
from harness.artifacts import Artifacts
from harness.background import Background
from harness.channel.guestfwd import SavedSession
from harness.channel.qmp import QmpThread
from harness.checkers import Record, Verdict, judge
from harness.checkers.nothing_left_behind import nothing_left_behind
from harness.deadline import TimeoutScale, wait_until
from harness.errors import QemuDied, SetupError, UsageError
from harness.guest.guest import Guest
from harness.guest.image import GuestImage
from harness.history import read
from harness.holds.hold import Hold
from harness.qemu.accel import Accel
from harness.qemu.binary import Capabilities, QemuInstall
from harness.qemu.machine import Machine, Wrapping
from harness.qemu.machine_types import MACHINE_TYPES
from harness.qemu.spec import MachineSpec, MemoryFile
from harness.reaper import RunFolder, start_time
from harness.restore.template import Template
from harness.testbed import Cell, Testbed
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
def testbed(cell: Cell, run: RunFolder, tmp_path: Path) -> Iterator[Testbed]:
    made = Testbed(cell, run, Artifacts.create(tmp_path, "test_testbed"))
    yield made
    made.close()


def _leftovers(testbed: Testbed) -> dict[str, list[str]]:
    entries = read(testbed.artifacts.history)
    assert entries[-1].f == "closed"
    (note,) = [entry for entry in entries if entry.f == "host:leftovers"]
    assert isinstance(note.value, dict)
    return note.value


def test_everything_it_started_is_gone_and_nothing_was_left(testbed: Testbed) -> None:
    source = testbed.launch(testbed.spec())
    destination = testbed.launch_destination(source)
    testbed.close()
    assert [start_time(machine.pid) for machine in (source, destination)] == [0, 0]
    assert not testbed.folder.exists()
    left = _leftovers(testbed)
    assert set(left) >= {"processes", "mounts", "sockets", "folders", "threads"}
    assert not any(left.values())
    before = testbed.artifacts.history.read_bytes()
    testbed.close()
    assert testbed.artifacts.history.read_bytes() == before


def test_shares_are_empty_folders_one_for_each_place(testbed: Testbed) -> None:
    assert [share.slot for share in testbed.shares] == [0, 1, 2, 3]
    assert (
        len({share.path for share in testbed.shares})
        == len({share.mount_tag for share in testbed.shares})
        == 4
    )
    for share in testbed.shares:
        share.check()
        assert not list(share.path.iterdir())


def test_destinations_are_numbered_and_get_what_is_plugged_then(testbed: Testbed) -> None:
    source = testbed.launch(testbed.spec(plugged=frozenset({"share0"})))
    source.plugged.add("share2")
    source.plugged.discard("share0")
    first = testbed.launch_destination(source)
    second = testbed.launch_destination(first)
    assert [machine.name for machine in testbed.machines] == ["source", "destination-1", "destination-2"]
    assert (first.spec.plugged, first.spec.incoming) == (frozenset({"share2"}), True)
    assert second.plugged == {"share2"}
    assert second.paths.disk == source.paths.disk


def test_machines_that_are_launched_after_a_declaration_have_the_other_devices(testbed: Testbed) -> None:
    """The device is a share that is not in the pool of shares."""
    device = replace(testbed.shares[0], id="device", path=testbed.shares[3].path)
    testbed.declare_devices(device)
    source = testbed.launch(testbed.spec(plugged=frozenset({"device"})))
    assert source.spec.pluggable == (*testbed.shares, device)
    assert testbed.launch_destination(source).spec.devices == (device,)


def test_the_cell_is_described_from_the_start(testbed: Testbed) -> None:
    text = (testbed.artifacts.folder / "cell.json").read_text()
    for fact in ("7.2.22", "6.1.0-41", "q35", "for the tests", str(_PROGRAM)):
        assert fact in text


def test_a_machine_that_died_does_not_keep_the_others_from_ending(testbed: Testbed) -> None:
    source = testbed.launch(testbed.spec())
    destination = testbed.launch_destination(source)
    os.kill(source.pid, signal.SIGKILL)
    testbed.close()
    assert not start_time(destination.pid)
    assert not any(_leftovers(testbed).values())


def test_a_launch_that_failed_leaves_no_process(testbed: Testbed) -> None:
    spec = testbed.spec()
    with pytest.raises(QemuDied):
        testbed.launch(replace(spec, qemu=replace(spec.qemu, environment={"FAKE": "complains"})))
    testbed.close()
    assert not any(_leftovers(testbed).values())


@pytest.mark.usefixtures("_impatient")
def test_a_leftover_process_is_recorded(testbed: Testbed, run: RunFolder) -> None:
    """A process that a scenario started and did not end."""
    with subprocess.Popen(["sleep", "60"], env=run.environment()) as stray:
        try:
            # The kernel shows a process's environment only some way into its exec, after Popen has returned.
            wait_until(run.processes, what="the stray's mark", timeout_s=60)
            testbed.close()
        finally:
            stray.kill()
    (left,) = _leftovers(testbed)["processes"]
    assert left.strip() == f"{stray.pid} sleep 60"


@contextmanager
def _forgotten(name: str = "forgotten", *, daemon: bool = True) -> Iterator[threading.Thread]:
    """A thread that ends only with the block."""
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
    monkeypatch.setattr(testbed_module, "_END_WITHIN_S", 0.1)


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize("daemon", [False, True])
def test_a_leftover_thread_is_recorded(testbed: Testbed, daemon: bool) -> None:
    with _forgotten(daemon=daemon):
        testbed.close()
    assert _leftovers(testbed)["threads"] == ["forgotten"]


@pytest.mark.usefixtures("_impatient")
def test_a_background_call_that_does_not_return_is_recorded(testbed: Testbed) -> None:
    done = threading.Event()
    calling = Background(done.wait)
    testbed.close()
    done.set()
    calling.wait(timeout_s=60)
    assert _leftovers(testbed)["threads"] == ["background: Event.wait"]


def test_a_process_that_is_about_to_end_is_waited_for(
    testbed: Testbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that QEMU started, such as the program of a migration through ``exec:``, ends after QEMU."""
    looks = iter([[os.getpid()], []])
    monkeypatch.setattr(testbed.run, "processes", lambda: next(looks, []))
    testbed.close()
    assert not any(_leftovers(testbed).values())


@pytest.mark.usefixtures("_impatient")
def test_a_slow_host_has_longer_to_end_them(testbed: Testbed, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed_s: list[float] = []

    def wait(probe: Callable[[], bool], *, timeout_s: float, **_: object) -> None:
        allowed_s.append(timeout_s)

    testbed.cell = replace(testbed.cell, accel=replace(testbed.cell.accel, host_factor=3.0))
    monkeypatch.setattr(testbed_module, "wait_until", wait)
    testbed.close()
    assert allowed_s == pytest.approx([0.3, 0.3])


def test_a_thread_that_is_about_to_end_is_waited_for(
    testbed: Testbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends only after the wait for it has begun."""
    waits = threading.Event()

    def wait_until(probe: Callable[[], bool], **options: Any) -> bool:
        waits.set()
        return deadline.wait_until(probe, **options)

    monkeypatch.setattr(testbed_module, "wait_until", wait_until)
    threading.Thread(target=waits.wait, daemon=True).start()
    testbed.close()
    assert _leftovers(testbed)["threads"] == []


@pytest.mark.usefixtures("_impatient")
def test_a_thread_is_reported_once(testbed: Testbed, cell: Cell, run: RunFolder, tmp_path: Path) -> None:
    """By the test that started it, not by the next one."""
    with _forgotten():
        testbed.close()
        following = Testbed(cell, run, Artifacts.create(tmp_path, "following"))
        following.close()
    assert _leftovers(testbed)["threads"] == ["forgotten"]
    assert _leftovers(following)["threads"] == []


def test_the_qmp_thread_is_not_a_leftover(testbed: Testbed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(QmpThread, "_shared", None)
    testbed.launch(testbed.spec())
    testbed.close()
    assert _leftovers(testbed)["threads"] == []
    QmpThread.shared().loop.call_soon_threadsafe(QmpThread.shared().loop.stop)


@pytest.mark.parametrize("removed", [False, True])
def test_a_leftover_listening_socket_is_recorded(testbed: Testbed, removed: bool) -> None:
    """Even if its file was removed."""
    path = testbed.folder / "forgotten.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        if removed:
            path.unlink()
        testbed.close()
    assert _leftovers(testbed)["sockets"] == [f"{path} (listening)"]
    assert nothing_left_behind(Record.load(testbed.artifacts.folder))[0] is Verdict.INVALID


def test_the_file_of_a_closed_socket_is_not_a_leftover(testbed: Testbed) -> None:
    """A QEMU that is killed leaves such files."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(testbed.folder / "dead.sock"))
    testbed.close()
    assert not any(_leftovers(testbed).values())


def test_a_real_leftover_mount_is_recorded(testbed: Testbed) -> None:
    mounted = testbed.shares[0].path
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "none", mounted], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"cannot mount: {done.stderr.strip()}")
    try:
        testbed.close()
    finally:
        subprocess.run(["umount", mounted], check=True)
    assert _leftovers(testbed)["mounts"] == [str(mounted)]
    assert _leftovers(testbed)["folders"] == [str(testbed.folder)]


def test_a_leftover_mount_is_recorded_and_not_emptied(
    testbed: Testbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Removing the folder would remove what is mounted there."""
    (testbed.shares[0].path / "precious").write_text("")
    mounted = str(testbed.shares[0].path)
    monkeypatch.setattr(testbed_module, "_mounts_below", lambda folder: [mounted])
    testbed.close()
    assert (testbed.shares[0].path / "precious").exists()
    assert _leftovers(testbed)["mounts"] == [mounted]
    assert _leftovers(testbed)["folders"] == [str(testbed.folder)]


def test_a_share_whose_folder_cannot_be_made(
    cell: Cell, run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, *args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    artifacts = Artifacts.create(tmp_path, "full")
    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(SetupError, match=r"^cannot make the share's folder .*: No space left on device$"):
        Testbed(cell, run, artifacts)


class Source:
    """A source of templates that has one, or a reason for having none."""

    def __init__(self, found: Template | str) -> None:
        self.found = found
        self.requests: list[str] = []

    def find(self, spec: MachineSpec, image: GuestImage, timeout_scale: TimeoutScale) -> Template | str:
        self.requests.append(spec.name)
        return self.found

    damage: str | None = None

    def damage_of(self, found: Template) -> str | None:
        return self.damage


def _born(testbed: Testbed) -> object:
    (note,) = [entry for entry in read(testbed.artifacts.history) if entry.f == "guest:started"]
    return note.value


@pytest.fixture
def boots(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The steps that the guests of this test take, recorded instead of performed."""
    done: list[str] = []
    monkeypatch.setattr(Guest, "wait_booted", lambda _: done.append("booted"))
    monkeypatch.setattr(testbed_module, "wait_restored", lambda *_: done.append("answered"))

    def restore(*_: object) -> Callable[[], None]:
        done.append("restored")
        return lambda: done.append("finished")

    monkeypatch.setattr(testbed_module, "restore", restore)
    return done


def test_a_guest_is_restored_where_there_is_a_template(
    cell: Cell, run: RunFolder, tmp_path: Path, boots: list[str]
) -> None:
    template = Template(tmp_path)
    template.kernel_log.write_text("what was printed while it booted\n")
    SavedSession(bytes(16), bytes(32)).write(template.session)
    testbed = Testbed(replace(cell, templates=Source(template)), run, Artifacts.create(tmp_path, "restored"))
    guest = testbed.boot()
    assert boots == ["restored", "answered", "finished"]
    assert guest.machine.spec == testbed.spec().restored(template.memory)
    assert guest.machine.kernel_log.text() == "what was printed while it booted\n"
    testbed.close()
    assert _born(testbed) == "restored"
    assert not any(_leftovers(testbed).values())


def test_a_guest_whose_memory_a_backend_maps_is_restored_in_a_copy(
    cell: Cell, run: RunFolder, tmp_path: Path, boots: list[str]
) -> None:
    """What the guest writes must not reach the template."""
    template = Template(tmp_path)
    template.kernel_log.write_text("")
    SavedSession(bytes(16), bytes(32)).write(template.session)
    (tmp_path / "memory").write_bytes(b"of the template")
    testbed = Testbed(replace(cell, templates=Source(template)), run, Artifacts.create(tmp_path, "copied"))
    device = SimpleNamespace(
        id="d", slot=0, shares_memory=True, check=lambda: None, declared=lambda: (), device=lambda _: {}
    )
    testbed.declare_devices(device)
    memory = testbed.boot().machine.spec.memory_file
    assert memory == MemoryFile(testbed.folder / "source.memory", share=True)
    assert (testbed.folder / "source.memory").read_bytes() == b"of the template"
    testbed.close()
    assert not any(_leftovers(testbed).values())


def _dies_while_it_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    def restore(machine: Machine, _: Template) -> Callable[[], None]:
        machine.artifacts.kernel.write_text("[ 1.0] Oops: of the damage\n")
        os.kill(machine.pid, signal.SIGSEGV)
        wait_until(lambda: not machine.running, what="its end", timeout_s=10)
        machine.watch_process()
        raise AssertionError

    monkeypatch.setattr(testbed_module, "restore", restore)


@pytest.mark.parametrize("damage", ["its memory has changed", None])
def test_the_error_when_a_guest_cannot_be_restored(
    cell: Cell,
    run: RunFolder,
    tmp_path: Path,
    boots: list[str],
    monkeypatch: pytest.MonkeyPatch,
    damage: str | None,
) -> None:
    """It is that of the template if the template is damaged, else that of QEMU."""
    template = Template(tmp_path)
    template.kernel_log.write_text("what was printed while it booted\n")
    SavedSession(bytes(16), bytes(32)).write(template.session)
    _dies_while_it_is_restored(monkeypatch)
    source = Source(template)
    source.damage = damage
    testbed = Testbed(replace(cell, templates=source), run, Artifacts.create(tmp_path, "damaged"))
    if damage is None:
        with pytest.raises(QemuDied):
            testbed.boot()
    else:
        guest = testbed.boot()
        assert boots == ["booted"]
        assert (guest.machine.name, testbed.machines) == ("source", [guest.machine])
        assert guest.machine.kernel_log.text() == ""
        guest.machine.artifacts.kernel.write_text("booted\n")
    testbed.close()
    verdicts = {j.checker: j.verdict for j in judge(testbed.artifacts.folder)}
    assert verdicts["qemu_alive"] is (Verdict.INVALID if damage is None else Verdict.VALID)
    assert verdicts["history_well_formed"] is verdicts["nothing_left_behind"] is Verdict.VALID
    if damage is not None:
        assert verdicts["guest_kernel_quiet"] is Verdict.VALID
        notes = [entry.value for entry in read(testbed.artifacts.history) if entry.f == "guest:started"]
        assert notes == ["restored", {"cold": "its template was damaged: its memory has changed"}]
        kept = testbed.artifacts.folder / "source-discarded" / "guest-kernel.log"
        assert kept.read_text() == "[ 1.0] Oops: of the damage\n"


@pytest.mark.parametrize(
    ("why", "found", "cold", "changes"),
    [
        ("the scenario asks for it", None, True, {}),
        ("devices of its own", None, False, {"plugged": frozenset(["share0"])}),
        ("no such capability", "no such capability", False, {}),
    ],
)
def test_when_a_guest_is_booted(
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
    testbed = Testbed(replace(cell, templates=source), run, Artifacts.create(tmp_path, "booted"))
    guest = testbed.boot(replace(testbed.spec(), **changes), cold=cold)
    assert boots == ["booted"]
    assert guest.machine.spec.memory_file is None
    testbed.close()
    assert why in str(_born(testbed))
    assert bool(source.requests) == bool(found)


def test_without_templates_every_guest_is_booted(testbed: Testbed, boots: list[str]) -> None:
    testbed.boot()
    testbed.close()
    assert boots == ["booted"]
    assert _born(testbed) == {"cold": "templates are switched off"}


def test_a_leftover_process_in_another_folder_is_recorded(
    testbed: Testbed, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It belongs to the run, whatever its working directory is."""
    monkeypatch.setattr(testbed_module, "_END_WITHIN_S", 0.2)
    stray = subprocess.Popen(["sleep", "60"], env=run.environment(), cwd="/")
    try:
        testbed.close()
        assert [line.split()[0] for line in _leftovers(testbed)["processes"]] == [str(stray.pid)]
    finally:
        stray.kill()
        stray.wait()


def test_a_tool_that_is_attached_after_a_machine_was_started(testbed: Testbed) -> None:
    testbed.launch(testbed.spec())
    with pytest.raises(UsageError, match="attach Hold earlier: machine 'source' was already started"):
        Hold(testbed)


class Owned:
    """An object that is closed with the testbed. Its other method has a meaning of its own."""

    def __init__(self, error: str = "") -> None:
        self.error, self.closed = error, 0

    def release(self) -> None:
        raise AssertionError("it is no launch tool")

    def close(self) -> None:
        self.closed += 1
        if self.error:
            raise ValueError(self.error)


class Tool(Owned):
    """A launch tool that fails to release what it keeps."""

    def wrap(self, _spec: MachineSpec, _folder: Path) -> Wrapping:
        return Wrapping()

    def release(self) -> None:
        raise KeyError("release")


def test_any_object_is_closed_after_the_machines_have_ended(testbed: Testbed) -> None:
    owned = Owned()
    testbed.attach(owned)
    machine = testbed.launch(testbed.spec())
    later = Owned()
    testbed.attach(later)
    running: list[bool] = []
    testbed.attach(SimpleNamespace(close=lambda: running.append(machine.running)))
    testbed.close()
    assert (owned.closed, later.closed, running) == (1, 1, [False])


def test_what_fails_to_close_keeps_nothing_else_from_being_closed(testbed: Testbed) -> None:
    tool, owned, last = Tool("first"), Owned("second"), Owned()
    for thing in (tool, owned, last):
        testbed.attach(thing)
    machine = testbed.launch(testbed.spec())
    with pytest.raises(KeyError, match="release") as error:
        testbed.close()
    assert error.value.__notes__ == ["and then: ValueError: first", "and then: ValueError: second"]
    assert (tool.closed, owned.closed, last.closed, machine.running) == (1, 1, 1, False)
    assert not any(_leftovers(testbed).values())


@pytest.mark.parametrize(
    ("methods", "lacks"),
    [
        ([], r"has no close\(\);"),
        (["release"], r"has no close\(\);"),
        (["wrap", "close"], r"has no release\(\);"),
        (["wrap"], r"has no release\(\) and no close\(\);"),
    ],
)
def test_another_object_is_refused_at_once(testbed: Testbed, methods: list[str], lacks: str) -> None:
    with pytest.raises(UsageError, match=f"testbed.attach: SimpleNamespace {lacks}"):
        testbed.attach(cast(Any, SimpleNamespace(**dict.fromkeys(methods, print))))
    testbed.launch(testbed.spec())


def test_a_device_that_is_declared_after_a_machine_was_started(testbed: Testbed) -> None:
    device = replace(testbed.shares[0], id="disk0")
    testbed.launch(testbed.spec())
    with pytest.raises(UsageError, match="declare disk0 earlier: machine 'source' was already started"):
        testbed.declare_devices(device)


def test_an_object_that_is_no_device_is_refused_at_once(testbed: Testbed) -> None:
    disk = SimpleNamespace(id="disk0", slot=0, device=print)
    with pytest.raises(UsageError, match="declare_devices: SimpleNamespace has no check and no declared;"):
        testbed.declare_devices(cast(Any, disk))
