"""From errors and verdicts to failures."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.artifacts import MachineArtifacts
from harness.checkers import Judgement, MachineRecord, Record, Verdict
from harness.errors import ChannelLost, GuestError, QemuError, QmpSilent, SetupError, Violation, WaitTimeout
from harness.explore.disagreement import Disagreement, shortened
from harness.explore.failures import by_severity, death, failure_of
from harness.history import Entry, Kind

REFUSED = QemuError("source", {"execute": "device_add"}, {}, "no room")


@pytest.mark.parametrize(
    ("error", "checker", "message"),
    [
        (Disagreement("content", "other bytes"), "content", "other bytes"),
        (QmpSilent("QEMU 'source' did not answer quit within 60 s"), "qemu_answers", "QEMU did not answer"),
        (WaitTimeout("the answer", last=None, elapsed_s=1), "qemu_answers", "waited in vain for the answer"),
        (REFUSED, "plug", "device_add was refused: no room"),
        (Violation("a: b: ['x']"), "plug", "a: b"),
        (GuestError("Tread: EINVAL"), "plug", "Tread: EINVAL"),
    ],
)
def test_qemu_is_at_fault(error: Exception, checker: str, message: str) -> None:
    failure = failure_of(error, 3, "plug", "lifecycle")
    assert failure is not None
    assert (failure.checker, failure.step, failure.guarantee) == (checker, 3, "lifecycle")
    assert failure.message.startswith(message)


@pytest.mark.parametrize("error", [ChannelLost("x"), SetupError("x"), OSError("x"), AssertionError("x")])
def test_host_or_harness_are_at_fault(error: Exception) -> None:
    assert failure_of(error, 0, "plug", "") is None


def test_a_disagreement_may_name_another_guarantee() -> None:
    error = Disagreement("migrate", "accepted", guarantee="blocked while mounted")
    failure = failure_of(error, 0, "migrate", "migrates when unmounted")
    assert failure is not None
    assert failure.guarantee == "blocked while mounted"


BACKTRACE = """\
#0  0x0000558 in ?? ()
#0  0x0000558 in qemu_coroutine_enter (co=0x5) at ../util/qemu-coroutine.c:111
#1  0x0000559 in v9fs_read (opaque=0x1) at ../hw/9pfs/9p.c:2345
#2  virtio_9p_push (pdu=0x1, x=2) at ../hw/9pfs/virtio-9p-device.c:12
#3  0x0000560 in main (argc=1) at ../softmmu/main.c:1
"""
STRIPPED = """\
#0  0x0000558 in object_get_class ()
#1  0x0000559 in ?? ()
#2  0x0000560 in abort () from /lib/libc.so.6
"""


@pytest.mark.parametrize(
    ("backtrace", "frames"),
    [(BACKTRACE, ("v9fs_read", "virtio_9p_push")), (STRIPPED, ("object_get_class",)), ("", ())],
)
@pytest.mark.parametrize("when", ["after qmp:quit", "while qmp:device_del was in flight"])
def test_a_death(tmp_path: Path, backtrace: str, frames: tuple[str, ...], when: str) -> None:
    """What was in flight does not belong to its message, and the device's functions are its frames."""
    (tmp_path / "backtrace.txt").write_text(backtrace)
    launch = Entry(seq=0, t_s=0, kind=Kind.NOTE, actor="source", f="machine:launch")
    record = Record(tmp_path, (), (MachineRecord("source", launch, MachineArtifacts(tmp_path)),))
    found = Judgement("qemu_alive", Verdict.INVALID, f"QEMU 'source' was killed by SIGSEGV {when}: a: b")
    failure = death(record, found, 4, "no leak")
    assert failure.message == "QEMU was killed by SIGSEGV during the program: a: b"
    assert failure.frames == frames


def test_a_death_is_the_root_cause() -> None:
    found = [
        Judgement("no_leak", Verdict.UNKNOWN, ""),
        Judgement("events_well_formed", Verdict.INVALID, ""),
        Judgement("qemu_alive", Verdict.INVALID, ""),
        Judgement("history_well_formed", Verdict.VALID, ""),
    ]
    assert [one.checker for one in by_severity(found)] == ["qemu_alive", "events_well_formed", "no_leak"]


def test_a_message_without_its_list() -> None:
    assert shortened("blocked: ['a', 'b']\nmore") == "blocked"
    assert shortened("") == ""
