"""What is measured by the way, from a history."""

from __future__ import annotations

from pathlib import Path

from harness.report.nights.measurements import measurements, slopes

_ENTRIES = """\
{"seq": 0, "t_s": 0.1, "kind": "note", "actor": "host", "f": "opened", "value": {}}
{"seq": 1, "t_s": 1.0, "kind": "note", "actor": "source", "f": "guest:started", "value": "restored"}
{"seq": 2, "t_s": 1.5, "kind": "invoke", "actor": "guest:source", "f": "guest:restore"}
{"seq": 3, "t_s": 1.6, "kind": "invoke", "actor": "source", "f": "qmp:query-status", "value": {}}
{"seq": 4, "t_s": 1.7, "kind": "ok", "actor": "source", "f": "qmp:query-status", "op": 3, "value": {}}
{"seq": 5, "t_s": 2.0, "kind": "ok", "actor": "guest:source", "f": "guest:restore", "op": 2}
{"seq": 6, "t_s": 3.0, "kind": "invoke", "actor": "source", "f": "migrate", "value": {}}
{"seq": 7, "t_s": 3.1, "kind": "invoke", "actor": "source", "f": "qmp:migrate", "value": {}}
{"seq": 8, "t_s": 3.4, "kind": "ok", "actor": "source", "f": "qmp:migrate", "op": 7}
{"seq": 9, "t_s": 5.0, "kind": "ok", "actor": "source", "f": "migrate", "op": 6}
{"seq": 10, "t_s": 6.0, "kind": "invoke", "actor": "source", "f": "migrate", "value": {}}
{"seq": 11, "t_s": 9.0, "kind": "fail", "actor": "source", "f": "migrate", "op": 10}
{"seq": 12, "t_s": 9.1, "kind": "invoke", "actor": "source", "f": "qmp:quit"}
{"seq": 13, "t_s": 9.5, "kind": "ok", "actor": "source", "f": "qmp:quit", "op": 12}
{"seq": 14, "t_s": 9.5, "kind": "note", "actor": "destination", "f": "guest:started", "value": "restored"}
{"seq": 15, "t_s": 9.6, "kind": "invoke", "actor": "guest:destination", "f": "guest:restore"}
{"seq": 16, "t_s": 9.9, "kind": "ok", "actor": "guest:destination", "f": "guest:restore", "op": 15}
"""


def test_times_are_those_of_the_history(tmp_path: Path) -> None:
    (tmp_path / "history.ndjson").write_text(_ENTRIES)
    found = measurements(tmp_path)
    assert {name: (measured.value, measured.unit) for name, measured in found.items()} == {
        "start.restore": (1.0, "s"),
        "migration": (2.0, "s"),
        "qmp.median": (0.3, "s"),
        "qmp.max": (0.4, "s"),
    }


def test_no_machine_no_measurement(tmp_path: Path) -> None:
    assert measurements(tmp_path) == {}
    (tmp_path / "history.ndjson").write_text(_ENTRIES.partition("\n")[0] + "\n")
    assert measurements(tmp_path) == {}


def test_slopes_have_their_units() -> None:
    found = slopes({"threads": 0.5, "private_kib": 12.0})
    assert {name: (one.value, one.unit) for name, one in found.items()} == {
        "leak.threads": (0.5, "1/cycle"),
        "leak.private_kib": (12.0, "KiB/cycle"),
    }
