"""QEMU did not crash, and neither a sanitizer nor GLib reported an error."""

from __future__ import annotations

import re
import signal
from typing import Any

from harness.checkers.record import MachineRecord, Record, backtrace_of, text_of
from harness.checkers.verdict import VALID, Finding, invalid, merged, unknown
from harness.history import Entry, as_mapping

_ASSERTION = re.compile(
    r"^.*(?:Assertion `.*' failed|assertion failed:|ERROR:.*code should not be reached).*$", re.M
)
_SANITIZER = re.compile(
    r"^.*(?:ERROR: (?:Address|Leak|Thread|Memory)Sanitizer|WARNING: ThreadSanitizer|runtime error:).*$", re.M
)
_KIND = re.compile(r"AddressSanitizer: \S+|LeakSanitizer")
#: ``g_return_if_fail``: a GLib function was called with an invalid argument, such as a hash table that was
#: freed.
_GLIB = re.compile(r"^.*\bG(?:Lib|Object|LibObject|io|Module|Thread)\b.*: assertion '.*' failed.*$", re.M)
_REPORT_LINES = 60


def qemu_alive(record: Record) -> Finding:
    """Each machine ended when it was asked to and not before, without a report by a sanitizer or by GLib."""
    if not record.machines:
        return unknown("no machine was launched")
    return merged(_check(record, machine) for machine in record.machines)


def _check(record: Record, machine: MachineRecord) -> Finding:
    log = text_of(machine.artifacts.qemu) or ""
    # A filtered report lacks the leaks that are not QEMU's; without one, the whole log counts.
    filtered = text_of(machine.artifacts.sanitizer)
    reported = log if filtered is None else filtered
    report = _SANITIZER.search(reported)
    if report is not None:
        lines = reported[report.start() :].splitlines()
        return invalid(f"QEMU {machine.name!r}: {_headline(lines)}", *lines[:_REPORT_LINES])
    exit_ = record.last(machine.name, "machine:exit")
    if exit_ is None:
        return unknown(f"the end of QEMU {machine.name!r} is not on record")
    expected = [e for e in record.of(machine.name, "machine:expect-exit") if e.seq < exit_.seq]
    if expected and not _crashed(exit_, expected):
        misuse = _GLIB.search(log)
        return VALID if misuse is None else invalid(f"QEMU {machine.name!r}: {misuse[0].strip()}")
    return invalid(_exit_summary(record, machine, exit_, log), *_evidence(record, machine, log))


def _headline(report: list[str]) -> str:
    """A sanitizer's report in one line.

    The kind of error, the size of a leak, and the first function of QEMU in the stack.
    """
    text = "\n".join(report)
    kind = _KIND.search(report[0])
    leak = re.search(r"^Direct leak of .*?(?= allocated from)", text, re.MULTILINE)
    where = re.search(r" in (\S+ \(qemu\S*\))", text)
    words = [kind[0] if kind else report[0].strip()]
    words += [f": {leak[0]}"] if leak else []
    return "".join([*words, f" in {where[1]}" if where else ""])


def _crashed(exit_: Entry, expected: list[Entry]) -> bool:
    """Whether QEMU was ended by a signal that the harness did not send, even if it was asked to end."""
    code = as_mapping(exit_.value).get("returncode")
    if not isinstance(code, int) or code >= 0:
        return False
    ours = any(as_mapping(entry.value).get("reason") == "kill" for entry in expected)
    return not (ours and code == -signal.SIGKILL)


def _exit_summary(record: Record, machine: MachineRecord, exit_: Entry, log: str) -> str:
    code = as_mapping(exit_.value).get("returncode")
    how = f"exited with {code}"
    if isinstance(code, int) and code < 0:
        how = f"was killed by {signal.Signals(-code).name}"
        how += " (not sent by the harness)" if code == -signal.SIGKILL else ""
    message = _last_message(code, log)
    return f"QEMU {machine.name!r} {how} {_when(record, machine, exit_)}{f': {message}' if message else ''}"


def _last_message(code: Any, log: str) -> str:
    """The assertion of QEMU that failed; else the last message of a QEMU that exited by itself.

    Warnings are left out.
    """
    assertion = _ASSERTION.search(log)
    if assertion is not None:
        return assertion[0].strip()
    messages = [line.strip() for line in log.splitlines() if line.strip() and "warning:" not in line]
    return messages[-1] if messages and isinstance(code, int) and code > 0 else ""


def _when(record: Record, machine: MachineRecord, exit_: Entry) -> str:
    ends = record.ends()
    before = [entry for entry in record.commands(machine.name) if entry.seq < exit_.seq]
    in_flight = [e for e in before if e.seq not in ends or ends[e.seq].kind.value == "info"]
    if in_flight:
        return f"while {in_flight[-1].f} was in flight"
    return f"after {before[-1].f}" if before else "before any QMP command"


def _evidence(record: Record, machine: MachineRecord, log: str) -> tuple[str, ...]:
    lines = [f"qemu.log: {line}" for line in log.splitlines()[-10:]]
    lines += [f"sent: {e.f} {e.value}" for e in record.commands(machine.name)[-5:]]
    return (*lines, *backtrace_of(machine))
