"""A device that is taken away without asking the guest: QEMU drains it, and keeps nothing of it.

Where ``device_del`` asks nobody (the channel devices of s390x), it is a plain ``device_del``. Elsewhere the
guest's root forces the eject. A request may be in flight, the share may be mounted, files may be open. QEMU
must not crash, keep a file or a migration blocker, or be confused by the next device in that place.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress

import pytest

from harness.actions.hotplug import Hotplug, expect_gone_in_guest
from harness.actions.migration import Migration
from harness.actions.removal import surprise_removal
from harness.actions.run_state import RunState
from harness.errors import WaitTimeout
from harness.guest import transfer
from harness.guest.guest import Guest
from harness.guest.job import Job
from harness.guest.mount import Mount
from harness.holds.hold import DATA, FSYNC, READDIR, STAT, Hold
from harness.leaks.footprint import open_inside
from harness.plugin.thorough import by_default
from harness.qemu.spec import Share

#: The system calls that QEMU makes for a request on the host, and the guest's command that sends it.
REQUESTS = {
    "read": (DATA, "cat file"),
    "write": (DATA, "echo content > new"),
    "fsync": (FSYNC, "dd if=/dev/zero of=new bs=1024 count=1 conv=fsync"),
    "readdir": (READDIR, "ls"),
    "getattr": (STAT, "stat file"),
}


FREED = "the device was freed under a request in flight"


def begin(mount: Mount, command: str) -> Job:
    """Start the command in the share's folder, in the background."""
    return Job(mount.guest, f"cd {mount.mountpoint} && {command}", f"'{command}'")


@pytest.mark.always
@pytest.mark.any_plug
@pytest.mark.parametrize("kind", by_default("read", "write", of=REQUESTS))
def test_with_a_request_in_flight(
    guest: Guest, hotplug: Hotplug, migration: Migration, share: Share, hold: Hold, kind: str
) -> None:
    """The device is removed only after the worker thread has finished the request. QEMU and the guest's
    kernel live on, and migration is not blocked."""
    (share.path / "file").write_text("content")
    hotplug.plug(share)
    mount = guest.mount(share)
    calls, command = REQUESTS[kind]
    with hold.requests(share, *calls) as held:
        begin(mount, command)
        held.wait_caught()
        removal = surprise_removal(guest, share)
        deleted_while_held = removal.observe(while_=held.waiting)
    removal.wait_completed()
    guest.succeed("true")
    assert not deleted_while_held, FREED
    migration.expect_not_blocked()


@pytest.mark.always
@pytest.mark.any_plug
def test_while_mounted(
    guest: Guest, hotplug: Hotplug, migration: Migration, run_state: RunState, share: Share
) -> None:
    """The removal of a mounted share ends its migration blocker. Afterwards the machine can be stopped and
    continued."""
    hotplug.plug(share)
    guest.mount(share).expect_usable()
    migration.expect_blocked_by(share)
    surprise_removal(guest, share).wait_completed()
    migration.expect_not_blocked()
    run_state.stop()
    run_state.cont()
    guest.succeed("true")


@pytest.mark.thorough
@pytest.mark.any_plug
def test_with_an_open_file(guest: Guest, hotplug: Hotplug, share: Share) -> None:
    """QEMU closes the files that the guest had open."""
    (share.path / "file").write_text("content")
    hotplug.plug(share)
    mount = guest.mount(share)
    opened = Job(guest, f"exec 3< {mount.mountpoint}/file; read -r word <&3; exec sleep 99999", "the reader")
    machine = guest.machine
    machine.wait_until(lambda: open_inside(machine, share.path), what="QEMU to open the file", timeout_s=10)
    opened.expect_running()
    surprise_removal(guest, share).wait_completed()
    left = open_inside(machine, share.path)
    assert not left, f"QEMU keeps {left} open"


@pytest.mark.unplug("takes")
def test_users_get_an_error(guest: Guest, hotplug: Hotplug, migration: Migration, share: Share) -> None:
    """The guest is notified of the removal. Users of the mount get an error and the share can be unmounted;
    then the device is gone in the guest as well. The next one in its place works, and so does a migration."""
    hotplug.plug(share)
    mount = guest.mount(share)
    mount.expect_usable()
    surprise_removal(guest, share).wait_completed()
    stderr = guest.fail(f"cat {mount.mountpoint}/file").stderr
    assert "Input/output error" in stderr, stderr
    mount.unmount()
    expect_gone_in_guest(guest, share)
    hotplug.plug(share)
    again = guest.mount(share)
    again.expect_intact("after", again.write("after", size_kib=64))
    again.unmount()
    migration.migrate()
    guest.mount(share).expect_usable()


@pytest.mark.unplug("takes")
def test_the_request_in_flight_is_answered(guest: Guest, hotplug: Hotplug, share: Share, hold: Hold) -> None:
    """The device waits for its request, so the guest gets all of its data.

    One read(2) of a whole block is one request. A *further* request, which the guest sends after the removal
    and before it has handled the channel report, is never answered: there is no device any more, and
    ``p9_virtio_request`` ignores that ``virtqueue_kick`` fails (kernel: ``net/9p/trans_virtio.c``). Its
    sender hangs until the guest is reset. That is the kernel's part, and a race (seen in 10.0.13).
    """
    content = b"content\n" * 512
    (share.path / "file").write_bytes(content)
    hotplug.plug(share)
    mount = guest.mount(share)
    with hold.requests(share) as held:
        begin(mount, f"dd if=file of=/tmp/read bs={len(content)} count=1")
        held.wait_caught()
        removal = surprise_removal(guest, share)
        deleted_while_held = removal.observe(while_=held.waiting)
    removal.wait_completed()
    assert not deleted_while_held, FREED
    expected = hashlib.sha256(content).hexdigest()
    guest.machine.wait_until(
        lambda: guest.succeed("sha256sum < /tmp/read").split()[0] == expected,
        what="the guest to get what it has read",
        timeout_s=10,
        interval_s=0.1,
    )


@pytest.mark.unplug("takes")
def test_the_machine_runs_while_a_request_is_in_flight(
    guest: Guest, hotplug: Hotplug, share: Share, hold: Hold
) -> None:
    """A request may never end, as on a dead network file system. QMP answers all the same, so the guest
    runs."""
    hotplug.plug(share)
    mount = guest.mount(share)
    machine = guest.machine
    with hold.requests(share) as held:
        transfer.reader(mount)
        held.wait_caught()
        removal = surprise_removal(guest, share)
        asked = machine.qmp.request("query-status")
        with suppress(WaitTimeout):
            machine.wait_until(lambda: asked.done, what="an answer to query-status", timeout_s=0.5)
        answered = asked.done
        deleted_while_held = removal.observe(while_=held.waiting)
    removal.wait_completed()
    assert not deleted_while_held, FREED
    assert answered, "QEMU answers no command while a request of the removed device is in flight"


@pytest.mark.unplug("takes")
def test_an_unmounted_share(guest: Guest, hotplug: Hotplug, migration: Migration, share: Share) -> None:
    """A share that nobody uses is removed, and can be plugged again at once with the same id, tag and
    place."""
    for name in ("one", "two"):
        hotplug.plug(share)
        mount = guest.mount(share)
        mount.expect_intact(name, mount.write(name, size_kib=64))
        mount.unmount()
        surprise_removal(guest, share).wait_completed()
        expect_gone_in_guest(guest, share)
    migration.expect_not_blocked()
