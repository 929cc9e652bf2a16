"""A shell in the guest that waits for commands on one SSH channel, so that a command need not start one.

A channel of its own costs a guest under TCG 20 ms a command (dropbear forks, executes a shell, closes the
channel); a subshell of a shell that waits, a quarter of that.
"""

from __future__ import annotations

import re
import shlex
import uuid
from dataclasses import dataclass, field

import paramiko

#: The file tells that there was no reboot since: the guest's root is in its memory. Through cat, because
#: dropbear must not be the one who polls what a command prints to (nothing splices into stderr). While a file
#: of 9p is spliced into a pipe (busybox's cat does that), kernels before 6.5 show its pages readable before
#: they know that the file is at its end (``lib/iov_iter.c``, ``pipe_get_pages``); the read that follows gets
#: EAGAIN, and dropbear closes the pipe for good (``common-channel.c``, ``send_msg_channel_data``).
COMMAND = "echo >.shells; sh | cat"
#: Which command the shell was told last: of one that goes unanswered it says whether it may have begun.
#: Whoever makes the file with ``.lost`` keeps the shell from beginning any other. Shells begin in the user's
#: home, so it is there.
_ASKED = ".shell-{name}"
_SCRIPT = (
    "echo {number} >{asked}; [ -e {asked}.lost ] || {{ echo -n {mark}; echo -n {mark} >&2; "
    "( eval {command} ) </dev/null; echo -n {mark}$?.; echo -n {mark} >&2; }}\n"
)
#: In one line, past cat, and nothing noted: of what a restored guest does first, each step is translated.
_INSIDE = "{command}; echo -n {mark}{mark}$answer. >&2\n"
_GIVE_UP = "[ -e .shells ] && touch {asked}.lost && {{ cat {asked} 2>/dev/null || echo 0; }}"
_STATUS = re.compile(rb"(\d+)\.")


def inside_script(name: str, number: int, command: str) -> tuple[str, str]:
    """The mark and the script of the shell's ``number``-th command inside."""
    mark = f"={name}.i{number}="
    return mark, _INSIDE.format(mark=mark, command=command)


@dataclass
class Command:
    """A command that the shell was told, and what has come back.

    :ivar number: counts the shell's commands from 1. :ivar inside: see :meth:`RemoteShell.submit`.
    :ivar mark: stands before and after what the command says, on either stream. Late output of what an
        earlier command left running is told apart where it comes before the mark, not between the two.
    """

    number: int
    mark: bytes
    out: bytearray = field(default_factory=bytearray)
    err: bytearray = field(default_factory=bytearray)
    inside: bool = False

    @property
    def begun(self) -> bool:
        """Whether the guest has said that the command begins."""
        return self.mark in self.out

    @property
    def returncode(self) -> int | None:
        """What the command exited with, as soon as all of both outputs is here; else ``None``."""
        said = self.err if self.inside else self.out
        first, last = said.find(self.mark), said.rfind(self.mark)
        ended = first < last and _STATUS.match(said, last + len(self.mark))
        return int(ended[1]) if ended and self.err.count(self.mark) == 2 else None

    def between(self, stream: bytearray) -> bytearray:
        """What the command itself has said on ``stream`` so far."""
        _, _, said = stream.partition(self.mark)
        return said.partition(self.mark)[0]


class RemoteShell:
    """One such shell.

    :param channel: one on which :data:`COMMAND` was begun. :param name: no other shell's; random, unless what
        is said has to be the same another time.
    """

    def __init__(self, channel: paramiko.Channel, name: str | None = None) -> None:
        self.channel = channel
        self._name = name or uuid.uuid4().hex
        self._count = self._inside = 0

    @property
    def waits(self) -> bool:
        """Whether it has not ended."""
        return not (self.channel.closed or self.channel.eof_received)

    def submit(self, command: str, *, inside: bool = False) -> Command:
        """Let it begin ``command``, in a subshell and without stdin; the channel has what comes back.

        :param inside: in the shell itself, which is cheaper by a fork. Of its end only ``$answer``, which it
            has to set to a number, comes back as its status. There is no trace of its having begun: it has to
            be one that may run twice, and neither changes the shell otherwise nor reads its stdin.
        """
        number = self._count + 1
        if inside:  # Not counted: who asks what was told last hears of the one before.
            self._inside += 1
            mark, script = inside_script(self._name, self._inside, command)
        else:
            self._count = number
            mark, quoted = f"={self._name}.{number}=", shlex.quote(command)
            script = _SCRIPT.format(number=number, asked=self._asked, mark=mark, command=quoted)
        self.channel.sendall(script.encode())
        return Command(number, mark.encode(), inside=inside)

    def answered(self, submitted: Command) -> bool:
        """Whether the command has ended, and everything that it said has arrived.

        :raises EOFError: when the shell has ended instead.
        """
        if submitted.returncode is not None:
            return True
        if not (self.waits or self.channel.recv_ready() or self.channel.recv_stderr_ready()):
            raise EOFError("the connection ended")
        return False

    @property
    def give_up_command(self) -> str:
        """To be run elsewhere in the guest: the shell begins nothing more; prints which it was told last.

        It fails after a reboot: nobody knows then. At first the number is 0.
        """
        return _GIVE_UP.format(asked=self._asked)

    @property
    def _asked(self) -> str:
        return _ASKED.format(name=self._name)
