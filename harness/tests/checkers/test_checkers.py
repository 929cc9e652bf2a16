"""Each checker judges records in which its property holds, does not hold, and is not shown either way."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.checkers import (
    STANDARD,
    Checker,
    Finding,
    Record,
    Verdict,
    judge,
    worst,
)
from harness.checkers.events_well_formed import events_well_formed
from harness.checkers.guest_kernel_quiet import guest_kernel_quiet
from harness.checkers.history_well_formed import history_well_formed
from harness.checkers.no_leak import no_leak
from harness.checkers.nothing_left_behind import nothing_left_behind
from harness.checkers.qemu_alive import qemu_alive
from harness.checkers.qemu_exited_cleanly import qemu_exited_cleanly
from harness.tests.checkers.record_writer import DEVICE, QUIET, RecordWriter

VALID, UNKNOWN, INVALID = Verdict.VALID, Verdict.UNKNOWN, Verdict.INVALID


def test_a_test_that_went_well_is_valid_for_every_checker(record: RecordWriter) -> None:
    record.launched().plugged().backend_deleted().device_deleted().quit().closed()
    assert {j.checker: j.verdict for j in judge(record.folder)} == {c.__name__: VALID for c in STANDARD}
    assert json.loads((record.folder / "verdict.json").read_text())["verdict"] == "valid"


@pytest.mark.parametrize("checker", STANDARD)
def test_an_empty_record_never_passes(record: RecordWriter, checker: Checker) -> None:
    if checker in (events_well_formed, qemu_exited_cleanly, no_leak):
        pytest.skip("without a machine there is nothing to judge; qemu_alive gives unknown")
    assert record.judged(checker).verdict is UNKNOWN


@pytest.mark.parametrize("checker", STANDARD)
def test_no_record_at_all_is_unknown(tmp_path: Path, checker: Checker) -> None:
    (judgement,) = judge(tmp_path, [checker])
    assert judgement.verdict is UNKNOWN
    assert "history.ndjson" in judgement.summary


def test_a_checker_that_crashes_is_unknown(record: RecordWriter) -> None:
    def crashing(record: Record) -> Finding:
        raise KeyError(len(record.entries))

    judgement = record.launched().quit().closed().judged(crashing)
    assert judgement.verdict is UNKNOWN
    assert judgement.summary.startswith("the checker crashed: KeyError")


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [([], UNKNOWN), ([VALID], VALID), ([VALID, UNKNOWN], UNKNOWN), ([UNKNOWN, INVALID, VALID], INVALID)],
)
def test_the_worst_verdict_counts(verdicts: list[Verdict], expected: Verdict) -> None:
    assert worst(verdicts) is expected


def test_a_second_machine_is_judged_when_the_first_has_no_result(record: RecordWriter) -> None:
    record.history.note("destination", "machine:launch", {"pid": 2, "artifacts": "."})
    record.history.event("destination", "machine:exit", {"returncode": -signal.SIGSEGV})
    record.launched()
    judgement = record.closed().judged(qemu_alive)
    assert judgement.verdict is INVALID
    assert judgement.summary == "QEMU 'destination' was killed by SIGSEGV before any QMP command"
    assert judgement.also == ("the end of QEMU 'source' is not on record",)


class TestQemuAlive:
    @pytest.mark.parametrize(
        ("returncode", "how"),
        [(-signal.SIGSEGV, "was killed by SIGSEGV"), (1, "exited with 1"), (0, "exited with 0")],
    )
    def test_an_exit_that_was_not_requested(self, record: RecordWriter, returncode: int, how: str) -> None:
        judgement = record.launched().command("device_del").exited(returncode).closed().judged(qemu_alive)
        assert judgement.verdict is INVALID
        assert judgement.summary == f"QEMU 'source' {how} after qmp:device_del"

    def test_the_command_in_flight_is_named(self, record: RecordWriter) -> None:
        record.launched().command("stop").history.invoke("source", "qmp:cont", {})
        judgement = record.exited(-signal.SIGABRT).closed().judged(qemu_alive)
        assert judgement.summary == "QEMU 'source' was killed by SIGABRT while qmp:cont was in flight"

    def test_the_assertion_is_quoted(self, record: RecordWriter) -> None:
        line = "qemu: ../util/throttle.c:443: throttle_timer_destroy: Assertion `timer' failed."
        record.qemu(f"some warning\n{line}\n")
        judgement = record.launched().exited(-signal.SIGABRT).closed().judged(qemu_alive)
        assert judgement.summary.endswith(line)

    @pytest.mark.parametrize(("returncode", "quoted"), [(1, True), (-signal.SIGKILL, False)])
    def test_the_last_message_of_a_qemu_that_exits_is_quoted(
        self, record: RecordWriter, returncode: int, quoted: bool
    ) -> None:
        line = "qemu: load of migration failed: Invalid argument: device '0000:00:08.0/virtio-net'"
        record.qemu(f"{line}\nqemu: warning: something else\n")
        judgement = record.launched().exited(returncode).closed().judged(qemu_alive)
        assert judgement.summary.endswith(line) is quoted

    def test_a_crash_while_quitting_is_a_crash(self, record: RecordWriter) -> None:
        judgement = record.launched().quit(-signal.SIGSEGV).closed().judged(qemu_alive)
        assert judgement.verdict is INVALID

    def test_a_kill_by_the_harness_is_no_crash(self, record: RecordWriter) -> None:
        record.launched().history.note("source", "machine:expect-exit", {"reason": "kill"})
        assert record.exited(-signal.SIGKILL).closed().judged(qemu_alive).verdict is VALID

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTRAP])
    def test_any_signal_that_the_harness_did_not_send_is_a_crash(
        self, record: RecordWriter, number: signal.Signals
    ) -> None:
        record.backtrace("note: stripped\n#0  innermost\n#0  innermost\n#1  outer\n\n#0  another thread\n")
        judgement = record.launched().quit(-number).closed().judged(qemu_alive)
        assert judgement.verdict is INVALID
        assert number.name in judgement.summary
        assert judgement.evidence[-3:] == ("note: stripped", "#0  innermost", "#1  outer")

    def test_a_failed_glib_assertion_is_reported(self, record: RecordWriter) -> None:
        line = "qemu-system-x86_64: GLib: g_hash_table_get_values: assertion 'hash_table != NULL' failed"
        record.qemu(f"noise\n{line}\n")
        judgement = record.launched().quit().closed().judged(qemu_alive)
        assert judgement.verdict is INVALID
        assert line in judgement.summary

    def test_other_messages_of_glib_are_not_reported(self, record: RecordWriter) -> None:
        record.qemu(
            "(process:7): GLib-WARNING **: gmem.c:489: custom memory allocation vtable not supported\n"
        )
        assert record.launched().quit().closed().judged(qemu_alive).verdict is VALID

    @pytest.mark.parametrize(
        "report",
        [
            "==1==ERROR: AddressSanitizer: heap-use-after-free on address",
            "==1==ERROR: LeakSanitizer: detected memory leaks",
            "../hw/9pfs/9p.c:7:3: runtime error: null pointer passed",
        ],
    )
    def test_a_sanitizers_report_counts_though_it_exited_with_0(
        self, record: RecordWriter, report: str
    ) -> None:
        record.qemu(f"noise\n{report}\n    #0 v9fs_reset\n")
        judgement = record.launched().quit().closed().judged(qemu_alive)
        assert judgement.verdict is INVALID
        assert judgement.evidence[:2] == (report, "    #0 v9fs_reset")

    def test_a_filtered_report_replaces_the_log(self, record: RecordWriter) -> None:
        record.qemu("==1==ERROR: LeakSanitizer: detected memory leaks\n")
        record.sanitizer("(not of 9p: 1 leaks in save_snapshot)\n")
        assert record.launched().quit().closed().judged(qemu_alive).verdict is VALID

    def test_a_leak_that_counts_is_named(self, record: RecordWriter) -> None:
        leak = "Direct leak of 24 byte(s) in 1 object(s) allocated from:\n    #0 in v9fs_walk+0x1 (qemu)"
        record.sanitizer(f"ERROR: LeakSanitizer\n\n{leak}\n")
        judgement = record.launched().quit().closed().judged(qemu_alive)
        assert judgement.verdict is INVALID
        where = "LeakSanitizer: Direct leak of 24 byte(s) in 1 object(s) in v9fs_walk+0x1 (qemu)"
        assert judgement.summary == f"QEMU 'source': {where}"
        assert "    #0 in v9fs_walk+0x1 (qemu)" in judgement.evidence

    def test_an_end_that_is_not_on_record_is_unknown(self, record: RecordWriter) -> None:
        assert record.launched().closed().judged(qemu_alive).verdict is UNKNOWN


class TestQemuExitedCleanly:
    def test_a_status_other_than_0(self, record: RecordWriter) -> None:
        judgement = record.launched().quit(3).closed().judged(qemu_exited_cleanly)
        assert (judgement.verdict, judgement.summary) == (
            INVALID,
            "QEMU 'source' was asked to quit and exited with 3",
        )

    def test_a_crash_is_reported_once(self, record: RecordWriter) -> None:
        """By the checker that names the signal, also when it comes between ``quit`` and the end."""
        record = record.launched().quit(-11).closed()
        assert record.judged(qemu_exited_cleanly).verdict is VALID
        assert record.judged(qemu_alive).verdict is INVALID

    def test_a_machine_that_had_to_be_killed(self, record: RecordWriter) -> None:
        record.backtrace("no backtrace: no gdb on PATH\n")
        record.launched().history.note("source", "machine:killed", {"why": "it did not answer quit"})
        judgement = record.exited(-9).closed().judged(qemu_exited_cleanly)
        assert judgement.verdict is INVALID
        assert "it did not answer quit" in judgement.summary
        assert judgement.evidence == ("no backtrace: no gdb on PATH",)

    def test_no_end_on_record(self, record: RecordWriter) -> None:
        assert record.launched().closed().judged(qemu_exited_cleanly).verdict is UNKNOWN


class TestGuestKernelQuiet:
    @pytest.mark.parametrize(
        "line",
        [
            "[    9.1] BUG: kernel NULL pointer dereference, address: 0000000000000008",
            "[    9.1] Oops: 0000 [#1] PREEMPT SMP",
            "[    9.1] WARNING: CPU: 0 PID: 99 at net/9p/client.c:1",
            "[    9.1] WARNING: net/9p/client.c:1 at p9_fid_destroy+0x1/0x2 [9pnet], CPU#0: umount/99",
            "[    9.1] WARNING: at p9_fid_destroy+0x1/0x2 [9pnet], CPU#0: umount/99",
            "[    9.1] kernel BUG at net/9p/client.c:1!",
            "[    9.1] Internal error: synchronous external abort: 0000000096000010 [#1] SMP",
            "[    9.1] Unable to handle kernel paging request at virtual address ffff800081234567",
            "[    9.1] Call trace:",
            "[    9.1] INFO: task kworker/0:1:10 blocked for more than 120 seconds.",
            "[    9.1] Kernel panic - not syncing: Attempted to kill init!",
            "[    9.1] rcu: INFO: rcu_sched self-detected stall on CPU",
            "[    9.1] list_del corruption. prev->next should be ffff",
            "[    9.1] Out of memory: Killed process 99 (dd)",
        ],
    )
    def test_a_complaint(self, record: RecordWriter, line: str) -> None:
        record.kernel(QUIET + line + "\r\n")
        judgement = record.launched().quit().closed().judged(guest_kernel_quiet)
        assert judgement.verdict is INVALID
        assert judgement.summary == f"the guest's kernel of 'source': {line}"

    def test_a_panic_is_reported_before_its_causes(self, record: RecordWriter) -> None:
        record.kernel("[1] BUG: unable to handle\n[2] Kernel panic - not syncing: Fatal exception\n")
        judgement = record.launched().quit().closed().judged(guest_kernel_quiet)
        assert "Kernel panic" in judgement.summary
        assert judgement.evidence[0] == "[1] BUG: unable to handle"

    def test_every_complaint_is_listed_once_and_a_call_trace_only_if_it_is_alone(
        self, record: RecordWriter
    ) -> None:
        record.kernel("[1] BUG: one\n[1] Call Trace:\n[2] refcount_t: other\n[2] Call Trace:\n")
        judgement = record.launched().quit().closed().judged(guest_kernel_quiet)
        assert judgement.summary.endswith("[1] BUG: one")
        assert judgement.also == ("the guest's kernel of 'source': [2] refcount_t: other",)

    def test_only_what_was_declared_is_tolerated(self, record: RecordWriter) -> None:
        record.kernel("[1] BUG: known one\n[2] BUG: other one\n")
        record.launched().history.note("source", "guest:tolerate", {"pattern": "known", "why": "declared"})
        judgement = record.quit().closed().judged(guest_kernel_quiet)
        assert judgement.summary.endswith("BUG: other one")

    def test_an_empty_log_of_a_guest_that_booted_is_unknown(self, record: RecordWriter) -> None:
        record.kernel("")
        record.launched().history.invoke("guest:source", "guest:boot").ok()
        assert record.quit().closed().judged(guest_kernel_quiet).verdict is UNKNOWN

    def test_the_empty_log_of_a_destination_is_valid(self, record: RecordWriter) -> None:
        record.kernel("")
        assert record.launched().quit().closed().judged(guest_kernel_quiet).verdict is VALID

    def test_no_log_is_unknown(self, record: RecordWriter) -> None:
        record.launched(artifacts="elsewhere").quit().closed()
        assert record.judged(guest_kernel_quiet).verdict is UNKNOWN


class TestEventsWellFormed:
    @pytest.fixture
    def plugged(self, record: RecordWriter) -> RecordWriter:
        return record.launched().plugged()

    def judged(self, plugged: RecordWriter) -> tuple[Verdict, str]:
        judgement = plugged.quit().closed().judged(events_well_formed)
        return judgement.verdict, judgement.summary

    def test_one_id_plugged_twice(self, plugged: RecordWriter) -> None:
        plugged.backend_deleted().device_deleted().plugged().backend_deleted().device_deleted()
        assert self.judged(plugged) == (VALID, "")

    def test_a_device_that_stays(self, plugged: RecordWriter) -> None:
        assert self.judged(plugged) == (VALID, "")

    def test_the_backends_event_is_missing(self, plugged: RecordWriter) -> None:
        verdict, summary = self.judged(plugged.device_deleted())
        assert verdict is INVALID
        assert "was deleted without its virtio-backend: a leaked reference" in summary

    def test_the_backends_event_of_a_device_of_the_command_line(self, record: RecordWriter) -> None:
        """The devices of a migration's destination are there without ``device_add``."""
        plugged = {"share0": "virtio-9p-pci"}
        launch = {"pid": 1, "artifacts": ".", "plugged": plugged}
        record.history.note("source", "machine:launch", launch)
        verdict, summary = self.judged(record.device_deleted())
        assert verdict is INVALID
        assert "was deleted without its virtio-backend: a leaked reference" in summary

    def test_the_events_of_a_device_with_a_daemon(self, record: RecordWriter) -> None:
        """A ``vhost-user-`` device has a virtio-backend as well."""
        record.history.note(
            "source",
            "machine:launch",
            {"pid": 1, "artifacts": ".", "plugged": {"share0": "vhost-user-fs-pci"}},
        )
        verdict, summary = self.judged(record.device_deleted())
        assert verdict is INVALID
        assert "was deleted without its virtio-backend: a leaked reference" in summary

    def test_the_devices_event_is_missing(self, plugged: RecordWriter) -> None:
        verdict, summary = self.judged(plugged.backend_deleted())
        assert verdict is INVALID
        assert summary.endswith("the device never: a leaked reference")

    def test_a_qemu_that_died_in_between(self, plugged: RecordWriter) -> None:
        """It could not send the second event. That it died is reported by ``qemu_alive``."""
        judgement = plugged.backend_deleted().exited(-11).closed().judged(events_well_formed)
        assert judgement.verdict is VALID
        assert plugged.judged(qemu_alive).verdict is INVALID

    def test_the_devices_event_is_missing_before_the_next_plug(self, plugged: RecordWriter) -> None:
        verdict, _ = self.judged(plugged.backend_deleted().plugged().backend_deleted().device_deleted())
        assert verdict is INVALID

    def test_the_backends_event_of_a_plug_that_failed_late(self, record: RecordWriter) -> None:
        record.launched().plug_refused(late=True).plugged().backend_deleted().device_deleted()
        assert self.judged(record.plug_refused(late=True)) == (VALID, "")

    def test_a_refused_plug_forgets_nothing_of_the_device_that_has_the_id(
        self, plugged: RecordWriter
    ) -> None:
        verdict, summary = self.judged(plugged.backend_deleted().plug_refused(late=False))
        assert verdict is INVALID
        assert summary.endswith("the device never: a leaked reference")

    @pytest.mark.parametrize("doubled", ["backend", "device"])
    def test_an_event_comes_twice(self, plugged: RecordWriter, doubled: str) -> None:
        plugged.backend_deleted()
        (plugged.backend_deleted if doubled == "backend" else plugged.device_deleted)()
        plugged.device_deleted()
        verdict, summary = self.judged(plugged)
        assert verdict is INVALID
        assert "DEVICE_DELETED came twice" in summary

    def test_the_wrong_order(self, plugged: RecordWriter) -> None:
        verdict, summary = self.judged(plugged.device_deleted().backend_deleted())
        assert verdict is INVALID
        assert "without its virtio-backend" in summary

    def test_a_backend_with_a_device_member(self, plugged: RecordWriter) -> None:
        plugged.event("DEVICE_DELETED", path=f"{DEVICE}/virtio-backend", device="share0")
        verdict, summary = self.judged(plugged)
        assert verdict is INVALID
        assert "has a 'device'" in summary

    def test_a_device_without_its_name(self, plugged: RecordWriter) -> None:
        verdict, summary = self.judged(plugged.backend_deleted().event("DEVICE_DELETED", path=DEVICE))
        assert verdict is INVALID
        assert "names no device" in summary

    def stepped(self, plugged: RecordWriter) -> RecordWriter:
        """The host's clock is set back between two events."""
        plugged.event("STOP")
        old = {"data": {}, "timestamp": {"seconds": 1, "microseconds": 0}}
        plugged.history.event("source", "event:RESUME", old)
        return plugged

    def test_a_clock_that_is_set_back_says_nothing_about_qemu(self, plugged: RecordWriter) -> None:
        verdict, summary = self.judged(self.stepped(plugged))
        assert verdict is UNKNOWN
        assert summary == (
            "QEMU 'source': the host's clock went back by 999.000000 s before event:RESUME, so the "
            "events cannot be judged; make sure that nothing sets the clock, then run the test again"
        )

    def test_a_clock_that_is_set_back_hides_no_violation(self, plugged: RecordWriter) -> None:
        verdict, summary = self.judged(self.stepped(plugged).device_deleted())
        assert verdict is INVALID
        assert "was deleted without its virtio-backend" in summary

    def test_an_event_that_is_read_late_did_not_come_late(
        self, plugged: RecordWriter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The process that sent it has ended; on a busy host its socket is read long after."""
        now = plugged.history._zero_s
        plugged.quit()
        monkeypatch.setattr("harness.history.time.monotonic", lambda: now + 1000.0)
        judgement = plugged.event("SHUTDOWN").closed().judged(events_well_formed)
        assert judgement.verdict is VALID

    def test_a_second_end(self, plugged: RecordWriter) -> None:
        verdict, summary = self.judged(plugged.exited(0))
        assert verdict is INVALID
        assert "ended 2 times" in summary

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
    @given(st.permutations(["backend", "device", "backend", "device"]))
    def test_of_two_plugs_only_the_right_order_is_valid(self, tmp_path: Path, order: list[str]) -> None:
        record = RecordWriter(tmp_path).launched()
        plugs = 0
        for number, event in enumerate(order):
            if number % 2 == 0:
                record.plugged()
                plugs += 1
            (record.backend_deleted if event == "backend" else record.device_deleted)()
        verdict, _ = self.judged(record)
        assert (verdict is VALID) == (order == ["backend", "device"] * plugs)


class TestNothingLeftBehind:
    @pytest.mark.parametrize("kind", ["processes", "sockets", "mounts", "folders", "threads"])
    def test_something_stayed(self, record: RecordWriter, kind: str) -> None:
        judgement = (
            record.launched().quit().closed(**{kind: ["a thing", "another"]}).judged(nothing_left_behind)
        )
        assert (judgement.verdict, judgement.summary) == (INVALID, f"left behind: {kind}: a thing and 1 more")

    def test_a_record_without_a_check(self, record: RecordWriter) -> None:
        assert record.launched().quit().judged(nothing_left_behind).verdict is UNKNOWN


class TestHistoryWellFormed:
    def test_an_error_of_the_harness_itself(self, record: RecordWriter) -> None:
        record.launched().history.note("host", "harness:error", {"error": "the supervisor failed"})
        judgement = record.quit().closed().judged(history_well_formed)
        assert (judgement.verdict, judgement.summary) == (UNKNOWN, "the supervisor failed")

    def test_a_record_that_ends_in_the_middle(self, record: RecordWriter) -> None:
        assert record.launched().quit().judged(history_well_formed).verdict is UNKNOWN

    @pytest.mark.parametrize(
        ("broken", "complaint"),
        [
            ({"t_s": 0.0, "kind": "note", "actor": "host", "f": "closed"}, "is older than"),
            (
                {"t_s": 9e9, "kind": "ok", "actor": "source", "f": "qmp:stop", "op": 0},
                "ends no open operation",
            ),
            ({"t_s": 9e9, "kind": "ok", "actor": "source", "f": "qmp:stop"}, "ends no open operation"),
        ],
    )
    def test_an_entry_that_cannot_be(
        self, record: RecordWriter, broken: dict[str, Any], complaint: str
    ) -> None:
        record.launched().history.close()
        path = record.folder / "history.ndjson"
        lines = path.read_text().splitlines()
        path.write_text("\n".join([*lines, json.dumps({"seq": len(lines), **broken})]) + "\n")
        judgement = record.judged(history_well_formed)
        assert judgement.verdict is INVALID
        assert complaint in judgement.summary
