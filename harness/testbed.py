"""The testbed: it launches and ends the machines of one test, and records what they left behind."""

from __future__ import annotations

import itertools
import shutil
import threading
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

from harness.artifacts import CELL, Artifacts
from harness.background import process_wide_threads
from harness.channel.guestfwd import SavedSession
from harness.deadline import T, TimeoutScale, wait_until
from harness.errors import SetupError, UsageError, WaitTimeout
from harness.guest.guest import Guest
from harness.guest.image import GuestImage
from harness.history import History
from harness.qemu.accel import Accel
from harness.qemu.binary import Capabilities, QemuInstall
from harness.qemu.machine import Machine, Wrapping
from harness.qemu.machine_types.machine_type import SLOTS, MachineType
from harness.qemu.spec import Device, MachineSpec, Share
from harness.reaper import RunFolder
from harness.restore.session import SessionReplay, restored, wait_restored
from harness.restore.template import Template, restore

_numbers = itertools.count(1)
#: Seconds in which the threads and processes of a testbed must end after everything they wait for was closed,
#: scaled for a slow host only. A process that QEMU started ends after QEMU.
_END_WITHIN_S = 10.0
#: ``__SO_ACCEPTCON`` (kernel: ``include/uapi/linux/net.h``).
_LISTENS = 1 << 16
#: The reasons to boot a guest although templates work; any other reason means that no template could be used.
BY_CHOICE = (
    "the scenario asks for it",
    "templates are switched off",
    "the machine has devices of its own",
)


@dataclass(frozen=True)
class Cell:
    """One combination of the matrix: QEMU, guest image, machine type and accelerator.

    :ivar templates: the source of the templates that guests are restored from; ``None``: all guests boot.
    :ivar firmware: the file with the firmware that the machine type needs, if it needs one.
    """

    qemu: QemuInstall
    capabilities: Capabilities
    image: GuestImage
    machine_type: MachineType
    accel: Accel
    templates: TemplateSource | None = None
    firmware: Path | None = None

    def describe(self) -> dict[str, object]:
        """The content of ``cell.json``."""
        return {
            "qemu": {
                "name": self.qemu.name,
                "binary": str(self.qemu.binary),
                "version": self.capabilities.version_text,
                "banner": self.capabilities.banner,
                "key": self.qemu.key,
            },
            "kernel": {"name": self.image.name, "version": self.image.kernel_version, "key": self.image.key},
            "machine": {"name": self.machine_type.name, "description": self.machine_type.description},
            "accel": {"name": self.accel.name, "reason": self.accel.reason},
        }

    def spec(self, name: str, shares: tuple[Share, ...], plugged: frozenset[str]) -> MachineSpec:
        """The spec of a machine of this cell."""
        return MachineSpec(
            name=name,
            qemu=self.qemu,
            machine_type=self.machine_type,
            accel=self.accel.name,
            boot=self.image.boot,
            disk=self.image.disk,
            firmware=self.firmware,
            shares=shares,
            plugged=plugged,
        )


class TemplateSource(Protocol):
    """A source of templates of booted guests (see :mod:`harness.restore.template`)."""

    def find(self, spec: MachineSpec, image: GuestImage, timeout_scale: TimeoutScale) -> Template | str:
        """For the testbed: the template for a machine of ``spec``, or the reason why there is none."""

    def damage_of(self, found: Template) -> str | None:
        """For the testbed: what is wrong with the files of a template; a damaged template is removed.

        To be called when restoring from it failed. ``None`` means that its files are intact.
        """


@runtime_checkable
class Closable(Protocol):
    """An object that is closed at the end of a testbed: it owns a file, a socket or a thread."""

    def close(self) -> None:
        """Called when the testbed closes, after the machines have ended."""


@runtime_checkable
class LaunchTool(Closable, Protocol):
    """A tool that every machine of a testbed is started under."""

    def wrap(self, spec: MachineSpec, folder: Path) -> Wrapping:
        """What a tool of the testbed adds to the command and environment of ``spec``.

        ``folder`` is private to the testbed.
        """

    def release(self) -> None:
        """Called before the testbed's machines are ended: stop anything that could keep them from ending."""


_OF_A_TOOL = ("wrap", "release", "close")
_OF_A_DEVICE = ("id", "slot", "check", "declared", "device")


