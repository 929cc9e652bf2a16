"""A record with everything that a timeline shows: the history by hand, and a log of QMP that fits it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from harness.artifacts import CELL, HISTORY, QMP_LOG

DEVICE = "/machine/peripheral/share0"
STAMP = {"seconds": 1000, "microseconds": 5}
#: Hostile to HTML and XML: an end of a script, an entity, a control character.
CAUSE = "</script><b>&amp; it\x00 failed"
_CELL = {
    "qemu": {"name": "7.2", "version": "7.2.22"},
    "kernel": {"version": "6.1.0"},
    "machine": {"name": "pc"},
    "accel": {"name": "tcg"},
}


class Writer:
    """Writes a history with given times."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def add(self, t_s: float, kind: str, actor: str, f: str, value: Any = None, op: int | None = None) -> int:
        entry = {"seq": len(self.lines), "t_s": t_s, "kind": kind, "actor": actor, "f": f}
        self.lines.append(
            entry | ({"op": op} if op is not None else {}) | ({"value": value} if value else {})
        )
        return len(self.lines) - 1

    def command(self, t_s: float, end_s: float, name: str, value: Any = None, **end: Any) -> int:
        """A QMP command of ``source``, and its end."""
        op = self.add(t_s, "invoke", "source", f"qmp:{name}", value)
        self.add(end_s, end.get("kind", "ok"), "source", f"qmp:{name}", end.get("answer", {}), op)
        return op

    def event(self, t_s: float, name: str, **data: Any) -> int:
        value = {"data": data, "timestamp": {**STAMP, "microseconds": int(t_s * 1000)}}
        return self.add(t_s, "event", "source", f"event:{name}", value)

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / HISTORY).write_text("".join(json.dumps(line) + "\n" for line in self.lines))
        (folder / CELL).write_text(json.dumps(_CELL))
        return folder


def write(folder: Path) -> Path:
    """A test that unplugs a share with a request in flight, and fails."""
    w = Writer()
    w.add(0.0, "note", "host", "opened", {"wall": "2026-11-29T01:00:00+00:00"})
    w.add(0.001, "note", "host", "test", {"id": "scenarios/test_x.py::test_it[7.2-pc]"})
    w.add(0.1, "note", "source", "machine:launch", {"pid": 7, "binary": "/q", "artifacts": "."})
    boot = w.add(0.2, "invoke", "guest:source", "guest:restore")
    run = w.add(0.25, "invoke", "guest:source", "ssh:run", {"command": "mount  -t 9p"})
    w.add(0.3, "ok", "guest:source", "ssh:run", {"returncode": 0}, run)
    w.add(0.4, "ok", "guest:source", "guest:restore", None, boot)
    w.command(0.5, 0.6, "device_add", {"driver": "virtio-9p-pci", "id": "share0"})
    w.add(0.61, "note", "host", "hold:armed", {"id": "share0", "calls": ["preadv"]})
    w.add(0.7, "note", "source", "hold:held", {"call": "preadv", "path": "/t/share0/read-me", "tid": 9})
    queue = {"path": f"{DEVICE}/virtio-backend"}
    w.command(0.71, 0.72, "x-query-virtio-queue-status", queue, answer={"inuse": 1})
    w.command(0.73, 0.74, "query-migrate", answer={"blocked-reasons": ["mounted"]})
    w.command(0.75, 0.76, "device_del", {"id": "share0"}, kind="fail", answer={"desc": "busy"})
    w.command(0.8, 0.81, "device_del", {"id": "share0"})
    w.event(0.9, "DEVICE_DELETED", path=f"{DEVICE}/virtio-backend")
    w.event(0.95, "DEVICE_DELETED", path=DEVICE, device="share0")
    w.event(0.96, "DEVICE_DELETED", path="/machine/peripheral/other", device="other")
    w.add(1.0, "note", "host", "hold:released", {"id": "share0", "calls": 1})
    w.add(1.1, "note", "source", "leak:sample", {"threads": 6, "fds": 23, "thread_ids": [1]})
    w.add(1.2, "note", "source", "leak:sample", {"threads": 6, "fds": 24, "thread_ids": [1]})
    w.add(1.25, "invoke", "guest:source", "ssh:run", {"command": "sleep 9"})
    w.add(1.3, "note", "host", "test:failed", {"error": [CAUSE]})
    w.add(1.35, "event", "source", "machine:exit", {"returncode": -11})
    w.add(1.4, "note", "host", "closed")
    w.write(folder)
    _write_log(folder, w)
    return folder


def _write_log(folder: Path, w: Writer) -> None:
    """Its clock is 0.1 s behind. Its last event, and the negotiation, are not in the history."""
    lines: list[dict[str, Any]] = [
        _line(0.02, "in", {"QMP": {}}),
        _line(0.03, "out", {"execute": "qmp_capabilities"}),
        _line(0.04, "in", {"return": {}}),
    ]
    for entry in w.lines:
        name = entry["f"].partition(":")[2]
        if entry["f"].startswith("qmp:") and entry["kind"] == "invoke":
            message = {"execute": name, "arguments": entry.get("value", {}), "id": str(entry["seq"])}
            lines.append(_line(entry["t_s"] - 0.1, "out", message))
        elif entry["f"].startswith("qmp:"):
            message = {"return": entry.get("value", {}), "id": str(entry["op"])}
            lines.append(_line(entry["t_s"] - 0.1, "in", message))
        elif entry["f"].startswith("event:"):
            lines.append(_line(entry["t_s"] - 0.1, "in", {"event": name, **entry["value"]}))
    late = {"event": "GUEST_PANICKED", "data": {}, "timestamp": STAMP}
    lines.append(_line(1.22, "in", late))
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / QMP_LOG).write_text(
        text + '{"t_s": 1.3, "dir": "in", "mess'
    )  # QEMU's end cut the last line off.


def _line(t_s: float, direction: str, message: dict[str, Any]) -> dict[str, Any]:
    return {"t_s": round(t_s, 6), "dir": direction, "message": message}
