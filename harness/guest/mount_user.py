"""Mount users keep a mount busy without a request in flight; an example is an open file."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

from harness.errors import GuestError
from harness.guest.commands import quote
from harness.guest.mount import Mount

#: Under a name that begins with "busybox", BusyBox takes its first argument as the applet.
_PROGRAM = "busybox-of-the-share"
#: For each kind: the shell command that keeps running, and one that checks that it still works (``PID`` is
#: the process id of the former).
_PROCESSES = {
    "open_file": ("sleep 99999 < FILE", "test occupied = $(cat /proc/PID/fd/0)"),
    "working_directory": ("cd FOLDER; exec sleep 99999", "ls /proc/PID/cwd/"),
    "running_program": (
        f"exec FOLDER/{_PROGRAM} sleep 99999",
        f"readlink /proc/PID/exe | grep -q {_PROGRAM} && cmp -s /proc/PID/exe /bin/busybox",
    ),
}
KINDS = (*_PROCESSES, "bind_mount")
_numbers = itertools.count(1)


class MountUser:
    """A user of a mount; made by :func:`mount_in_use`."""

    def __init__(self, mount: Mount, present: str, leave: str) -> None:
        self._mount, self._present, self._end_command = mount, present, leave
        self._ended = False

    def expect_present(self) -> None:
        """Witness that the mount user exists, and that its file, directory or program still works.

        :raises GuestError: when it does not.
        """
        self._mount.guest.succeed(self._present)

    def wait_present(self) -> None:
        """Wait until the mount user exists.

        :raises WaitTimeout: when it does not in time.
        """
        self._mount.guest.wait_until_succeeds(self._present, what="the mount user")

    def end(self) -> None:
        """End the mount user, and wait until it has ended; idempotent."""
        if not self._ended:
            self._ended = True
            self._mount.guest.succeed(self._end_command)


@contextmanager
def mount_in_use(mount: Mount, kind: str) -> Iterator[MountUser]:
    """Keep ``mount`` in use during the block, by a user of ``kind`` (one of :data:`KINDS`)."""
    mount_user = _bind(mount) if kind == "bind_mount" else _process(mount, kind)
    mount_user.wait_present()
    yield mount_user
    mount_user.end()


def _bind(mount: Mount) -> MountUser:
    elsewhere = f"/mnt/.bind{next(_numbers)}"
    mount.guest.succeed(f"mkdir {elsewhere} && mount --bind {quote(mount.mountpoint)} {elsewhere}")
    return MountUser(mount, f"echo > {elsewhere}/.bound && rm {elsewhere}/.bound", f"umount {elsewhere}")


def _process(mount: Mount, kind: str) -> MountUser:
    command, present = _PROCESSES[kind]
    folder, file = quote(mount.mountpoint), quote(f"{mount.mountpoint}/.occupied")
    mount.guest.succeed(f"echo occupied > {file}")
    if kind == "running_program":
        mount.guest.succeed(f"cp /bin/busybox {folder}/{_PROGRAM}")
    command = command.replace("FOLDER", folder).replace("FILE", file)
    started = f"({command}) > /dev/null 2>&1 & echo $!"
    pid = mount.guest.succeed(started).strip()
    if not pid.isdigit():
        raise GuestError(f"{mount.guest.actor}: no process id from {started!r}: {pid!r}")
    leave = f"kill {pid}; while test -e /proc/{pid}; do usleep 10000; done"
    return MountUser(mount, present.replace("PID", pid), leave)
