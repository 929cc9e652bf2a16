"""A QEMU that was asked to quit exits by itself, with status 0."""

from __future__ import annotations

from harness.checkers.record import MachineRecord, Record, backtrace_of
from harness.checkers.verdict import VALID, Finding, invalid, merged, unknown
from harness.history import as_mapping


def qemu_exited_cleanly(record: Record) -> Finding:
    """After ``quit`` the exit status is 0, and no machine had to be killed.

    A QEMU that was killed by a signal is reported by :mod:`~harness.checkers.qemu_alive` only, also after
    ``quit``. One crash then gives one finding, which a known bug can match.
    """
    return merged(_check(record, machine) for machine in record.machines)


def _check(record: Record, machine: MachineRecord) -> Finding:
    killed = record.last(machine.name, "machine:killed")
    if killed is not None:
        why = as_mapping(killed.value).get("why")
        evidence = backtrace_of(machine)
        return invalid(f"QEMU {machine.name!r} did not quit and had to be killed: {why}", *evidence)
    expected, exit_ = (record.last(machine.name, f"machine:{what}") for what in ("expect-exit", "exit"))
    if exit_ is None:
        return unknown(f"the end of QEMU {machine.name!r} is not on record")
    code = as_mapping(exit_.value).get("returncode")
    quit_ = expected is not None and as_mapping(expected.value).get("reason") == "quit"
    died = isinstance(code, int) and code < 0
    if quit_ and code != 0 and not died:
        return invalid(f"QEMU {machine.name!r} was asked to quit and exited with {code}")
    return VALID
