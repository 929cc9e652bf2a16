"""QEMU's process and its threads, as ``/proc`` shows them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import psutil

from harness.errors import QemuError, QmpLost, WaitTimeout
from harness.qemu.machine import Machine

#: QEMU is idle when all its threads sleep at each of this many looks, this many seconds apart. libslirp sends
#: the guest a delayed ACK after up to 200 ms (``src/tcp_timer.c``, ``tcp_fasttimo``).
_LOOKS, _INTERVAL_S = 10, 0.05
#: Seconds, before scaling.
_IDLE_TIMEOUT_S = 3.0


def process(machine: Machine) -> int:
    """The pid of QEMU, also when a script started QEMU and waits for it.

    It is the process that has the thread of a vCPU (QEMU: ``query-cpus-fast``, before 2.12 ``query-cpus``).
    """
    for command, key in (("query-cpus-fast", "thread-id"), ("query-cpus", "thread_id")):
        with contextlib.suppress(QemuError):
            first = machine.qmp.execute(command, watch=machine.watch)[0]
            with reading_proc(machine):
                status = Path(f"/proc/{first[key]}/status").read_text()
            return int(re.findall(r"^Tgid:\s+(\d+)", status, re.MULTILINE)[0])
    return machine.pid


def processor_s(pid: int) -> float:
    """The processor time that a QEMU has used so far, in seconds.

    :raises psutil.NoSuchProcess: when QEMU has ended.
    """
    used = psutil.Process(pid).cpu_times()
    return float(used.user + used.system)


@contextlib.contextmanager
def reading_proc(machine: Machine) -> Iterator[None]:
    """Read from ``/proc`` during the block.

    :raises HarnessError: the root cause, when QEMU has ended (``man 5 proc``: its folder is gone, or a read
        fails with ESRCH).
    """
    try:
        yield
    except (FileNotFoundError, ProcessLookupError) as exc:
        ended = QmpLost(f"QEMU {machine.name!r} has ended: {exc}")
        raise machine.root_cause(ended) from exc


def wait_interrupts_taken(machine: Machine) -> None:
    """Wait until the guest has taken all interrupts, on a machine type that forgets them; else do nothing.

    To be called before the state of the machine is saved. A guest that is never idle is saved all the same.
    """
    if machine.spec.machine_type.forgets_interrupts:
        wait_idle(machine)


def wait_idle(machine: Machine) -> bool:
    """Wait until QEMU has been idle for half a second: its threads sleep, and so does the guest.

    Then no device has an interrupt pending in the guest. A thread that only has to wait for a processor is
    not idle, so this holds on a busy host, too.

    :returns: whether it was idle in time.
    """
    tasks, slept = Path(f"/proc/{process(machine)}/task"), 0

    def idle() -> bool:
        nonlocal slept
        with reading_proc(machine):
            slept = slept + 1 if all(map(_sleeps, tasks.iterdir())) else 0
        return slept == _LOOKS

    with contextlib.suppress(WaitTimeout):
        machine.wait_until(idle, what="an idle QEMU", timeout_s=_IDLE_TIMEOUT_S, interval_s=_INTERVAL_S)
    return slept == _LOOKS


def _sleeps(task: Path) -> bool:
    """Whether a thread sleeps (``man 5 proc``, ``/proc/pid/stat``; its name may contain parentheses)."""
    try:
        state = (task / "stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):  # The thread has ended.
        return True
    return state == "S"
