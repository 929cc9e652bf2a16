"""The interface of a guest that runs shell commands as root, independent of the channel.

Jobs, mounts and programs in the guest use only this interface.
"""

from __future__ import annotations

import shlex
from abc import ABC, abstractmethod

from harness.channel import Completed
from harness.deadline import wait_until
from harness.errors import CommandFailed, GuestError, Unsupported, WaitTimeout
from harness.qemu.architectures import X86_64
from harness.qemu.machine import Machine

#: Seconds, before scaling by the accelerator's timeout scale.
RUN_TIMEOUT_S = 10.0


class Commands(ABC):
    """A guest that runs shell commands.

    :ivar machine: the machine in which the guest runs now.
    """

    machine: Machine

    @property
    def actor(self) -> str:
        """The name of the guest: the actor in the history."""
        return f"guest:{self.machine.name}"

    def require_system_calls(self) -> None:
        """Require a guest for which the Perl programs know the numbers of the system calls.

        :raises Unsupported: for another architecture than x86_64.
        """
        architecture = self.machine.spec.machine_type.architecture
        if architecture is not X86_64:
            raise Unsupported(
                f"the programs in the guest have no numbers of system calls of {architecture.name}"
            )

    @abstractmethod
    def run(self, command: str, *, timeout_s: float = RUN_TIMEOUT_S, stdin: bytes = b"") -> Completed:
        """Run a shell command as root and return its result, whatever its exit status is.

        :param timeout_s: seconds, before scaling.
        :raises HarnessError: the root cause, when there is no result: QEMU died, the kernel panicked, a
            timeout.
        """

    def succeed(self, command: str, *, timeout_s: float = RUN_TIMEOUT_S, stdin: bytes = b"") -> str:
        """Run a command in the guest that must exit with 0, and return its stdout.

        :raises CommandFailed: when it exits with another status.
        """
        return self.check(self.run(command, timeout_s=timeout_s, stdin=stdin)).stdout

    def check(self, done: Completed) -> Completed:
        """Return ``done``, a command of the guest, if it exited with 0.

        :raises CommandFailed: when it exited with another status.
        """
        if done.returncode != 0:
            raise CommandFailed(self.actor, done.argv, done.returncode, done.stdout, done.stderr)
        return done

    def fail(self, command: str, *, timeout_s: float = RUN_TIMEOUT_S) -> Completed:
        """Run a command in the guest that must not exit with 0, and return its result.

        :raises GuestError: when it exits with 0.
        """
        done = self.run(command, timeout_s=timeout_s)
        if done.returncode == 0:
            raise GuestError(f"{self.actor}: {command!r} was expected to fail, but exited with 0")
        return done

    def wait_until_succeeds(self, command: str, *, what: str, timeout_s: float = RUN_TIMEOUT_S) -> str:
        """Repeat a command in the guest until it exits with 0; returns its stdout.

        :raises WaitTimeout: with the last result.
        """
        last: list[Completed] = []

        def attempt() -> Completed | None:
            last[:] = [self.run(command)]
            return last[0] if last[0].returncode == 0 else None

        scaled_s = self.machine.timeout_scale.seconds(timeout_s)
        try:
            done = wait_until(attempt, what=what, timeout_s=scaled_s, interval_s=0.1)
        except WaitTimeout as exc:
            raise WaitTimeout(
                what, last=last[0], elapsed_s=exc.elapsed_s, artifacts=self.machine.artifacts.folder
            ) from None
        return done.stdout


def quote(text: str) -> str:
    """Quote ``text`` as one word of the guest's shell."""
    return shlex.quote(text)
