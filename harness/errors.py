"""The error tree: who is accused, in one line, with what was sent and received.

Every error's first line is its cause and stands alone; ``details`` are the lines below it.
Nothing here knows QEMU's protocol or pytest.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class HarnessError(Exception):
    """The root of every error that the harness raises on purpose.

    :param message: one line that says what was wrong, where, and (where one can) what to do.
    :param details: further lines, printed below the first one.
    """

    def __init__(self, message: str, *, details: str = "") -> None:
        self.message = message
        self.details = details
        super().__init__(message if not details else f"{message}\n{details}")


class UsageError(HarnessError):
    """The caller's input is wrong: an option, a recipe, a path."""


class SetupError(HarnessError):
    """Accuses the host: a missing tool, no network, no space, a permission."""


class Unsupported(HarnessError):
    """Accuses nobody: this QEMU, or this host, cannot do it. A test that meets it is skipped, and says so."""


class GuestError(HarnessError):
    """Accuses the guest: it did not boot, a command failed in it, its channel is gone."""


class GuestPanicked(GuestError):
    """The guest's kernel panicked; ``details`` carries its last kernel lines."""


class CommandFailed(GuestError):
    """A command ran in the guest and ended with a non-zero exit status.

    ``argv`` is the shell text that was run; ``returncode``, ``stdout`` and ``stderr`` what came back.
    """

    def __init__(self, where: str, argv: str, returncode: int, stdout: str, stderr: str) -> None:
        self.argv, self.returncode = argv, returncode
        self.stdout, self.stderr = stdout, stderr
        said = (stderr.strip() or stdout.strip()).splitlines()
        super().__init__(
            f"{where}: {argv!r} exited with {returncode}" + (f": {said[-1]}" if said else ""),
            details="\n".join(said[-20:]) if len(said) > 1 else "",
        )


class CommandTimeout(GuestError):
    """A command in the guest did not end in time; ``stdout`` and ``stderr`` are what it had printed."""

    def __init__(self, where: str, argv: str, timeout_s: float, stdout: str, stderr: str) -> None:
        self.argv, self.timeout_s, self.stdout, self.stderr = argv, timeout_s, stdout, stderr
        printed = (stdout + stderr).strip()
        super().__init__(
            f"{where}: {argv!r} did not end within {timeout_s:.1f} s",
            details=f"printed so far: {printed[-1000:]}" if printed else "",
        )


class ChannelLost(GuestError):
    """A channel into the guest (SSH, console) broke or never opened."""


class QemuError(HarnessError):
    """QEMU answered a command with an error.

    ``sent`` is the command as sent (name and arguments), ``received`` QEMU's ``error`` member or,
    for an HMP command, the text that it printed; ``desc`` is the error's own text, verbatim.
    """

    def __init__(self, machine: str, sent: Mapping[str, Any], received: Any, desc: str) -> None:
        self.sent, self.received, self.desc = dict(sent), received, desc
        name = sent.get("execute", sent.get("command-line", "?"))
        super().__init__(f"QEMU {machine!r} refused {name}: {desc}", details=f"sent: {self.sent}")

    @property
    def command_not_found(self) -> bool:
        """This QEMU has no such command (QEMU: ``qapi/error.json``, ``CommandNotFound``)."""
        return isinstance(self.received, Mapping) and self.received.get("class") == "CommandNotFound"


class Violation(HarnessError):
    """Accuses the product: QEMU broke one of the guarantees."""


class QemuDied(Violation):
    """The QEMU process ended although nobody asked it to (signal, assertion, exit)."""


class QmpLost(HarnessError):
    """The QMP connection broke. A symptom: :meth:`Machine.root_cause` finds out whether QEMU died."""


class QmpSilent(Violation):
    """QEMU lives, yet its QMP socket stopped answering (or never answered)."""


class WaitTimeout(HarnessError):
    """A condition did not come true before its deadline.

    ``what`` was awaited, ``last`` is the last value seen, ``elapsed_s`` in seconds,
    ``artifacts`` the folder with the evidence (or ``None``).
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
