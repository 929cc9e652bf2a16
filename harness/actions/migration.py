"""``migrate``: to a destination derived from its source, or refused while a share is mounted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from harness.actions.stream import PAUSED, SLOW_BANDWIDTH, UNIX, Stream
from harness.deadline import check_during
from harness.errors import HarnessError, QemuError, QmpLost, Violation
from harness.guest.guest import Guest
from harness.history import Operation
from harness.qemu.bandwidth import bandwidth, limit_bandwidth
from harness.qemu.blockers import blocked_reasons, lists_blocked_reasons
from harness.qemu.machine import Machine
from harness.qemu.migration_socket import discarded_stream, stream_to_file
from harness.qemu.process import wait_interrupts_taken
from harness.qemu.spec import MachineSpec, Share
from harness.testbed import Testbed

#: Seconds, before scaling.
MIGRATE_TIMEOUT_S = 20.0
#: Bytes a second: in effect unlimited. QEMU's default is 32 or 128 MiB/s.
_MAX_BANDWIDTH = 1 << 34
_DEVICES = (
    "for d in /sys/bus/virtio/drivers/9pnet_virtio/virtio*; do [ ! -e $d ] || "
    """echo $(tr -d '\\0' < $d/mount_tag) $(hexdump -v -n 4 -e '1/1 "%02x"' $d/../config); done"""
)


def blocked_reason(share: Share) -> str:
    """QEMU's text when a mounted share blocks migration (QEMU: ``hw/9pfs/9p.c``, ``v9fs_attach``).

    The path is ``NULL`` for an fsdev driver that exports no folder.
    """
    path = share.path if share.fsdriver == "local" else "NULL"
    return (
        f"Migration is disabled when VirtFS export path '{path}' is mounted in the guest "
        f"using mount_tag '{share.mount_tag}'"
    )


class Outgoing:
    """A ``migrate`` that was accepted; made by :meth:`Migration.request_migrate`."""

    def __init__(
        self,
        guest: Guest,
        source: Machine,
        destination: Machine,
        op: Operation,
        stream: Stream,
        devices: str | None,
    ) -> None:
        self.guest, self.source, self.destination = guest, source, destination
        self._op, self._stream, self._devices = op, stream, devices

    def observe(self, *, while_: Callable[[], object], window_s: float = 1.0) -> bool:
        """Whether the migration completes within a window; returns as soon as it has completed.

        :param while_: the witness of the condition under which it is observed. It is called at both ends of
            the window and has to raise when the condition no longer holds.
        :param window_s: seconds, before scaling.
        """
        while_()
        check_during(self.source.timeout_scale.seconds(window_s), self._watch, until=self._finished)
        while_()
        finished = self._finished()
        self.source.history.note(self.source.name, "migrate:observed", {"completed": finished})
        return finished

    def switch_over(self) -> None:
        """``migrate-continue`` of a migration that waits before the switch-over (:data:`.stream.PAUSED`)."""
        self.source.qmp.execute("migrate-continue", {"state": "pre-switchover"}, watch=self.source.watch)

    def cancel(self) -> None:
        """``migrate_cancel``: the guest resumes in the source, and the destination exits with 1.

        :raises Violation: when the migration completes nevertheless, or the destination crashes.
        """
        self.destination.expect_exit("its source cancels the migration")
        self.source.qmp.execute("migrate_cancel", watch=self.source.watch)
        wait_status(self.source, "cancelled")
        wait_load_failed(self.destination)
        self._op.info("cancelled")

    def wait_arrived(self, *, status: str = "running") -> Machine:
        """Wait until the guest is in the destination; the source is not ended.

        :param status: the run state that the destination has to reach: ``running``, or ``paused`` if the
            source was paused.
        :returns: the destination, which is the guest's machine from now on.
        :raises Violation: when the migration fails, or one of the two QEMUs dies.
        """
        try:
            self._wait(self._finished, f"the migration of {self.source.name} to complete", self.source)
            self._stream.deliver(self.source, self.destination)
            self._wait(
                lambda: self._arrived(status), f"{self.destination.name} to be {status}", self.destination
            )
            self.guest.moved_to(self.destination)
        except HarnessError as exc:
            self._op.info(exc.message)
            raise
        return self.destination

    def wait_completed(self) -> Machine:
        """Wait until the guest runs in the destination and finds its 9p devices there, then end the source.

        :returns: the destination, which is the guest's machine from now on.
        :raises Violation: when the migration fails, one of the two QEMUs dies, or a device did not arrive.
        """
        self.wait_arrived()
        try:
            arrived = devices_of(self.guest)
        except HarnessError as exc:
            self._op.info(exc.message)
            raise
        self._op.ok()
        expect_same_devices(self.source, self.destination, self._devices, arrived)
        if self.source.running:
            self.source.quit()
        return self.destination

    def _wait(self, condition: Callable[[], bool], what: str, machine: Machine) -> None:
        machine.wait_until(condition, what=what, timeout_s=MIGRATE_TIMEOUT_S, watch=self._watch)

    def _watch(self) -> None:
        self.destination.watch_process()
        self.source.watch()

    def _finished(self) -> bool:
        answer = self.source.qmp.execute("query-migrate", watch=self.source.watch)
        status = answer.get("status")
        if status in ("failed", "cancelled"):
            why = answer.get("error-desc", "no error-desc")
            # The source reports at most a broken pipe. A destination that cannot load prints why and exits.
            raise self.destination.root_cause(
                Violation(f"the migration of {self.source.name} {status}: {why}")
            )
        return bool(status == "completed")

    def _arrived(self, status: str) -> bool:
        answer = self.destination.qmp.execute("query-status", watch=self._watch)
        if answer["status"] == "running" and status != "running":
            raise Violation(f"{self.destination.name} is running, and has to be {status}")
        return bool(answer["status"] == status)


def expect_same_devices(source: Machine, destination: Machine, before: str | None, arrived: str) -> None:
    """Assert that the guest has the devices in ``destination`` that it had in ``source``.

    :param before: :func:`devices_of` the guest before the migration. :param arrived: and after it.
    :raises Violation: when it has others.
    """
    if arrived != before:
        raise Violation(
            f"the guest has other 9p devices in {destination.name} than in {source.name}",
            details=f"before:\n{before}after:\n{arrived}",
        )


class Migration:
    """Migrates one guest from machine to machine."""

    def __init__(self, guest: Guest, testbed: Testbed) -> None:
        self.guest, self.testbed = guest, testbed

    def require(self, stream: Stream) -> None:
        """Check that the guest's QEMU supports ``stream``; nothing is changed.

        To be called before a device is plugged. :meth:`migrate` reports what only a destination lacks.

        :raises Unsupported: when it does not.
        """
        stream.check(self.guest.machine)

    def migrate(
        self, stream: Stream = UNIX, *, change: Callable[[MachineSpec], MachineSpec] = lambda spec: spec
    ) -> Machine:
        """Migrate the guest to a destination, wait until it answers there, and end the source.

        :param change: changes the destination's spec, which is otherwise derived from the source's.
        :returns: the destination, which is the guest's machine from now on.
        :raises QemuError: when ``migrate`` is refused.
        :raises Unsupported: when one of the two QEMUs does not support ``stream``.
        :raises Violation: when the migration fails, or one of the two QEMUs dies.
        """
        return self.request_migrate(stream, change=change).wait_completed()

    def request_migrate(
        self,
        stream: Stream = UNIX,
        *,
        change: Callable[[MachineSpec], MachineSpec] = lambda spec: spec,
        stopped: bool = False,
    ) -> Outgoing:
        """Launch the destination, send ``migrate``, and return without waiting for its end.

        :param change: as for :meth:`migrate`.
        :param stopped: the guest is stopped, so it cannot list the devices that have to arrive.
        :raises QemuError: when ``migrate`` is refused.
        :raises Unsupported: when one of the two QEMUs does not support ``stream``.
        """
        source = self.guest.machine
        return self._send(self.testbed.launch_destination(source, change), stream, stopped=stopped)

    def _send(self, destination: Machine, stream: Stream = UNIX, *, stopped: bool = False) -> Outgoing:
        source = self.guest.machine
        stream.prepare(source, destination)
        limit_bandwidth(source, _MAX_BANDWIDTH)
        uri = stream.open(source, destination)
        devices = None if stopped else devices_of(self.guest)
        wait_interrupts_taken(source)
        op = source.history.invoke(source.name, "migrate", {"to": destination.name, "stream": stream.name})
        try:
            source.qmp.execute("migrate", {"uri": uri}, watch=source.watch)
            stream.begun(source)
        except HarnessError as exc:
            op.fail(exc.message)
            raise
        return Outgoing(self.guest, source, destination, op, stream, devices)

    def expect_not_loaded(self, change: Callable[[MachineSpec], MachineSpec]) -> str:
        """Assert that a destination cannot load the stream and exits with 1; the guest resumes in the source.

        :param change: changes the destination's spec so that it cannot load the stream.
        :returns: the destination's output.
        :raises Violation: when the destination loads the stream, or crashes.
        """
        source = self.guest.machine
        destination = self.testbed.launch_destination(source, change)
        destination.expect_exit("a stream that it cannot load")
        self._send(destination)
        output = wait_load_failed(destination)
        # The source may have sent everything before the destination exited.
        wait_status(source, "failed", "completed")
        source.qmp.execute("cont", watch=source.watch)
        self.guest.succeed("true")
        return output

    @contextmanager
    def before_switchover(self) -> Iterator[Outgoing]:
        """A migration that waits before the switch-over, with its guest stopped.

        At the end of the block it is cancelled, unless the block has cancelled or completed it. After a
        cancel the guest resumes in the source.

        :raises Unsupported: when QEMU has no ``pause-before-switchover`` (it came with 2.11).
        """
        source = self.guest.machine
        outgoing = self.request_migrate(PAUSED)
        yield outgoing
        if self.guest.machine is source and _status(source) == "pre-switchover":
            outgoing.cancel()
            PAUSED.undo(source)

    def expect_refused(self, share: Share) -> None:
        """Assert that ``migrate`` is refused because ``share`` is mounted, and that no migration starts.

        :raises Violation: when it is accepted, or refused with another text than :func:`blocked_reason`'s.
        """
        machine = self.guest.machine
        before = _status(machine)
        try:
            machine.qmp.execute("migrate", {"uri": "exec:cat > /dev/null"}, watch=machine.watch)
        except QemuError as exc:
            expect_reason(exc, share)
        else:
            raise Violation(f"migrate was accepted while {share.mount_tag!r} was mounted")
        if (after := _status(machine)) != before:
            raise Violation(f"migrate was refused, but the migration status went from {before} to {after}")
        self.expect_blocked_by(share)

    def under_way(self) -> AbstractContextManager[None]:
        """A migration without a destination that is active during the block: see :func:`under_way`."""
        return under_way(self.guest.machine)

    def expect_blocked_by(self, *mounted: Share) -> None:
        """Assert that every mounted share blocks migration: see :func:`expect_blocked_by`."""
        expect_blocked_by(self.guest.machine, *mounted)

    def expect_not_blocked(self) -> None:
        """:raises Violation: when ``query-migrate`` lists a reason."""
        self.expect_blocked_by()


def devices_of(guest: Guest) -> str:
    """One line for each 9p device of the guest: its mount tag, and its PCI vendor and device id.

    The guest has the tag in its memory; it reads the ids from the PCI configuration space.
    """
    return guest.succeed(_DEVICES)


def wait_load_failed(destination: Machine) -> str:
    """Wait until a destination has failed to load its stream and exited with 1.

    The caller has called :meth:`.Machine.expect_exit` before.

    :returns: the destination's output.
    :raises Violation: when it loads the stream, or crashes.
    """
    destination.wait_until(
        lambda: not destination.running,
        what=f"{destination.name} to fail to load its stream and exit",
        timeout_s=MIGRATE_TIMEOUT_S,
        watch=lambda: _expect_not_loaded(destination),
    )
    destination.watch_process()
    if destination.returncode != 1:
        raise Violation(
            f"{destination.name} failed to load its stream and exited with {destination.returncode}, not 1"
        )
    return destination.artifacts.qemu.read_text(errors="replace").strip()


def _expect_not_loaded(destination: Machine) -> None:
    try:
        status = destination.qmp.execute("query-status")["status"] if destination.running else "inmigrate"
    except QmpLost:
        return
    if status != "inmigrate":
        raise Violation(f"{destination.name} is {status}, but has to fail to load its stream")


def migrate_into(machine: Machine, path: Path) -> None:
    """``migrate`` into the file ``path``; the machine is then stopped, and ``cont`` resumes it.

    :raises QemuError: when ``migrate`` is refused. :raises SetupError: when the file cannot be written.
    """
    before = bandwidth(machine)
    limit_bandwidth(machine, _MAX_BANDWIDTH)
    with stream_to_file(machine, path) as uri:
        machine.qmp.execute("migrate", {"uri": uri}, watch=machine.watch)
        wait_status(machine, "completed")
    limit_bandwidth(machine, before)


@contextmanager
def under_way(machine: Machine) -> Iterator[None]:
    """A migration without a destination that is active during the context, and cancelled at its end.

    Its bandwidth is so low that sending the guest's memory would take minutes. (A migration whose stream
    nobody reads would also stay active, but QEMU then waits inside an RCU section, and a refused
    ``device_add`` drains RCU.)

    :raises QemuError: when ``migrate`` is refused.
    :raises Violation: when the migration ends before the context does.
    """
    before = bandwidth(machine)
    limit_bandwidth(machine, SLOW_BANDWIDTH)
    with discarded_stream(machine) as uri:
        machine.qmp.execute("migrate", {"uri": uri}, watch=machine.watch)
        try:
            wait_status(machine, "active")
            yield
        finally:
            status = _status(machine)
            machine.qmp.execute("migrate_cancel", watch=machine.watch)
            if status not in ("completed", "failed"):  # These never become "cancelled".
                wait_status(machine, "cancelled")
            limit_bandwidth(machine, before)
        if status != "active":
            raise Violation(f"the migration of {machine.name} is {status}, not active")


def _status(machine: Machine) -> str | None:
    """``query-migrate``'s ``status`` of this migration; ``None`` before the first migration."""
    answer = machine.qmp.execute("query-migrate", watch=machine.watch)
    return None if "status" not in answer else str(answer["status"])


