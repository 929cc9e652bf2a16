"""A synchronous QMP client. One asyncio thread owns all ``qemu.qmp`` clients of the process.

Every message, in both directions, is written to ``qmp.ndjson``. Every command and event is written to the
history, events with the time of their arrival. Create a listener before sending the command whose events it
waits for.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from qemu.qmp import (
    ConnectError,
    EventListener,
    ExecuteError,
    Message,
    QMPClient,
    QMPError,
)
from qemu.qmp.qmp_client import GreetingError, NegotiationError

from harness.background import mark_process_wide
from harness.deadline import Deadline, Watch, wait_until
from harness.errors import QemuError, QmpLost, QmpSilent, WaitTimeout
from harness.history import History, Operation

# The library also raises its errors as exceptions, which are reported with their cause.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL + 1)

T = TypeVar("T")
#: Seconds in which QEMU must answer a command. Device reset and unrealize drain requests under the big lock,
#: so QMP stalls for as long as the backend does; hence the long timeout.
EXECUTE_TIMEOUT_S = 60.0
_CLOSE_TIMEOUT_S = 5.0
#: Seconds between two attempts to connect; short, because every start of a QEMU waits for this.
_SOCKET_INTERVAL_S = 0.002


class QmpThread:
    """The asyncio thread; one for each process, created on first use."""

    _lock = threading.Lock()
    _shared: QmpThread | None = None

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="qmp", daemon=True)
        mark_process_wide(self._thread)
        self._thread.start()

    @classmethod
    def shared(cls) -> QmpThread:
        """The thread of this process."""
        with cls._lock:
            if cls._shared is None:
                cls._shared = cls()
            return cls._shared

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Run ``coroutine`` in the asyncio thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)


@dataclass(frozen=True)
class QmpEvent:
    """A QMP event: ``timestamp_s`` is QEMU's (since the epoch), ``t_s`` the monotonic time of its arrival."""

    name: str
    data: Mapping[str, Any]
    timestamp_s: float
    t_s: float


class Listener:
    """Collects matching events from its creation until it is closed; a context manager."""

    def __init__(self, qmp: Qmp, accept: Callable[[QmpEvent], bool]) -> None:
        self._qmp, self._accept = qmp, accept
        self._seen: list[QmpEvent] = []
        self._new_event = threading.Event()
        qmp._listeners.append(self)

    @property
    def events(self) -> tuple[QmpEvent, ...]:
        """All matching QMP events so far; available after :meth:`close`, too."""
        return tuple(self._seen)

    def wait(
        self,
        predicate: Callable[[QmpEvent], bool] = lambda _: True,
        *,
        what: str,
        timeout_s: float,
        watch: Watch | None = None,
    ) -> QmpEvent:
        """Return the first QMP event that satisfies ``predicate``; wait for it if necessary.

        :raises WaitTimeout: when there is none within ``timeout_s`` seconds; it has the last events seen.
        """
        try:
            found = wait_until(
                lambda: next((event for event in self.events if predicate(event)), None),
                what=what,
                timeout_s=timeout_s,
                watch=watch,
                wake=self._new_event,
            )
        except WaitTimeout as exc:
            raise WaitTimeout(what, last=self.events[-3:], elapsed_s=exc.elapsed_s) from None
        return found

    def close(self) -> None:
        """Stop collecting QMP events."""
        if self in self._qmp._listeners:
            self._qmp._listeners.remove(self)

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _deliver(self, event: QmpEvent) -> None:
        if self._accept(event):
            self._seen.append(event)
            self._new_event.set()


class _LoggingClient(QMPClient):
    """A client that writes every message to a file, through the hooks that qemu.qmp documents for this."""

    def __init__(self, name: str, log: Callable[[str, Message], None]) -> None:
        super().__init__(name)
        self._log = log

    def _cb_outbound(self, msg: Message) -> Message:
        self._log("out", msg)
        return super()._cb_outbound(msg)

    def _cb_inbound(self, msg: Message) -> Message:
        self._log("in", msg)
        return super()._cb_inbound(msg)


