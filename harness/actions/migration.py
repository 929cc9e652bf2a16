"""``migrate``: to a successor derived from its source, or refused by the share that is mounted."""

from __future__ import annotations

from harness.deadline import wait_until
from harness.errors import QemuError, Violation
from harness.guest.guest import Guest
from harness.guest.lab import Lab
from harness.qemu.machine import Machine
from harness.qemu.spec import Share

#: Seconds, before scaling.
MIGRATE_TIMEOUT_S = 20.0
#: Bytes a second: as fast as it goes. QEMU's own default keeps to 32 or 128 MiB/s.
_MAX_BANDWIDTH = 1 << 34


def blocked_reason(share: Share) -> str:
    """The text with which a mounted share refuses migration (QEMU: ``hw/9pfs/9p.c``, ``v9fs_attach``)."""
    return (
        f"Migration is disabled when VirtFS export path '{share.path}' is mounted in the guest "
        f"using mount_tag '{share.mount_tag}'"
    )


class Migration:
    """Migrates one guest from machine to machine."""

    def __init__(self, guest: Guest, lab: Lab) -> None:
        self.guest, self.lab = guest, lab

    def migrate(self) -> Machine:
        """Migrate the guest to a successor of its machine, end the source, and wait for the guest's answer.

        :returns: the successor, which is the guest's machine from now on.
        :raises QemuError: when ``migrate`` is refused.
        :raises Violation: when it fails, or one of the two QEMUs dies.
        """
        source = self.guest.machine
        successor = self.lab.launch_successor(source)
        with self.lab.history.operation(source.name, "migrate", {"to": successor.name}):
            self._transfer(source, successor)
            self.guest.moved_to(successor)
            self.guest.succeed("true")
        source.quit()
        return successor

    def _transfer(self, source: Machine, successor: Machine) -> None:
        uri = f"unix:{successor.folder / 'incoming.sock'}"
        successor.qmp.execute("migrate-incoming", {"uri": uri}, watch=successor.watch_process)
        source.qmp.execute("migrate-set-parameters", {"max-bandwidth": _MAX_BANDWIDTH})
        source.qmp.execute("migrate", {"uri": uri}, watch=source.watch)

        def watch() -> None:
            successor.watch_process()
            source.watch()

        timeout_s = source.pace.seconds(MIGRATE_TIMEOUT_S)
        wait_until(
            lambda: self._finished(source, successor),
            what=f"the migration of {source.name} to complete",
            timeout_s=timeout_s,
            watch=watch,
            artifacts=source.artifacts.folder,
        )
        wait_until(
            lambda: successor.qmp.execute("query-status", watch=watch)["status"] == "running",
            what=f"{successor.name} to run",
            timeout_s=timeout_s,
            watch=watch,
            artifacts=successor.artifacts.folder,
        )

    def _finished(self, source: Machine, successor: Machine) -> bool:
        answer = source.qmp.execute("query-migrate", watch=source.watch)
        status = answer.get("status")
        if status in ("failed", "cancelled"):
            why = answer.get("error-desc", "no error-desc")
            # The source knows a broken pipe at most; a destination that gave up says why, and exits.
            raise successor.blame(Violation(f"the migration of {source.name} {status}: {why}"))
        return bool(status == "completed")

    def blocked_reasons(self) -> list[str]:
        """``query-migrate``'s ``blocked-reasons`` (QEMU: ``qapi/migration.json``, since 6.0)."""
        machine = self.guest.machine
        answer = machine.qmp.execute("query-migrate", watch=machine.watch)
        return list(answer.get("blocked-reasons", []))

    def expect_refused(self, share: Share) -> None:
        """Assert that ``migrate`` is refused by ``share``, in QEMU's own words, and stays unstarted.

        :raises Violation: when it is accepted, or refused for another reason.
        """
        machine = self.guest.machine
        try:
            machine.qmp.execute("migrate", {"uri": "exec:cat > /dev/null"}, watch=machine.watch)
        except QemuError as exc:
            expect_reason(exc, share)
        else:
            raise Violation(f"migrate was accepted while {share.mount_tag!r} was mounted")
        self.expect_blocked_by(share)

    def expect_blocked_by(self, *mounted: Share) -> None:
        """:raises Violation: unless ``blocked-reasons`` has one for each of ``mounted``, and no other."""
        expected, reasons = [blocked_reason(share) for share in mounted], self.blocked_reasons()
        if sorted(reasons) != sorted(expected):
            tags = ", ".join(share.mount_tag for share in mounted)
            what = f"blocked-reasons does not name {tags} alone" if tags else "blocked with nothing mounted"
            raise Violation(f"migration of {self.guest.machine.name}: {what}: {reasons}")

    def expect_not_blocked(self) -> None:
        """:raises Violation: when ``query-migrate`` lists a reason."""
        self.expect_blocked_by()


def expect_reason(refusal: QemuError, share: Share) -> None:
    """:raises Violation: when ``refusal`` is not the one that a mounted ``share`` causes."""
    if refusal.desc != blocked_reason(share):
        raise Violation(
            f"refused for another reason than the mounted {share.mount_tag!r}: {refusal.desc}",
            details=f"expected: {blocked_reason(share)}",
        )
