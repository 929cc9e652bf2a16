"""virtio-rng-pci: random bytes that come through a FIFO of ours, so that we say which, and when."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from harness.devices.neighbour import OpenFile
from harness.errors import GuestError, UsageError, Violation
from harness.guest.commands import Commands
from harness.guest.device import pci_function
from harness.guest.guest import Guest
from harness.guest.job import Job
from harness.qemu.machine_types.machine_type import MachineType
from harness.qemu.spec import Value
from harness.testbed import Testbed

_CURRENT = "/sys/class/misc/hw_random/rng_current"
#: More than the guest's driver (64 bytes) and its entropy thread (64 bytes) ask for at once
#: (kernel: ``drivers/char/hw_random``), and less than a FIFO holds.
_FED_BYTES = 4096
_READ_BYTES = 16


class RngDevice(OpenFile):
    """An entropy device with an ``rng-random`` backend; made by :meth:`create`.

    The backend reads a request's bytes when there are some, and waits without end while there are none (QEMU:
    ``backends/rng-random.c``, ``entropy_available``).
    """

    modules: tuple[str, ...] = ("virtio_rng",)

    def __init__(self, id: str, slot: int, path: Path) -> None:
        self.id, self.slot, self.path = id, slot, path
        self._pattern = os.urandom(_READ_BYTES)
        # Open for reading, too: else the FIFO would have no writer, or a reader that is gone, in between.
        self._fifo = os.open(path, os.O_RDWR | os.O_NONBLOCK)

    @classmethod
    def create(cls, testbed: Testbed, *, slot: int = 0) -> RngDevice:
        """A device with a FIFO of its own in the testbed's folder."""
        path = testbed.folder / f"rng{slot}.fifo"
        os.mkfifo(path)
        made = cls(f"rng{slot}", slot, path)
        testbed.attach(made)
        return made

    def close(self) -> None:
        """Close the FIFO."""
        os.close(self._fifo)

    def check(self) -> None:
        """See :class:`~harness.qemu.spec.Device`."""
        if not self.path.exists() or not stat.S_ISFIFO(self.path.stat().st_mode):
            raise UsageError(f"entropy device {self.id}: {self.path}: no FIFO")

    def declared(self) -> Iterator[tuple[str, Mapping[str, Value]]]:
        """The backend (``-object rng-random``)."""
        yield "-object", {"": "rng-random", "id": f"backend-{self.id}", "filename": str(self.path)}

    def device(self, machine_type: MachineType) -> Mapping[str, Value]:
        """See :class:`~harness.qemu.spec.Device`."""
        place = machine_type.place(self.slot)
        return {"driver": "virtio-rng-pci", "id": self.id, "rng": f"backend-{self.id}", **place}

    def listed(self, guest: Commands) -> bool:
        """Whether the guest's hwrng core takes its bytes from this device: it has no other one."""
        driver = f"{pci_function(guest.machine, self)}/virtio*/driver"
        return guest.run(f"[ -e {driver} ] && grep -q ^virtio_rng {_CURRENT}").returncode == 0

    def feed(self) -> None:
        """Let the backend have as many bytes as the guest may want: requests are answered at once."""
        with contextlib.suppress(BlockingIOError):  # There are enough.
            os.write(self._fifo, self._pattern * (_FED_BYTES // len(self._pattern)))

    def starve(self) -> None:
        """Take the bytes that are left: the next request is not answered."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._fifo, 1 << 16):
                pass

    def use(self, guest: Commands) -> None:
        """The guest reads bytes that we have fed.

        :raises Violation: when it reads others.
        """
        self.feed()
        read = guest.succeed(
            f"dd if=/dev/hwrng bs={_READ_BYTES} count=1 2>/dev/null | hexdump -v -e '1/1 \"%02x\"'"
        )
        if len(read) != 2 * _READ_BYTES or bytes.fromhex(read) not in self._pattern * 2:
            raise Violation(
                f"the guest reads other bytes from {self.id} than QEMU was given",
                details=f"given, again and again: {self._pattern.hex()}\nread: {read}",
            )

    @contextmanager
    def request_in_flight(self, guest: Guest) -> Iterator[Unanswered]:
        """A reader in the guest that gets no bytes.

        The driver asks for the next bytes as soon as it has some (kernel 6.1:
        ``drivers/char/hw_random/virtio-rng.c``), so the request is that of the driver or of the reader.
        """
        self.starve()
        # The driver still has what it asked for before; 256 bytes are more than that.
        reader = Job(guest, "dd if=/dev/hwrng bs=64 count=4", f"reading from {self.id}")
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
    """A request of the entropy device that its backend does not answer."""

    def __init__(self, device: RngDevice, guest: Guest) -> None:
        self._device, self._guest, self._released = device, guest, False

    def offered(self) -> bool:
        """Whether the virtqueue has a buffer that QEMU has seen and not filled.

        virtio-rng takes no element off its queue before it has the bytes, so ``inuse`` does not count it
        (QEMU: ``hw/virtio/virtio-rng.c``, ``chr_read``).
        """
        machine = self._guest.machine
        path = f"/machine/peripheral/{self._device.id}/virtio-backend"
        arguments = {"path": path, "queue": 0}
        status = machine.qmp.execute("x-query-virtio-queue-status", arguments, watch=machine.watch)
        return bool(status["shadow-avail-idx"] != status["used-idx"])

    def waiting(self) -> None:
        """We have fed nothing: a request that was in flight is."""
        if self._released:
            raise GuestError(f"the request of {self._device.id} may have been answered")

    def release(self) -> None:
        """See :class:`~harness.devices.neighbour.RequestInFlight`."""
        self._released = True
        self._device.feed()
