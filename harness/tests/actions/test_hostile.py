from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest

from harness.actions import hostile
from harness.actions.hostile import HostileGuest
from harness.deadline import wait_until
from harness.errors import ChannelLost, GuestPanicked, QemuDied, Violation, WaitTimeout
from harness.history import as_mapping
from harness.qemu.machine_types import MACHINE_TYPES
from harness.tests.fakes import BACKEND, GONE, World, peripheral

PANIC = "[    5.0] Kernel panic - not syncing: sysrq triggered crash\n"


def _ejecting(world: World, *deleted: str) -> hostile.Ejection:
    """A guest whose write takes effect at once: QEMU reports the paths ``deleted``."""

    def eject(_: Any) -> str:
        for path in deleted:
            world.qmp.emit("DEVICE_DELETED", path=path)
        return ""

    world.ssh.on("hostile: eject", eject)
    world.qmp.on("qom-get", 0)
    world.qmp.on("qom-list", peripheral())
    return HostileGuest(world.guest).request_eject(world.share)


def test_the_eject_register_is_written_after_the_announcement(world: World) -> None:
    """The bus is selected first; each write is one access of four bytes."""
    _ejecting(world, BACKEND, GONE).wait_completed()
    (command,) = world.ssh.commands
    announced, _, writes = command.partition("; ")
    assert announced == "echo 'hostile: eject share0' > /dev/kmsg"
    assert writes == "outl 0xae10 0x0 && outl 0xae08 0x10000"


def test_the_eject_register_may_be_in_memory(world: World) -> None:
    world.machine.spec = replace(world.machine.spec, machine_type=MACHINE_TYPES["virt-acpi"])
    _ejecting(world, BACKEND, GONE).wait_completed()
    (command,) = world.ssh.commands
    assert command.endswith("; devmem 0x90c0010 32 0x0 && devmem 0x90c0008 32 0x1")


def test_an_eject_that_ends_the_device(world: World) -> None:
    world.machine.plugged.add("share0")
    _ejecting(world, BACKEND, GONE).wait_completed()
    assert world.machine.plugged == set()


@pytest.mark.parametrize("deleted", [(BACKEND,), ()])
def test_what_an_eject_deletes_while_a_request_is_held(world: World, deleted: tuple[str, ...]) -> None:
    """The write returns; the window begins then, not when the guest says what it is about to do."""
    world.machine.artifacts.kernel.write_text("")
    ejection = _ejecting(world, *deleted)
    world.machine.artifacts.kernel.write_text("hostile: eject share0\n")
    world.qmp.on("query-status", {})
    asked: list[None] = []
    assert ejection.observe(while_=lambda: asked.append(None), window_s=0.01) == list(deleted)
    assert len(asked) == 2


def test_an_eject_that_never_reaches_qemu(world: World) -> None:
    done = threading.Event()

    def hangs(_: Any) -> str:
        done.wait()
        return ""

    world.machine.artifacts.kernel.write_text("")
    world.ssh.on("hostile: eject", hangs)
    world.qmp.on("qom-get", 0)
    world.qmp.on("query-status", {})
    ejection = HostileGuest(world.guest).request_eject(world.share)
    world.machine.artifacts.kernel.write_text("hostile: eject share0\n")
    world.impatient()
    with pytest.raises(WaitTimeout, match="QEMU to act on the eject of share0"):
        ejection.observe(while_=lambda: None)
    done.set()


def test_an_eject_that_leaves_the_device(world: World) -> None:
    ejection = _ejecting(world, BACKEND)
    wait_until(lambda: ejection._write.done, what="the guest's write to return", timeout_s=60)
    world.impatient()
    with pytest.raises(Violation, match=r"only \['\S+/virtio-backend'\] were reported"):
        ejection.wait_completed()


def test_a_slot_s_lock_is_toggled_by_one_write_that_keeps_the_other_bits(world: World) -> None:
    config = bytearray(256)
    config[0x34], config[0x40:0x42], config[0x50:0x52] = 0x40, b"\x05\x50", b"\x10\x00"
    config[0x50 + 0x18 : 0x50 + 0x1A] = b"\xc1\x05"
    world.ssh.on("ls -d", "/sys/devices/pci0000:00/0000:00:10.0/0000:01:00.0\n")
    world.ssh.on("hexdump", config.hex())
    world.ssh.on("printf", "")
    lock = HostileGuest(world.guest).slot_lock(world.share)
    lock.toggle()
    *_, write = world.ssh.commands
    assert write.startswith(
        r"printf '\301\015' | dd of=/sys/bus/pci/devices/0000:00:10.0/config bs=2 seek=52 "
    )


@pytest.mark.parametrize("answer", ["", ChannelLost("SSH: closed"), GuestPanicked("the guest of 'source'")])
def test_a_guest_that_panics(world: World, answer: str | Exception) -> None:
    def panic(_: Any) -> str:
        world.machine.artifacts.kernel.write_text(PANIC)
        if isinstance(answer, Exception):
            raise answer
        return answer

    world.ssh.on("sysrq-trigger", panic)
    HostileGuest(world.guest).panic()
    patterns = [as_mapping(entry.value)["pattern"] for entry in world.notes("guest:tolerate")]
    assert patterns == ["sysrq triggered crash", "Call [Tt]race:"]
    # It was meant: nothing waits in vain from now on, until it panics again.
    log = world.guest.machine.kernel_log
    log.forgive_panic()
    log.watch()
    with world.machine.artifacts.kernel.open("a") as file:
        file.write(PANIC)
    with pytest.raises(GuestPanicked):
        log.watch()


def test_a_guest_that_does_not_panic(world: World) -> None:
    world.ssh.on("sysrq-trigger", "")
    world.impatient()
    with pytest.raises(WaitTimeout, match="the guest's panic"):
        HostileGuest(world.guest).panic()


def test_a_qemu_that_dies_of_a_panic(world: World) -> None:
    world.ssh.on("sysrq-trigger", "")
    world.machine.death = QemuDied("QEMU 'source' was killed by SIGSEGV")
    with pytest.raises(QemuDied):
        HostileGuest(world.guest).panic()