def wait_status(machine: Machine, *wanted: str) -> None:
    """Wait until ``query-migrate``'s status is one of ``wanted``."""
    machine.wait_until(
        lambda: _status(machine) in wanted,
        what=f"the migration of {machine.name} to be {' or '.join(wanted)}",
        timeout_s=MIGRATE_TIMEOUT_S,
    )


def expect_reason(refusal: QemuError, share: Share) -> None:
    """Assert that ``refusal`` is the one that a mounted ``share`` causes.

    :raises Violation: when it has another text.
    """
    if refusal.desc != blocked_reason(share):
        raise Violation(
            f"refused for another reason than the mounted {share.mount_tag!r}: {refusal.desc}",
            details=f"expected: {blocked_reason(share)}",
        )


def expect_blocked_by(machine: Machine, *mounted: Share) -> None:
    """Assert that every mounted share blocks migration, and nothing else does.

    A QEMU before 6.0 reports one reason only; there it is enough that a mounted share is the reason.

    :raises Violation: unless ``blocked-reasons`` has one reason for each of ``mounted``, and no other.
    """
    expected, reasons = [blocked_reason(share) for share in mounted], blocked_reasons(machine)
    if not lists_blocked_reasons(machine) and reasons and reasons[0] in expected:
        return  # This QEMU reports one of several reasons only.
    if sorted(reasons) != sorted(expected):
        tags = ", ".join(share.mount_tag for share in mounted)
        what = f"blocked-reasons does not name exactly {tags}" if tags else "blocked with nothing mounted"
        raise Violation(f"migration of {machine.name}: {what}: {reasons}")
