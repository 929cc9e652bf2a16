"""``vhost-user-fs-pci``: a file system that a separate daemon, Debian's virtiofsd, serves.

QEMU and the daemon share the guest's memory and a connection. The daemon accepts one connection, serves one
device on it, and ends with it (virtiofsd 1.13: a second one ends it with "already claimed"). So each plug has
a daemon of its own: QEMU's chardev is removed and added again, as libvirt does.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from harness.artifacts import tail
from harness.deadline import wait_until
from harness.errors import GuestError, SetupError, Unsupported, UsageError, Violation
from harness.guest.commands import Commands
from harness.guest.device import sysfs_folder
from harness.guest.guest import Guest
from harness.guest.job import Job
from harness.guest.mount import host_sha256
from harness.qemu.binary import Capabilities, require_device
from harness.qemu.machine import Machine, Wrapping
from harness.qemu.machine_types.machine_type import MachineType
from harness.qemu.spec import MachineSpec, Value
from harness.testbed import Testbed

#: The first QEMU that takes the daemon's state along (QEMU: ``hw/virtio/vhost-user-fs.c``,
#: ``vuf_backend_vmstate``); before, the device is ``unmigratable``.
_MIGRATES_SINCE = (8, 2, 0)
_LISTENS = "Waiting for vhost-user socket connection"
#: Seconds, before scaling.
_START_TIMEOUT_S = 10.0
_END_TIMEOUT_S = 10.0
_SIZE_KIB = 512
#: Whether a process waits for the answer to a request that is in the virtqueue (kernel: ``fs/fuse/dev.c``).
_IN_FLIGHT = "grep -q request_wait_answer /proc/[0-9]*/wchan"


class Daemon:
    """One virtiofsd process; it serves the first connection to its socket and ends with it.

    :param command: the program, with the loader that starts it.
    :param path: its socket. :param shared: the folder that it serves.
    :param log: the file for what it prints.
    """

    def __init__(
        self, command: Sequence[str], path: Path, shared: Path, log: Path, environment: Mapping[str, str]
    ) -> None:
        # Without a sandbox it needs no root. Without a cache each access in the guest is a request.
        options = ("--sandbox", "none", "--cache", "never", "--shared-dir", str(shared))
        self.log = log
        # It inherits a socket that listens: at a path of its own it would keep a locked file, and could not
        # be followed by another while it runs.
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as listening, log.open("wb") as output:
            listening.bind(str(path))
            listening.listen(1)
            fd = listening.fileno()
            try:
                self._process = subprocess.Popen(
                    [*command, "--fd", str(fd), *options],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    pass_fds=(fd,),
                    env=environment,
                    start_new_session=True,
                )
            except OSError as exc:
                raise SetupError(f"cannot start virtiofsd {command[-1]}: {exc.strerror}") from exc

    def wait_listening(self, timeout_s: float) -> None:
        """Wait until virtiofsd accepts a connection. :raises SetupError: when it ends instead."""

        def listens() -> bool:
            if not self.running:
                raise SetupError("virtiofsd does not start", details="\n".join(tail(self.log, 10)))
            return _LISTENS in self.log.read_text(errors="replace")

        wait_until(listens, what="virtiofsd to listen", timeout_s=timeout_s)

    @property
    def pid(self) -> int:
        """The daemon's process id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the daemon has not ended."""
        return self._process.poll() is None

    def stop(self) -> None:
        """Stop the daemon (SIGSTOP), so that it answers nothing; returns when it is stopped."""
        os.kill(self.pid, signal.SIGSTOP)
        wait_until(lambda: self.stopped, what="virtiofsd to stop", timeout_s=_START_TIMEOUT_S)

    @property
    def stopped(self) -> bool:
        """Whether every thread of the daemon is stopped (``man 5 proc_pid_stat``, state T)."""
        tasks = Path(f"/proc/{self.pid}/task").iterdir()
        return all((task / "stat").read_text().rpartition(")")[2].split()[0] == "T" for task in tasks)

    def resume(self) -> None:
        """Let a stopped daemon go on (SIGCONT); nothing happens to one that has ended."""
        if self.running:
            os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """End the daemon by SIGKILL."""
        self._process.kill()
        self._process.wait()


