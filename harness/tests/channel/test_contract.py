"""The QMP client against a real QEMU without a guest."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.channel.qmp import Qmp
from harness.errors import QemuError, QmpLost
from harness.history import History
from harness.matrix import DEFAULT, Matrix, Selection

pytestmark = pytest.mark.qemu


@pytest.fixture
def process(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    install, _ = Matrix(Selection()).qemu(DEFAULT)
    monitor = ("-chardev", f"socket,id=qmp,path={tmp_path}/qmp.sock,server=on,wait=off")
    argv = install.argv("-machine", "none", "-nodefaults", "-display", "none", *monitor)
    made = subprocess.Popen([*argv, "-mon", "chardev=qmp,mode=control"], env=dict(install.environment))
    yield made
    made.kill()
    made.wait()


@pytest.fixture
def qmp(process: subprocess.Popen[bytes], tmp_path: Path) -> Iterator[Qmp]:
    assert process.pid
    history = History(tmp_path / "history.ndjson")
    made = Qmp("none", tmp_path / "qmp.sock", history, tmp_path / "qmp.ndjson")
    made.connect(timeout_s=40)
    yield made
    made.close()
    history.close()


def test_commands_refusals_and_events(qmp: Qmp) -> None:
    assert qmp.execute("query-status")["running"] is True
    with pytest.raises(QemuError, match="The command no-such-command has not been found"):
        qmp.execute("no-such-command")
    with qmp.listen("STOP", "RESUME") as events:
        qmp.execute("stop")
        qmp.execute("cont")
        events.wait(lambda event: event.name == "RESUME", what="RESUME", timeout_s=60)
    assert [event.name for event in events.events] == ["STOP", "RESUME"]
    assert qmp.hmp("info status").strip() == "VM status: running"


def test_a_qemu_that_is_killed(qmp: Qmp, process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()
    with pytest.raises(QmpLost):
        qmp.execute("query-status", timeout_s=60)


def test_a_qemu_that_is_stopped_answers_late(qmp: Qmp, process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGSTOP)
    pending = qmp.request("query-status")
    assert not pending.done
    process.send_signal(signal.SIGCONT)
    assert pending.wait(timeout_s=60)["status"] == "running"


def test_quit(qmp: Qmp, process: subprocess.Popen[bytes]) -> None:
    qmp.execute("quit")
    assert process.wait(timeout=60) == 0
