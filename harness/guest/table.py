"""Shell commands, and what each of them has to print: many checks of a share in one round trip."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

from harness.errors import GuestError, Violation
from harness.guest.commands import Commands, quote

#: A command, and what it prints: its output without the last newline, or, when it fails, the name of the
#: errno that its message ends with (``ENOENT``).
Row = tuple[str, str]
_BY_TEXT = {os.strerror(number): name for number, name in errno.errorcode.items()}
#: Around a command's output; no file name or message has them.
_BEGIN, _END = "\x1c", "\x1d"
_TIMEOUT_S = 30.0
#: System calls that no shell command makes; a guest has it as the command ``calls``.
_PROGRAM = Path(__file__).with_name("calls.pl")


def expect_printed(guest: Commands, folder: str, rows: Sequence[Row]) -> None:
    """Run each command in ``folder`` of the guest, one after the other; all are run, whatever one prints.

    :raises Violation: when one prints something else; the first is in the message, all are in the details.
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
    """What each command prints (see :data:`Row`).

    :raises GuestError: when the shell did not get to the end of them.
    """
    output = guest.succeed(_script(folder, commands), timeout_s=_TIMEOUT_S)
    parts = output.split(_BEGIN)[1:]
    if len(parts) != len(commands) or not all(_END in part for part in parts):
        raise GuestError(f"{guest.actor}: the shell ended after {len(parts)} of {len(commands)} commands")
    return [_outcome(part) for part in parts]


def calls(guest: Commands) -> None:
    """Give the guest the command ``calls`` (see ``calls.pl``), unless it has it."""
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
    # Perl's ``$!`` and busybox alike end with the libc's own words.
    last = text.rpartition("\n")[2]
    return _BY_TEXT.get(last.rpartition(": ")[2].rstrip("."), text or f"exit status {status}")
