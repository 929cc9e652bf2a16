"""Live update: the guest moves to a new QEMU on the same host, and its memory stays where it is.

Both QEMUs map the same file. There are two modes (QEMU: ``qapi/migration.json``, ``MigMode``):

- ``cpr-transfer`` (10.0): the new QEMU runs beside the old one. A second channel, *cpr*, carries what the new
  QEMU needs before it makes its devices. It reads that first of all, and opens its monitor afterwards. So
  ``migrate`` comes before the new QEMU's QMP (QEMU: ``migration/cpr-transfer.c``).
- ``cpr-exec`` (10.2): the old QEMU saves its state into a file and executes the new one in its process, which
  inherits its descriptors (QEMU: ``migration/cpr-exec.c``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from harness.actions.migration import MIGRATE_TIMEOUT_S, Migration, Outgoing, devices_of, expect_same_devices
from harness.actions.modes import CPR_EXEC, CPR_TRANSFER, in_mode, require_mode
from harness.actions.stream import UNIX
from harness.errors import HarnessError, QemuError, QmpLost, Violation
from harness.qemu.machine import Machine
from harness.qemu.spec import MachineSpec, MemoryFile
from harness.testbed import Testbed

#: The modes of a live update.
MODES = (CPR_TRANSFER, CPR_EXEC)
#: QEMU's own blocks of memory, such as ROMs. Those that are not shared block the modes.
_SHARE_OTHER_MEMORY = ("-machine", "aux-ram-share=on")
#: Seconds, before scaling.
_LISTENS_TIMEOUT_S = 20.0


def require(testbed: Testbed, mode: str) -> None:
    """Check that this QEMU has the mode; one that has not lacks the arguments of :func:`updatable` as well.

    :raises Unsupported: when it does not, with QEMU's reason.
    """
    probe = testbed.launch(replace(testbed.spec(name="probe").without_kernel(), extra=("-S",)))
    try:
        require_mode(probe, mode)
    finally:
        probe.quit()


def updatable(testbed: Testbed, *, plugged: Iterable[str] = ()) -> MachineSpec:
    """The spec of a source with its guest's memory in a file, which a second QEMU can map.

    :param plugged: the ids of the devices that are on its command line.
    """
    memory = MemoryFile(testbed.folder / "memory", share=True)
    spec = testbed.spec(plugged=frozenset(plugged))
    return replace(spec, memory_file=memory, extra=_SHARE_OTHER_MEMORY)


def update(migration: Migration, testbed: Testbed, mode: str) -> Machine:
    """Migrate the guest of an :func:`updatable` machine to a new QEMU in a mode of a live update.

    The old QEMU is ended.

    :returns: the new QEMU, which is the guest's machine from now on.
    :raises QemuError: when ``migrate`` is refused. :raises Unsupported: when QEMU does not have the mode.
    :raises Violation: when the migration fails, one of the two QEMUs dies, or a device did not arrive.
    """
    return {CPR_TRANSFER: _transfer, CPR_EXEC: _execute}[mode](migration, testbed)


def _transfer(migration: Migration, testbed: Testbed) -> Machine:
    guest, source = migration.guest, migration.guest.machine
    number = len(testbed.machines)
    main, cpr = (testbed.folder / f"{name}-{number}.sock" for name in ("main", "cpr"))
    incoming = ("-incoming", f"cpr,addr.transport=socket,addr.type=unix,addr.path={cpr}")
    spec = _destination(source, number, *incoming)
    with in_mode(source, CPR_TRANSFER):
        devices = devices_of(guest)
        operation = source.history.invoke(source.name, "migrate", {"to": spec.name, "stream": CPR_TRANSFER})
        try:
            new = testbed.launch(spec, source=source, on_started=lambda new: _migrate(source, new, main, cpr))
            new.qmp.execute("migrate-incoming", {"uri": f"unix:{main}"}, watch=new.watch_process)
        except HarnessError as exc:
            operation.fail(exc.message)
            raise
        return Outgoing(guest, source, new, operation, UNIX, devices).wait_completed()


def _destination(source: Machine, number: int, *incoming: str) -> MachineSpec:
    spec = source.spec.destination(f"destination-{number}", plugged=frozenset(source.plugged))
    extra = (*source.spec.extra, *incoming)
    return replace(spec, memory_file=source.spec.memory_file, extra=extra)


def _migrate(source: Machine, new: Machine, main: Path, cpr: Path) -> None:
    """Send ``migrate`` when the new QEMU listens to its cpr channel.

    :raises QemuDied: when either has ended.
    """

    def watch() -> None:
        source.watch()
        new.watch_process()

    def wait(condition: Callable[[], bool], what: str) -> None:
        source.wait_until(condition, what=what, timeout_s=_LISTENS_TIMEOUT_S, watch=watch)

    wait(cpr.exists, f"the new QEMU to listen on {cpr.name}")
    channels = [_channel("main", main), _channel("cpr", cpr)]

    def accepted() -> bool:
        try:
            source.qmp.execute("migrate", {"channels": channels}, watch=source.watch)
        except QemuError as exc:
            if "Connection refused" not in exc.desc:
                raise
            return False  # The socket is bound, but the new QEMU does not listen yet.
        return True

    wait(accepted, "the new QEMU to accept the cpr channel")


def _channel(kind: str, path: Path) -> Mapping[str, object]:
    return {"channel-type": kind, "addr": {"transport": "socket", "type": "unix", "path": str(path)}}


def _execute(migration: Migration, testbed: Testbed) -> Machine:
    guest, source = migration.guest, migration.guest.machine
    number = len(testbed.machines)
    state = testbed.folder / f"state-{number}"
    spec = _destination(source, number)
    devices = devices_of(guest)
    operation = source.history.invoke(source.name, "migrate", {"to": spec.name, "stream": CPR_EXEC})

    def request(command: list[str]) -> None:
        with in_mode(source, CPR_EXEC, {"cpr-exec-command": command}):
            source.qmp.execute("migrate", {"uri": f"file:{state}"}, watch=source.watch)
            source.wait_until(
                lambda: _has_executed(source),
                what=f"QEMU {source.name!r} to execute the new QEMU",
                timeout_s=MIGRATE_TIMEOUT_S,
            )

    try:
        new = testbed.execute(source, spec, request)
        new.qmp.execute("migrate-incoming", {"uri": f"file:{state}"}, watch=new.watch_process)
        new.wait_until(
            lambda: new.qmp.execute("query-status", watch=new.watch_process)["status"] == "running",
            what=f"{new.name} to be running",
            timeout_s=MIGRATE_TIMEOUT_S,
            watch=new.watch_process,
        )
        guest.moved_to(new)
        arrived = devices_of(guest)
    except HarnessError as exc:
        operation.info(exc.message)
        raise
    operation.ok()
    expect_same_devices(source, new, devices, arrived)
    return new


def _has_executed(source: Machine) -> bool:
    """Whether the connection to the old QEMU's monitor is gone; ``execve(2)`` closes it.

    :raises Violation: when the migration failed instead.
    """
    try:
        answer = source.qmp.execute("query-migrate", watch=source.watch)
    except QmpLost:
        return True
    if answer.get("status") == "failed":
        raise Violation(f"the migration of {source.name} failed: {answer.get('error-desc', 'no error-desc')}")
    return False
