"""A small Debian archive of the tests' own, and recipes for it."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import struct
import subprocess
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path

HOOK_MARK = "hook-ran"
#: Prints how it was called: stands for the dynamic loader of a release.
_ECHO = '#!/bin/sh\necho "$0" "$@"\n'
_MODULE = b"\x7fELF\0depends=%s\0license=GPL\0"
KERNEL = "6.1.0-9-amd64"
FOREIGN_KERNEL = "6.1.0-9-s390x"
#: One that comes in parts.
SPLIT_KERNEL = "7.2.13-amd64"


def bzimage(payload: bytes, *, setup_sectors: int = 2) -> bytes:
    """A bzImage around a compressed payload (kernel: Documentation/arch/x86/boot.rst)."""
    setup = bytearray((setup_sectors + 1) * 512)
    setup[0x1F1] = setup_sectors
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", setup, 0x248, 16, len(payload))
    return bytes(setup) + b"decompressor....".ljust(16, b".") + payload + b"trailer"


ELF = b"\x7fELF the kernel itself"
CONTENT: dict[str, dict[str, bytes | str]] = {
    "busybox-static": {"bin/busybox": "busybox"},
    "dropbear-bin": {"usr/sbin/dropbear": "#!/bin/sh\n"},
    "linux-image-amd64": {"usr/share/doc/meta": "nothing"},
    f"linux-image-{KERNEL}": {
        f"boot/vmlinuz-{KERNEL}": bzimage(lzma.compress(ELF)),
        # What this kernel has built in is loaded by none.
        f"lib/modules/{KERNEL}/modules.builtin": b"kernel/drivers/virtio/virtio-pci.ko\n",
        f"lib/modules/{KERNEL}/kernel/9p.ko": _MODULE % b"9pnet,net-fs",
        f"lib/modules/{KERNEL}/kernel/9pnet.ko.xz": lzma.compress(_MODULE % b""),
        f"lib/modules/{KERNEL}/kernel/net-fs.ko": _MODULE % b"9pnet",
        f"lib/modules/{KERNEL}/kernel/virtio-blk.ko": _MODULE % b"9pnet",
    },
    "linux-image-newest": {"usr/share/doc/meta-newest": "nothing"},
    f"linux-image-{SPLIT_KERNEL}": {"usr/share/doc/image": "nothing"},
    f"linux-binary-{SPLIT_KERNEL}": {
        f"usr/lib/modules/{SPLIT_KERNEL}/vmlinuz": bzimage(lzma.compress(ELF + b" of 7.2")),
    },
    f"linux-base-{SPLIT_KERNEL}": {
        f"usr/lib/modules/{SPLIT_KERNEL}/modules.builtin": b"kernel/drivers/virtio/virtio_pci.ko\n",
    },
    f"linux-modules-{SPLIT_KERNEL}": {
        f"usr/lib/modules/{SPLIT_KERNEL}/kernel/fs/9p/9p.ko.xz": lzma.compress(_MODULE % b""),
    },
    "qemu-system-misc": {"usr/bin/qemu-system-s390x": "\x7fELF"},
    "virtiofsd": {"usr/libexec/virtiofsd": "\x7fELF"},
    "libc6": {"lib/x86_64-linux-gnu/ld-linux-x86-64.so.2": _ECHO},
    "libjemalloc2": {"usr/lib/x86_64-linux-gnu/libjemalloc.so.2": "profiles"},
    "qemu-system-x86": {
        "usr/bin/qemu-system-x86_64": "\x7fELF",
        "usr/share/doc/qemu/README": "unused",
    },
}
#: Packages of s390x. Some have the name of one of amd64.
FOREIGN: dict[str, dict[str, bytes | str]] = {
    "busybox-static": {"bin/busybox": "busybox of s390x"},
    "dropbear-bin": {"usr/sbin/dropbear": "#!/bin/sh\n"},
    "linux-image-s390x": {"usr/share/doc/meta": "nothing"},
    f"linux-image-{FOREIGN_KERNEL}": {
        f"boot/vmlinuz-{FOREIGN_KERNEL}": b"a kernel of s390x",
        f"lib/modules/{FOREIGN_KERNEL}/kernel/9p.ko": _MODULE % b"",
    },
}
DEPENDS = {
    "linux-image-s390x": f"linux-image-{FOREIGN_KERNEL}",
    "qemu-system-misc": "libc6",
    "virtiofsd": "libc6",
    "linux-image-amd64": f"linux-image-{KERNEL}",
    f"linux-image-{KERNEL}": "busybox-static",
    "linux-image-newest": f"linux-image-{SPLIT_KERNEL}",
    f"linux-image-{SPLIT_KERNEL}": ", ".join(
        f"linux-{part}-{SPLIT_KERNEL}" for part in ("base", "binary", "modules")
    ),
    "qemu-system-x86": "libc6",
}
RECIPES = {
    "guests/1.0.toml": """
default = true
release = "bookworm"
kernel = "linux-image-amd64"
packages = ["busybox-static", "dropbear-bin"]
modules = ["virtio_pci", "9p"]
modules_on_demand = ["virtio_blk", "virtio_pci"]
root = "root"
cmdline = "console=ttyS0"
uncompressed = true
""",
    "guests/sid.toml": """
release = "bookworm"
kernel = "linux-image-newest"
packages = ["busybox-static", "dropbear-bin"]
modules = ["virtio_pci", "9p"]
root = "root"
cmdline = "console=ttyS0"
uncompressed = true
""",
    "guests/root/etc/inittab": "::sysinit:/etc/rcS\n",
    "guests/s390x/1.0.toml": """