class Pending:
    """A command that was sent; :meth:`wait` returns its answer."""

    def __init__(self, qmp: Qmp, command: str, op: Operation, future: concurrent.futures.Future[Any]) -> None:
        self._qmp, self.command, self._op, self._future = qmp, command, op, future

    @property
    def done(self) -> bool:
        """Whether QEMU has answered the QMP command."""
        return self._future.done()

    def wait(self, *, timeout_s: float | None = None, watch: Watch | None = None) -> Any:
        """Wait for the answer to a QMP command, and return the command's return value.

        :param timeout_s: seconds; by default the client's ``execute_timeout_s``.
        :raises QemuError: when QEMU refused the command. :raises QmpLost: when the connection broke.
        :raises QmpSilent: when QEMU did not answer within ``timeout_s`` seconds. A later answer is still
            recorded in the history.
        """
        timeout_s = self._qmp.execute_timeout_s if timeout_s is None else timeout_s
        if not _ended(self._future, timeout_s, watch):
            self._qmp.silent = True
            self._future.add_done_callback(self._answered_late)
            name = self._qmp.machine
            raise QmpSilent(f"QEMU {name!r} did not answer {self.command} within {timeout_s:.0f} s")
        try:
            return self._future.result()
        except (
            QMPError,
            EOFError,
            OSError,
            asyncio.CancelledError,
            concurrent.futures.CancelledError,
        ) as exc:
            raise self._translate(exc) from None

    def _answered_late(self, _: concurrent.futures.Future[Any]) -> None:
        self._qmp.silent = False

    def _translate(self, exc: BaseException) -> QemuError | QmpLost:
        if isinstance(exc, ExecuteError):
            error = exc.error.error
            received = {"class": error.class_, "desc": error.desc}
            return QemuError(self._qmp.machine, dict(exc.sent), received, error.desc)
        why = str(exc) or type(exc).__name__
        return QmpLost(f"QEMU {self._qmp.machine!r}: the QMP connection broke during {self.command}: {why}")


