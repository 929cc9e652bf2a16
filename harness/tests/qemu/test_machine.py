from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.artifacts import Artifacts
from harness.deadline import TimeoutScale, wait_until
from harness.errors import (
    ChannelLost,
    GuestError,
    GuestPanicked,
    HarnessError,
    QemuDied,
    QemuError,
    QmpLost,
    QmpSilent,
    SetupError,
    UsageError,
    WaitTimeout,
)
from harness.history import Entry, History, Kind, read
from harness.qemu import machine
from harness.qemu.binary import QemuInstall
from harness.qemu.machine import Machine
from harness.reaper import RunFolder, start_time
from harness.tests.qemu.conftest import Launch
from harness.tests.qemu.specs import share, spec

_ASSERTION = "qemu-system-x86_64: ../util/throttle.c:443: throttle_account: Assertion `timer' failed."


#: Seconds to wait for what never happens, and for what does happen, on a busy host.
_SHORT_S, _TIMEOUT_S = 0.2, 120.0


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long timeouts, and no gdb."""
    for deadline in ("START_TIMEOUT_S", "QUIT_TIMEOUT_S", "_EXIT_VISIBLE_S"):
        monkeypatch.setattr(machine, deadline, _TIMEOUT_S)
    monkeypatch.setattr("shutil.which", lambda program: None)


def _await_no_exit(patch: pytest.MonkeyPatch) -> None:
    """Do not wait for the end of a process that is known to run, until its end is expected."""
    wait = Machine._wait_exit

    def only_if_asked(source: Machine, timeout_s: float) -> bool:
        return source._exit_expected and wait(source, timeout_s)

    patch.setattr(Machine, "_wait_exit", only_if_asked)


def _root_cause_while_alive(source: Machine, symptom: HarnessError) -> HarnessError:
    with pytest.MonkeyPatch.context() as patch:
        _await_no_exit(patch)
        return source.root_cause(symptom)


def _noted(history: History, f: str) -> list[Entry]:
    return [entry for entry in read(history.path) if entry.f == f]


def test_a_qemu_that_has_to_be_given_a_port(launch: Launch) -> None:
    """Each gets a free port, and can listen on it while the port is reserved."""
    first, second = (launch(name=name, any_port=False) for name in ("first", "second"))
    assert len({first.ssh_port, second.ssh_port, 0, 40123}) == 4
    assert f"127.0.0.1:{first.ssh_port}-:22" in first.artifacts.argv.read_text()


def _die(victim: Machine, number: int = signal.SIGSEGV, message: str = "") -> HarnessError:
    with pytest.raises(QmpLost) as caught:
        victim.qmp.execute("x-die", {"signal": number, "message": message}, timeout_s=_TIMEOUT_S)
    return caught.value


def _gone(dead: Machine) -> bool:
    return not start_time(dead.pid)


# Launching


def test_launch_and_quit(launch: Launch, history: History) -> None:
    source = launch()
    assert source.running
    assert source.returncode is None
    assert source.ssh_port == 40123
    assert source.artifacts.argv.stat().st_mode & 0o111
    source.quit()
    assert source.returncode == 0
    source.watch_process()  # An expected exit is no crash.
    source.close()

    (launched,) = _noted(history, "machine:launch")
    assert launched.actor == "source"
    assert launched.value["pid"] == source.pid
    assert (launched.value["artifacts"], launched.value["first"]) == (".", True)
    (expected,) = _noted(history, "machine:expect-exit")
    (ended,) = _noted(history, "machine:exit")
    assert (expected.value, ended.value) == ({"reason": "quit"}, {"returncode": 0})
    assert (expected.kind, ended.kind) == (Kind.NOTE, Kind.EVENT)
    assert expected.seq < ended.seq


def test_a_destination_has_a_folder_of_its_own_and_its_sources_disk(launch: Launch, history: History) -> None:
    source = launch()
    destination = launch(name="destination-1", source=source)
    assert destination.paths.disk == source.paths.disk
    assert (destination.artifacts.folder, destination.artifacts.folder.parent) == (
        source.artifacts.folder / "destination-1",
        source.artifacts.folder,
    )
    assert destination.folder != source.folder
    launched = _noted(history, "machine:launch")[1]
    assert (launched.value["artifacts"], launched.value["first"]) == ("destination-1", False)


def test_the_record_has_the_devices_of_the_command_line(launch: Launch, history: History) -> None:
    two = spec(shares=(share(), share(1)), plugged=frozenset(["share1"]))
    assert two.plugged_drivers == {"share1": "virtio-9p-pci"}
    launch()
    assert _noted(history, "machine:launch")[0].value["plugged"] == {}


def test_a_source_gets_a_copy_of_the_disk(launch: Launch) -> None:
    source = launch()
    assert source.paths.disk != source.spec.disk
    assert source.paths.disk.read_text() == source.spec.disk.read_text() == "a disk"


def test_a_qemu_that_complains_and_ends(launch: Launch, history: History) -> None:
    with pytest.raises(QemuDied) as caught:
        launch("complains")
    assert caught.value.message == (
        "QEMU 'source' exited with 1: "
        "qemu-system-x86_64: -device nonsense: 'nonsense' is not a valid device model name"
    )
    assert [entry.value for entry in _noted(history, "machine:exit")] == [{"returncode": 1}]


def test_a_qemu_that_dies_in_its_greeting(launch: Launch) -> None:
    """As when the file system with its memory file is full. The first symptom is a broken connection."""
    with pytest.raises(QemuDied, match=r"^QEMU 'source' was killed by SIGBUS"):
        launch("dies before it greets")


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("makes no socket", "QEMU 'source' did not open its QMP socket within 0 s"),
        ("does not greet", "QEMU 'source' sent no greeting on its QMP socket within 0 s"),
    ],
)
def test_a_qemu_that_sends_no_greeting(
    launch: Launch, history: History, monkeypatch: pytest.MonkeyPatch, mode: str, message: str
) -> None:
    monkeypatch.setattr(machine, "START_TIMEOUT_S", _SHORT_S)
    _await_no_exit(monkeypatch)
    with pytest.raises(QmpSilent) as caught:
        launch(mode, listening=mode == "does not greet")
    assert caught.value.message == message
    (launched,) = _noted(history, "machine:launch")
    assert not start_time(launched.value["pid"])


def test_a_program_that_cannot_be_started(launch: Launch, run: RunFolder, history: History) -> None:
    good = launch()
    spec = replace(good.spec, qemu=replace(good.spec.qemu, command=("/no/such/program",)))
    with pytest.raises(SetupError, match=r"^cannot start QEMU .*: No such file or directory$"):
        Machine.launch(spec, run, run.path / "none", good.artifacts, history, timeout_scale=TimeoutScale())


def test_a_host_without_room_for_another_thread(
    launch: Launch, run: RunFolder, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that was started ends, although nothing waits for it."""
    good, start = launch(), threading.Thread.start

    def refused(thread: threading.Thread) -> None:
        if thread.name.startswith("wait-"):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refused)
    with pytest.raises(SetupError, match=r"^cannot start a thread for QEMU 'source': can't start new thread"):
        Machine.launch(
            good.spec, run, run.path / "threadless", good.artifacts, history, timeout_scale=TimeoutScale()
        )
    assert not start_time(_noted(history, "machine:launch")[-1].value["pid"])
    assert good.running


