"""The guest's kernel logged no complaint that the scenario has not declared."""

from __future__ import annotations

import re

from harness.checkers.record import MachineRecord, Record, text_of
from harness.checkers.verdict import Finding, invalid, merged, unknown
from harness.history import Kind, as_mapping

_CALL_TRACE = re.compile(r"\bCall [Tt]race:")
#: The first that matches is reported. A panic comes first, because the others may lead to it.
_COMPLAINTS = (
    re.compile(r"Kernel panic - not syncing"),
    re.compile(r"\bOops\b"),
    re.compile(r"general protection fault"),
    re.compile(r"\bKASAN\b|\bUBSAN\b|\bKFENCE\b"),
    re.compile(r"\bBUG:|\bkernel BUG at "),
    # aarch64 (Linux: arch/arm64/kernel/traps.c, die; mm/fault.c, die_kernel_fault).
    re.compile(r"\bInternal error: |\bUnable to handle kernel "),
    # Up to 6.18 "WARNING: CPU: 0 PID: 99 at FILE:LINE", then "WARNING: FILE:LINE at FUNCTION, CPU#0: COMM/99"
    # (Linux: kernel/panic.c, __warn).
    re.compile(r"\bWARNING: (?:CPU: |possible |suspicious |inconsistent |.*\bat .*, CPU#\d)"),
    re.compile(r"INFO: task .* blocked for more than"),
    re.compile(r"rcu.*detected (?:expedited )?stall|rcu.*self-detected stall"),
    re.compile(r"refcount_t:|list_(?:add|del) corruption|page allocation failure|Out of memory: Killed"),
    _CALL_TRACE,
)
_CONTEXT = 15


def guest_kernel_quiet(record: Record) -> Finding:
    """No BUG, WARNING, Oops, panic, hung task or stall in any machine's kernel log."""
    if not record.machines:
        return unknown("no machine was launched")
    tolerated = [
        re.compile(str(as_mapping(entry.value).get("pattern")))
        for entry in record.entries
        if entry.f == "guest:tolerate"
    ]
    return merged(_check(record, machine, tolerated) for machine in record.machines)


def _check(record: Record, machine: MachineRecord, tolerated: list[re.Pattern[str]]) -> Finding:
    log = text_of(machine.artifacts.kernel)
    if log is None:
        return unknown(f"there is no kernel log of {machine.name!r}")
    if not log.strip() and _booted_here(record, machine.name):
        return unknown(f"the guest of {machine.name!r} ran commands, but its kernel log is empty")
    lines = log.splitlines()
    counts = [not any(pattern.search(line) for pattern in tolerated) for line in lines]
    found: list[Finding] = []
    for complaint in _COMPLAINTS:
        for number, line in enumerate(lines):
            if counts[number] and complaint.search(line):
                context = lines[max(0, number - 3) : number + _CONTEXT]
                found.append(invalid(f"the guest's kernel of {machine.name!r}: {line.strip()}", *context))
                counts[number] = False
    # Each complaint has a call trace, which counts by itself only where nothing else does.
    return merged([one for one in found if not _CALL_TRACE.search(one.summary)] or found)


def _booted_here(record: Record, machine: str) -> bool:
    """Whether the guest booted in this machine: after a migration, its kernel log may be empty."""
    return any(entry.kind is Kind.OK for entry in record.of(f"guest:{machine}", "guest:boot"))
