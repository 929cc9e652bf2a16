"""The Linux in a machine: commands over SSH or the serial console, readiness, mounts.

A guest can outlive its machine: after a migration or a ``loadvm`` it is the same guest in another QEMU or in
another state. At most its channels must be opened again.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from harness.background import Background
from harness.channel import Channel, Completed
from harness.channel.console import Console
from harness.channel.guestfwd import GuestfwdSocket
from harness.channel.ssh import Ssh
from harness.errors import (
    GuestError,
    GuestPanicked,
    HarnessError,
    Violation,
)
from harness.guest.commands import RUN_TIMEOUT_S, Commands
from harness.guest.image import GuestImage
from harness.guest.mount import Mount
from harness.qemu.machine import Machine
from harness.qemu.spec import Share

#: Seconds, before scaling by the accelerator's timeout scale.
BOOT_TIMEOUT_S = 20.0
_USERNET_S = 5.0
_9P_DEVICES = "/sys/bus/virtio/drivers/9pnet_virtio/virtio*"
#: A glob pattern that matches nothing remains as it is, so the existence of the first word is tested.
_MORE_9P = (
    f"turn=0; while set -- {_9P_DEVICES}; [ -e $1 ] || shift; [ $# -le {{}} ] && [ $turn -lt 30 ]; "
    "do usleep 30000; turn=$((turn + 1)); done; "
)
_FOR_EACH_9P = "cd /sys/bus/virtio/drivers/9pnet_virtio; for device in virtio*; do {} || exit 1; done"
#: The line that the guest prints on its kernel's console when it is ready (``images/guests/root/etc/rcS``).
NETWORK_IS_UP = "guest: network is up"


class Guest(Commands):
    """A booted guest.

    :param boots: the number of completed boots that the machine's kernel log already shows.
    :ivar machine: the machine in which it runs now; :meth:`moved_to` changes it.
    """

    def __init__(self, machine: Machine, image: GuestImage, *, boots: int = 0) -> None:
        self.machine, self.image = machine, image
        self._ssh: Ssh | None = None
        self._console: Console | None = None
        self._through = "ssh"
        self._boots = boots

    @property
    def ssh(self) -> Ssh:
        """The SSH channel to this guest, opened on first use."""
        if self._ssh is None:
            self.use_session(self.log_in())
            assert self._ssh is not None
        return self._ssh

    def log_in(self, guestfwd: GuestfwdSocket | None = None, first_command: str = "answer=0") -> Ssh:
        """Open a new SSH session to this guest; :meth:`use_session` makes it the one that commands use.

        :param guestfwd: see :class:`~harness.channel.ssh.Ssh`.
        :param first_command: see :class:`~harness.channel.ssh.Ssh`.
        """
        return Ssh(
            self.machine.ssh_port,
            client_key=self.image.client_key,
            host_key=self.image.host_key,
            timeout_s=self.machine.timeout_scale.seconds(BOOT_TIMEOUT_S),
            watch=self.machine.watch,
            guestfwd=guestfwd,
            first_command=first_command,
        )

    def use_session(self, ssh: Ssh) -> None:
        """Run all further SSH commands over this session."""
        ssh.guestfwd_lost = self._guestfwd_lost
        self.machine.history.note(self.actor, "ssh:connected", ssh.stages_s)
        self._ssh = ssh

    def _guestfwd_lost(self, why: str) -> None:
        """Record the state of QEMU's user network, which shows which side of the connection did not answer.

        The answer is in the history, even if it comes late. A QEMU that is busy may not answer in time, which
        is no error.
        """
        self.machine.history.note(self.actor, "ssh:guestfwd-lost", why)
        with suppress(HarnessError):
            pending = self.machine.qmp.request("human-monitor-command", {"command-line": "info usernet"})
            self.machine.wait_until(lambda: pending.done, what="info usernet", timeout_s=_USERNET_S)

    @property
    def console(self) -> Console:
        """The shell on this guest's second serial port, opened on first use."""
        if self._console is None:
            console = Console(self.machine.paths.console, watch=self.machine.watch)
            try:
                console.wait_ready(timeout_s=self.machine.timeout_scale.seconds(BOOT_TIMEOUT_S))
            except BaseException:
                console.close()
                raise
            self._console = console
        return self._console

    def use(self, channel: str) -> None:
        """Run all further commands over ``"ssh"`` or ``"console"``."""
        assert channel in ("ssh", "console")
        self._through = channel

    def wait_booted(self) -> None:
        """Wait until the guest has booted and answers a command.

        :raises GuestPanicked: when its kernel panicked. :raises QemuDied: when QEMU died.
        :raises GuestError: when it does not answer in time; the message has the stage that the boot reached.
        """
        with self.machine.history.operation(self.actor, "guest:boot"):
            try:
                self._wait_announced()
                self._channel.run("true", timeout_s=self.machine.timeout_scale.seconds(BOOT_TIMEOUT_S))
            except (Violation, GuestPanicked):
                raise  # The watch raised the root cause.
            except HarnessError as exc:
                cause = self.machine.root_cause(exc)
                raise self._never_booted(cause) if cause is exc else cause from exc

    def _wait_announced(self) -> None:
        """Wait until the guest's kernel log shows, one more time than before, that the network is up.

        An earlier connection attempt would only succeed when QEMU's user network repeats its SYN, a second or
        two after the guest could have answered.
        """
        self.machine.wait_until(
            lambda: self.machine.kernel_log.text().count(NETWORK_IS_UP) > self._boots,
            what=f"the guest's {NETWORK_IS_UP!r}",
            timeout_s=BOOT_TIMEOUT_S,
        )
        self._boots += 1

    def _never_booted(self, symptom: HarnessError) -> GuestError:
        lines = self.machine.kernel_log.tail(12)
        if not lines:
            reached = "its kernel printed nothing (check firmware, kernel image and accelerator)"
        elif not self.machine.kernel_log.contains("Run /init"):
            reached = "its kernel did not reach the first process"
        elif not self.machine.kernel_log.contains(NETWORK_IS_UP):
            reached = "its first process started, but its network did not come up"
        else:
            reached = "its network is up, but it does not answer"
        return GuestError(
            f"the guest of {self.machine.name!r} did not boot: {reached}",
            details="\n".join([symptom.message, *lines]),
        )

    @property
    def _channel(self) -> Channel:
        return self.ssh if self._through == "ssh" else self.console

    def run(self, command: str, *, timeout_s: float = RUN_TIMEOUT_S, stdin: bytes = b"") -> Completed:
        """Run a shell command as root in this guest; see :meth:`.Commands.run`."""
        channel = self._channel
        return self._recorded(
            command, timeout_s, lambda scaled_s: channel.run(command, timeout_s=scaled_s, stdin=stdin)
        )

    def run_in_session_shell(self, command: str) -> Completed:
        """Run ``command`` in the shell of the SSH session, without a subshell (see :meth:`.Ssh.run`)."""
        ssh = self.ssh
        return self._recorded(
            command, RUN_TIMEOUT_S, lambda scaled_s: ssh.run(command, timeout_s=scaled_s, subshell=False)
        )

    def _recorded(self, command: str, timeout_s: float, run: Callable[[float], Completed]) -> Completed:
        op = self.machine.history.invoke(self.actor, f"{self._through}:run", {"command": command})
        try:
            completed = run(self.machine.timeout_scale.seconds(timeout_s))
        except HarnessError as exc:
            cause = self.machine.root_cause(exc)
            op.info(cause.message)
            if cause is exc:
                raise
            raise cause from exc
        op.ok({"returncode": completed.returncode, "stdout": completed.stdout[-2000:]})
        return completed

    def last_command(self, command: str) -> None:
        """Start a command in the guest that ends it, and do not wait for its result.

        Wait for its effect instead, then call :meth:`disconnect`.
        """
        self.machine.history.note(self.actor, "guest:last-command", {"command": command})
        channel, timeout_s = self._channel, self.machine.timeout_scale.seconds(RUN_TIMEOUT_S)
        Background(lambda: channel.run(command, timeout_s=timeout_s))

    def mount(self, share: Share, *, options: str = "", at: str | None = None) -> Mount:
        """Mount ``share`` in this guest (see :class:`harness.guest.mount.Mount`)."""
        return Mount.attach(self, share, options=options, at=at)

    def mount_tags(self, *, more_than: int | None = None) -> list[str]:
        """The mount tags of the 9p devices that this guest's driver has now.

        Source: the ``mount_tag`` attribute of kernel ``net/9p/trans_virtio.c``.

        :param more_than: first wait, for a second at most, until the driver has more devices than this. The
            guest does the waiting, which is much faster than repeated commands.
        """
        wait = "" if more_than is None else _MORE_9P.format(more_than)
        found = self.succeed(f"{wait}cat {_9P_DEVICES}/mount_tag 2>/dev/null; true")
        return [tag for tag in found.replace("\0", "\n").split("\n") if tag]

    def rebind_9p(self) -> None:
        """Unbind the guest's driver from every 9p device and bind it again: it reads their configuration."""
        self.succeed(_FOR_EACH_9P.format("echo $device > unbind && echo $device > bind"))

    def unbind_9p(self, share: Share) -> None:
        """In this guest, unbind the driver from the device of ``share``; it waits for the device's users."""
        self._write_device(share, "unbind")

    def bind_9p(self, share: Share) -> None:
        """In this guest, bind the driver to the device of ``share`` again."""
        self._write_device(share, "bind")

    def _write_device(self, share: Share, file: str) -> None:
        """Write the name of the share's virtio device to a file of the guest's driver."""
        folder = self.machine.spec.machine_type.sysfs(share.slot)
        device = f"$(cd {folder} && echo virtio*)"
        self.succeed(f"echo {device} > /sys/bus/virtio/drivers/9pnet_virtio/{file}")

    @property
    def unbind_9p_command(self) -> str:
        """A shell command that unbinds the driver from every 9p device; it waits for their users."""
        return _FOR_EACH_9P.format("echo $device > unbind")

    @property
    def boot_id(self) -> str:
        """The random id of the current boot of this guest's kernel; every reboot changes it."""
        return self.succeed("cat /proc/sys/kernel/random/boot_id").strip()

    def tolerate(self, pattern: str, *, why: str) -> None:
        """Declare that kernel log lines which match the regular expression ``pattern`` are expected."""
        self.machine.history.note(self.machine.name, "guest:tolerate", {"pattern": pattern, "why": why})

    def moved_to(self, machine: Machine) -> None:
        """Declare that this guest now runs in ``machine``.

        The SSH session is kept if possible. Other channels are opened again on their next use.
        """
        had_session = self._ssh is not None and self._ssh.resumed is True
        kept = self._ssh is not None and self._ssh.move(
            machine.paths.guestfwd, port=lambda: machine.ssh_port, watch=machine.watch
        )
        if had_session and self._ssh is not None and isinstance(self._ssh.resumed, str):
            self.machine.history.note(self.actor, "ssh:not-moved", self._ssh.resumed)
        ssh = self._ssh if kept else None
        if kept:
            self._ssh = None
        self.disconnect()
        self.machine, self._ssh, self._boots = machine, ssh, 0

    def disconnect(self) -> None:
        """Close all channels to the guest; the next command opens them again."""
        for channel in (self._ssh, self._console):
            if channel is not None:
                channel.close()
        self._ssh = self._console = None