class Testbed:
    """All machines and guests of one test.

    :ivar history: the history of the test.
    :ivar shares: a pool of exports, one for each hotpluggable slot; each has an empty folder.
    :ivar devices: the other devices that its machines can plug; at first there are none.
    """

    #: Keeps pytest from collecting this class, whose name begins with "Test" (pytest: "Changing standard
    #: (Python) test discovery").
    __test__ = False

    def __init__(self, cell: Cell, run: RunFolder, artifacts: Artifacts) -> None:
        self.cell, self.run, self.artifacts = cell, run, artifacts
        self.machines: list[Machine] = []
        self._guests: list[Guest] = []
        self._tools: list[LaunchTool] = []
        self._attached: list[Closable] = []
        #: The threads that existed before this testbed.
        self._earlier_threads = set(threading.enumerate())
        self._closed = False
        artifacts.write_json(CELL, cell.describe())
        self.history = History(artifacts.history)
        self.folder = run.path / f"t{next(_numbers)}"
        self.shares = tuple(self._make_share(slot) for slot in range(SLOTS))
        self.devices: tuple[Device, ...] = ()
        #: Whether its machines have a second QMP socket, for people.
        self.monitors = False

    def _make_share(self, slot: int) -> Share:
        path = self.folder / f"share{slot}"
        try:
            path.mkdir(parents=True)
        except OSError as exc:
            raise SetupError(f"cannot make the share's folder {path}: {exc.strerror}") from exc
        return Share(id=f"share{slot}", path=path, mount_tag=f"tag{slot}", slot=slot)

    def declare(self, *shares: Share) -> tuple[Share, ...]:
        """Replace the pool of shares; it applies to every machine that is launched afterwards."""
        self.shares = shares
        return shares

    def declare_devices(self, *devices: Device) -> None:
        """Let every machine plug ``devices`` in addition to the shares.

        Each has a backend on the command line of the machines, and the machines of a test have the same ones.

        :raises UsageError: when an object is no device, or a machine was started already.
        """
        for device in devices:
            lacks = [name for name in _OF_A_DEVICE if not hasattr(device, name)]
            if lacks:
                raise UsageError(
                    f"testbed.declare_devices: {type(device).__name__} has no {' and no '.join(lacks)}; "
                    "harness/GUIDE.md, 'A device of your own', lists what a device has"
                )
        self._require_none_started(f"declare {', '.join(device.id for device in devices)}")
        self.devices = devices

    def use_common_machine_type(self, *others: Capabilities) -> None:
        """Use a versioned machine type that this cell's QEMU and the QEMUs with ``others`` all have.

        It applies to every machine that is launched afterwards.

        :raises Unsupported: when they have no machine type in common.
        """
        known = [capabilities.machines for capabilities in (self.cell.capabilities, *others)]
        self.cell = replace(self.cell, machine_type=self.cell.machine_type.known_to_all(*known))
        self.history.note("host", "testbed:machine-type", {"qemu": self.cell.machine_type.qemu})

    def attach(self, thing: Closable) -> None:
        """Let the testbed close ``thing`` after the machines have ended.

        If it is a tool, every machine is started under it.

        :param thing: an object with ``close()``. One that has ``wrap()`` as well is a :class:`LaunchTool`.
        :raises UsageError: when it is neither, or is a tool and a machine was started already.
        """
        name = type(thing).__name__
        needed = _OF_A_TOOL if hasattr(thing, "wrap") else ("close",)
        lacks = [f"{method}()" for method in needed if not hasattr(thing, method)]
        if lacks:
            raise UsageError(
                f"testbed.attach: {name} has no {' and no '.join(lacks)}; what is to be closed has close(), "
                "a tool that machines are started under has wrap(), release() and close()"
            )
        if isinstance(thing, LaunchTool):
            self._require_none_started(f"attach {name}")
            self._tools.append(thing)
        self._attached.append(thing)

    def _require_none_started(self, action: str) -> None:
        if self.machines:
            started = self.machines[0].name
            raise UsageError(
                f"{action} earlier: machine {started!r} was already started; a fixture called 'device', or "
                "one that the test names before 'guest', comes before it"
            )

    def _wrapping(self, spec: MachineSpec) -> Wrapping:
        prefix: tuple[str, ...] = ()
        environment: dict[str, str] = {}
        for tool in self._tools:
            added = tool.wrap(spec, self.folder)
            prefix += added.prefix
            environment |= added.environment
        return Wrapping(prefix, environment)

    def spec(self, *, name: str = "source", plugged: frozenset[str] = frozenset()) -> MachineSpec:
        """The spec of a machine of this testbed's cell, with all shares of the pool and all other devices."""
        spec = self.cell.spec(name, self.shares, plugged)
        return replace(spec, devices=self.devices, monitor=self.monitors)

    def launch(
        self,
        spec: MachineSpec,
        *,
        source: Machine | None = None,
        template: Template | None = None,
        on_started: Callable[[Machine], None] = lambda _: None,
    ) -> Machine:
        """Start a machine (see :meth:`Machine.launch`); :meth:`close` ends it if nothing else does.

        :param template: the template that it will be restored from; its kernel log continues that of the
            template.
        :param on_started: called with the machine when its process was started, before QEMU is ready.
        """
        artifacts = self.artifacts.machine(spec.name, first=not self.machines)
        if template is not None:
            shutil.copyfile(template.kernel_log, artifacts.kernel)
        machine = Machine.launch(
            spec,
            self.run,
            self.folder / spec.name,
            artifacts,
            self.history,
            timeout_scale=self.cell.accel.timeout_scale,
            source=source,
            wrapping=self._wrapping(spec),
            on_started=on_started,
        )
        self.machines.append(machine)
        return machine

    def boot(self, spec: MachineSpec | None = None, *, cold: bool = False) -> Guest:
        """Start a machine and wait until its guest answers a command.

        The guest is restored from a template if there is one. There is none for a machine that starts with
        devices plugged in.

        :param cold: boot the guest in any case.
        """
        spec = spec or self.spec()
        found = self._template(spec, cold=cold)
        self.history.note(
            spec.name, "guest:started", {"cold": found} if isinstance(found, str) else "restored"
        )
        if isinstance(found, Template):
            try:
                return self._restore(spec, found)
            except Exception as exc:
                why = self._why_damaged(found)
                if why is None:
                    raise
                self._discard(spec.name, f"{exc}; {why}")
                self.history.note(spec.name, "guest:started", {"cold": f"its template was damaged: {why}"})
        guest = self.begin_boot(spec)
        guest.wait_booted()
        return guest

    def _why_damaged(self, template: Template) -> str | None:
        assert self.cell.templates is not None
        return self.cell.templates.damage_of(template)

    def _discard(self, name: str, why: str) -> None:
        """Remove a machine whose template turned out to be damaged, as if it had not been launched.

        Its failure says nothing about QEMU. Its artefacts are moved to a folder of their own.
        """
        for guest in [guest for guest in self._guests if guest.machine.name == name]:
            guest.disconnect()
            self._guests.remove(guest)
        for machine in [machine for machine in self.machines if machine.name == name]:
            machine.close()
            self.machines.remove(machine)
        shutil.rmtree(self.folder / name, ignore_errors=True)
        for path in self.folder.glob(f"{name}.*"):  # Files of launch tools.
            path.unlink()
        self.artifacts.set_aside(name, first=not self.machines)
        self.history.note(name, "machine:discarded", {"why": why})

    def _template(self, spec: MachineSpec, *, cold: bool) -> Template | str:
        requested, switched_off, has_devices = BY_CHOICE
        if cold:
            return requested
        if self.cell.templates is None:
            return switched_off
        if spec.plugged:
            return has_devices
        return self.cell.templates.find(spec, self.cell.image, self.cell.accel.timeout_scale)

    def _restore(self, spec: MachineSpec, template: Template) -> Guest:
        image, saved = self.cell.image, SavedSession.read(template.session)
        with closing(SessionReplay(saved, image, self.cell.accel.timeout_scale)) as session:
            memory = self._memory_of(spec, template)
            machine = self.launch(
                spec.restored(memory), template=template, on_started=lambda _: session.begin()
            )
            finish = restore(machine, template)
            guest = restored(machine, image)
            self._guests.append(guest)
            wait_restored(guest, session)
            finish()
        return guest

    def _memory_of(self, spec: MachineSpec, template: Template) -> Path | None:
        """The memory file for a machine that is restored from a template.

        A backend that maps the guest's memory sees nothing of a private mapping, so such a machine gets a
        copy.
        """
        if template.memory is None or not spec.shares_memory:
            return template.memory
        copy = self.folder / f"{spec.name}.memory"
        template.copy_memory(copy)
        return copy

    def begin_boot(self, spec: MachineSpec | None = None) -> Guest:
        """Start a machine and return while its guest boots (see :meth:`Guest.wait_booted`)."""
        guest = Guest(self.launch(spec or self.spec()), self.cell.image)
        self._guests.append(guest)
        return guest

    def launch_destination(
        self, source: Machine, change: Callable[[MachineSpec], MachineSpec] = lambda spec: spec
    ) -> Machine:
        """Start the destination of a migration of ``source``; it waits for the migration stream.

        :param change: modifies the spec, which by default is the one that matches the source.
        """
        spec = source.spec.destination(f"destination-{len(self.machines)}", plugged=frozenset(source.plugged))
        return self.launch(change(spec), source=source)

    def execute(self, source: Machine, spec: MachineSpec, request: Callable[[list[str]], None]) -> Machine:
        """Let ``source`` execute a new QEMU in its process (see :meth:`Machine.execute`)."""
        artifacts = self.artifacts.machine(spec.name, first=False)
        machine = Machine.execute(source, spec, self.folder / spec.name, artifacts, request)
        self.machines.append(machine)
        return machine

    def guest_of(self, machine: Machine) -> Guest | None:
        """The guest that runs in a machine; ``None`` for a machine without a guest."""
        return next((guest for guest in self._guests if guest.machine is machine), None)

    def close(self) -> None:
        """End every machine, remove the folder, and record what is left. Idempotent.

        What one of the attached objects raises keeps nothing else from being closed.

        :raises Exception: the first of what they raised, at the end.
        """
        if self._closed:
            return
        self._closed = True
        try:
            failed = _call_each(
                [
                    *(tool.release for tool in self._tools),
                    *(guest.disconnect for guest in self._guests),
                    *(machine.close for machine in self.machines),
                    *(thing.close for thing in self._attached),
                ]
            )
            self.history.note("host", "host:leftovers", self._leftovers())
            self.history.note("host", "closed")
        finally:
            self.history.close()
        if failed:
            raise failed[0]

    def _leftovers(self) -> dict[str, list[str]]:
        """What is left after everything was closed. Removes the folder, unless something is mounted in it.

        Threads and processes are waited for first, as they may have files open. The file of a socket that no
        process has open (QEMU was killed, for example) is not reported: it is removed with the folder.
        """
        left = {
            "threads": [thread.name for thread in self._left("threads", self._own_threads)],
            "processes": [_command_of(pid) for pid in self._left("processes", self.run.processes)],
            "sockets": _sockets_below(self.folder),
            "mounts": _mounts_below(self.folder),
        }
        if not left["mounts"]:
            shutil.rmtree(self.folder, ignore_errors=True)
        return {**left, "folders": [str(self.folder)] if self.folder.exists() else []}

    def _left(self, what: str, look: Callable[[], list[T]]) -> list[T]:
        """What ``look`` still returns after it had time to end."""
        left: list[T] = []

        def ended() -> bool:
            left[:] = look()
            return not left

        with suppress(WaitTimeout):
            wait_until(
                ended,
                what=f"the end of the testbed's {what}",
                timeout_s=self.cell.accel.timeout_scale.host_seconds(_END_WITHIN_S),
            )
        return left

    def _own_threads(self) -> list[threading.Thread]:
        """The running threads, daemons included, that were started after this testbed was created.

        A process runs one test at a time, so all of them belong to this test.
        """
        others = self._earlier_threads | process_wide_threads() | {threading.current_thread()}
        return [thread for thread in threading.enumerate() if thread not in others]


