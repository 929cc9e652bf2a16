"""The deletion of a device, as QEMU reports it: two DEVICE_DELETED events, and no QOM object left."""

from __future__ import annotations

from types import TracebackType

from harness.errors import Violation, WaitTimeout
from harness.qemu.machine import Machine

PERIPHERAL = "/machine/peripheral"


class Deletion:
    """Observes the deletion of one virtio PCI device; create it before the command that deletes it.

    An unplug emits DEVICE_DELETED twice, first for the device's ``virtio-backend``, which is an object of its
    own (QEMU: ``hw/core/qdev.c``, ``device_unparent``). The events are matched by path, as that one has no
    ``device``.
    """

    def __init__(self, machine: Machine, device_id: str) -> None:
        self._machine, self._id = machine, device_id
        path = f"{PERIPHERAL}/{device_id}"
        self._paths = (f"{path}/virtio-backend", path)
        self._events = machine.qmp.listen("DEVICE_DELETED")

    def __enter__(self) -> Deletion:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening for the deletion of a device."""
        self._events.close()

    @property
    def seen(self) -> list[str]:
        """The QOM paths of the device and its backend that were reported deleted so far, in this order."""
        return [str(e.data["path"]) for e in self._events.events if e.data.get("path") in self._paths]

    @property
    def reported(self) -> bool:
        """Whether both events of the deletion were reported."""
        return set(self.seen) == set(self._paths)

    def present(self) -> bool:
        """Whether ``/machine/peripheral`` still has the device (``qom-list``)."""
        machine = self._machine
        children = machine.qmp.execute("qom-list", {"path": PERIPHERAL}, watch=machine.watch)
        return any(child["name"] == self._id for child in children)

    def confirm(self) -> None:
        """After both events: check that the device's object is gone, and record the device as deleted.

        :raises Violation: when the object still exists.
        """
        if self.present():
            raise Violation(f"{self._id} was reported deleted, but {PERIPHERAL} still has it")
        self._machine.plugged.discard(self._id)
        self._machine.deleted.add(self._id)

    def wait_reported(self, *, timeout_s: float) -> None:
        """Wait for both events of a device's deletion.

        :param timeout_s: seconds, before scaling.
        :raises WaitTimeout: when one of them does not arrive.
        """
        self._events.wait(
            lambda _: self.reported,
            what=f"DEVICE_DELETED of {self._id} and of its virtio-backend",
            timeout_s=self._machine.timeout_scale.seconds(timeout_s),
            watch=self._machine.watch,
        )

    def wait(self, *, timeout_s: float) -> None:
        """Wait for both events of a device's deletion, and :meth:`confirm`.

        :param timeout_s: seconds, before scaling.
        :raises Violation: when one of them does not arrive, or the object still exists.
        """
        try:
            self.wait_reported(timeout_s=timeout_s)
        except WaitTimeout as exc:
            if not self.reported:  # The last event may have come at the deadline.
                raise Violation(
                    f"{self._id} was expected to be deleted, but only {self.seen} were reported deleted",
                    details=exc.message,
                ) from exc
        self.confirm()
