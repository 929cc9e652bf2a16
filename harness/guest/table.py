"""Tables of shell commands and their expected outputs: many checks of a share in one round trip."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

from harness.errors import GuestError, Violation
from harness.guest.commands import Commands, quote

#: A command and its expected outcome: the output without the last newline or, if the command fails, the name
#: of the errno at the end of its error message (such as ``ENOENT``).
Row = tuple[str, str]
_BY_TEXT = {os.strerror(number): name for number, name in errno.errorcode.items()}
#: Delimiters of a command's output, which occur in no file name or message.
_BEGIN, _END = "\x1c", "\x1d"
_TIMEOUT_S = 30.0
#: The guest's command ``calls``, for system calls that no other command makes.
_PROGRAM = Path(__file__).with_name("calls.pl")


def expect_printed(guest: Commands, folder: str, rows: Sequence[Row]) -> None:
    """Run each command of a table in ``folder`` of the guest, in order, even if one has a wrong outcome.

    :raises Violation: when an outcome is wrong; the message has the first one, and the details have all.
    """
    seen = printed(guest, folder, [command for command, _ in rows])
    wrong = [
        f"{command!r} gave {outcome!r}, expected {expected!r}"
        for (command, expected), outcome in zip(rows, seen, strict=True)
        if outcome != expected
    ]
    if wrong:
        raise Violation(
            f"{guest.actor}: in {folder}, {len(wrong)} of {len(rows)} commands: {wrong[0]}",
            details="\n".join(wrong),
        )


def printed(guest: Commands, folder: str, commands: Sequence[str]) -> list[str]:
    """Run a table's ``commands`` in the guest, and return the outcome of each (see :data:`Row`).

    :raises GuestError: when the shell ended before the last one.
    """
    output = guest.succeed(_script(folder, commands), timeout_s=_TIMEOUT_S)
    parts = output.split(_BEGIN)[1:]
    if len(parts) != len(commands) or not all(_END in part for part in parts):
        raise GuestError(f"{guest.actor}: the shell ended after {len(parts)} of {len(commands)} commands")
    return [_outcome(part) for part in parts]


def calls(guest: Commands) -> None:
    """Install the command ``calls`` for tables (see ``calls.pl``) in the guest, unless it is there.

    :raises Unsupported: see :meth:`.Commands.require_system_calls`.
    """
    guest.require_system_calls()
    if guest.run("[ -x /bin/calls ]").returncode:
        program = b"#!/usr/bin/perl\n" + _PROGRAM.read_bytes()
        guest.succeed("cat > /bin/calls && chmod +x /bin/calls", stdin=program)


def _script(folder: str, commands: Sequence[str]) -> str:
    lines = [f"cd {quote(folder)} || exit"]
    for command in commands:
        lines += [f"printf '{_BEGIN}'", "(", command, ") </dev/null 2>&1", f"printf '{_END}%s' $?"]
    return "\n".join(lines)


def _outcome(part: str) -> str:
    text, _, status = part.partition(_END)
    text = text.removesuffix("\n")
    if status == "0":
        return text
    # Messages of Perl (``$!``) and busybox end with the text of strerror(3).
    last = text.rpartition("\n")[2]
    return _BY_TEXT.get(last.rpartition(": ")[2].rstrip("."), text or f"exit status {status}")