default = true
release = "bookworm"
kernel = "linux-image-s390x"
packages = ["busybox-static", "dropbear-bin"]
modules = ["9p"]
root = "../root"
more_root = "../root-hvc0"
cmdline = "console=ttysclp0"
""",
    "guests/root-hvc0/etc/inittab": "hvc0::respawn:/bin/console\n",
    "qemu/s390x/7.2.toml": 'default = true\nrelease = "bookworm"\npackages = ["qemu-system-misc"]\n',
    "heap/old.toml": 'release = "bookworm"\npackages = ["libjemalloc2"]\nglibc = "2.9"\n',
    "heap/fitting.toml": 'release = "bookworm"\npackages = ["libjemalloc2"]\nglibc = "2.36"\n',
    "heap/new.toml": 'release = "bookworm"\npackages = ["libjemalloc2"]\nglibc = "2.41"\n',
    "virtiofsd/1.0.toml": 'default = true\nrelease = "bookworm"\npackages = ["virtiofsd"]\n',
    "virtiofsd/empty.toml": 'release = "bookworm"\npackages = ["libc6"]\n',
    "qemu/7.2.toml": 'default = true\nrelease = "bookworm"\npackages = ["qemu-system-x86"]\n',
}


class Archive:
    """A ``file:`` archive below ``folder``, and the apt configuration of a host that uses it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pool = folder / "archive/pool"
        self._pool.mkdir(parents=True)
        self._publish("1.0")
        self._publish("1.0", names=tuple(FOREIGN), architecture="s390x")

    def configure_host(self) -> Path:
        """Write the configuration, hooks and all; returns what ``APT_CONFIG`` has to name."""
        sources = self.folder / "sources.list"
        sources.write_text(f"deb [trusted=yes] file:{self.folder}/archive bookworm main\n")
        mark = self.folder / HOOK_MARK
        config = self.folder / "apt.conf"
        config.write_text(
            f'Dir::Etc::sourcelist "{sources}";\nDir::Etc::sourceparts "/dev/null";\n'
            f'APT::Update::Pre-Invoke {{ "touch {mark}"; }};\n'
            f'APT::Update::Post-Invoke-Success {{ "touch {mark}"; }};\n'
            'APT::Default-Release "trixie";\n'
        )
        return config

    def replace_all_versions(self, version: str) -> None:
        """A new version of every package; the old ones are withdrawn, as Debian's point releases do."""
        for deb in self._pool.iterdir():
            deb.unlink()
        self._publish(version)

    def vanish(self) -> None:
        """Make the archive unreachable."""
        (self.folder / "archive").rename(self.folder / "gone")

    def publish_backport(self, version: str, *names: str) -> None:
        """These packages, in that version, in the suite of backports: taken only where they are asked for."""
        self._publish(version, "bookworm-backports", names, "NotAutomatic: yes", "ButAutomaticUpgrades: yes")

    def _publish(
        self,
        version: str,
        suite: str = "bookworm",
        names: Iterable[str] = tuple(CONTENT),
        *more: str,
        architecture: str = "amd64",
    ) -> None:
        index = "".join(self._build(name, version, architecture) for name in names).encode()
        dist = self.folder / "archive/dists" / suite
        packages = dist / f"main/binary-{architecture}"
        packages.mkdir(parents=True, exist_ok=True)
        (packages / "Packages").write_bytes(index)
        (packages / "Packages.gz").write_bytes(gzip.compress(index, mtime=0))
        lines = [
            f"Suite: {suite}",
            f"Codename: {suite}",
            "Architectures: amd64 s390x",
            "Components: main",
            *more,
        ]
        lines += ["Date: Thu, 01 Jan 2026 00:00:00 UTC", "SHA256:"]
        for path in sorted(dist.glob("main/*/*")):
            data = path.read_bytes()
            lines.append(f" {hashlib.sha256(data).hexdigest()} {len(data)} {path.relative_to(dist)}")
        (dist / "Release").write_text("\n".join(lines) + "\n")

    def _build(self, name: str, version: str, architecture: str) -> str:
        data = _deb(name, version, architecture)
        deb = self._pool / f"{name}_{version}_{architecture}.deb"
        deb.write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        about = f"Filename: pool/{deb.name}\nSize: {len(data)}\nSHA256: {digest}\n\n"
        return _control(name, version, architecture) + about


def _control(name: str, version: str, architecture: str) -> str:
    control = (
        f"Package: {name}\nVersion: {version}\nArchitecture: {architecture}\n"
        "Maintainer: nobody <n@example.org>\n"
    )
    if name in DEPENDS:
        control += f"Depends: {DEPENDS[name]}\n"
    return f"{control}Description: for a test\n"


@cache
def _deb(name: str, version: str, architecture: str) -> bytes:
    """A package; many archives have the same."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, "tree")
        for path, content in (CONTENT if architecture == "amd64" else FOREIGN)[name].items():
            file = tree / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content.encode("latin-1") if isinstance(content, str) else content)
            file.chmod(0o755)
        if name == "libc6":
            (tree / "lib64").mkdir()
            # An absolute link, as in bullseye.
            (tree / "lib64/ld-linux-x86-64.so.2").symlink_to("/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2")
        (tree / "DEBIAN").mkdir()
        (tree / "DEBIAN/control").write_text(_control(name, version, architecture))
        deb = Path(folder, "deb")
        argv = ["dpkg-deb", "--root-owner-group", "-Znone", "-b", str(tree), str(deb)]
        subprocess.run(argv, check=True, capture_output=True)
        return deb.read_bytes()


def write_recipes(folder: Path) -> Path:
    """The recipes for that archive; returns ``folder``."""
    for name, text in RECIPES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder
