"""What keeps a share in use without a request: an open file, a working directory, a running program."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

from harness.errors import GuestError
from harness.guest.commands import quote
from harness.guest.mount import Mount

#: BusyBox takes its first argument for the applet under a name that begins so.
_PROGRAM = "busybox-of-the-share"
#: The shell command that runs on, and the one that uses what it keeps (``PID`` is its process id).
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
    """The last user of a share, which a scenario can let go; made by :func:`mount_in_use`."""

    def __init__(self, mount: Mount, present: str, leave: str) -> None:
        self._mount, self._present, self._end_command = mount, present, leave
        self._ended = False

    def expect_present(self) -> None:
        """The witness: it is there, and what it keeps still works.

        :raises GuestError: when not.
        """
        self._mount.guest.succeed(self._present)

    def wait_present(self) -> None:
        """Wait until it is there; :raises WaitTimeout: when it never is."""
        self._mount.guest.wait_until_succeeds(self._present, what="the share's last user")

    def end(self) -> None:
        """End it, and see that it has ended; idempotent."""
        if not self._ended:
            self._ended = True
            self._mount.guest.succeed(self._end_command)


@contextmanager
def mount_in_use(mount: Mount, kind: str) -> Iterator[MountUser]:
    """Let something of ``kind`` (one of :data:`KINDS`) use ``mount``; it leaves at the end of the context."""
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
