"""A QEMU process: started from a spec, controlled over QMP, and ended.

A QEMU that crashed or hangs shows up as a broken connection somewhere. :meth:`Machine.root_cause` finds the
cause behind such a symptom.
"""

from __future__ import annotations

import contextlib
import resource
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from harness.artifacts import MachineArtifacts, tail
from harness.channel.console import KernelLog
from harness.channel.qmp import EXECUTE_TIMEOUT_S, Qmp
from harness.deadline import T, TimeoutScale, Watch, wait_until
from harness.errors import (
    ChannelLost,
    HarnessError,
    QemuDied,
    QemuError,
    QmpLost,
    QmpSilent,
    SetupError,
    WaitTimeout,
)
from harness.history import History
from harness.qemu import backtrace, sanitizers
from harness.qemu.argv import MachinePaths, render, script
from harness.qemu.binary import QemuInstall
from harness.qemu.spec import Device, MachineSpec
from harness.reaper import RunFolder

#: Seconds in which QEMU must open its QMP socket, and end after ``quit``. Both are independent of the guest:
#: these and the next ones are scaled for a slow host only (:meth:`.TimeoutScale.host_seconds`).
START_TIMEOUT_S = 40.0
QUIT_TIMEOUT_S = 40.0
#: Seconds in which the end of the process becomes visible after its connections broke: the kernel writes the
#: core file first.
_EXIT_VISIBLE_S = 5.0
#: Seconds in which the kernel must finish a core file; a SIGKILL would truncate it.
_CORE_TIMEOUT_S = 60.0
#: RLIMIT_CORE belongs to the process, and several threads may start machines at the same time.
_CORE_LIMIT = threading.Lock()
#: QEMU's error for an id that is in use (QEMU: ``util/qemu-option.c``), and the seconds, before scaling, in
#: which the id of a deleted device must become free.
_ID_TAKEN, _ID_TIMEOUT_S = "Duplicate ID", 5.0


@dataclass(frozen=True)
class Wrapping:
    """What a tool adds to the start of QEMU.

    :ivar prefix: words in front of the command. They must replace themselves with QEMU by ``exec``, so that
        the process id stays the same.
    :ivar environment: environment variables. ``argv.sh`` has neither of them.
    """

    prefix: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


@runtime_checkable
class Prepared(Protocol):
    """A :class:`.Device` whose backend has to be made ready before each plug."""

    def prepare(self, machine: Machine) -> None:
        """Called before each ``device_add`` of the device to ``machine``."""


class _Process:
    """A process, and the thread that waits for its end.

    :ivar name: of the machine that the process is now: the actor of its end in the history.
    """

    def __init__(self, popen: subprocess.Popen[bytes], history: History, name: str) -> None:
        self.popen, self.name = popen, name
        self.exited = threading.Event()
        self._history = history
        self.reader = threading.Thread(target=self.wait, name=f"wait-{name}", daemon=True)

    def wait(self) -> None:
        """Wait for the end of the process, and record it."""
        returncode = self.popen.wait()
        self._history.event(self.name, "machine:exit", {"returncode": returncode})
        self.exited.set()