def _call_each(calls: Iterable[Callable[[], object]]) -> list[Exception]:
    """Make every call when a testbed closes, even after a failure; return what they raised.

    The rest are notes of the first.
    """
    failed: list[Exception] = []
    for call in calls:
        try:
            call()
        except Exception as exc:  # Whatever a user's own object raises.
            failed.append(exc)
    for later in failed[1:]:
        failed[0].add_note(f"and then: {type(later).__name__}: {later}")
    return failed


def _command_of(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return f"{pid} (just ended)"
    return f"{pid} {b' '.join(words[:4]).decode(errors='replace')}"


def _mounts_below(folder: Path) -> list[str]:
    """The mount points below ``folder`` (``man 5 proc``: ``/proc/PID/mountinfo``, field 5)."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [line.split()[4] for line in lines]
    return [point for point in points if point.startswith(f"{folder}/")]


def _sockets_below(folder: Path) -> list[str]:
    """The unix sockets bound to a path below ``folder`` that a process has open.

    The kernel lists a socket until its last descriptor is closed, even after its file was removed (``man 5
    proc_pid_net``, ``/proc/net/unix``; kernel: ``net/unix/af_unix.c``, ``unix_seq_show``).
    """
    found = []
    for line in Path("/proc/net/unix").read_text(errors="replace").splitlines()[1:]:
        words = line.split(maxsplit=7)
        if len(words) == 8 and Path(words[7]).is_relative_to(folder):
            listens = int(words[3], 16) & _LISTENS
            found.append(f"{words[7]} ({'listening' if listens else 'open'})")
    return found
