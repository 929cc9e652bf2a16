"""A guest without a QEMU: the real :class:`Guest` over a scripted channel and a scripted QMP client."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest

from harness.artifacts import MachineArtifacts
from harness.channel import Completed
from harness.channel.console import KernelLog
from harness.channel.qmp import Listener, QmpEvent
from harness.deadline import TimeoutScale, Watch
from harness.errors import HarnessError, QemuError
from harness.guest.guest import Guest
from harness.guest.image import GuestImage
from harness.history import Entry, History, read
from harness.qemu.argv import MachinePaths
from harness.qemu.machine import Machine
from harness.qemu.spec import MachineSpec, Share
from harness.tests.qemu.specs import spec

#: A value to return, an error to raise, or a function of the request that returns either.
Answer = Any
BUSY = (255, "", "mount: mounting tag0 on /mnt/.probe failed: Device or resource busy")
NO_ENTRY = (255, "", "mount: mounting tag0 on /mnt/.probe failed: No such file or directory")
GONE = "/machine/peripheral/share0"
BACKEND = f"{GONE}/virtio-backend"


class _Script:
    """Answers in order; the last one again and again."""

    def __init__(self, answers: tuple[Answer, ...]) -> None:
        self._answers = list(answers)

    def next(self, request: Any) -> Any:
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if callable(answer):
            answer = answer(request)
        if isinstance(answer, BaseException):
            raise answer
        return answer


class ScriptedChannel:
    """Answers commands by regular expression; a command that nothing matches fails the test."""

    name = "ssh"

    def __init__(self) -> None:
        self.stages_s: dict[str, float] = {}
        self.commands: list[str] = []
        self.closed = 0
        self._rules: dict[str, _Script] = {}

    def on(self, pattern: str, *answers: Answer) -> None:
        """Each answer is stdout, or ``(returncode, stdout, stderr)``, or as in :data:`Answer`."""
        self._rules = {pattern: _Script(answers), **{p: s for p, s in self._rules.items() if p != pattern}}

    def run(self, command: str, *, timeout_s: float, stdin: bytes = b"", subshell: bool = True) -> Completed:
        self.commands.append(command)
        for pattern, script in self._rules.items():
            if re.search(pattern, command):
                answer = script.next(command)
                returncode, stdout, stderr = answer if isinstance(answer, tuple) else (0, answer, "")
                return Completed(command, returncode, stdout, stderr)
        raise AssertionError(f"unexpected guest command {command!r}")

    resumed: bool | str = True

    def move(self, path: Path, *, port: int, watch: Watch) -> bool:
        """It cannot be kept."""
        return False

    def close(self) -> None:
        self.closed += 1


@dataclass
class ScriptedPending:
    """A command that was sent, and how it ended, if it has."""

    end: Any
    done: bool = True

    def wait(self, *, timeout_s: float = 0, watch: Watch | None = None) -> Any:
        if isinstance(self.end, HarnessError):
            raise self.end
        return self.end


class ScriptedQmp:
    """Answers commands by name, and emits events; an unexpected command fails the test."""

    connected = True

    def __init__(self, machine: str) -> None:
        self.machine = machine
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self._listeners: list[Listener] = []
        self._rules: dict[str, _Script] = {}
        #: File descriptors by name.
        self.given: dict[str, int] = {}
        #: Commands that are sent without waiting get no answer.
        self.stalled = False

    def on(self, command: str, *answers: Answer) -> None:
        self._rules[command] = _Script(answers)

    def refuse(self, command: str, desc: str) -> None:
        self.on(
            command,
            QemuError(self.machine, {"execute": command}, {"class": "GenericError", "desc": desc}, desc),
        )

    def execute(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        timeout_s: float = 0,
        watch: Watch | None = None,
    ) -> Any:
        self.sent.append((command, dict(arguments or {})))
        if watch is not None:
            watch()
        if command not in self._rules:
            raise AssertionError(f"unexpected command {command}")
        return self._rules[command].next(dict(arguments or {}))

    def request(self, command: str, arguments: Mapping[str, Any] | None = None) -> ScriptedPending:
        try:
            return ScriptedPending(self.execute(command, arguments), done=not self.stalled)
        except HarnessError as exc:
            return ScriptedPending(exc)

    def hmp(self, command_line: str, *, timeout_s: float = 0, watch: Watch | None = None) -> str:
        answer = self.execute("human-monitor-command", {"command-line": command_line}, watch=watch)
        assert isinstance(answer, str)
        return answer

    def getfd(self, name: str, descriptor: int) -> None:
        """QEMU's own copy, kept for as long as it lives."""
        self.given[name] = os.dup(descriptor)

    def listen(self, *names: str) -> Listener:
        return Listener(cast(Any, self), lambda event: not names or event.name in names)

    def emit(self, name: str, **data: Any) -> None:
        for listener in tuple(self._listeners):
            listener._deliver(QmpEvent(name, data, 0.0, 0.0))

    @property
    def commands(self) -> list[str]:
        return [command for command, _ in self.sent]

    @property
    def last_command(self) -> str | None:
        return self.sent[-1][0] if self.sent else None


