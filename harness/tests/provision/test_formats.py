"""The file formats that the harness writes by itself."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import stat
import struct
import subprocess
from pathlib import Path

import paramiko
import pytest
import zstandard
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from harness.errors import SetupError
from harness.provision import Cache, Provisioner, cpio, default_cache_root, keys, qcow2, vmlinux
from harness.tests.provision import cpio_reader
from harness.tests.provision.archive import ELF, bzimage

MEMBERS = {
    "b/script": cpio.file(b"#!/bin/sh\n", 0o755),
    "a": cpio.file(b"12345"),
    "init": cpio.symlink("b/script"),
    "root": cpio.folder(0o700),
}


def test_an_archive_reads_back_with_folders_before_their_content() -> None:
    read = cpio_reader.read(cpio.archive(MEMBERS))
    assert list(read) == ["a", "b", "b/script", "init", "root"]
    assert read["a"] == (stat.S_IFREG | 0o644, 0, 0, b"12345")
    assert read["b"].mode == stat.S_IFDIR | 0o755
    assert read["b/script"].mode == stat.S_IFREG | 0o755
    assert read["init"] == (stat.S_IFLNK | 0o777, 0, 0, b"b/script")
    assert read["root"].mode == stat.S_IFDIR | 0o700


def test_an_archive_is_the_same_bytes_for_the_same_content() -> None:
    assert cpio.archive(dict(reversed(MEMBERS.items()))) == cpio.archive(MEMBERS)


def test_the_client_key_opens_as_an_openssh_key_and_stays_the_same(tmp_path: Path) -> None:
    made = keys.load_or_make(tmp_path / "keys")
    assert stat.S_IMODE(made.client.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    key = paramiko.Ed25519Key.from_private_key_file(str(made.client))
    assert made.client_public == f"ssh-ed25519 {key.get_base64()}"
    assert keys.load(tmp_path / "keys") == made
    assert made.client_public != made.host_public


def test_the_host_key_is_in_dropbears_format(tmp_path: Path) -> None:
    """dropbear, src/ed25519.c: string "ssh-ed25519", uint32 64, 32 bytes private, 32 bytes public."""
    made = keys.load_or_make(tmp_path / "keys")
    stream = io.BytesIO(made.host_dropbear)
    assert stream.read(struct.unpack(">I", stream.read(4))[0]) == b"ssh-ed25519"
    assert struct.unpack(">I", stream.read(4)) == (64,)
    private, public, rest = stream.read(32), stream.read(32), stream.read()
    assert rest == b""
    derived = Ed25519PrivateKey.from_private_bytes(private).public_key()
    assert derived.public_bytes(Encoding.Raw, PublicFormat.Raw) == public
    given = ed25519.Ed25519PublicKey.from_public_bytes(public)
    assert given.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode() == made.host_public


def test_loading_missing_keys_makes_none(tmp_path: Path) -> None:
    assert keys.load(tmp_path / "keys") is None
    assert not (tmp_path / "keys").exists()


def test_a_broken_key_is_named(tmp_path: Path) -> None:
    client = keys.load_or_make(tmp_path / "keys").client
    client.write_text("not a key")
    with pytest.raises(SetupError, match=f"{client}: not a usable SSH key"):
        keys.load(tmp_path / "keys")


@pytest.mark.parametrize(
    "payload",
    [lzma.compress(ELF), gzip.compress(ELF, mtime=0), zstandard.compress(ELF)],
    ids=["xz", "gzip", "zstd"],
)
@pytest.mark.parametrize("setup_sectors", [2, 39])
def test_a_kernel_is_found_in_its_bzimage(payload: bytes, setup_sectors: int) -> None:
    assert vmlinux.extract(bzimage(payload, setup_sectors=setup_sectors)) == ELF


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (b"not a kernel", "no bzImage"),
        (bytes(4096), "no bzImage"),
        (bzimage(b"\x28\xb5\x2f\xfd broken"), "cannot be decompressed"),
        (bzimage(b"\x04\x22\x4d\x18 lz4"), "not compressed with xz, gzip or zstd"),
        (bzimage(b"\xfd7zXZ\0 broken"), "cannot be decompressed"),
        (bzimage(gzip.compress(b"something else", mtime=0)), "no ELF"),
    ],
)
def test_an_invalid_kernel_is_refused_with_the_reason(image: bytes, words: str) -> None:
    with pytest.raises(SetupError, match=words):
        vmlinux.extract(image)


def test_an_empty_qcow2_follows_the_specification(tmp_path: Path) -> None:
    """QEMU: docs/interop/qcow2.txt."""
    qcow2.create(tmp_path / "disk", 1024)
    image = (tmp_path / "disk").read_bytes()
    magic, version, backing, _, bits, size, crypt = struct.unpack_from(">4sIQIIQI", image)
    assert (magic, version, backing, bits, size, crypt) == (b"QFI\xfb", 2, 0, 16, 1 << 30, 0)
    l1_size, l1_offset, table, table_clusters, snapshots = struct.unpack_from(">IQQII", image, 36)
    cluster = 1 << bits
    assert l1_size * cluster * (cluster // 8) >= size
    assert (l1_offset % cluster, table % cluster, table_clusters, snapshots) == (0, 0, 1, 0)
    (block,) = struct.unpack_from(">Q", image, table)
    counts = struct.unpack_from(f">{cluster // 2}H", image, block)
    used = {0, l1_offset // cluster, table // cluster, block // cluster}
    assert {n for n, count in enumerate(counts) if count} == used, "every cluster of the file, and no other"
    assert len(image) == len(used) * cluster
    assert not any(image[l1_offset:]), "no cluster is mapped"


@pytest.mark.qemu
def test_qemu_takes_a_snapshot_into_it(tmp_path: Path) -> None:
    qcow2.create(tmp_path / "disk", 64)
    install = Provisioner(Cache(default_cache_root())).qemu_release()
    argv = install.argv("-machine", "none", "-nodefaults", "-display", "none", "-monitor", "stdio")
    argv += ["-drive", f"if=none,id=d,file={tmp_path}/disk,format=qcow2"]
    script = "savevm here\ninfo snapshots\nquit\n"
    environment = {**os.environ, **install.environment}
    done = subprocess.run(
        argv, input=script, env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    listed = done.stdout.split("info snapshots")[-1]
    assert "here" in listed
    assert "rror" not in done.stdout + done.stderr
