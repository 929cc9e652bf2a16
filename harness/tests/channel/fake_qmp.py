"""A QMP server on a unix socket, whose answers the test chooses."""

from __future__ import annotations

import contextlib
import json
import queue
import socket
import threading
from pathlib import Path
from typing import Any

GREETING = {
    "QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}, "capabilities": []}
}
#: Answer nothing, ever.
SILENCE = object()
#: Close the connection instead of answering.
HANG_UP = object()


class FakeQmpServer:
    """Serves one client; ``rules`` map a command to a return value, an error, or one of the above."""

    def __init__(self, path: Path, *, greeting: Any = GREETING) -> None:
        self.rules: dict[str, Any] = {}
        self.received: list[dict[str, Any]] = []
        self.unanswered: queue.Queue[dict[str, Any]] = queue.Queue()
        self._greeting = greeting
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen(1)
        self._client: socket.socket | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def send(self, message: Any) -> None:
        assert self._client is not None
        self._client.sendall(json.dumps(message).encode() + b"\r\n")

    def event(self, name: str, **data: Any) -> None:
        self.send({"event": name, "data": data, "timestamp": {"seconds": 5, "microseconds": 250000}})

    def answer_late(self, value: Any) -> None:
        """Answer the oldest command that met silence."""
        self.send({"return": value, "id": self.unanswered.get(timeout=60)["id"]})

    def hang_up(self) -> None:
        if self._client is not None:
            with contextlib.suppress(OSError):
                self._client.shutdown(socket.SHUT_RDWR)
            self._client.close()

    def close(self) -> None:
        self.hang_up()
        self._server.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._client, _ = self._server.accept()
            if self._greeting is SILENCE:
                return
            self.send(self._greeting)
            text = ""
            while data := self._client.recv(65536):
                text += data.decode()
                # A client ends its messages with their last brace, and no newline.
                while text:
                    message, end = json.JSONDecoder().raw_decode(text)
                    text = text[end:].lstrip()
                    self._handle(message)

    def _handle(self, message: dict[str, Any]) -> None:
        self.received.append(message)
        answer = self.rules.get(message["execute"], {})
        identity = {"id": message["id"]} if "id" in message else {}
        if answer is SILENCE:
            self.unanswered.put(message)
        elif answer is HANG_UP:
            self.hang_up()
        elif isinstance(answer, Exception):
            error = {"class": "GenericError", "desc": str(answer)}
            self.send({"error": error, **identity})
        else:
            self.send({"return": answer, **identity})