@dataclass
class FakeMachine:
    """What :class:`Machine` shows to guests and actions."""

    spec: MachineSpec
    folder: Path
    artifacts: MachineArtifacts
    history: History
    qmp: ScriptedQmp
    timeout_scale: TimeoutScale = field(default_factory=lambda: TimeoutScale(6.0))
    plugged: set[str] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)
    ssh_port: int = 1
    death: HarnessError | None = None
    quitted: bool = False
    returncode: int | None = 1

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def paths(self) -> MachinePaths:
        return MachinePaths(*(self.folder / name for name in ("qmp", "console", "line", "disk", "k", "c")))

    @property
    def running(self) -> bool:
        return not self.quitted and self.death is None

    @property
    def kernel_log(self) -> KernelLog:
        return KernelLog(self.artifacts.kernel)

    def watch_process(self) -> None:
        if self.death is not None:
            raise self.death

    def watch(self) -> None:
        self.watch_process()
        self.kernel_log.watch(self.name)

    # The real ones: they need nothing but what is above.
    wait_until = Machine.wait_until
    device_add = Machine.device_add

    def root_cause(self, symptom: HarnessError) -> HarnessError:
        return self.death or symptom

    def expect_exit(self, reason: str) -> None:
        assert reason

    def quit(self) -> None:
        self.quitted = True


@dataclass
class World:
    """A guest and everything it stands on; ``share`` is ``share0`` with the tag ``tag0``."""

    guest: Guest
    machine: FakeMachine
    ssh: ScriptedChannel
    share: Share

    @property
    def qmp(self) -> ScriptedQmp:
        return self.machine.qmp

    def impatient(self) -> None:
        """Let every wait fail after one probe, independent of the speed of the host."""
        self.machine.timeout_scale = TimeoutScale(0.0)

    def notes(self, f: str) -> list[Entry]:
        return [entry for entry in read(self.machine.history.path) if entry.f == f]


def machine(tmp_path: Path, made: MachineSpec, history: History) -> FakeMachine:
    folder = tmp_path / made.name
    folder.mkdir()
    return FakeMachine(made, folder, MachineArtifacts(folder), history, ScriptedQmp(made.name))


def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, kind: str = "pc") -> World:
    path = tmp_path / "export"
    path.mkdir()
    share = Share("share0", path, "tag0")
    made = replace(spec(kind), shares=(share,))
    fake = machine(tmp_path, made, History(tmp_path / "history.ndjson"))
    ssh = ScriptedChannel()

    def connect(port: int, **options: Any) -> ScriptedChannel:
        assert port == 1
        return ssh

    monkeypatch.setattr("harness.guest.guest.Ssh", connect)
    image = GuestImage("6.1", "6.1.0", path, path, path, "", path, path, "ssh-ed25519 A", "k")
    return World(Guest(cast(Machine, fake), image), fake, ssh, share)


def peripheral(*names: str) -> list[dict[str, str]]:
    """An answer to ``qom-list`` of ``/machine/peripheral``."""
    return [{"name": name, "type": "child<virtio-9p-pci>"} for name in ("type", *names)]
