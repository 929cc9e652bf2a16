"""The first thing that a restored guest does: it sets its clock, and takes random bytes that no other has.

All guests of a template go on from the same moment of the past, and would draw the same random numbers. The
program that changes that (``reseed.pl``) was started before the template was saved, and waits for a message:
under TCG, to start a program takes a guest as long as its SSH session does, and to start Perl ten times
that. The message carries the host's time; the guest's clock lags behind the host's by the time that the
message takes to arrive.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

#: Where the program is in the guest.
PROGRAM = "/run/reseed.pl"
#: How it is run.
RUN = f"perl {PROGRAM} $(uname -m)"
#: Named pipes: the program's messages, and its answers.
_MESSAGE, _ANSWER = f"{PROGRAM}.message", f"{PROGRAM}.answer"
SUBMIT = f"echo {{}} >{_MESSAGE}; read -r answer <{_ANSWER}"
_RANDOM_BYTES = 32


def program() -> bytes:
    """The text of the program that reseeds."""
    return Path(__file__).with_name("reseed.pl").read_bytes()


def start_command() -> str:
    """The shell's command that installs the program that reseeds, from its stdin, and starts it."""
    # Each pipe is opened for both, so that neither side waits for the other to open it, and the program sees
    # no end of file. What it complains of goes to the kernel's log.
    pipes = f"<>{_MESSAGE} 1<>{_ANSWER} 2>/dev/kmsg"
    installed = f"cat >{PROGRAM} && mkfifo {_MESSAGE} {_ANSWER}"
    return f"{installed} && {{ setsid {RUN} {pipes} & }}"


def command() -> str:
    """The shell's command that sends the reseeding program a message, and sets ``$answer`` to its answer.

    Its length is always the same (see :class:`~harness.channel.ssh.Ssh`, ``first_command``).
    """
    return SUBMIT.format(message())


def message() -> str:
    """The message for reseeding: the time of now, and 32 new random bytes, as ``reseed.pl`` reads them."""
    seconds, nanoseconds = divmod(time.time_ns(), 10**9)
    return f"{seconds:010} {nanoseconds:09} {os.urandom(_RANDOM_BYTES).hex()}"
