from __future__ import annotations

import concurrent.futures
import errno
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import Message

from harness.channel.qmp import Qmp, _ended
from harness.deadline import Deadline, wait_until
from harness.errors import GuestPanicked, QemuError, QmpLost, QmpSilent, WaitTimeout
from harness.history import History, Kind, read
from harness.tests.channel.fake_qmp import HANG_UP, SILENCE, FakeQmpServer


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[[], Qmp]]:
    made: list[Qmp] = []

    def qmp() -> Qmp:
        history = History(tmp_path / "history.ndjson")
        made.append(Qmp("source", tmp_path / "qmp.sock", history, tmp_path / "qmp.ndjson"))
        return made[-1]

    yield qmp
    for one in made:
        one.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeQmpServer]:
    made = FakeQmpServer(tmp_path / "qmp.sock")
    yield made
    made.close()


@pytest.fixture
def qmp(make: Callable[[], Qmp], server: FakeQmpServer) -> Qmp:
    made = make()
    made.connect(timeout_s=10)
    assert server.received[0]["execute"] == "qmp_capabilities"
    return made


def entries(tmp_path: Path, f: str) -> list[Any]:
    return [(e.kind, e.value) for e in read(tmp_path / "history.ndjson") if e.f == f]


def test_a_command_and_its_answer_are_recorded(qmp: Qmp, server: FakeQmpServer, tmp_path: Path) -> None:
    server.rules["query-status"] = {"status": "running"}
    assert qmp.execute("query-status") == {"status": "running"}
    assert entries(tmp_path, "qmp:query-status") == [(Kind.INVOKE, {}), (Kind.OK, {"status": "running"})]
    logged = [json.loads(line) for line in (tmp_path / "qmp.ndjson").read_text().splitlines()]
    assert [entry["dir"] for entry in logged[-2:]] == ["out", "in"]
    assert qmp.last_command == "query-status"


def test_a_refusal_carries_what_was_sent_and_received(
    qmp: Qmp, server: FakeQmpServer, tmp_path: Path
) -> None:
    server.rules["device_del"] = RuntimeError("Device 'x' not found")
    with pytest.raises(QemuError, match=r"^QEMU 'source' refused device_del: Device 'x' not found") as caught:
        qmp.execute("device_del", {"id": "x"})
    assert caught.value.sent["arguments"] == {"id": "x"}
    assert caught.value.received == {"class": "GenericError", "desc": "Device 'x' not found"}
    assert entries(tmp_path, "qmp:device_del")[1][0] is Kind.FAIL


def test_a_listener_collects_events_before_it_waits(qmp: Qmp, server: FakeQmpServer) -> None:
    server.event("RESUME")
    qmp.execute("query-status")  # Whatever was sent before its answer has arrived.
    with qmp.listen("STOP") as stops:
        server.event("STOP", why="test")
        server.event("RESUME")
        event = stops.wait(what="STOP", timeout_s=60)
        assert (event.name, event.data, event.timestamp_s) == ("STOP", {"why": "test"}, 5.25)
        with pytest.raises(WaitTimeout, match=r"waited .* for another STOP; last seen: .*STOP"):
            stops.wait(lambda e: e.data != event.data, what="another STOP", timeout_s=0.1)
    server.event("STOP")
    qmp.execute("query-status")
    assert len(stops.events) == 1


def test_events_are_recorded_without_a_listener(qmp: Qmp, server: FakeQmpServer, tmp_path: Path) -> None:
    server.event("DEVICE_DELETED", path="/machine/peripheral/x")
    qmp.execute("query-status")
    ((kind, value),) = entries(tmp_path, "event:DEVICE_DELETED")
    assert kind is Kind.EVENT
    assert value["data"] == {"path": "/machine/peripheral/x"}


def test_a_missing_answer_is_an_error_and_a_late_one_is_recorded(
    qmp: Qmp, server: FakeQmpServer, tmp_path: Path
) -> None:
    server.rules["stop"] = SILENCE
    with pytest.raises(QmpSilent, match=r"^QEMU 'source' did not answer stop within 0 s"):
        qmp.execute("stop", timeout_s=0.2)
    assert qmp.silent
    server.answer_late({"late": True})
    # The next command gets its own answer and not the late one.
    server.rules["query-status"] = {"status": "paused"}
    assert qmp.execute("query-status") == {"status": "paused"}
    assert entries(tmp_path, "qmp:stop")[1] == (Kind.OK, {"late": True})
    wait_until(lambda: not qmp.silent, what="the late answer to count", timeout_s=60)


