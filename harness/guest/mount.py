"""A mounted share: I/O through it, checked from both sides."""

from __future__ import annotations

import hashlib
import os
import re
from enum import Enum
from pathlib import Path

from harness.errors import CommandFailed, CommandTimeout, GuestError, Violation
from harness.guest.commands import Commands, quote
from harness.guest.job import Job
from harness.qemu.spec import Share

VERSION = "9p2000.L"


class TagState(Enum):
    """The result of a further mount of a tag (kernel: ``net/9p/trans_virtio.c``, ``p9_virtio_create``)."""

    FREE = "the mount succeeds"
    IN_USE = "EBUSY: its channel is listed and in use"
    DELISTED = "ENOENT: no channel of this tag is listed (any more)"


class Mount:
    """A mounted share; made by :meth:`attach`, ended by :meth:`unmount`."""

    def __init__(self, guest: Commands, share: Share, mountpoint: str, options: str = "") -> None:
        self.guest, self.share, self.mountpoint, self.options = guest, share, mountpoint, options

    @classmethod
    def attach(cls, guest: Commands, share: Share, *, options: str = "", at: str | None = None) -> Mount:
        """Mount ``share`` at ``/mnt/``\\ *id*, or ``at`` another path.

        :param options: further mount options, such as ``msize=65536``.
        :raises CommandFailed: when the guest's kernel refuses; the message has the errno.
        :raises GuestError: when the mount hangs, because the device does not answer requests.
        """
        mountpoint = at or f"/mnt/{share.id}"
        try:
            guest.succeed(_mount_command(share.mount_tag, mountpoint, options))
        except CommandTimeout as exc:
            what = f"{guest.actor}: the mount of {share.mount_tag} hangs: its device does not answer"
            raise GuestError(what, details=exc.message) from exc
        return cls(guest, share, mountpoint, options)

    @classmethod
    def request(cls, guest: Commands, share: Share, *, options: str = "") -> Job:
        """Start to mount ``share`` as :meth:`attach` does, in the background."""
        command = _mount_command(share.mount_tag, f"/mnt/{share.id}", options)
        return Job(guest, command, f"mounting {share.mount_tag}")

    @classmethod
    def of_request(cls, guest: Commands, share: Share) -> Mount:
        """The mount that a :meth:`request` without options has made, when it has succeeded."""
        return cls(guest, share, f"/mnt/{share.id}")

    def unmount(self) -> None:
        """``umount`` of the mount. It sends Tclunk for the root fid, after which QEMU removes the blocker."""
        self.guest.succeed(f"umount {quote(self.mountpoint)}")

    def detach(self) -> None:
        """``umount -l`` of the mount: the mount point is free at once.

        The session lives as long as it has users.
        """
        self.guest.succeed(f"umount -l {quote(self.mountpoint)}")

    def write(self, name: str, size_kib: int, *, block_kib: int | None = None) -> str:
        """Write random bytes to a file of the mount from the guest, and sync it; returns their SHA-256.

        The guest computes the hash from its own copy of the bytes, before they are written to the share.

        :param size_kib: the size of the file in KiB.
        :param block_kib: the size of each write(2) in KiB; a Twrite takes as much of it as ``msize`` allows.
            By default the block size of ``cat``.
        """
        target = quote(f"{self.mountpoint}/{name}")
        copied = f"dd if=/tmp/w of={target} bs={block_kib}k" if block_kib else f"cat /tmp/w > {target}"
        output = self.guest.succeed(
            f"dd if=/dev/urandom of=/tmp/w bs=1024 count={size_kib} && sha256sum < /tmp/w "
            f"&& {copied} && sync && rm /tmp/w",
            timeout_s=10 + size_kib / 512,
        )
        return output.split()[0]

    def sha256(self, name: str, *, block_kib: int | None = None) -> str:
        """The SHA-256 of a file of the mounted share, as read by the guest.

        :param block_kib: the size of each read(2) in KiB; by default the guest chooses it.
        """
        path = quote(f"{self.mountpoint}/{name}")
        if block_kib is None:
            return self.guest.succeed(f"sha256sum < {path}").split()[0]
        copied = f"dd if={path} of=/tmp/r bs={block_kib}k"
        return self.guest.succeed(f"{copied} && sha256sum < /tmp/r && rm /tmp/r").split()[0]

    def expect_intact(self, name: str, expected_sha256: str, *, block_kib: int | None = None) -> None:
        """Check that host and guest read the expected content of a mounted share's file.

        :param block_kib: as for :meth:`sha256`.
        :raises Violation: when one does not; the message names it.
        """
        try:
            host = host_sha256(self.share.path / name)
        except OSError as exc:
            host = f"unreadable: {exc}"
        sides = {"host": host, "guest": self.sha256(name, block_kib=block_kib)}
        for side, seen in sides.items():
            if seen != expected_sha256:
                raise Violation(
                    f"the {side} reads other bytes in {name!r} of share {self.share.id} than were written",
                    details=f"written: {expected_sha256}\n"
                    + "\n".join(f"{s}: {v}" for s, v in sides.items()),
                )

    def expect_usable(self) -> None:
        """Witness that the mount works, by a round trip through QEMU that no cache of the guest can answer.

        :raises GuestError: when it fails; the message has the guest's error.
        """
        token = os.urandom(8).hex()
        path = f"{self.mountpoint}/.alive-{token}"
        self.guest.succeed(f"echo {token} > {quote(path)}")
        seen = self.share.path / f".alive-{token}"
        try:
            read = seen.read_text(errors="replace").strip()
            seen.unlink()
        except OSError as exc:
            read = f"nothing ({exc.strerror})"
        if read != token:
            raise GuestError(f"share {self.share.id}: the guest wrote {token}, the host reads {read[:80]}")

    def tag_state(self) -> TagState:
        """The result of a second mount of this tag: it shows whether the removal of the device has begun."""
        return tag_state(self.guest, self.share.mount_tag)