def test_a_share_without_its_folder_starts_nothing(launch: Launch, run: RunFolder, history: History) -> None:
    good = launch()
    spec = replace(good.spec, shares=(share(path=Path("/no/such/folder")),))
    with pytest.raises(UsageError, match=r"^share share0: /no/such/folder: no such folder$"):
        Machine.launch(spec, run, run.path / "never", good.artifacts, history, timeout_scale=TimeoutScale())
    assert not (run.path / "never").exists()
    assert len(_noted(history, "machine:launch")) == 1


def test_core_dumps_are_allowed_for_qemu_and_not_for_us(launch: Launch) -> None:
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    source = launch()
    limits = Path(f"/proc/{source.pid}/limits").read_text()
    (core,) = [line for line in limits.splitlines() if line.startswith("Max core file size")]
    assert core.split()[4] == core.split()[5]
    assert resource.getrlimit(resource.RLIMIT_CORE) == (0, hard)


def test_a_ctrl_c_at_the_terminal_does_not_reach_it(launch: Launch) -> None:
    assert os.getsid(launch().pid) != os.getsid(0)


def test_no_forwarded_port(launch: Launch) -> None:
    with pytest.raises(SetupError, match="forwards no port"):
        _ = launch("forwards nothing").ssh_port


# Dying


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_an_exit_summary(launch: Launch, history: History, number: signal.Signals) -> None:
    source = launch()
    symptom = _die(source, number, _ASSERTION)
    cause = source.root_cause(symptom)
    assert isinstance(cause, QemuDied)
    assert cause.message == (
        f"QEMU 'source' was killed by {number.name} (last QMP command: x-die): {_ASSERTION}"
    )
    with pytest.raises(QemuDied):
        source.watch()
    assert not source.running
    assert [entry.value for entry in _noted(history, "machine:exit")] == [{"returncode": -number}]
    assert not _noted(history, "machine:expect-exit")


