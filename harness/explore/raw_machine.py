"""The QEMU that a raw program runs on: its shares, the drivers of its devices, and its held requests.

The machine boots no guest: its firmware halts the CPU at once, so that ``cont`` has no other effect on the
devices. The raw 9p client (:mod:`harness.ninep.client`) is the guest.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from harness.explore.program import ShareKind
from harness.explore.shares import declared
from harness.holds.hold import Held, Hold
from harness.ninep.client import RawDriver, RawGuest, Request
from harness.qemu.machine import Machine
from harness.qemu.spec import MachineSpec
from harness.testbed import Testbed

#: The content of an export's file at first.
ORIGINAL = b"original" * 100
#: ``cli; hlt`` and a jump back to it, at the reset vector, 16 bytes before the end of the ROM.
_HALTS = b"\xfa\xf4\xeb\xfd".ljust(16, b"\0").rjust(1 << 16, b"\0")
#: Seconds, before scaling, in which QEMU has to answer a request: it needs milliseconds.
_REPLY_TIMEOUT_S = 10.0


@dataclass
class InFlight:
    """A request whose system call is held.

    :ivar stack: releases it when it is closed. :ivar flushes: each Tflush of it.
    """

    held: Held
    request: Request
    stack: ExitStack
    flushes: list[Request] = field(default_factory=list)


class RawMachine:
    """The machine that a raw program runs on.

    :param kinds: how its shares are declared. :param holding: whether the program holds requests.
    :raises Unsupported: when requests cannot be held here, or this QEMU cannot throttle an fsdev.
    """

    def __init__(self, testbed: Testbed, kinds: Sequence[ShareKind], *, holding: bool) -> None:
        self.testbed = testbed
        self.shares = declared(testbed, kinds)
        testbed.declare(*self.shares)
        for share in self.shares:
            (share.path / "file").write_bytes(ORIGINAL)
        self.hold = Hold(testbed) if holding else None
        firmware = testbed.folder / "halt.rom"
        firmware.write_bytes(_HALTS)

        def change(spec: MachineSpec) -> MachineSpec:
            return replace(spec, firmware=firmware)

        # Threads get names, so that those of the pool can be distinguished.
        names = ("-name", "harness-explore,debug-threads=on")
        self.guest = RawGuest(testbed, arguments=names, change=change)
        self._drivers: dict[int, RawDriver] = {}
        self._saved: dict[int, RawDriver] = {}
        self.in_flight: dict[int, InFlight] = {}
        #: A migration that is active; closing it cancels the migration.
        self.migration = ExitStack()
        self.listen()
        self.guest.qtest.inb(0)  # QEMU has accepted the qtest connection, so its descriptor is counted.

    @property
    def machine(self) -> Machine:
        """The machine that has the raw machine's devices now."""
        return self.guest.machine

    def listen(self) -> None:
        """Count the deletions in the raw machine that has the devices now."""
        self.deletions = self.machine.qmp.listen("DEVICE_DELETED")
        self.expected_deletions = 0

    def execute(self, command: str, arguments: dict[str, object] | None = None) -> Any:
        """A QMP command to the raw machine."""
        return self.machine.qmp.execute(command, arguments, watch=self.machine.watch)

    def driver(self, share: int) -> RawDriver:
        """The driver of a plugged device of the raw machine; after a reset a new one.

        A new one initialises the device.
        """
        if share not in self._drivers:
            self._drivers[share] = self.guest.driver(self.shares[share])
            self._drivers[share].reply_timeout_s = _REPLY_TIMEOUT_S
        return self._drivers[share]

    def forget_driver(self, share: int) -> None:
        """The raw machine's device was reset, or is gone: its driver is forgotten."""
        self._drivers.pop(share, None)

    def forget_drivers(self) -> None:
        """All devices of the raw machine were reset: their drivers are forgotten."""
        self._drivers.clear()

    def save_drivers(self) -> None:
        """Keep what the drivers of the raw machine know, for a snapshot."""
        self._saved = {share: driver.moved_to(self.guest) for share, driver in self._drivers.items()}

    def load_drivers(self) -> None:
        """The drivers of the raw machine know what they did when the snapshot was saved."""
        self._drivers = {share: driver.moved_to(self.guest) for share, driver in self._saved.items()}

    @property
    def drivers(self) -> dict[int, RawDriver]:
        """The drivers of the raw machine's devices that were initialised, by share."""
        return dict(self._drivers)

    def moved_to(self, guest: RawGuest, drivers: dict[int, RawDriver]) -> None:
        """The raw machine's devices are in another machine, with these drivers."""
        self.guest, self._drivers = guest, drivers
        self.listen()