def test_a_connection_that_breaks_in_a_command(qmp: Qmp, server: FakeQmpServer, tmp_path: Path) -> None:
    server.rules["cont"] = HANG_UP
    with pytest.raises(QmpLost, match=r"^QEMU 'source': the QMP connection broke during cont"):
        qmp.execute("cont")
    assert entries(tmp_path, "qmp:cont")[1][0] is Kind.INFO
    wait_until(lambda: not qmp.connected, what="the end of the session", timeout_s=60)
    with pytest.raises(QmpLost):
        qmp.execute("query-status")


def test_the_watch_ends_a_wait(qmp: Qmp, server: FakeQmpServer) -> None:
    server.rules["stop"] = SILENCE

    def watch() -> None:
        raise GuestPanicked("it did")

    with pytest.raises(GuestPanicked):
        qmp.execute("stop", timeout_s=60, watch=watch)


def test_closing_with_a_command_in_flight_prints_nothing(
    qmp: Qmp, server: FakeQmpServer, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    server.rules["stop"] = SILENCE
    pending = qmp.request("stop")
    wait_until(lambda: not server.unanswered.empty(), what="the command to arrive", timeout_s=60)
    qmp.close()
    with pytest.raises(QmpLost):
        pending.wait(timeout_s=60)
    assert entries(tmp_path, "qmp:stop")[1][0] is Kind.INFO
    assert capfd.readouterr() == ("", "")


def test_a_server_that_never_greets(make: Callable[[], Qmp], tmp_path: Path) -> None:
    server = FakeQmpServer(tmp_path / "qmp.sock", greeting=SILENCE)
    with pytest.raises(QmpSilent, match=r"^QEMU 'source' sent no greeting on its QMP socket within 0 s"):
        make().connect(timeout_s=0.3)
    server.close()


class _EndedJustNow(concurrent.futures.Future[Any]):
    """A future that is done at the moment at which a wait for its result has given up."""

    def result(self, timeout: float | None = None) -> Any:
        if timeout is not None:
            raise concurrent.futures.TimeoutError
        return super().result()


def test_a_greeting_that_comes_when_a_turn_of_the_wait_ends_is_taken(
    make: Callable[[], Qmp], server: FakeQmpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    qmp = make()
    submit = qmp._thread.submit

    def submitted(coroutine: Any) -> Any:
        done = _EndedJustNow()
        done.set_result(submit(coroutine).result(60))
        return done

    monkeypatch.setattr(qmp._thread, "submit", submitted)
    qmp.connect(timeout_s=60)
    monkeypatch.undo()
    assert qmp.connected


def test_an_answer_that_comes_at_the_deadline_is_taken(qmp: Qmp) -> None:
    pending = qmp.request("query-status")
    concurrent.futures.wait([pending._future], 60)
    assert pending.wait(timeout_s=0) == {}


def test_an_answer_that_comes_while_the_waiting_thread_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    answer: concurrent.futures.Future[None] = concurrent.futures.Future()

    class Expires(Deadline):
        """It expires when it is asked; the answer has come just before."""

        @property
        def expired(self) -> bool:
            answer.set_result(None)
            return True

    monkeypatch.setattr("harness.channel.qmp.Deadline", Expires)
    assert _ended(answer, 0, None)


def test_a_file_descriptor_for_a_qemu_that_has_ended(
    qmp: Qmp, server: FakeQmpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of the connection is noticed by the write, or before it."""

    def write(_: int) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    with monkeypatch.context() as patched:
        patched.setattr(qmp._client, "send_fd_scm", write)
        with pytest.raises(QmpLost, match=r"no file descriptor can be passed to it: .*Broken pipe"):
            qmp.getfd("stream", 0)
    server.hang_up()
    wait_until(lambda: not qmp.connected, what="the end of the session", timeout_s=60)
    with pytest.raises(QmpLost):
        qmp.getfd("stream", 0)


def test_a_message_that_comes_while_the_log_is_closed(qmp: Qmp, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is written by another thread, which has seen the log open."""

    class Closed(io.StringIO):
        @property
        def closed(self) -> bool:
            return False

    log = Closed()
    log.close()
    monkeypatch.setattr(qmp, "_log", log)
    qmp._write("in", Message({"event": "SHUTDOWN"}))


def test_no_server_at_all(make: Callable[[], Qmp], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(QmpSilent, match="did not open its QMP socket within"):
        make().connect(timeout_s=0.3)
    assert capfd.readouterr() == ("", "")


def test_something_that_is_not_qmp(make: Callable[[], Qmp], tmp_path: Path) -> None:
    server = FakeQmpServer(tmp_path / "qmp.sock", greeting={"hello": "world"})
    with pytest.raises(QmpLost, match="no QMP session"):
        make().connect(timeout_s=10)
    server.close()
