"""A command that runs in the background of a guest while the scenario does something else."""

from __future__ import annotations

import itertools

from harness.channel import Completed
from harness.errors import GuestError, WaitTimeout
from harness.guest.commands import Commands, quote

_numbers = itertools.count(1)


class Job:
    """A shell command in the background of a guest, detached from the channel that started it.

    :param what: a description of the job, for messages.
    """

    def __init__(self, guest: Commands, command: str, what: str) -> None:
        self.guest, self.command, self.what = guest, command, what
        self._base = f"/tmp/job{next(_numbers)}"
        inner = f"({command}) >{self._base}.out 2>{self._base}.err; echo $? >{self._base}.tmp; "
        inner += f"mv {self._base}.tmp {self._base}.rc"
        guest.succeed(f"setsid sh -c {quote(inner)} </dev/null >/dev/null 2>&1 &")

    @property
    def running(self) -> bool:
        """Whether the job has not ended. (A job that was ended by a reboot counts as running.)"""
        return self.guest.run(f"test -e {self._base}.rc").returncode != 0

    def expect_running(self) -> None:
        """:raises GuestError: when the job has ended."""
        if not self.running:
            done = self._completed()
            output = (done.stderr or done.stdout).strip()[-200:]
            raise GuestError(f"{self.guest.actor}: {self.what} has ended with {done.returncode}: {output}")

    def wait(self, *, timeout_s: float = 10.0) -> Completed:
        """Wait for the end of the job, and return its result, whatever its exit status is.

        :param timeout_s: seconds, before scaling.
        :raises WaitTimeout: when it does not end.
        """
        self.guest.machine.wait_until(
            lambda: not self.running,
            what=f"the end of {self.what} in {self.guest.actor}",
            timeout_s=timeout_s,
            interval_s=0.1,
        )
        return self._completed()

    def ends_within(self, timeout_s: float) -> bool:
        """Whether the job ends within ``timeout_s`` (seconds, before scaling); for a job that may hang."""
        try:
            self.wait(timeout_s=timeout_s)
        except WaitTimeout:
            return False
        return True

    def wait_succeeded(self, *, timeout_s: float = 10.0) -> str:
        """Wait for the end of the job, and return its stdout.

        :raises GuestError: when its exit status is not 0. :raises WaitTimeout: when it does not end.
        """
        done = self.wait(timeout_s=timeout_s)
        if done.returncode != 0:
            raise GuestError(
                f"{self.guest.actor}: {self.what} exited with {done.returncode}: {done.stderr.strip()[-200:]}"
            )
        return done.stdout

    def _completed(self) -> Completed:
        status = int(self.guest.succeed(f"cat {self._base}.rc"))
        out, err = (self.guest.succeed(f"cat {self._base}.{kind}") for kind in ("out", "err"))
        return Completed(self.command, status, out, err)