def test_an_unexpected_exit(launch: Launch) -> None:
    source = launch()
    with pytest.raises(QmpLost) as caught:
        source.qmp.execute("x-exit", {"status": 0}, timeout_s=_TIMEOUT_S)
    cause = source.root_cause(caught.value)
    assert isinstance(cause, QemuDied)
    assert cause.message == "QEMU 'source' exited with 0 (last QMP command: x-exit)"


def test_a_crash_writes_a_backtrace_file(launch: Launch) -> None:
    source = launch()
    _die(source)
    source.close()
    assert source.artifacts.backtrace.read_text() == "no backtrace: no gdb on PATH\n"


def test_a_clean_end_writes_no_backtrace_file(launch: Launch) -> None:
    source = launch()
    source.close()
    assert not source.artifacts.backtrace.exists()


def test_a_crash_in_quit_writes_a_backtrace_file(launch: Launch) -> None:
    source = launch("ends badly")
    with pytest.raises(QemuDied):
        source.quit()
    source.close()
    assert source.artifacts.backtrace.read_text() == "no backtrace: no gdb on PATH\n"


def test_a_crash_although_an_exit_was_expected(launch: Launch) -> None:
    source = launch()
    source.expect_exit("a stream that it cannot load")
    _die(source)
    wait_until(lambda: not source.running, what="its end", timeout_s=60)
    with pytest.raises(QemuDied, match="was killed by SIGSEGV"):
        source.watch_process()
    source.close()
    assert source.artifacts.backtrace.read_text() == "no backtrace: no gdb on PATH\n"


def test_a_sigkill_from_elsewhere(launch: Launch) -> None:
    """As from the OOM killer; it counts as a crash even if an exit was expected."""
    source = launch()
    source.expect_exit("a stream that it cannot load")
    os.kill(source.pid, signal.SIGKILL)
    wait_until(lambda: not source.running, what="its end", timeout_s=60)
    with pytest.raises(QemuDied, match="was killed by SIGKILL"):
        source.watch_process()
    source.close()
    assert "SIGKILL leaves no core file" in source.artifacts.backtrace.read_text()


