"""A QEMU process: started from a spec, spoken to over QMP, ended on purpose or found dead.

What a dead or silent QEMU looks like from outside is a broken socket somewhere; :meth:`Machine.root_cause`
turns that into the cause.
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

from harness.artifacts import MachineArtifacts, tail
from harness.channel.console import KernelLog
from harness.channel.qmp import Qmp
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

#: Seconds that QEMU may take to open its QMP socket, and to end after ``quit``. The guest has no part in
#: either, so they are not scaled.
START_TIMEOUT_S = 40.0
QUIT_TIMEOUT_S = 40.0
#: Seconds after a broken connection in which the process's own end may still become visible; the
#: kernel writes a core dump first.
_POST_MORTEM_S = 5.0
#: Seconds that the kernel may take for a core file once it has begun: a SIGKILL would cut it short.
_CORE_TIMEOUT_S = 60.0
#: Two threads may start a machine each, and the limit is the process's.
_CORE_LIMIT = threading.Lock()
#: What ``device_add`` says of an id in use (QEMU: ``util/qemu-option.c``), and how many seconds, before
#: scaling, one that is in use no more may take to be free.
_ID_TAKEN, _ID_TIMEOUT_S = "Duplicate ID", 5.0


@dataclass(frozen=True)
class Wrapping:
    """What a tool adds to the start of a QEMU: words before its command, variables in its environment.

    The command must become QEMU by ``exec``, so that the process id stays. ``argv.sh`` goes without.
    """

    prefix: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


class Machine:
    """One QEMU process.

    Made by :meth:`launch`; ended by :meth:`quit` or :meth:`kill`; :meth:`close` ends it in any case.

    :ivar qmp: its QMP client, connected.
    :ivar kernel_log: the guest kernel's console, read from its file.
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
        self.qmp = Qmp(spec.name, self.paths.qmp, history, artifacts.qmp)
        self.kernel_log = KernelLog(artifacts.kernel)
        self._process: subprocess.Popen[bytes] | None = None
        self._exited = threading.Event()
        self._exit_expected = False
        #: Whether a SIGKILL was sent by us: one that was not (the kernel's, short of memory) is a death.
        self._killed = False
        self._closed = False
        #: The ids of the devices that are plugged in now, and of those whose end was seen; kept true by
        #: :mod:`harness.qemu.deletion`.
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
        started: Callable[[], None] = lambda: None,
    ) -> Machine:
        """Start QEMU and connect to its QMP socket.

        :param run: the run folder that the process belongs to.
        :param folder: for its sockets and its disk; it must not exist yet, and lies below ``run``.
        :param source: for a destination, the machine whose disk it goes on with.
        :param wrapping: what tools add to the start.
        :param started: called when there is a process, which takes its time to be ready.
        :raises UsageError: for a share whose folder is not there.
        :raises SetupError: when the process cannot be started.
        :raises QemuDied: when it ended at once, also in the middle of the greeting; the first line has QEMU's
            own complaint.
        :raises QmpSilent: when it runs, and its QMP socket does not greet.
        """
        for device in spec.pluggable:
            device.check()
        disk = source.paths.disk if source else folder / "disk.qcow2"
        machine = cls(spec, folder, disk, artifacts, history, timeout_scale)
        try:
            machine._make_folder(copy_disk=source is None)
            with _port_for(spec.qemu) as ssh_port:
                machine._start(run, wrapping, ssh_port)
                started()
                machine.qmp.connect(timeout_s=START_TIMEOUT_S, watch=machine.watch_process)
        except QmpLost as exc:
            cause = machine.root_cause(exc)
            machine.close()
            raise cause from None
        except BaseException:
            machine.close()
            raise
        return machine

    def _make_folder(self, *, copy_disk: bool) -> None:
        try:
            self.folder.mkdir()
            if copy_disk:
                shutil.copyfile(self.spec.disk, self.paths.disk)
        except OSError as exc:
            raise SetupError(f"cannot make {self.folder} for QEMU {self.name!r}: {exc.strerror}") from exc

    def _start(self, run: RunFolder, wrapping: Wrapping, ssh_port: int) -> None:
        argv = [*wrapping.prefix, *render(self.spec, self.paths, ssh_port)]
        self.artifacts.argv.write_text(script(self.spec.booted(), self.folder.parent, ssh_port))
        self.artifacts.argv.chmod(0o755)
        try:
            with self.artifacts.qemu.open("ab") as log, _core_dumps():
                self._process = subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=self.folder,
                    env={**run.environment(), **self.spec.qemu.environment, **wrapping.environment},
                    # Its own session: a Ctrl-C at the terminal is ours to handle, not QEMU's.
                    start_new_session=True,
                )
        except OSError as exc:
            raise SetupError(f"cannot start QEMU {self.spec.qemu.binary}: {exc.strerror}") from exc
        first = self.artifacts.folder == self.history.path.parent
        value = {
            "pid": self.pid,
            "binary": str(self.spec.qemu.binary),
            "artifacts": "." if first else self.artifacts.folder.name,
            "first": first,
        }
        self.history.note(self.name, "machine:launch", value)
        self._reader = threading.Thread(target=self._wait, name=f"wait-{self.name}", daemon=True)
        self._reader.start()

    def _wait(self) -> None:
        assert self._process is not None
        returncode = self._process.wait()
        self.history.event(self.name, "machine:exit", {"returncode": returncode})
        self._exited.set()

    @property
    def name(self) -> str:
        """The machine's actor name in the history."""
        return self.spec.name

    @property
    def pid(self) -> int:
        """The process id (it may have ended)."""
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process has been started and has not ended."""
        return self._process is not None and not self._exited.is_set()

    @property
    def returncode(self) -> int | None:
        """As :attr:`subprocess.Popen.returncode`; ``None`` while it runs."""
        return self._process.returncode if self._process is not None and self._exited.is_set() else None

    def watch_process(self) -> None:
        """:raises QemuDied: when the process ended unasked, or by a signal that was not ours."""
        if self._exited.is_set() and (self._crashed or not self._exit_expected):
            raise self._death()

    @property
    def _crashed(self) -> bool:
        """Whether it ended by a signal that we did not send, even if it had been asked to end."""
        code = self.returncode
        return code is not None and code < 0 and not (self._killed and code == -signal.SIGKILL)

    def watch(self) -> None:
        """:raises QemuDied: when the process ended unasked. :raises GuestPanicked: when the guest did."""
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
        """:func:`harness.deadline.wait_until` with this machine's timeout_scale, watch and artefacts.

        :param timeout_s: seconds, before scaling.
        :param watch: instead of :meth:`watch`.
        """
        return wait_until(
            probe,
            what=what,
            timeout_s=self.timeout_scale.seconds(timeout_s),
            interval_s=interval_s,
            watch=watch or self.watch,
            artifacts=self.artifacts.folder,
        )

    def _death(self) -> QemuDied:
        return QemuDied(self._exit_summary(), details="\n".join(tail(self.artifacts.qemu, 10)))

    def _exit_summary(self) -> str:
        code = self.returncode
        assert code is not None
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
        said = [line for line in tail(self.artifacts.qemu, 3) if line.strip()]
        last = self.qmp.last_command
        during = f" (last QMP command: {last})" if last else ""
        return f"QEMU {self.name!r} {how}{during}" + (f": {said[-1].strip()}" if said else "")

    def root_cause(self, symptom: HarnessError) -> HarnessError:
        """The cause behind ``symptom``: a dead QEMU, a panicked guest, a silent QMP, or itself."""
        try:
            if isinstance(symptom, QmpLost | ChannelLost) or not self.qmp.connected:
                self._await_exit(_POST_MORTEM_S)
            self.watch()
            if not isinstance(symptom, QmpSilent | QmpLost | QemuDied):
                self._check_answering()
        except QmpLost as cause:
            return self.root_cause(cause)
        except HarnessError as cause:
            return cause
        return symptom

    def _check_answering(self) -> None:
        """A guest that does not answer may sit in a QEMU that does not either: that comes first."""
        if self.running and self.qmp.connected:
            self.qmp.execute("query-status", timeout_s=_POST_MORTEM_S, watch=self.watch_process)

    def _await_exit(self, timeout_s: float) -> bool:
        """Whether the process ends within ``timeout_s`` seconds, or after the kernel wrote its core file."""
        if self._exited.wait(timeout_s) or not self._dumps_core():
            return self._exited.is_set()
        with contextlib.suppress(WaitTimeout):
            wait_until(
                lambda: self._exited.is_set() or not self._dumps_core(),
                what="the core file",
                timeout_s=_CORE_TIMEOUT_S,
            )
        return self._exited.wait(timeout_s)

    def _dumps_core(self) -> bool:
        """``man 5 proc``, ``/proc/PID/status``."""
        try:
            return "\nCoreDumping:\t1\n" in Path(f"/proc/{self.pid}/status").read_text()
        except OSError:
            return False

    def expect_exit(self, reason: str) -> None:
        """Declare, before it happens, that the process will end on purpose."""
        self._exit_expected = True
        self.history.note(self.name, "machine:expect-exit", {"reason": reason})

    def device_add(self, device: Device) -> None:
        """``device_add`` of ``device``; returns at its answer, whatever the guest makes of it.

        An old QEMU frees a deleted device's id a moment after it reported the deletion, when RCU lets it go:
        that is waited for.

        :raises QemuError: when QEMU refuses the device.
        """
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
            self.wait_until(added, what=f"the id {device.id} to be free", timeout_s=_ID_TIMEOUT_S)
        except WaitTimeout:
            raise refusals[-1] from None
        self.plugged.add(device.id)
        self.deleted.discard(device.id)

    def quit(self) -> None:
        """``quit`` over QMP, and wait for the process to end.

        :raises QmpSilent: when QEMU does not take the command.
        :raises WaitTimeout: when it took it, and still runs. :raises QemuDied: when it crashed instead.
        """
        self.expect_exit("quit")
        with contextlib.suppress(QmpLost):  # QEMU may close the socket before its answer is out.
            self.qmp.execute("quit", timeout_s=QUIT_TIMEOUT_S)
        wait_until(
            self._exited.is_set,
            what=f"the end of QEMU {self.name!r} after quit",
            timeout_s=QUIT_TIMEOUT_S,
            artifacts=self.artifacts.folder,
        )
        if self.returncode:
            raise self._death()

    def kill(self) -> None:
        """SIGKILL, and wait until the process is gone."""
        if self.running:
            self.expect_exit("kill")
            self._kill()

    def _kill(self) -> None:
        assert self._process is not None
        self._killed = True
        self._process.kill()
        self._await_exit(_POST_MORTEM_S)

    def close(self) -> None:
        """End the process if it still runs (``quit`` first, then SIGKILL) and let go of everything.

        A QEMU that has to be killed is recorded as such, for the checkers, with the backtrace of what it was
        doing. So is one that died of a signal that was not ours. Never raises.
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
            if self._process is not None:
                self._reader.join(_POST_MORTEM_S)
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
                # It may be dying by itself: a SIGKILL now would hide of what.
                if self._await_exit(_POST_MORTEM_S):
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
    """The port to forward to the guest: 0, or where QEMU does not know that, one that is free."""
    if qemu.any_port:
        yield 0
    else:
        with reserved_port() as port:
            yield port


@contextmanager
def reserved_port() -> Iterator[int]:
    """A port on the loopback that nobody has, for a QEMU that is started meanwhile.

    It stays ours until then: bound, so that nobody else is given it, and not listened on, so that QEMU, which
    asks for ``SO_REUSEADDR`` as well, can bind it, too (QEMU: ``slirp/socket.c``, ``tcp_listen``).
    """
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        yield reserved.getsockname()[1]


@contextmanager
def _core_dumps() -> Iterator[None]:
    """Let the child dump core into its folder, where gdb can read it; our own limit is put back."""
    with _CORE_LIMIT:
        soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))
