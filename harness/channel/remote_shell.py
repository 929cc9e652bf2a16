"""A shell in the guest that waits for commands on one SSH channel.

It saves time: under TCG a command on a new channel takes 20 ms more (dropbear forks, executes a shell, and
closes the channel), a subshell of a waiting shell a quarter of that.
"""

from __future__ import annotations

import re
import shlex
import uuid
from dataclasses import dataclass, field

import paramiko

#: The command that starts the shell. The file ``.shells`` shows later that the guest has not rebooted: its
#: root file system is in memory. The shell's output goes through cat, because dropbear must not poll a pipe
#: that a command splices into (nothing splices into stderr). While a file of 9p is spliced into a pipe
#: (busybox's cat does that), kernels before 6.5 report its pages as readable before they know that the file
#: is at its end (``lib/iov_iter.c``, ``pipe_get_pages``). The read that follows gets EAGAIN, and dropbear
#: then closes the pipe for good (``common-channel.c``, ``send_msg_channel_data``).
COMMAND = "echo >.shells; sh | cat"
#: The file in which the shell writes the number of a command before it runs it. If a command goes unanswered,
#: the file shows whether it may have run. A file of this name with ``.lost`` appended keeps the shell from
#: running any further command. The files are in the user's home folder, where shells start.
_NUMBER_FILE = ".shell-{name}"
_SCRIPT = (
    "echo {number} >{file}; [ -e {file}.lost ] || {{ echo -n {mark}; echo -n {mark} >&2; "
    "( eval {command} ) </dev/null; echo -n {mark}$?.; echo -n {mark} >&2; }}\n"
)
#: A command in the shell itself. It is as short as possible, because it is the first thing that a restored
#: guest runs, and TCG has to translate every step: one line, no cat, no number file.
_IN_SHELL = "{command}; echo -n {mark}{mark}$answer. >&2\n"
_ABANDON = "[ -e .shells ] && touch {file}.lost && {{ cat {file} 2>/dev/null || echo 0; }}"
_STATUS = re.compile(rb"(\d+)\.")


def in_shell_script(name: str, number: int, command: str) -> tuple[str, str]:
    """The mark and the script of the ``number``-th command that a shell runs without a subshell."""
    mark = f"={name}.i{number}="
    return mark, _IN_SHELL.format(mark=mark, command=command)


@dataclass
class Command:
    """A command that was submitted to the shell, and its output so far.

    :ivar number: the number of the command, from 1. :ivar subshell: see :meth:`RemoteShell.submit`.
    :ivar mark: precedes and follows the output of the command on both streams. Output of a background process
        of an earlier command is recognised if it comes before the first mark, but not between the two.
    """

    number: int
    mark: bytes
    out: bytearray = field(default_factory=bytearray)
    err: bytearray = field(default_factory=bytearray)
    subshell: bool = True

    @property
    def started(self) -> bool:
        """Whether the guest's waiting shell has reported that the command runs."""
        return self.mark in self.out

    @property
    def returncode(self) -> int | None:
        """The exit status of the command once both outputs are complete; else ``None``."""
        stream = self.out if self.subshell else self.err
        first, last = stream.find(self.mark), stream.rfind(self.mark)
        ended = first < last and _STATUS.match(stream, last + len(self.mark))
        return int(ended[1]) if ended and self.err.count(self.mark) == 2 else None

    def between(self, stream: bytearray) -> bytearray:
        """The output of the command itself on ``stream`` so far, between the marks of the waiting shell."""
        _, _, output = stream.partition(self.mark)
        return output.partition(self.mark)[0]


class RemoteShell:
    """A waiting shell.

    :param channel: a channel on which :data:`COMMAND` was started.
    :param name: a name that no other shell of the guest has. Random by default; given if the same bytes must
        be sent again when the session is replayed.
    """

    def __init__(self, channel: paramiko.Channel, name: str | None = None) -> None:
        self.channel = channel
        self._name = name or uuid.uuid4().hex
        self._count = self._count_in_shell = 0

    @property
    def waits(self) -> bool:
        """Whether the waiting shell in the guest has not ended."""
        return not (self.channel.closed or self.channel.eof_received)

    def submit(self, command: str, *, subshell: bool = True) -> Command:
        """Send ``command`` to the shell, which runs it in a subshell, without stdin; do not wait.

        :param subshell: False runs it in the shell itself, which saves a fork. The command must set
            ``$answer`` to a number, which becomes its exit status; its outputs are discarded. It leaves no
            trace of having run, so it must be one that may run twice, must not change the shell otherwise,
            and must not read stdin.
        """
        number = self._count + 1
        if not subshell:  # It does not count: the number file has the number of the command before it.
            self._count_in_shell += 1
            mark, script = in_shell_script(self._name, self._count_in_shell, command)
        else:
            self._count = number
            mark, quoted = f"={self._name}.{number}=", shlex.quote(command)
            script = _SCRIPT.format(number=number, file=self._number_file, mark=mark, command=quoted)
        self.channel.sendall(script.encode())
        return Command(number, mark.encode(), subshell=subshell)

    def answered(self, submitted: Command) -> bool:
        """Whether the command in the waiting shell has ended and all of its output has arrived.

        :raises EOFError: when the shell has ended instead.
        """
        if submitted.returncode is not None:
            return True
        if not (self.waits or self.channel.recv_ready() or self.channel.recv_stderr_ready()):
            raise EOFError("the connection ended")
        return False

    @property
    def abandon_command(self) -> str:
        """A command for another shell of the guest: it keeps this shell from running any further command.

        It prints the number of the last command that this shell may have run; 0 if there is none. It fails
        after a reboot of the guest: the number is then unknown.
        """
        return _ABANDON.format(file=self._number_file)

    @property
    def _number_file(self) -> str:
        return _NUMBER_FILE.format(name=self._name)