def tag_state(guest: Commands, mount_tag: str) -> TagState:
    """Try one more mount of ``mount_tag``, and unmount it if it succeeds.

    :raises CommandFailed: for any errno but EBUSY and ENOENT.
    """
    command = _mount_command(mount_tag, "/mnt/.probe", "")
    done = guest.run(command)
    if done.returncode == 0:
        guest.succeed("umount /mnt/.probe")
        return TagState.FREE
    if re.search("Device or resource busy|Resource busy", done.stderr):
        return TagState.IN_USE
    if "No such file or directory" in done.stderr:
        return TagState.DELISTED
    raise CommandFailed(guest.actor, command, done.returncode, done.stdout, done.stderr)


def expect_no_mount(guest: Commands) -> None:
    """Check that no 9p file system is mounted in the guest, and that no process is mounting one.

    :raises GuestError: when there is one.
    """
    left = guest.succeed("grep -w 9p /proc/mounts; ps | grep '[m]ount -t 9p'; true").strip()
    if left:
        raise GuestError(f"{guest.actor}: a 9p mount is left behind: {left.splitlines()[0]}", details=left)


def _mount_command(mount_tag: str, mountpoint: str, options: str) -> str:
    given = f",{options}" if options else ""
    where = quote(mountpoint)
    # The folder is created first, so that an ENOENT from mount refers to the tag. The test of the root
    # directory attaches the user. Without it two processes could race for that: one of them then walks to a
    # file called "/", which does not exist (kernel 6.1 ``fs/9p/fid.c``, ``v9fs_fid_lookup_with_uid``: it
    # looks up the dentry and then the dentry's parent, which for the root is the same; in between the other
    # process adds the fid).
    mount = f"mount -t 9p -o trans=virtio,version={VERSION}{given} {quote(mount_tag)} {where}"
    return f"mkdir -p {where} && {mount} && [ -d {where} ]"


def host_sha256(path: Path) -> str:
    """The SHA-256 of a mounted share's file, as the host has it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
