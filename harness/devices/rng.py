"""``virtio-rng-pci``: an entropy device whose bytes the harness writes to a FIFO."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from harness.errors import GuestError, UsageError, Violation
from harness.guest.commands import Commands
from harness.guest.device import sysfs_folder
from harness.guest.guest import Guest
from harness.guest.job import Job
from harness.qemu.machine_types.machine_type import MachineType
from harness.qemu.spec import Value
from harness.testbed import Testbed

_CURRENT = "/sys/class/misc/hw_random/rng_current"
#: More than the guest's driver and its entropy thread request at once, which is the length of a cache line
#: each: 64 bytes, on s390x 256 (kernel: ``drivers/char/hw_random``). Less than a FIFO holds.
_FED_BYTES = 4096
_READ_BYTES = 16


class RngDevice:
    """An entropy device with an ``rng-random`` backend; made by :meth:`create`.

    The backend answers a request when the FIFO has bytes, and waits, without a limit, while it has none
    (QEMU: ``backends/rng-random.c``, ``entropy_available``).
    """

    modules: tuple[str, ...] = ("virtio_rng",)

    def __init__(self, id: str, slot: int, path: Path) -> None:
        self.id, self.slot, self.path = id, slot, path
        self._pattern = os.urandom(_READ_BYTES)
        # Opened for reading and writing, so that the FIFO always has a reader and a writer.
        self._fifo = os.open(path, os.O_RDWR | os.O_NONBLOCK)

    @classmethod
    def create(cls, testbed: Testbed, *, slot: int = 0) -> RngDevice:
        """Make an entropy device with a new FIFO in the testbed's folder."""
        path = testbed.folder / f"rng{slot}.fifo"
        os.mkfifo(path)
        made = cls(f"rng{slot}", slot, path)
        testbed.attach(made)
        return made

    def close(self) -> None:
        """Close the FIFO of the entropy device."""
        os.close(self._fifo)

    def check(self) -> None:
        """Check that the FIFO of the entropy device exists."""
        if not self.path.exists() or not stat.S_ISFIFO(self.path.stat().st_mode):
            raise UsageError(f"entropy device {self.id}: {self.path}: no FIFO")

    def declared(self) -> Iterator[tuple[str, Mapping[str, Value]]]:
        """The entropy device's backend (``-object rng-random``)."""
        yield "-object", {"": "rng-random", "id": f"backend-{self.id}", "filename": str(self.path)}

    def device(self, machine_type: MachineType) -> Mapping[str, Value]:
        """The properties of ``virtio-rng-pci``: see :class:`~harness.qemu.spec.Device`."""
        place = machine_type.place(self.slot)
        return {
            "driver": machine_type.driver("virtio-rng-pci"),
            "id": self.id,
            "rng": f"backend-{self.id}",
            **place,
        }

    def listed(self, guest: Commands) -> bool:
        """Whether the guest's hwrng core uses this device, the only one of its kind in the guest."""
        driver = f"{sysfs_folder(guest.machine, self)}/virtio*/driver"
        return guest.run(f"[ -e {driver} ] && grep -q ^virtio_rng {_CURRENT}").returncode == 0

    def feed(self) -> None:
        """Write as many bytes to the entropy device's FIFO as the guest can request.

        Requests are then answered at once.
        """
        with contextlib.suppress(BlockingIOError):  # The FIFO is full.
            os.write(self._fifo, self._pattern * (_FED_BYTES // len(self._pattern)))

    def starve(self) -> None:
        """Remove all bytes from the entropy device's FIFO: the next request is then not answered."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._fifo, 1 << 16):
                pass

    def use(self, guest: Commands) -> None:
        """Let the guest read bytes that the harness has written to the FIFO.

        :raises Violation: when the guest reads other bytes.
        """
        self.feed()
        read = guest.succeed(
            f"dd if=/dev/hwrng bs={_READ_BYTES} count=1 2>/dev/null | hexdump -v -e '1/1 \"%02x\"'"
        )
        if len(read) != 2 * _READ_BYTES or bytes.fromhex(read) not in self._pattern * 2:
            raise Violation(
                f"the guest reads other bytes from {self.id} than QEMU was given",
                details=f"given, repeatedly: {self._pattern.hex()}\nread: {read}",
            )

    @contextmanager
    def request_in_flight(self, guest: Guest) -> Iterator[Unanswered]:
        """Keep a request for entropy in flight: a process in the guest reads, and the FIFO is empty.

        The driver requests the next bytes as soon as it has some (kernel 6.1:
        ``drivers/char/hw_random/virtio-rng.c``), so the request is the driver's or the process's.
        """
        self.starve()
        # The driver may still have bytes of earlier requests, fewer than the 2048 that are read here.
        reader = Job(guest, "dd if=/dev/hwrng bs=64 count=32", f"reading from {self.id}")
        unanswered = Unanswered(self, guest)
        try:
            guest.machine.wait_until(
                unanswered.offered, what=f"a request of {self.id} in flight", timeout_s=10, interval_s=0.05
            )
            reader.expect_running()
            yield unanswered
        finally:
            unanswered.release()


class Unanswered:
    """A request of the entropy device that the backend does not answer, because the FIFO is empty."""

    def __init__(self, device: RngDevice, guest: Guest) -> None:
        self._device, self._guest, self._released = device, guest, False

    def offered(self) -> bool:
        """Whether the entropy device's queue has a buffer that QEMU has seen and not filled.

        virtio-rng takes an element off its queue only when it has the bytes, so ``inuse`` does not count it
        (QEMU: ``hw/virtio/virtio-rng.c``, ``chr_read``).
        """
        machine = self._guest.machine
        path = f"/machine/peripheral/{self._device.id}/virtio-backend"
        arguments = {"path": path, "queue": 0}
        status = machine.qmp.execute("x-query-virtio-queue-status", arguments, watch=machine.watch)
        return bool(status["shadow-avail-idx"] != status["used-idx"])

    def waiting(self) -> None:
        """The witness that a request for entropy is in flight: nothing was written to the FIFO so far."""
        if self._released:
            raise GuestError(f"the request of {self._device.id} may have been answered")

    def release(self) -> None:
        """Write to the FIFO of the entropy device, so that the request is answered."""
        self._released = True
        self._device.feed()