def test_a_full_disk_ends_neither_the_connection_nor_the_machine(
    launch: Launch, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lost record does not delay the end of a machine."""
    source = launch()
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(history, "_file", full)
        monkeypatch.setattr(source.qmp, "_log", full)
        source.qmp.execute("query-status")
        source.quit()
        source.close()
    assert source.returncode == 0
    with pytest.raises(SetupError, match="No space left on device"):
        history.check()


def test_a_sigkill_of_the_harness_writes_no_backtrace_file(launch: Launch) -> None:
    source = launch()
    source.kill()
    source.close()
    assert not source.artifacts.backtrace.exists()


@pytest.mark.parametrize(("mode", "prepare"), [("stays after quit", None), ("", "x-silence")])
def test_a_backtrace_is_taken_before_a_kill(
    launch: Launch, history: History, monkeypatch: pytest.MonkeyPatch, mode: str, prepare: str | None
) -> None:
    source = launch(mode)
    if prepare:
        source.qmp.execute(prepare)
    seen: list[tuple[int, bool]] = []

    def attach(install: QemuInstall, pid: int, to: Path) -> bool:
        seen.append((pid, source.running))
        return True

    monkeypatch.setattr("harness.qemu.backtrace.attach", attach)
    monkeypatch.setattr(machine, "QUIT_TIMEOUT_S", _SHORT_S)
    source.close()
    assert seen == [(source.pid, True)]
    assert _noted(history, "machine:killed")


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_what_qemu_does_without_its_guest_gets_longer_on_a_slow_host(
    tmp_path: Path, history: History, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    """The guest is six times slower still (TCG), which QMP does not depend on."""
    for name, seconds in (("QUIT_TIMEOUT_S", 20.0), ("EXECUTE_TIMEOUT_S", 30.0)):
        monkeypatch.setattr(machine, name, seconds)
    artifacts = Artifacts.create_at(tmp_path / "test").machine("slow", first=True)
    slow = Machine(spec(), tmp_path, tmp_path / "disk", artifacts, history, TimeoutScale(6 * factor, factor))
    assert slow.qmp.execute_timeout_s == 30 * factor
    asked: list[float] = []
    monkeypatch.setattr(slow.qmp, "execute", lambda _command, *, timeout_s: asked.append(timeout_s))
    monkeypatch.setattr(machine, "wait_until", lambda _probe, *, timeout_s, **_: asked.append(timeout_s))
    slow.quit()
    assert asked == [20 * factor] * 2


def test_a_core_file_that_is_being_written_is_not_cut_short(
    launch: Launch, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes longer than the timeout for an exit to become visible."""
    monkeypatch.setattr(machine, "_EXIT_VISIBLE_S", 0.05)
    source = launch()
    monkeypatch.setattr(source, "_dumps_core", lambda: source.running)
    with contextlib.suppress(QmpLost):
        source.qmp.execute("x-die", {"signal": signal.SIGSEGV, "after_s": 0.5})
    source.close()
    assert source.returncode == -signal.SIGSEGV
    assert not _noted(history, "machine:killed")


# Blaming


def _panic(source: Machine) -> None:
    source.artifacts.kernel.write_text("[ 1.0] Kernel panic - not syncing: Attempted to kill init!\r\n")


_LOST = ChannelLost("ssh: the connection broke")


def test_root_cause_with_a_healthy_machine(launch: Launch) -> None:
    assert _root_cause_while_alive(launch(), _LOST) is _LOST


def test_root_cause_with_a_panicked_guest(launch: Launch) -> None:
    source = launch()
    _panic(source)
    cause = _root_cause_while_alive(source, _LOST)
    assert isinstance(cause, GuestPanicked)
    assert "'source'" in cause.message
    assert "Attempted to kill init" in cause.message


@pytest.mark.parametrize("symptom", [_LOST, QmpSilent("silent"), WaitTimeout("it", last=None, elapsed_s=1.0)])
def test_root_cause_prefers_a_dead_qemu(launch: Launch, symptom: HarnessError) -> None:
    source = launch()
    _die(source)
    wait_until(lambda: not source.running, what="its end", timeout_s=_TIMEOUT_S)
    _panic(source)
    assert isinstance(source.root_cause(symptom), QemuDied)


def test_root_cause_prefers_a_panic_to_a_silent_qmp(launch: Launch) -> None:
    source = launch()
    source.qmp.execute("x-silence")
    _panic(source)
    assert isinstance(_root_cause_while_alive(source, _LOST), GuestPanicked)
    source.kill()


def test_root_cause_prefers_a_silent_qmp_to_a_silent_guest(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = launch()
    source.qmp.execute("x-silence")
    monkeypatch.setattr(machine, "_EXIT_VISIBLE_S", _SHORT_S)
    assert isinstance(_root_cause_while_alive(source, _LOST), QmpSilent)
    source.kill()


def test_root_cause_of_a_silent_qmp(launch: Launch) -> None:
    source = launch()
    with pytest.raises(QmpSilent, match=r"^QEMU 'source' did not answer x-hang") as caught:
        source.qmp.execute("x-hang", timeout_s=_SHORT_S)
    assert source.root_cause(caught.value) is caught.value


@pytest.mark.parametrize("symptom", [_LOST, QmpLost("the QMP connection broke")])
def test_an_exit_that_becomes_visible_after_the_sockets_broke(
    launch: Launch, monkeypatch: pytest.MonkeyPatch, symptom: HarnessError
) -> None:
    """The kernel closes a dying process's sockets some time before its parent can see its end."""
    source = launch()
    with contextlib.suppress(QmpLost):
        source.qmp.execute("x-close", timeout_s=_TIMEOUT_S)
    assert source.running
    wait = source._wait_exit

    def dies_while_waited_for(timeout_s: float) -> bool:
        os.kill(source.pid, signal.SIGSEGV)
        return wait(timeout_s)

    with monkeypatch.context() as patch:
        patch.setattr(source, "_wait_exit", dies_while_waited_for)
        assert isinstance(source.root_cause(symptom), QemuDied)


def test_a_connection_that_broke_with_qemu_alive(launch: Launch) -> None:
    source = launch()
    with pytest.raises(QmpLost) as caught:
        source.qmp.execute("x-close", timeout_s=_TIMEOUT_S)
    assert _root_cause_while_alive(source, caught.value) is caught.value
    source.kill()


def test_a_refused_command_is_no_symptom(launch: Launch) -> None:
    refusal = QemuError("source", {"execute": "device_del"}, {}, "no")
    assert launch().root_cause(refusal) is refusal


# Ending


def test_quit_refused(launch: Launch) -> None:
    with pytest.raises(QemuError, match="refused quit: not now"):
        launch("refuses quit").quit()


def test_quit_accepted_without_an_exit(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    source = launch("stays after quit")
    execute = source.qmp.execute

    def impatient_once_answered(command: str, **options: Any) -> Any:
        answer = execute(command, **options)
        monkeypatch.setattr(machine, "QUIT_TIMEOUT_S", _SHORT_S)
        return answer

    monkeypatch.setattr(source.qmp, "execute", impatient_once_answered)
    with pytest.raises(WaitTimeout, match=r"for the end of QEMU 'source' after quit") as caught:
        source.quit()
    assert caught.value.artifacts == source.artifacts.folder


def test_quit_that_becomes_a_crash(launch: Launch) -> None:
    with pytest.raises(QemuDied, match=r"^QEMU 'source' was killed by SIGSEGV \(last QMP command: quit\)"):
        launch("ends badly").quit()


def test_kill(launch: Launch, history: History) -> None:
    source = launch()
    source.kill()
    assert source.returncode == -signal.SIGKILL
    source.watch_process()
    source.kill()
    assert [entry.value for entry in _noted(history, "machine:expect-exit")] == [{"reason": "kill"}]


@pytest.mark.parametrize(
    ("mode", "prepare", "returncode"),
    [
        ("", None, 0),
        ("refuses quit", None, -signal.SIGKILL),
        ("stays after quit", None, -signal.SIGKILL),
        ("ends badly", None, -signal.SIGSEGV),
        ("", "x-silence", -signal.SIGKILL),
        ("", "x-close", -signal.SIGKILL),
    ],
)
def test_close_leaves_no_process_and_never_raises(
    launch: Launch,
    history: History,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    prepare: str | None,
    returncode: int,
) -> None:
    source = launch(mode)
    if prepare:
        with contextlib.suppress(QmpLost):
            source.qmp.execute(prepare, timeout_s=_TIMEOUT_S)
    if returncode == -signal.SIGKILL:  # Nothing comes of waiting.
        monkeypatch.setattr(machine, "QUIT_TIMEOUT_S", _SHORT_S)
        _await_no_exit(monkeypatch)
    source.close()
    assert _gone(source)
    assert source.returncode == returncode
    assert [entry.value for entry in _noted(history, "machine:exit")] == [{"returncode": returncode}]
    killed = _noted(history, "machine:killed")
    assert len(killed) == (returncode == -signal.SIGKILL)
    # Whatever the checkers say of it, the signal was ours.
    assert _noted(history, "machine:expect-exit")
    source.close()


def test_close_after_a_crash_declares_no_expected_exit(launch: Launch, history: History) -> None:
    """Otherwise the checkers would take the crash for an expected exit."""
    source = launch()
    _die(source)
    source.close()
    assert not _noted(history, "machine:expect-exit")
    assert not _noted(history, "machine:killed")
    assert source.returncode == -signal.SIGSEGV


def test_close_of_a_stopped_process(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    source = launch()
    monkeypatch.setattr(machine, "QUIT_TIMEOUT_S", _SHORT_S)
    os.kill(source.pid, signal.SIGSTOP)
    source.close()
    assert _gone(source)
    assert source.returncode == -signal.SIGKILL


def test_errors_of_a_guest_are_not_machine_errors() -> None:
    assert issubclass(GuestPanicked, GuestError)
    assert not issubclass(QemuDied, GuestError)


def _execute(source: Machine, mode: str, artifacts: Artifacts) -> Machine:
    """Let ``source`` execute another fake, which is in ``mode``."""
    spec_of = source.spec.destination("destination-1", plugged=frozenset())
    folder = source.folder.with_name(f"{source.folder.name}-1")

    def request(command: list[str]) -> None:
        with_mode = ["/usr/bin/env", f"FAKE={mode}", *command]
        with pytest.raises(QmpLost):
            source.qmp.execute("x-exec", {"command": with_mode})

    return Machine.execute(source, spec_of, folder, artifacts.machine("destination-1", first=False), request)


def test_a_qemu_that_executes_another_one(launch: Launch, history: History, tmp_path: Path) -> None:
    """The process stays; the first machine has ended, and the second one is ended as any other."""
    source = launch()
    pid, began = source.pid, start_time(source.pid)
    new = _execute(source, "", Artifacts(tmp_path / "test"))
    assert (source.running, source.returncode, source.qmp.connected) == (False, 0, False)
    assert (new.running, new.pid, start_time(new.pid)) == (True, pid, began)
    assert new.paths.disk == source.paths.disk
    source.watch()
    source.close()
    assert new.running, "the end of the first machine has ended the process"
    new.qmp.execute("query-status")
    new.quit()
    assert (new.running, new.returncode) == (False, 0)
    new.close()
    assert [(e.actor, e.value) for e in _noted(history, "machine:exit")] == [
        ("source", {"returncode": 0, "executed": "destination-1"}),
        ("destination-1", {"returncode": 0}),
    ]
    assert [e.actor for e in _noted(history, "machine:launch")] == ["source", "destination-1"]


def test_a_qemu_that_is_executed_and_dies(launch: Launch, history: History, tmp_path: Path) -> None:
    """What the new one printed is in its own log, and its end is its own."""
    source = launch()
    new = _execute(source, "", Artifacts(tmp_path / "test"))
    with pytest.raises(QmpLost):
        new.qmp.execute("x-die", {"signal": signal.SIGSEGV, "message": _ASSERTION})
    new._wait_exit(_TIMEOUT_S)
    with pytest.raises(
        QemuDied, match=f"^QEMU 'destination-1' was killed by SIGSEGV .*{re.escape(_ASSERTION)}"
    ):
        new.watch_process()
    source.watch_process()
    new.close()
    assert _ASSERTION not in source.artifacts.qemu.read_text()
    assert [e.actor for e in _noted(history, "machine:exit")] == ["source", "destination-1"]


def test_a_qemu_that_is_executed_and_does_not_start(launch: Launch, tmp_path: Path) -> None:
    source = launch()
    with pytest.raises(QemuDied, match=r"^QEMU '(source|destination-1)' exited with 1"):
        _execute(source, "complains", Artifacts(tmp_path / "test"))
    assert not source.running
    assert (
        "is not a valid device model name" in (tmp_path / "test" / "destination-1" / "qemu.log").read_text()
    )


def test_a_qemu_that_refuses_to_execute_another_one(launch: Launch, tmp_path: Path) -> None:
    """It goes on, and keeps its process."""
    source = launch()

    def request(_: list[str]) -> None:
        raise QemuError("migrate", {}, "GenericError", "not now")

    spec_of = source.spec.destination("destination-1", plugged=frozenset())
    artifacts = Artifacts(tmp_path / "test").machine("destination-1", first=False)
    with pytest.raises(QemuError, match="not now"):
        Machine.execute(source, spec_of, source.folder.with_name("other"), artifacts, request)
    assert source.running
    source.quit()