class Machine:
    """One QEMU process.

    Start it with :meth:`launch` or :meth:`execute`, and end it with :meth:`quit` or :meth:`kill`;
    :meth:`close` ends it in any case.

    :ivar qmp: the connected QMP client.
    :ivar kernel_log: the output of the guest kernel's console.
    :ivar plugged: the ids of the 9p devices that are plugged in. :meth:`device_add` and
        :mod:`harness.qemu.deletion` maintain it.
    :ivar deleted: the ids of the 9p devices whose deletion was observed, maintained likewise.
    """

    def __init__(
        self,
        spec: MachineSpec,
        folder: Path,
        disk: Path,
        artifacts: MachineArtifacts,
        history: History,
        timeout_scale: TimeoutScale,
    ) -> None:
        self.spec, self.artifacts, self.history, self.timeout_scale = spec, artifacts, history, timeout_scale
        self.folder = folder
        self.paths = MachinePaths(
            qmp=folder / "qmp.sock",
            console=folder / "console.sock",
            guestfwd=folder / "guestfwd.sock",
            disk=disk,
            kernel_log=artifacts.kernel,
            console_log=artifacts.console,
        )
        answer_s = self._host_s(EXECUTE_TIMEOUT_S)
        self.qmp = Qmp(spec.name, self.paths.qmp, history, artifacts.qmp, execute_timeout_s=answer_s)
        self.kernel_log = KernelLog(artifacts.kernel)
        self._process: _Process | None = None
        #: Whether QEMU has executed another one in its process, which is another machine.
        self._replaced = False
        self._exit_expected = False
        #: Whether the harness sent SIGKILL. Any other SIGKILL (such as the OOM killer's) counts as a crash.
        self._killed = False
        self._closed = False
        self.plugged: set[str] = set(spec.plugged)
        self.deleted: set[str] = set()

    @classmethod
    def launch(
        cls,
        spec: MachineSpec,
        run: RunFolder,
        folder: Path,
        artifacts: MachineArtifacts,
        history: History,
        *,
        timeout_scale: TimeoutScale,
        source: Machine | None = None,
        wrapping: Wrapping = Wrapping(),
        on_started: Callable[[Machine], None] = lambda _: None,
    ) -> Machine:
        """Start QEMU and connect to its QMP socket.

        :param run: the run folder that the process belongs to.
        :param folder: the folder for its sockets and its disk; it must not exist yet, and be below ``run``.
        :param source: for a destination of a migration: the source, whose disk is shared.
        :param wrapping: what tools add to the start.
        :param on_started: called with the machine when its process was started, before QEMU is ready.
        :raises UsageError: when the folder of a share does not exist.
        :raises SetupError: when the process cannot be started.
        :raises QemuDied: when QEMU ended at once; the first line of the message has QEMU's own error.
        :raises QmpSilent: when QEMU runs, but does not open its QMP socket or sends no greeting.
        """
        for device in spec.pluggable:
            device.check()
        disk = source.paths.disk if source else folder / "disk.qcow2"
        machine = cls(spec, folder, disk, artifacts, history, timeout_scale)
        with machine._closed_on_failure():
            machine._make_folder(copy_disk=source is None)
            with _port_for(spec.qemu) as ssh_port:
                machine._start(run, wrapping, ssh_port)
                on_started(machine)
                machine._connect()
        return machine

    @classmethod
    def execute(
        cls,
        source: Machine,
        spec: MachineSpec,
        folder: Path,
        artifacts: MachineArtifacts,
        request: Callable[[list[str]], None],
    ) -> Machine:
        """Let QEMU execute a new one in its process (mode ``cpr-exec``), and connect to its QMP socket.

        :param source: the machine that ends with this. It shares its disk, and keeps its process when this
            raises before the new QEMU was executed.
        :param folder: as for :meth:`launch`.
        :param request: is given the new QEMU's command. It has to ask the old one to execute it, and to
            return when it was executed.
        :raises QemuDied: when the new QEMU ended at once.
        :raises QmpSilent: when it does not open its QMP socket or sends no greeting.
        """
        machine = cls(spec, folder, source.paths.disk, artifacts, source.history, source.timeout_scale)
        machine._make_folder(copy_disk=False)
        argv = machine._write_script(0)
        # The process has the old QEMU's output file. A prefix command is allowed (QEMU: qapi/migration.json,
        # cpr-exec-command).
        request(["/bin/sh", "-c", 'exec "$@" >> "$0" 2>&1', str(artifacts.qemu), *argv])
        machine._process = source._hand_over(machine.name)
        machine._note_launch()
        with machine._closed_on_failure():
            machine._connect()
        return machine

    @contextmanager
    def _closed_on_failure(self) -> Iterator[None]:
        """Close the machine when the block, which starts it, fails; a lost connection is its root cause."""
        try:
            yield
        except QmpLost as exc:
            cause = self.root_cause(exc)
            self.close()
            raise cause from None
        except BaseException:
            self.close()
            raise

    def _connect(self) -> None:
        self.qmp.connect(timeout_s=self._host_s(START_TIMEOUT_S), watch=self.watch_process)

    def _hand_over(self, name: str) -> _Process:
        """Give up the process, in which another QEMU runs now: the machine of this ``name``.

        :raises QemuDied: when the process has ended by now.
        """
        assert self._process is not None, "not started"
        self.watch_process()
        self.expect_exit(f"QEMU executes {name}")
        # The process goes on, so nobody else records the end of this machine.
        self.history.event(self.name, "machine:exit", {"returncode": 0, "executed": name})
        self._replaced = True
        self._process.name = name
        return self._process

    def _make_folder(self, *, copy_disk: bool) -> None:
        try:
            self.folder.mkdir()
            if copy_disk:
                shutil.copyfile(self.spec.disk, self.paths.disk)
        except OSError as exc:
            raise SetupError(f"cannot make {self.folder} for QEMU {self.name!r}: {exc.strerror}") from exc

    def _write_script(self, ssh_port: int) -> list[str]:
        """Write ``argv.sh``; returns the command that starts QEMU."""
        self.artifacts.argv.write_text(script(self.spec.booted(), self.folder.parent, ssh_port))
        self.artifacts.argv.chmod(0o755)
        return render(self.spec, self.paths, ssh_port)

    def _start(self, run: RunFolder, wrapping: Wrapping, ssh_port: int) -> None:
        argv = [*wrapping.prefix, *self._write_script(ssh_port)]
        try:
            with self.artifacts.qemu.open("ab") as log, _core_dumps():
                popen = subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=self.folder,
                    env={**run.environment(), **self.spec.qemu.environment, **wrapping.environment},
                    # A new session, so that Ctrl-C at the terminal does not reach QEMU.
                    start_new_session=True,
                )
        except OSError as exc:
            raise SetupError(f"cannot start QEMU {self.spec.qemu.binary}: {exc.strerror}") from exc
        self._process = _Process(popen, self.history, self.name)
        self._note_launch()
        try:
            self._process.reader.start()
        except RuntimeError as exc:  # The host has no room for another thread; nobody else waits for QEMU.
            self.expect_exit("no thread can wait for it")
            self._killed = True
            popen.kill()
            self._process.wait()
            raise SetupError(f"cannot start a thread for QEMU {self.name!r}: {exc}") from exc

    def _note_launch(self) -> None:
        first = self.artifacts.folder == self.history.path.parent
        value = {
            "pid": self.pid,
            "binary": str(self.spec.qemu.binary),
            "artifacts": "." if first else self.artifacts.folder.name,
            "first": first,
            "plugged": self.spec.plugged_drivers,
        }
        self.history.note(self.name, "machine:launch", value)

    @property
    def name(self) -> str:
        """The name of the machine: the actor in the history."""
        return self.spec.name

    @property
    def pid(self) -> int:
        """The process id of QEMU, also after the process has ended."""
        assert self._process is not None, "not started"
        return self._process.popen.pid

    @property
    def running(self) -> bool:
        """Whether QEMU's process has been started, and neither ended nor executed another QEMU."""
        return self._process is not None and not self._has_ended()

    def _has_ended(self) -> bool:
        return self._replaced or (self._process is not None and self._process.exited.is_set())

    @property
    def returncode(self) -> int | None:
        """As :attr:`subprocess.Popen.returncode` of QEMU's process; ``None`` while it runs.

        0 for a machine that has executed another QEMU.
        """
        if self._process is None or not self._has_ended():
            return None
        return 0 if self._replaced else self._process.popen.returncode

    def watch_process(self) -> None:
        """:raises QemuDied: when QEMU ended unexpectedly, or by a signal that the harness did not send."""
        if self._has_ended() and (self._crashed or not self._exit_expected):
            raise self._died()

    @property
    def _crashed(self) -> bool:
        """Whether a signal that the harness did not send ended the machine, even if its end was expected."""
        code = self.returncode
        return code is not None and code < 0 and not (self._killed and code == -signal.SIGKILL)

    def watch(self) -> None:
        """:raises QemuDied: when QEMU ended unexpectedly. :raises GuestPanicked: when the guest panicked."""
        self.watch_process()
        self.kernel_log.watch(self.name)

    def wait_until(
        self,
        probe: Callable[[], T | None],
        *,
        what: str,
        timeout_s: float,
        interval_s: float = 0.02,
        watch: Watch | None = None,
    ) -> T:
        """:func:`harness.deadline.wait_until` with this machine's timeout scale, watch and artefacts.

        :param timeout_s: seconds, before scaling.
        :param watch: a watch to use instead of :meth:`watch`.
        """
        return wait_until(
            probe,
            what=what,
            timeout_s=self.timeout_scale.seconds(timeout_s),
            interval_s=interval_s,
            watch=watch or self.watch,
            artifacts=self.artifacts.folder,
        )

    def _host_s(self, timeout_s: float) -> float:
        return self.timeout_scale.host_seconds(timeout_s)

    def _died(self) -> QemuDied:
        return QemuDied(self._exit_summary(), details="\n".join(tail(self.artifacts.qemu, 10)))

    def _exit_summary(self) -> str:
        code = self.returncode
        assert code is not None
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
        printed = [line for line in tail(self.artifacts.qemu, 3) if line.strip()]
        last = self.qmp.last_command
        during = f" (last QMP command: {last})" if last else ""
        return f"QEMU {self.name!r} {how}{during}" + (f": {printed[-1].strip()}" if printed else "")

    def root_cause(self, symptom: HarnessError) -> HarnessError:
        """The root cause of ``symptom``: a dead QEMU, a panicked guest, a silent QMP; else ``symptom``."""
        try:
            if isinstance(symptom, QmpLost | ChannelLost) or not self.qmp.connected:
                self._wait_exit(self._host_s(_EXIT_VISIBLE_S))
            self.watch()
            if not isinstance(symptom, QmpSilent | QmpLost | QemuDied):
                self._check_answering()
        except QmpLost as cause:
            return self.root_cause(cause)
        except HarnessError as cause:
            return cause
        return symptom

    def _check_answering(self) -> None:
        """:raises QmpSilent: when QEMU does not answer, which is why its guest does not."""
        if self.running and self.qmp.connected:
            self.qmp.execute(
                "query-status", timeout_s=self._host_s(_EXIT_VISIBLE_S), watch=self.watch_process
            )

    def _wait_exit(self, timeout_s: float) -> bool:
        """Wait until QEMU's process ends: ``timeout_s`` seconds, or longer if the kernel writes a core file.

        :returns: whether it has ended.
        """
        if self._process is None or self._replaced:
            return self._replaced
        exited = self._process.exited
        if exited.wait(timeout_s) or not self._dumps_core():
            return exited.is_set()
        with contextlib.suppress(WaitTimeout):
            wait_until(
                lambda: exited.is_set() or not self._dumps_core(),
                what="the core file",
                timeout_s=self._host_s(_CORE_TIMEOUT_S),
            )
        return exited.wait(timeout_s)

    def _dumps_core(self) -> bool:
        """Whether the kernel is writing a core file of QEMU (``man 5 proc``, ``/proc/PID/status``)."""
        try:
            return "\nCoreDumping:\t1\n" in Path(f"/proc/{self.pid}/status").read_text()
        except OSError:
            return False

    def expect_exit(self, reason: str) -> None:
        """Declare that QEMU's process will end; call it before the action that ends it."""
        self._exit_expected = True
        self.history.note(self.name, "machine:expect-exit", {"reason": reason})

    def device_add(self, device: Device) -> None:
        """``device_add`` to this QEMU; returns when it answers, perhaps before the guest has the device.

        Old QEMUs free the id of a deleted device only after an RCU grace period, a moment after they reported
        the deletion. This is waited for.

        :raises QemuError: when QEMU refuses the device.
        """
        if isinstance(device, Prepared):
            device.prepare(self)
        refusals: list[QemuError] = []

        def added() -> bool:
            try:
                self.qmp.execute("device_add", device.device(self.spec.machine_type), watch=self.watch)
            except QemuError as exc:
                if device.id not in self.deleted or _ID_TAKEN not in exc.desc:
                    raise
                refusals.append(exc)
                return False
            return True

        try:
            self.wait_until(added, what=f"the id {device.id} to become free", timeout_s=_ID_TIMEOUT_S)
        except WaitTimeout:
            raise refusals[-1] from None
        self.plugged.add(device.id)
        self.deleted.discard(device.id)

    def quit(self) -> None:
        """``quit`` of the machine over QMP, and wait for the process to end.

        :raises QmpSilent: when QEMU does not answer the command.
        :raises WaitTimeout: when it answered, but does not end. :raises QemuDied: when it crashed instead.
        """
        self.expect_exit("quit")
        with contextlib.suppress(QmpLost):  # QEMU may close the socket before it has sent the answer.
            self.qmp.execute("quit", timeout_s=self._host_s(QUIT_TIMEOUT_S))
        wait_until(
            self._has_ended,
            what=f"the end of QEMU {self.name!r} after quit",
            timeout_s=self._host_s(QUIT_TIMEOUT_S),
            artifacts=self.artifacts.folder,
        )
        if self.returncode:
            raise self._died()

    def kill(self) -> None:
        """Send QEMU's process SIGKILL, and wait until it has ended."""
        if self.running:
            self.expect_exit("kill")
            self._kill()

    def _kill(self) -> None:
        assert self._process is not None
        self._killed = True
        self._process.popen.kill()
        self._wait_exit(self._host_s(_EXIT_VISIBLE_S))

    def close(self) -> None:
        """End QEMU's process if it still runs (``quit``, then SIGKILL).

        Releases everything, and never raises.

        If QEMU must be killed, this is recorded for the checkers, with a backtrace from before. A backtrace
        is also written for a QEMU that was killed by a signal that the harness did not send.
        """
        if self._closed:
            return
        self._closed = True
        try:
            if self.running:
                self._end()
        finally:
            self.qmp.close()
            code = self.returncode
            if code is not None and self._crashed:
                backtrace.collect(self.spec.qemu, self.folder, self.pid, -code, self.artifacts.backtrace)
            if self._process is not None and not self._replaced and self._process.reader.ident is not None:
                self._process.reader.join(self._host_s(_EXIT_VISIBLE_S))
            if self.spec.qemu.sanitized:
                install = self.spec.qemu
                sanitizers.collect(
                    self.artifacts.qemu,
                    install.binary,
                    install.command[0],
                    self.artifacts.sanitizer,
                    quit_cleanly=self.returncode == 0,
                )

    def _end(self) -> None:
        try:
            if not self.qmp.connected:
                # It may be crashing: a SIGKILL now would hide the reason.
                if self._wait_exit(self._host_s(_EXIT_VISIBLE_S)):
                    return
                raise QmpLost(f"QEMU {self.name!r} has no QMP connection")
            if self.qmp.silent:
                raise QmpSilent(f"QEMU {self.name!r} had stopped answering on QMP")
            self.quit()
        except HarnessError as exc:
            if self.running:
                self.history.note(self.name, "machine:killed", {"why": exc.message})
                backtrace.attach(self.spec.qemu, self.pid, self.artifacts.backtrace)
                self.kill()

    @property
    def ssh_port(self) -> int:
        """The loopback port that is forwarded to the guest's port 22 (HMP ``info usernet``)."""
        for line in self.qmp.hmp("info usernet").splitlines():
            words = line.split()
            if words and words[0] == "TCP[HOST_FORWARD]":
                return int(words[3])
        raise SetupError(f"QEMU {self.name!r} forwards no port to its guest (info usernet)")


@contextmanager
def _port_for(qemu: QemuInstall) -> Iterator[int]:
    """The port to forward to the guest: 0, or a free port for a QEMU that does not accept 0."""
    if qemu.any_port:
        yield 0
    else:
        with reserved_port() as port:
            yield port


@contextmanager
def reserved_port() -> Iterator[int]:
    """A free port on the loopback address, for a QEMU that is started during the block.

    The port is bound, so that no other process gets it, but not listened on, so that QEMU, which sets
    ``SO_REUSEADDR`` as well, can bind it, too (QEMU: ``slirp/socket.c``, ``tcp_listen``).
    """
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        yield reserved.getsockname()[1]


@contextmanager
def _core_dumps() -> Iterator[None]:
    """Let a QEMU that is started during the block write core files; this process's limit is restored."""
    with _CORE_LIMIT:
        soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))
