"""A guest image: the files to boot, and the SSH keys. ``harness.provision`` makes images from recipes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.qemu.spec import Boot


@dataclass(frozen=True)
class GuestImage:
    """A provisioned guest.

    :param name: the recipe's name, such as ``6.1``.
    :param kernel_version: the kernel's full release, such as ``6.1.0-41-amd64``.
    :param kernel: the kernel to boot; it may be uncompressed. :param bzimage: the compressed kernel.
    :param disk: an empty qcow2 image, which is copied for each machine.
    :param client_key: the OpenSSH private key (ed25519, mode 0600) that the guest's root accepts.
    :param host_key: the guest's public host key, ``ssh-ed25519 AAAA…``.
    :param key: the content key of kernel and initramfs.
    """

    name: str
    kernel_version: str
    kernel: Path
    bzimage: Path
    initramfs: Path
    cmdline: str
    disk: Path
    client_key: Path
    host_key: str
    key: str

    @property
    def boot(self) -> Boot:
        """The files of the image that QEMU boots."""
        return Boot(self.kernel, self.initramfs, self.cmdline, self.bzimage)
