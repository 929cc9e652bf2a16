"""``savevm`` and ``loadvm``, and the ``snapshot-save`` and ``snapshot-load`` jobs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from harness.actions.migration import expect_reason
from harness.errors import QemuError, Unsupported, Violation
from harness.guest.guest import Guest
from harness.qemu.argv import DISK_NODE
from harness.qemu.process import wait_interrupts_taken
from harness.qemu.schema import has_command, require_command
from harness.qemu.spec import MachineSpec, Share
from harness.testbed import Testbed

#: Seconds, before scaling. QEMU answers only after it has written the whole snapshot.
SNAPSHOT_TIMEOUT_S = 30.0


class Snapshot:
    """Saves and restores the state of one guest's machine."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest

    def savevm(self, tag: str) -> None:
        """HMP ``savevm``.

        :raises QemuError: when it is refused; ``desc`` is what HMP printed.
        """
        wait_interrupts_taken(self.guest.machine)
        self._hmp(f"savevm {tag}")

    def loadvm(self, tag: str) -> None:
        """HMP ``loadvm``; the guest has the state of the snapshot, and its channels are reconnected.

        :raises QemuError: when it is refused; ``desc`` is what HMP printed.
        """
        self._hmp(f"loadvm {tag}")
        self.guest.disconnect()
        self.guest.succeed("true")

    def load_elsewhere(
        self, testbed: Testbed, tag: str, *, change: Callable[[MachineSpec], MachineSpec] = lambda spec: spec
    ) -> None:
        """``quit``, then ``loadvm`` in another machine with the same disk; the guest resumes there.

        :param change: changes that machine's spec, which is otherwise derived from the present one.
        :raises QemuError: when that machine cannot load the snapshot.
        """
        source = self.guest.machine
        self.guest.disconnect()  # The snapshot's guest does not know the present sessions.
        source.quit()
        # -S: the guest must not begin to boot before the snapshot is loaded.
        destination = testbed.launch_destination(
            source, lambda spec: change(replace(spec, incoming=False, extra=(*spec.extra, "-S")))
        )
        self.guest.moved_to(destination)
        self._hmp(f"loadvm {tag}")
        with destination.qmp.listen("RESUME") as events:
            destination.qmp.execute("cont", watch=destination.watch)
            timeout_s = destination.timeout_scale.seconds(SNAPSHOT_TIMEOUT_S)
            events.wait(what="the guest to resume", timeout_s=timeout_s, watch=destination.watch)
        self.guest.succeed("true")

    @property
    def has_jobs(self) -> bool:
        """Whether this QEMU has the ``snapshot-save`` and ``snapshot-load`` jobs."""
        return has_command(self.guest.machine, "snapshot-save")

    def require_jobs(self) -> None:
        """Check that this QEMU has the jobs. To be called before a device is plugged.

        :raises Unsupported: when it does not.
        """
        require_command(self.guest.machine, "snapshot-save", "the jobs came with 6.0")

    def snapshot_save(self, tag: str) -> None:
        """The ``snapshot-save`` job (QEMU: ``qapi/migration.json``, since 6.0).

        :raises QemuError: when the job ends with an error.
        :raises Unsupported: when this QEMU has no such job.
        """
        wait_interrupts_taken(self.guest.machine)
        self._job("snapshot-save", tag)

    def snapshot_load(self, tag: str) -> None:
        """The ``snapshot-load`` job; as :meth:`loadvm`."""
        self._job("snapshot-load", tag)
        self.guest.disconnect()
        self.guest.succeed("true")

    def expect_refused(self, share: Share) -> None:
        """Assert that ``savevm`` and ``snapshot-save`` (if this QEMU has it) are refused while mounted.

        :raises Violation: when one of them is accepted, or refused for another reason than the mounted share.
        """
        self._expect_refused(self.savevm, share)
        try:
            self._expect_refused(self.snapshot_save, share)
        except Unsupported as exc:
            machine = self.guest.machine
            machine.history.note(machine.name, "snapshot:no-job", {"why": exc.message})

    def _expect_refused(self, save: Callable[[str], None], share: Share) -> None:
        try:
            save("refused")
        except QemuError as exc:
            expect_reason(exc, share)
        else:
            raise Violation(f"{save.__name__} was accepted while {share.mount_tag!r} was mounted")
        machine = self.guest.machine
        status = machine.qmp.execute("query-status", watch=machine.watch)["status"]
        if status != "running":
            raise Violation(f"{save.__name__} was refused, but left the guest {status}")

    def _hmp(self, command_line: str) -> None:
        machine = self.guest.machine
        timeout_s = machine.timeout_scale.seconds(SNAPSHOT_TIMEOUT_S)
        printed = machine.qmp.hmp(command_line, timeout_s=timeout_s, watch=machine.watch).strip()
        if printed:
            sent = {"command-line": command_line}
            raise QemuError(machine.name, sent, printed, printed.removeprefix("Error: "))

    def _job(self, command: str, tag: str) -> None:
        machine = self.guest.machine
        job_id = f"{command}-{tag}"
        arguments = {"job-id": job_id, "tag": tag, "vmstate": DISK_NODE, "devices": [DISK_NODE]}
        try:
            machine.qmp.execute(command, arguments, watch=machine.watch)
        except QemuError as exc:
            if exc.command_not_found:
                raise Unsupported(f"this QEMU has no {command} job (they came with 6.0)") from exc
            raise

        def concluded() -> dict[str, Any] | None:
            jobs = machine.qmp.execute("query-jobs", watch=machine.watch)
            return next((j for j in jobs if j["id"] == job_id and j["status"] == "concluded"), None)

        job = machine.wait_until(
            concluded, what=f"the job {job_id} to conclude", timeout_s=SNAPSHOT_TIMEOUT_S
        )
        machine.qmp.execute("job-dismiss", {"id": job_id})
        if "error" in job:
            sent = {"execute": command, "arguments": arguments}
            raise QemuError(machine.name, sent, job, job["error"])
