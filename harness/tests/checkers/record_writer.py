"""Writes the records that the tests of the checkers judge, entry by entry."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from harness.artifacts import BACKTRACE, CONSOLE_LOG, KERNEL_LOG, QEMU_LOG, SANITIZER
from harness.checkers import Checker, Judgement, judge
from harness.history import History

DEVICE = "/machine/peripheral/share0"
QUIET = "[    1.0] Linux version 6.1\n[    2.0] guest: network is up\n"


class RecordWriter:
    """Writes the record of a test with one machine, and judges it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.history = History(folder / "history.ndjson")
        self._seconds = itertools.count(1000)
        self.kernel(QUIET)
        (folder / QEMU_LOG).write_text("")
        (folder / CONSOLE_LOG).write_text("")

    def kernel(self, text: str) -> None:
        (self.folder / KERNEL_LOG).write_text(text)

    def qemu(self, text: str) -> None:
        (self.folder / QEMU_LOG).write_text(text)

    def sanitizer(self, text: str) -> None:
        (self.folder / SANITIZER).write_text(text)

    def backtrace(self, text: str) -> None:
        (self.folder / BACKTRACE).write_text(text)

    def launched(self, name: str = "source", *, artifacts: str = ".") -> RecordWriter:
        self.history.note(name, "machine:launch", {"pid": 1, "artifacts": artifacts})
        return self

    def command(self, name: str, **arguments: Any) -> RecordWriter:
        self.history.invoke("source", f"qmp:{name}", arguments).ok({})
        return self

    def event(self, name: str, **data: Any) -> RecordWriter:
        stamp = {"seconds": next(self._seconds), "microseconds": 0}
        self.history.event("source", f"event:{name}", {"data": data, "timestamp": stamp})
        return self

    def plugged(self, driver: str = "virtio-9p-pci") -> RecordWriter:
        return self.command("device_add", driver=driver, id="share0")

    def plug_refused(self, *, late: bool) -> RecordWriter:
        """The answer to ``device_add`` is an error; a late one comes after the backend was finalized."""
        value = {"driver": "virtio-9p-pci", "id": "share0"}
        operation = self.history.invoke("source", "qmp:device_add", value)
        if late:
            self.backend_deleted()
        operation.fail("refused")
        return self

    def backend_deleted(self) -> RecordWriter:
        return self.event("DEVICE_DELETED", path=f"{DEVICE}/virtio-backend")

    def device_deleted(self) -> RecordWriter:
        return self.event("DEVICE_DELETED", path=DEVICE, device="share0")

    def quit(self, returncode: int = 0) -> RecordWriter:
        self.history.note("source", "machine:expect-exit", {"reason": "quit"})
        self.command("quit")
        return self.exited(returncode)

    def exited(self, returncode: int) -> RecordWriter:
        self.history.event("source", "machine:exit", {"returncode": returncode})
        return self

    def closed(self, **left: list[str]) -> RecordWriter:
        self.history.note("host", "host:leftovers", {"processes": [], "folders": [], **left})
        self.history.note("host", "closed")
        self.history.close()
        return self

    def judged(self, checker: Checker) -> Judgement:
        (judgement,) = judge(self.folder, [checker])
        return judgement
