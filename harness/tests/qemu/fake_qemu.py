"""A program that looks like QEMU from outside: it serves QMP on the socket that its arguments name.

``FAKE`` in its environment chooses how it starts and ends; commands beginning with ``x-`` make it
misbehave on request. It imports nothing of the harness.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

MODE = os.environ.get("FAKE", "")
GREETING = {
    "QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 22}, "package": ""}, "capabilities": []}
}
USERNET = """Hub -1 (net0):
  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ
  TCP[HOST_FORWARD]  11       127.0.0.1 40123       10.0.2.15    22     0     0
"""


def main() -> None:
    if MODE == "complains":
        print("qemu-system-x86_64: -device nonsense: 'nonsense' is not a valid device model name", flush=True)
        sys.exit(1)
    if MODE == "makes no socket":
        signal.pause()
    forwarded = listen_on_the_given_port()
    option = next(word for word in sys.argv if word.startswith("socket,id=qmp,"))
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(option.split("path=")[1].split(",server=")[0])
    listening.listen()
    connection, _ = listening.accept()
    if MODE == "dies before it greets":
        connection.close()
        os.kill(os.getpid(), signal.SIGBUS)
    if MODE == "does not greet":
        signal.pause()
    serve(connection)
    del forwarded


def listen_on_the_given_port() -> socket.socket | None:
    """As slirp does (``slirp/socket.c``, ``tcp_listen``); port 0 is not bound: 40123 is printed for it."""
    global USERNET
    port = int(" ".join(sys.argv).split("hostfwd=tcp:127.0.0.1:")[1].split("-")[0])
    if port == 0:
        return None
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", port))
    listening.listen()
    USERNET = USERNET.replace("40123", str(port))
    return listening


def serve(connection: socket.socket) -> None:
    def say(message: dict[str, Any]) -> None:
        connection.sendall(json.dumps(message).encode() + b"\r\n")

    say(GREETING)
    for command in commands(connection):
        arguments = command.get("arguments", {})
        # The id is echoed when there was one, as QEMU does (QEMU: ``qapi/qmp-dispatch.c``).
        answer: dict[str, Any] = {"return": {}} | {key: command[key] for key in command if key == "id"}
        match command["execute"]:
            case "quit" if MODE == "refuses quit":
                del answer["return"]
                answer["error"] = {"class": "GenericError", "desc": "not now"}
            case "quit" if MODE == "stays after quit":
                pass
            case "quit" if MODE == "ends badly":
                die(signal.SIGSEGV, "")
            case "quit":
                say(answer)
                sys.exit(0)
            case "x-die":
                die(arguments["signal"], arguments.get("message", ""))
            case "x-exit":
                sys.exit(arguments["status"])
            case "x-exec":
                os.execv(arguments["command"][0], arguments["command"])
            case "x-hang":
                continue
            case "x-silence":
                say(answer)
                threading.Event().wait()
            case "x-close":
                connection.shutdown(socket.SHUT_RDWR)
                threading.Event().wait()
            case "human-monitor-command":
                answer["return"] = USERNET if MODE != "forwards nothing" else "Hub -1 (net0):\n"
        say(answer)


def commands(connection: socket.socket) -> Iterator[dict[str, Any]]:
    """What the client sends: JSON objects one after the other, with or without a newline."""
    text = ""
    while received := connection.recv(65536):
        text = (text + received.decode()).lstrip()
        while text:
            try:
                command, end = json.JSONDecoder().raw_decode(text)
            except ValueError:
                break
            text = text[end:].lstrip()
            yield command


def die(number: int, message: str) -> None:
    if message:
        print(message, flush=True)
    os.kill(os.getpid(), number)


if __name__ == "__main__":
    main()
