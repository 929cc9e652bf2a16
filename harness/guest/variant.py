"""Variants of shares: options of the export, the device and the mount."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from harness.errors import Unsupported
from harness.qemu.spec import Share


@dataclass(frozen=True)
class Variant:
    """A variant.

    :param share: the attributes of the share that differ from the default.
    :param mount_options: options for ``mount -o``; they override the default ``version=9p2000.L``.
    :param writable: whether the guest may write. :param files: whether the share shows the host's files.
    :param root_only: whether QEMU must run as root, because it sets the owners of files.
    """

    share: Mapping[str, object] = field(default_factory=dict)
    mount_options: str = ""
    writable: bool = True
    files: bool = True
    root_only: bool = False

    def apply(self, share: Share) -> Share:
        """Return ``share`` as this variant.

        :raises Unsupported: when this host does not support it.
        """
        if self.root_only and os.geteuid() != 0:
            raise Unsupported("security_model=passthrough: chown needs a QEMU that runs as root")
        return replace(share, **self.share)  # type: ignore[arg-type]


def _fsdev(**options: str) -> dict[str, object]:
    return {"fsdev_options": options}


PLAIN = "plain"
#: Sources: QEMU ``docs/system`` (``-fsdev``), kernel ``Documentation/filesystems/9p.rst``.
VARIANTS: Mapping[str, Variant] = {
    PLAIN: Variant(),
    "mapped-xattr": Variant({"security_model": "mapped-xattr"}),
    "mapped-file": Variant({"security_model": "mapped-file"}),
    "passthrough": Variant({"security_model": "passthrough"}, root_only=True),
    "readonly": Variant(_fsdev(readonly="on"), writable=False),
    "multidevs-remap": Variant(_fsdev(multidevs="remap")),
    "multidevs-forbid": Variant(_fsdev(multidevs="forbid")),
    "modern": Variant({"device_options": {"disable-legacy": "on"}}),
    "transitional": Variant({"device_options": {"disable-legacy": "off"}}),
    "9p2000.u": Variant(mount_options="version=9p2000.u"),
    "cache-loose": Variant(mount_options="cache=loose"),
    "cache-mmap": Variant(mount_options="cache=mmap"),
    "msize-4096": Variant(mount_options="msize=4096"),
    "msize-512000": Variant(mount_options="msize=512000"),
    "synth": Variant({"fsdriver": "synth"}, writable=False, files=False),
}
#: The variants whose export or device differs, not only the mount.
DEVICE_KINDS = tuple(name for name, variant in VARIANTS.items() if variant.share or name == PLAIN)
