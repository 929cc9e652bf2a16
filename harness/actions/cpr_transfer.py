"""Live update: a migration in mode ``cpr-transfer`` to a new QEMU on the same host (QEMU 10.0).

The guest's memory stays where it is: both QEMUs map the same file. A second channel, *cpr*, carries what the
new QEMU needs before it makes its devices. It reads that first of all, and opens its monitor afterwards. So
``migrate`` comes before the new QEMU's QMP (QEMU: ``qapi/migration.json``, ``MigMode``;
``migration/cpr-transfer.c``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from harness.actions.migration import Migration, Outgoing, devices_of
from harness.actions.modes import CPR_TRANSFER, in_mode, require_mode
from harness.actions.stream import UNIX
from harness.errors import HarnessError, QemuError
from harness.qemu.machine import Machine
from harness.qemu.spec import MachineSpec, MemoryFile
from harness.testbed import Testbed

#: QEMU's own blocks of memory, such as ROMs. Those that are not shared block the mode.
_SHARE_OTHER_MEMORY = ("-machine", "aux-ram-share=on")
#: Seconds, before scaling.
_LISTENS_TIMEOUT_S = 20.0


def require(testbed: Testbed) -> None:
    """Check that this QEMU has the mode; one that has not lacks the arguments of :func:`updatable` as well.

    :raises Unsupported: when it does not, with QEMU's reason.
    """
    probe = testbed.launch(replace(testbed.spec(name="probe").without_kernel(), extra=("-S",)))
    try:
        require_mode(probe, CPR_TRANSFER)
    finally:
        probe.quit()


def updatable(testbed: Testbed, *, plugged: Iterable[str] = ()) -> MachineSpec:
    """The spec of a source with its guest's memory in a file, which a second QEMU can map.

    :param plugged: the ids of the devices that are on its command line.
    """
    memory = MemoryFile(testbed.folder / "memory", share=True)
    spec = testbed.spec(plugged=frozenset(plugged))
    return replace(spec, memory_file=memory, extra=_SHARE_OTHER_MEMORY)


def update(migration: Migration, testbed: Testbed) -> Machine:
    """Migrate the guest of an :func:`updatable` machine to a new QEMU in mode ``cpr-transfer``.

    The old QEMU is ended.

    :returns: the new QEMU, which is the guest's machine from now on.
    :raises QemuError: when ``migrate`` is refused. :raises Unsupported: when QEMU does not have the mode.
    :raises Violation: when the migration fails, or one of the two QEMUs dies.
    """
    guest, source = migration.guest, migration.guest.machine
    number = len(testbed.machines)
    main, cpr = (testbed.folder / f"{name}-{number}.sock" for name in ("main", "cpr"))
    incoming = ("-incoming", f"cpr,addr.transport=socket,addr.type=unix,addr.path={cpr}")
    spec = source.spec.destination(f"destination-{number}", plugged=frozenset(source.plugged))
    spec = replace(spec, memory_file=source.spec.memory_file, extra=(*source.spec.extra, *incoming))
    with in_mode(source, CPR_TRANSFER):
        devices = devices_of(guest)
        operation = source.history.invoke(source.name, "migrate", {"to": spec.name, "stream": CPR_TRANSFER})
        try:
            new = testbed.launch(spec, source=source, on_started=lambda: _migrate(source, main, cpr))
            new.qmp.execute("migrate-incoming", {"uri": f"unix:{main}"}, watch=new.watch_process)
        except HarnessError as exc:
            operation.fail(exc.message)
            raise
        return Outgoing(guest, source, new, operation, UNIX, devices).wait_completed()


def _migrate(source: Machine, main: Path, cpr: Path) -> None:
    """Send ``migrate`` when the new QEMU listens to its cpr channel."""
    source.wait_until(cpr.exists, what=f"the new QEMU to listen on {cpr.name}", timeout_s=_LISTENS_TIMEOUT_S)
    channels = [_channel("main", main), _channel("cpr", cpr)]

    def accepted() -> bool:
        try:
            source.qmp.execute("migrate", {"channels": channels}, watch=source.watch)
        except QemuError as exc:
            if "Connection refused" not in exc.desc:
                raise
            return False  # The socket is bound, but the new QEMU does not listen yet.
        return True

    source.wait_until(accepted, what="the new QEMU to accept the cpr channel", timeout_s=_LISTENS_TIMEOUT_S)


def _channel(kind: str, path: Path) -> Mapping[str, object]:
    return {"channel-type": kind, "addr": {"transport": "socket", "type": "unix", "path": str(path)}}
