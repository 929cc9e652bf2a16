"""The exceptions of the harness. The class of an exception names the party at fault.

The first line of an error states its cause and is complete without the rest; ``details`` holds further lines.
This module depends neither on QEMU's protocol nor on pytest.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class HarnessError(Exception):
    """The base class of every error that the harness raises deliberately.

    :param message: one line: what is wrong, where, and, if known, how to fix it.
    :param details: further lines, printed below the first one.
    """

    def __init__(self, message: str, *, details: str = "") -> None:
        self.message = message
        self.details = details
        super().__init__(message if not details else f"{message}\n{details}")


class UsageError(HarnessError):
    """The user's input is wrong: an option, a recipe, a path."""


class SetupError(HarnessError):
    """The host is at fault: a missing tool, no network, a full disk, a missing permission."""


class Unsupported(HarnessError):
    """Nobody is at fault: this QEMU or this host lacks a feature. The test is skipped with this message."""


class GuestError(HarnessError):
    """The guest is at fault: it did not boot, a command failed in it, or its channel broke."""


class GuestPanicked(GuestError):
    """The guest's kernel panicked; ``details`` holds the last lines of its console."""


class CommandFailed(GuestError):
    """A command ran in the guest and ended with a non-zero exit status.

    ``argv`` is the shell command; ``returncode``, ``stdout`` and ``stderr`` are its results.
    """

    def __init__(self, where: str, argv: str, returncode: int, stdout: str, stderr: str) -> None:
        self.argv, self.returncode = argv, returncode
        self.stdout, self.stderr = stdout, stderr
        output = (stderr.strip() or stdout.strip()).splitlines()
        super().__init__(
            f"{where}: {argv!r} exited with {returncode}" + (f": {output[-1]}" if output else ""),
            details="\n".join(output[-20:]) if len(output) > 1 else "",
        )


class CommandTimeout(GuestError):
    """A command in the guest did not end in time; ``stdout`` and ``stderr`` hold its output so far."""

    def __init__(self, where: str, argv: str, timeout_s: float, stdout: str, stderr: str) -> None:
        self.argv, self.timeout_s, self.stdout, self.stderr = argv, timeout_s, stdout, stderr
        printed = (stdout + stderr).strip()
        super().__init__(
            f"{where}: {argv!r} did not end within {timeout_s:.1f} s",
            details=f"printed so far: {printed[-1000:]}" if printed else "",
        )


class ChannelLost(GuestError):
    """A channel to the guest (SSH, console) broke or could not be opened."""


class QemuError(HarnessError):
    """QEMU answered a command with an error.

    ``sent`` is the command as sent (name and arguments). ``received`` is QEMU's ``error`` member or, for an
    HMP command, the text that it printed. ``desc`` is the error's description, verbatim.
    """

    def __init__(self, machine: str, sent: Mapping[str, Any], received: Any, desc: str) -> None:
        self.sent, self.received, self.desc = dict(sent), received, desc
        name = sent.get("execute", sent.get("command-line", "?"))
        super().__init__(f"QEMU {machine!r} refused {name}: {desc}", details=f"sent: {self.sent}")

    @property
    def command_not_found(self) -> bool:
        """Whether the error is that QEMU does not know the command.

        Source: QEMU ``qapi/error.json``, ``CommandNotFound``.
        """
        return isinstance(self.received, Mapping) and self.received.get("class") == "CommandNotFound"


class Violation(HarnessError):
    """QEMU is at fault: it broke one of the guarantees."""


class QemuDied(Violation):
    """The QEMU process ended unexpectedly: by a signal, an assertion or an exit."""


class QmpLost(HarnessError):
    """The QMP connection broke. This is a symptom: :meth:`Machine.root_cause` finds out whether QEMU died."""


class QmpSilent(Violation):
    """The QEMU process runs, but does not answer on its QMP socket."""


class WaitTimeout(HarnessError):
    """A condition did not become true before its deadline.

    ``what`` names the condition, ``last`` is the last value seen, ``elapsed_s`` is in seconds, and
    ``artifacts`` is the test's artefact folder (or ``None``).
    """

    def __init__(self, what: str, *, last: object, elapsed_s: float, artifacts: Path | None = None) -> None:
        self.what, self.last, self.elapsed_s, self.artifacts = what, last, elapsed_s, artifacts
        where = f"; artefacts: {artifacts}" if artifacts else ""
        super().__init__(
            f"waited {elapsed_s:.1f} s for {what}; last seen: {_short(last)}{where}",
        )


def _short(value: object, limit: int = 300) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
