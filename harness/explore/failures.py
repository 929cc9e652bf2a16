"""From an error, or from the verdict of the checkers, to the failure of an attempt."""

from __future__ import annotations

import re

from harness.checkers import Judgement, MachineRecord, Record, Verdict
from harness.checkers.record import backtrace_of
from harness.errors import (
    ChannelLost,
    GuestError,
    HarnessError,
    QemuError,
    QmpSilent,
    SetupError,
    Violation,
    WaitTimeout,
)
from harness.explore.attempt import Failure
from harness.explore.disagreement import Disagreement, shortened

#: The checker of a QEMU that does not answer, and of one that died.
HANGS, DIED = "qemu_answers", "qemu_alive"
#: What was in flight when QEMU died depends on the moment: it does not belong to the failure.
_WHEN = re.compile(r" (while \S+ was in flight|after \S+?|before any QMP command)(?=: |$)")
_NAMED = re.compile(r"QEMU '[^']*' ")
#: gdb: ``#1  0x… in v9fs_read (…) at ../hw/9pfs/9p.c:2345``, without symbols ``#1  0x… in ?? ()``.
_FRAME = re.compile(r"^#\d+ +(?:0x[0-9a-f]+ in )?(\w+) \([^/]*?\)(?: at (\S+?):\d+)?$")
_FILES = re.compile(r"(hw/9pfs|fsdev|hw/virtio|util/throttle)")
_FUNCTIONS = re.compile(r"(v9fs_|virtfs_|virtio_|virtqueue_|pdu_|local_|fsdev_|throttle_|p9|qemu_9p)")


def failure_of(error: Exception, step: int | None, do: str, guarantee: str) -> Failure | None:
    """The failure that an error shows; ``None`` when host or harness are at fault.

    :param step: the index of the step that raised it. :param do: its name.
    :param guarantee: the guarantee that the step asserts.
    """
    if isinstance(error, Disagreement):
        return Failure(error.checker, error.message, error.guarantee or guarantee, step=step)
    if isinstance(error, QmpSilent):
        return Failure(HANGS, _NAMED.sub("QEMU ", error.message), guarantee, step=step)
    if isinstance(error, WaitTimeout):
        return Failure(HANGS, f"waited in vain for {error.what}", guarantee, step=step)
    if isinstance(error, QemuError):
        command = error.sent.get("execute", error.sent.get("command-line", "?"))
        return Failure(do, f"{command} was refused: {error.desc}", guarantee, step=step)
    if isinstance(error, ChannelLost | SetupError):
        return None
    if isinstance(error, Violation | GuestError):
        return Failure(do, shortened(error.message), guarantee, step=step)
    return None


def one_line(error: BaseException) -> str:
    """The first line of an error: the message of the failure that it becomes."""
    text = error.message if isinstance(error, HarnessError) else f"{type(error).__name__}: {error}"
    return text.splitlines()[0]


def death(record: Record, found: Judgement, step: int | None, guarantee: str) -> Failure:
    """The failure of a QEMU that died, or in which a sanitizer or GLib reported an error."""
    message = _NAMED.sub("QEMU ", _WHEN.sub(" during the program", found.summary))
    frames = next((frames for machine in record.machines if (frames := _frames(machine))), ())
    return Failure(found.checker, shortened(message), guarantee, frames, step)


def judged(found: Judgement, step: int | None, guarantee: str) -> Failure:
    """The failure that a checker has found, from its verdict."""
    message = _NAMED.sub("QEMU ", _WHEN.sub("", found.summary))
    return Failure(found.checker, shortened(message), guarantee, step=step)


def by_severity(judgements: list[Judgement]) -> list[Judgement]:
    """The judgements that are not valid, the root cause first: from these a failure is made."""
    bad = [found for found in judgements if found.verdict is not Verdict.VALID]
    return sorted(bad, key=lambda found: (found.verdict is not Verdict.INVALID, found.checker != DIED))


def _frames(machine: MachineRecord) -> tuple[str, ...]:
    """The innermost functions of the backtrace that concern the device: a part of the failure's signature.

    A stripped QEMU may have no name for them; then those of its functions that have a name.
    """
    frames = [frame for frame in map(_FRAME.match, backtrace_of(machine)) if frame]
    ours = [f[1] for f in frames if (_FILES.search(f[2]) if f[2] else _FUNCTIONS.match(f[1]))]
    return tuple(ours or [f[1] for f in frames if f[2] is None])
