from __future__ import annotations

import subprocess
from collections.abc import Iterator
from types import SimpleNamespace
from typing import cast

import pytest

from harness.deadline import Deadline, wait_until
from harness.errors import QemuDied
from harness.qemu import process
from harness.qemu.machine import Machine
from harness.qemu.process import wait_idle


def machine(pid: int, timeout_s: float) -> Machine:
    """A machine whose QEMU is another process; it has to be idle within ``timeout_s``."""
    died = QemuDied("QEMU 'source' was killed by SIGSEGV")
    return cast(
        Machine,
        SimpleNamespace(
            pid=pid,
            name="source",
            root_cause=lambda _: died,
            watch=lambda: None,
            wait_until=lambda probe, *, what, interval_s, **_: wait_until(
                probe, what=what, interval_s=interval_s, timeout_s=timeout_s
            ),
            qmp=SimpleNamespace(execute=lambda command, **_: [{"thread-id": pid}]),
        ),
    )


@pytest.fixture
def shell() -> Iterator[subprocess.Popen[str]]:
    """A shell that waits for commands. Its name has a parenthesis in it."""
    arguments = [
        "sh",
        "-c",
        "printf 'a) R' >/proc/$$/comm; echo named; exec 3<&0; while read -r line; do eval $line; done",
    ]
    with subprocess.Popen(arguments, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "named\n"
        yield child
        child.kill()


def test_a_process_that_sleeps_is_idle_after_half_a_second(shell: subprocess.Popen[str]) -> None:
    began = Deadline.after(0)
    assert wait_idle(machine(shell.pid, timeout_s=60))
    assert began.elapsed_s >= 0.4


def test_a_process_that_works_is_not_idle(shell: subprocess.Popen[str]) -> None:
    assert shell.stdin is not None
    shell.stdin.write("while :; do :; done\n")
    shell.stdin.flush()
    assert not wait_idle(machine(shell.pid, timeout_s=0.8))


def test_a_qemu_that_has_ended(shell: subprocess.Popen[str]) -> None:
    shell.kill()
    shell.wait()
    with pytest.raises(QemuDied):
        wait_idle(machine(shell.pid, timeout_s=60))


@pytest.mark.parametrize("forgets", [True, False])
def test_only_a_machine_type_that_forgets_interrupts_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, forgets: bool
) -> None:
    waited: list[Machine] = []
    monkeypatch.setattr(process, "wait_idle", waited.append)
    spec = SimpleNamespace(machine_type=SimpleNamespace(forgets_interrupts=forgets))
    one = cast(Machine, SimpleNamespace(spec=spec))
    process.wait_interrupts_taken(one)
    assert waited == ([one] if forgets else [])