class VirtiofsDevice:
    """A file system of virtiofsd; made by :meth:`create`. It is a tool as well: machines start with a daemon.

    :ivar path: the folder on the host that it offers.
    :ivar shares_memory: the daemon reads requests in the guest's memory.
    """

    modules: tuple[str, ...] = ("virtiofs",)
    shares_memory = True

    def __init__(self, id: str, slot: int, testbed: Testbed, command: Sequence[str]) -> None:
        self.id, self.slot, self.tag = id, slot, f"tag-{id}"
        self.path = testbed.folder / f"{id}-shared"
        self._socket = testbed.folder / f"{id}.sock"
        self._testbed, self._command = testbed, tuple(command)
        #: The last daemon of each machine, and those machines whose daemon serves no device yet.
        self._daemons: dict[str, Daemon] = {}
        self._fresh: set[str] = set()
        self._all: list[Daemon] = []

    @classmethod
    def create(cls, testbed: Testbed, command: Sequence[str], *, slot: int = 0) -> VirtiofsDevice:
        """Make a file system with a new folder in the testbed's.

        :param command: virtiofsd, as the fixture of that name gives it.
        :raises Unsupported: when this QEMU has no such device; or when the guest has another byte order than
            the host. A guest's FUSE messages are in its own (kernel: ``fs/fuse/dev.c``), and virtiofsd reads
            them in the host's.
        """
        require_device(testbed.cell.qemu, testbed.cell.machine_type.driver("vhost-user-fs-pci"))
        guests = testbed.cell.machine_type.architecture
        if guests.byte_order != sys.byteorder:
            raise Unsupported(f"virtiofsd does not understand a guest of {guests.name}: its byte order")
        made = cls(f"virtiofs{slot}", slot, testbed, command)
        made.path.mkdir()
        testbed.attach(made)
        return made

    def wrap(self, spec: MachineSpec, _folder: Path) -> Wrapping:
        """Start a daemon before a machine, which connects to it when it starts."""
        self._serve(spec.name)
        if self.id not in spec.plugged:
            self._fresh.add(spec.name)
        return Wrapping()

    def release(self) -> None:
        """Let stopped daemons go on, so that QEMU can end."""
        for daemon in self._all:
            daemon.resume()

    def close(self) -> None:
        """End the daemons that have not ended with their QEMU."""
        for daemon in self._all:
            daemon.kill()

    def _serve(self, name: str) -> None:
        log = self._testbed.artifacts.folder / f"virtiofsd-{len(self._all)}.log"
        environment = self._testbed.run.environment()
        daemon = Daemon(self._command, self._socket, self.path, log, environment)
        self._all.append(daemon)
        self._daemons[name] = daemon
        daemon.wait_listening(self._testbed.cell.accel.timeout_scale.host_seconds(_START_TIMEOUT_S))
        self._testbed.history.note(name, "virtiofsd:started", {"pid": daemon.pid, "log": log.name})

    def daemon(self, machine: Machine) -> Daemon:
        """The daemon that serves the device in ``machine``, or that served it last."""
        return self._daemons[machine.name]

    def prepare(self, machine: Machine) -> None:
        """Give QEMU a new connection to a new daemon, unless the present one was not used yet.

        :raises Violation: when the daemon of the last plug does not end with its connection.
        """
        if machine.name in self._fresh:
            self._fresh.discard(machine.name)
            return
        machine.qmp.execute("chardev-remove", {"id": self._chardev}, watch=machine.watch)
        self._wait_ended(machine)
        self._serve(machine.name)
        address = {"type": "unix", "data": {"path": str(self._socket)}}
        backend = {"type": "socket", "data": {"addr": address, "server": False}}
        machine.qmp.execute("chardev-add", {"id": self._chardev, "backend": backend}, watch=machine.watch)

    def _wait_ended(self, machine: Machine) -> None:
        old = self._daemons[machine.name]
        machine.wait_until(
            lambda: not old.running, what="the end of the daemon without QEMU", timeout_s=_END_TIMEOUT_S
        )

    @property
    def _chardev(self) -> str:
        return f"char-{self.id}"

    def check(self) -> None:
        """Check that the folder of the file system exists."""
        if not self.path.is_dir():
            raise UsageError(f"file system {self.id}: {self.path}: no such folder")

    def declared(self) -> Iterator[tuple[str, Mapping[str, Value]]]:
        """The file system's backend: a chardev, the connection to its daemon."""
        yield "-chardev", {"": "socket", "id": self._chardev, "path": str(self._socket)}

    def device(self, machine_type: MachineType) -> Mapping[str, Value]:
        """The properties of ``vhost-user-fs-pci``: see :class:`~harness.qemu.spec.Device`."""
        return {
            "driver": machine_type.driver("vhost-user-fs-pci"),
            "id": self.id,
            "chardev": self._chardev,
            "tag": self.tag,
            **machine_type.place(self.slot),
        }

    def require_migratable(self, capabilities: Capabilities) -> None:
        """:raises Unsupported: when this QEMU does not migrate the device."""
        if capabilities.version < _MIGRATES_SINCE:
            raise Unsupported(f"QEMU {capabilities.version_text} does not migrate vhost-user-fs")

    def require_unmigratable(self, capabilities: Capabilities) -> None:
        """:raises Unsupported: when this QEMU migrates the device."""
        if capabilities.version >= _MIGRATES_SINCE:
            raise Unsupported(f"QEMU {capabilities.version_text} migrates vhost-user-fs")

    def listed(self, guest: Commands) -> bool:
        """Whether a driver in the guest has the device.

        The kernel removes the link before it calls the driver (kernel: ``drivers/base/dd.c``,
        ``__device_release_driver``), which then waits for requests in flight, but not for mounts (kernel:
        ``fs/fuse/virtio_fs.c``, ``virtio_fs_remove``).
        """
        driver = f"{sysfs_folder(guest.machine, self)}/virtio*/driver"
        return guest.run(f"[ -e {driver} ]").returncode == 0

    @property
    def mount_point(self) -> str:
        """The folder in the guest where :meth:`mount` mounts it."""
        return f"/mnt/{self.id}"

    def mount(self, guest: Commands) -> None:
        """Mount it in the guest."""
        guest.succeed(f"mkdir -p {self.mount_point} && mount -t virtiofs {self.tag} {self.mount_point}")

    def unmount(self, guest: Commands) -> None:
        """Unmount it in the guest."""
        guest.succeed(f"umount {self.mount_point}")

    def exchange(self, guest: Commands) -> None:
        """Let the guest write a file in the mounted file system and read it again.

        The file stays: when one is removed the guest sends a request (FORGET) that nobody waits for.

        :raises Violation: when the guest or the host reads other bytes than the guest has written.
        """
        file = f"{self.mount_point}/exchanged"
        summed = guest.succeed(
            f"dd if=/dev/urandom of=/tmp/w bs=1k count={_SIZE_KIB} 2>/dev/null && "
            f"dd if=/tmp/w of={file} bs=64k conv=fsync 2>/dev/null && "
            f"sha256sum < /tmp/w && sha256sum < {file} && rm /tmp/w"
        )
        written, read = (line.split()[0] for line in summed.splitlines())
        for side, seen in {"host": host_sha256(self.path / "exchanged"), "guest": read}.items():
            if seen != written:
                raise Violation(f"the {side} reads other bytes in {self.id} than the guest wrote")

    def use(self, guest: Commands) -> None:
        """Mount the file system, write and read a file, and unmount it.

        :raises Violation: see :meth:`exchange`.
        """
        self.mount(guest)
        self.exchange(guest)
        self.unmount(guest)

    @contextmanager
    def request_in_flight(self, guest: Guest) -> Iterator[UnansweredStatfs]:
        """Keep a request in flight: the daemon is stopped, and a process in the guest calls ``statfs``.

        The file system is mounted, and stays so. A ``statfs`` is one request; nothing precedes it.
        """
        self.mount(guest)
        daemon = self.daemon(guest.machine)
        daemon.stop()
        unanswered = UnansweredStatfs(
            daemon, Job(guest, f"stat -f {self.mount_point}", f"statfs of {self.id}")
        )
        try:
            guest.machine.wait_until(
                lambda: guest.run(_IN_FLIGHT).returncode == 0,
                what=f"a request of {self.id} in flight",
                timeout_s=10,
            )
            unanswered.writer.expect_running()
            yield unanswered
        finally:
            unanswered.release()


class UnansweredStatfs:
    """A ``statfs`` that the stopped daemon does not answer.

    :ivar writer: the guest's process that waits for it; it ends with 0 when the request is answered.
    """

    def __init__(self, daemon: Daemon, writer: Job) -> None:
        self._daemon, self.writer = daemon, writer

    def waiting(self) -> None:
        """The witness that the request is in flight: the daemon is stopped."""
        if not self._daemon.running or not self._daemon.stopped:
            raise GuestError("virtiofsd is not stopped (any more)")

    def release(self) -> None:
        """Let the daemon answer: see :class:`.RequestInFlight`."""
        self._daemon.resume()