class Qmp:
    """The QMP client of one QEMU.

    :param machine: the name of the machine: the actor in the history.
    :param log: the path of ``qmp.ndjson``.
    :param execute_timeout_s: seconds in which QEMU must answer a command for which no other time is given.
    """

    def __init__(
        self,
        machine: str,
        socket_path: Path,
        history: History,
        log: Path,
        *,
        execute_timeout_s: float = EXECUTE_TIMEOUT_S,
    ) -> None:
        self.execute_timeout_s = execute_timeout_s
        self.machine, self.history = machine, history
        self._socket_path, self._zero_s = socket_path, time.monotonic()
        self._log_path, self._log = log, log.open("a", encoding="utf-8")
        self._thread = QmpThread.shared()
        self._client: _LoggingClient | None = None
        self._listeners: list[Listener] = []
        #: Whether QEMU did not answer a command in time, nor since; then it is not asked to quit.
        self.silent = False
        #: The last command that was sent; part of the exit summary of a QEMU that dies.
        self.last_command: str | None = None

    @property
    def connected(self) -> bool:
        """Whether the QMP session is established."""
        return self._client is not None and self._client.runstate.name == "RUNNING"

    def connect(self, *, timeout_s: float, watch: Watch | None = None) -> None:
        """Connect to the QMP socket and negotiate; retried until QEMU has created its socket.

        :raises QmpSilent: when QEMU does not create the socket, or sends no greeting, within ``timeout_s``
            seconds.
        :raises QmpLost: when the negotiation fails.
        """
        deadline = Deadline.after(timeout_s)

        def attempt() -> bool:
            if not self._socket_path.exists():  # Cheaper than a connection attempt.
                return False
            client = _LoggingClient(self.machine, self._write)
            client.register_listener(EventListener(event_filter=self._on_event))
            left_s = max(0.5, deadline.remaining_s)
            future = self._thread.submit(asyncio.wait_for(client.connect(str(self._socket_path)), left_s))
            try:
                _result(future, watch)
            except TimeoutError:
                raise QmpSilent(
                    f"QEMU {self.machine!r} sent no greeting on its QMP socket within {timeout_s:.0f} s"
                ) from None
            except (GreetingError, NegotiationError) as exc:
                raise QmpLost(f"QEMU {self.machine!r}: no QMP session: {exc}") from None
            except ConnectError as exc:
                if isinstance(exc.exc, (FileNotFoundError, ConnectionRefusedError)):
                    return False
                raise QmpLost(f"QEMU {self.machine!r}: no QMP session: {exc}") from None
            self._client = client
            return True

        try:
            wait_until(
                attempt,
                what="the QMP socket",
                timeout_s=timeout_s,
                watch=watch,
                interval_s=_SOCKET_INTERVAL_S,
            )
        except WaitTimeout as exc:
            raise QmpSilent(
                f"QEMU {self.machine!r} did not open its QMP socket within {exc.elapsed_s:.0f} s"
            ) from None

    def request(self, command: str, arguments: Mapping[str, Any] | None = None) -> Pending:
        """Send a QMP command and return without waiting for its answer."""
        op = self.history.invoke(self.machine, f"qmp:{command}", dict(arguments or {}))
        self.last_command = command
        return Pending(self, command, op, self._thread.submit(self._execute(command, arguments, op)))

    def execute(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        timeout_s: float | None = None,
        watch: Watch | None = None,
    ) -> Any:
        """Send a QMP command and return its answer; raises as :meth:`Pending.wait` does."""
        return self.request(command, arguments).wait(timeout_s=timeout_s, watch=watch)

    def hmp(self, command_line: str, *, timeout_s: float | None = None, watch: Watch | None = None) -> str:
        """Run ``human-monitor-command`` and return the output of the human monitor."""
        arguments = {"command-line": command_line}
        return str(self.execute("human-monitor-command", arguments, timeout_s=timeout_s, watch=watch))

    def getfd(self, name: str, descriptor: int) -> None:
        """Pass a file descriptor to QEMU with ``getfd``; QEMU then knows it as ``name``.

        :raises QmpLost: when there is no connection, or it has broken.
        """
        client = self._client
        if client is None:
            raise QmpLost(f"QEMU {self.machine!r}: no QMP connection to pass a file descriptor through")
        try:
            client.send_fd_scm(descriptor)
        except (QMPError, OSError) as exc:  # QEMU has ended.
            why = str(exc) or type(exc).__name__
            raise QmpLost(f"QEMU {self.machine!r}: no file descriptor can be passed to it: {why}") from None
        self.execute("getfd", {"fdname": name})

    def listen(self, *names: str) -> Listener:
        """Collect the events of these names, or all events if none is given, from now on."""
        return Listener(self, lambda event: not names or event.name in names)

    def close(self) -> None:
        """Disconnect from the QMP socket within a bounded time; idempotent, never raises."""
        client, self._client = self._client, None
        if client is not None:
            future = self._thread.submit(asyncio.wait_for(_disconnect(client), _CLOSE_TIMEOUT_S))
            concurrent.futures.wait([future], _CLOSE_TIMEOUT_S + 1)
            if future.done():
                future.exception()
        try:
            self._log.close()
        except OSError as exc:
            self.history.record_write_error(self._log_path, exc)

    async def _execute(self, command: str, arguments: Mapping[str, Any] | None, op: Operation) -> Any:
        try:
            client = self._client
            if client is None:
                raise EOFError("not connected")
            answer = await client.execute(command, dict(arguments) if arguments is not None else None)
        except ExecuteError as exc:
            op.fail({"class": exc.error.error.class_, "desc": exc.error.error.desc})
            raise
        except BaseException as exc:
            op.info(str(exc) or type(exc).__name__)
            raise
        op.ok(answer)
        return answer

    def _on_event(self, message: Message) -> bool:
        """Called in the asyncio thread on each event; returns False, so that qemu.qmp does not queue it."""
        stamp = message.get("timestamp")
        stamp = stamp if isinstance(stamp, dict) else {}
        data = message.get("data", {})
        name = str(message["event"])
        self.history.event(self.machine, f"event:{name}", {"data": data, "timestamp": stamp})
        seconds = stamp.get("seconds", 0) + stamp.get("microseconds", 0) / 1e6
        event = QmpEvent(name, data if isinstance(data, dict) else {}, seconds, time.monotonic())
        for listener in tuple(self._listeners):
            listener._deliver(event)
        return False

    def _write(self, direction: str, message: Message) -> None:
        if not self._log.closed:
            t_s = round(time.monotonic() - self._zero_s, 6)
            line = json.dumps({"t_s": t_s, "dir": direction, "message": dict(message)}) + "\n"
            try:
                with contextlib.suppress(ValueError):  # Another thread has closed it since.
                    self._log.write(line)
                    self._log.flush()
            except OSError as exc:  # An exception here would end the connection.
                self.history.record_write_error(self._log_path, exc)


def _result(future: concurrent.futures.Future[T], watch: Watch | None) -> T:
    try:
        _ended(future, float("inf"), watch)
    except BaseException:
        future.cancel()
        raise
    return future.result()


def _ended(future: concurrent.futures.Future[Any], timeout_s: float, watch: Watch | None) -> bool:
    """Wait for a future; return whether it is done.

    ``future.result(timeout_s)`` would not do: its TimeoutError can come from a future that is done just then,
    or whose coroutine raised a TimeoutError.
    """
    for left_s in Deadline.after(timeout_s).turns():
        if concurrent.futures.wait([future], min(0.25, left_s)).done:
            return True
        if watch is not None:
            watch()
    return False


async def _disconnect(client: QMPClient) -> None:
    with contextlib.suppress(QMPError, EOFError, OSError):
        await client.disconnect()
