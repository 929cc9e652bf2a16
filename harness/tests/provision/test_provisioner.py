"""Recipes to files, with a small Debian archive made by the test."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.artifacts import Artifacts
from harness.errors import SetupError, UsageError
from harness.provision import Cache, Provisioner, default_cache_root, initramfs
from harness.provision.cache import _FOLDERS
from harness.qemu.accel import Accel
from harness.qemu.architectures import S390X, X86_64
from harness.qemu.binary import probe
from harness.qemu.machine_types import MACHINE_TYPES
from harness.reaper import RunFolder
from harness.testbed import Cell, Testbed
from harness.tests.provision import cpio_reader
from harness.tests.provision.archive import (
    ELF,
    FOREIGN_KERNEL,
    HOOK_MARK,
    KERNEL,
    SPLIT_KERNEL,
    Archive,
)

Make = Callable[..., Provisioner]


class Reports(list[str]):
    """What was reported, by part of it."""

    def about(self, words: str) -> list[str]:
        return [line for line in self if words in line]


@pytest.fixture
def reports() -> Reports:
    return Reports()


@pytest.fixture
def make(cache: Cache, recipes: Path, reports: Reports) -> Make:
    return lambda **options: Provisioner(cache, recipes=recipes, report=reports.append, **options)


def leftovers(cache: Cache) -> list[Path]:
    return [path for name in ("tmp", "guests", "qemu") for path in (cache.root / name).glob("*")]


def test_a_guest_image_has_what_a_boot_needs(archive: Archive, make: Make) -> None:
    image = make().guest_image()
    assert image.name == "1.0"
    assert image.kernel_version == KERNEL
    assert image.kernel.read_bytes() == ELF
    assert image.cmdline == "console=ttyS0"
    members = cpio_reader.read(image.initramfs.read_bytes())
    # Dependencies first, in the name that insmod is given; "-" and "_" are the same in a module's name.
    assert members["lib/modules/order"].content == b"9pnet.ko\nnet_fs.ko\n9p.ko\n"
    assert b"depends=" in members["lib/modules/9pnet.ko"].content, "a compressed module is unpacked"
    assert members["etc/inittab"].content == b"::sysinit:/etc/rcS\n"
    assert members["bin/busybox"].mode == stat.S_IFREG | 0o755
    assert members["root/.ssh/authorized_keys"].content.startswith(b"ssh-ed25519 ")
    assert stat.S_IMODE(image.client_key.stat().st_mode) == 0o600


def test_a_guest_image_has_modules_that_no_boot_loads(archive: Archive, make: Make) -> None:
    members = cpio_reader.read(make().guest_image().initramfs.read_bytes())
    assert b"virtio_blk" not in members["lib/modules/order"].content
    assert b"depends=" in members["lib/modules/virtio_blk.ko"].content
    assert members["lib/modules/virtio_blk.order"].content == b"9pnet.ko\nvirtio_blk.ko\n"
    assert members["lib/modules/virtio_pci.order"].content == b"", "the kernel has it built in"


def test_a_kernel_in_parts(archive: Archive, make: Make) -> None:
    """As in Debian since Linux 7: the image, the modules, and what is built in, each from its own package."""
    image = make().guest_image("sid")
    assert image.kernel_version == SPLIT_KERNEL
    assert image.kernel.read_bytes() == ELF + b" of 7.2"
    members = cpio_reader.read(image.initramfs.read_bytes())
    assert members["lib/modules/order"].content == b"9p.ko\n"


def test_a_guest_image_of_another_architecture(archive: Archive, make: Make) -> None:
    """Packages of that architecture, also where the host has one of the same name; another console."""
    image = make().guest_image(None, S390X)
    assert image.kernel_version == FOREIGN_KERNEL
    assert image.kernel.read_bytes() == b"a kernel of s390x"
    members = cpio_reader.read(image.initramfs.read_bytes())
    assert members["bin/busybox"].content == b"busybox of s390x"
    assert members["etc/inittab"].content == b"hvc0::respawn:/bin/console\n"
    assert image.kernel.parent.name == f"s390x-1.0-{image.key}"
    assert image.key != make().guest_image().key


def test_a_release_for_another_architecture(archive: Archive, make: Make) -> None:
    """The host's packages, with another emulator."""
    install = make().qemu_release(None, S390X)
    assert (install.name, install.binary.name) == ("7.2", "qemu-system-s390x")
    assert install.binary.parents[2].parent.name == f"s390x-7.2-{install.key}"


def test_what_an_architecture_does_not_have(make: Make) -> None:
    assert (make().guest_names(S390X), make().qemu_names(S390X)) == (["1.0"], ["7.2"])
    with pytest.raises(UsageError, match=r"^no recipe .*/guests/s390x/sid\.toml; known: 1\.0$"):
        make().guest_image("sid", S390X)


def test_the_libraries_of_a_program_are_read_from_its_headers() -> None:
    """Not by running its loader, which another architecture's host cannot."""
    found = initramfs._libraries(Path("/"), Path("/bin/sh"), X86_64.triplet)
    assert {"lib/x86_64-linux-gnu/libc.so.6", "lib64/ld-linux-x86-64.so.2"} <= set(found)
    assert found["lib/x86_64-linux-gnu/libc.so.6"].content.startswith(b"\x7fELF")
    assert initramfs._libraries(Path("/"), Path("/usr/bin/ldd"), X86_64.triplet) == {}, "a script needs none"


def test_a_library_that_no_package_has(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"^the packages contain no libc\.so\.6, which sh needs$"):
        initramfs._libraries(tmp_path, Path("/bin/sh"), X86_64.triplet)


def test_the_cache_is_private_and_left_tidy(archive: Archive, make: Make, cache: Cache) -> None:
    make().guest_image()
    assert stat.S_IMODE(cache.root.stat().st_mode) == 0o700
    assert list((cache.root / "tmp").iterdir()) == []


def test_a_cache_is_recognised_by_all_that_is_provided(
    archive: Archive, make: Make, cache: Cache, glibc: Callable[[str], None]
) -> None:
    """All but tmp, which many folders have."""
    glibc("glibc 2.40")
    provisioner = make()
    provisioner.guest_image()
    provisioner.qemu_release()
    next(provisioner.heap_libraries())
    assert {path.name for path in cache.root.iterdir()} - {"tmp"} <= _FOLDERS


def test_a_release_starts_through_its_own_loader(archive: Archive, make: Make) -> None:
    install = make().qemu_release()
    printed = subprocess.run(install.argv("-version"), check=True, capture_output=True, text=True).stdout
    root = install.binary.parents[2]
    assert printed.startswith(f"{root}/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2 --library-path {root}/"), (
        "the loader's absolute link is followed inside the root"
    )
    assert f" {install.binary} -L {root}/usr/share/qemu " in printed
    assert install.binary.is_file()
    assert not (install.binary.parents[1] / "share/doc").exists()
    assert printed.endswith("-version\n")
    assert install.origin == "provisioned"


def test_a_suite_is_preferred_to_its_release(
    archive: Archive, make: Make, recipes: Path, cache: Cache, reports: Reports
) -> None:
    """What backports have comes from there, also what is depended on; the rest from the release."""
    archive.publish_backport("2.0", "qemu-system-x86")
    backport = recipes / "qemu/10.0.toml"
    backport.write_text(
        'release = "bookworm"\nsuite = "bookworm-backports"\npackages = ["qemu-system-x86", "dropbear-bin"]\n'
    )

    def versions(name: str) -> dict[str, str]:
        (path,) = (cache.root / "resolved").glob(f"qemu-{name}-*.json")
        return {package["name"]: package["version"] for package in json.loads(path.read_text())["packages"]}

    make().qemu_release("10.0")
    make().qemu_release("7.2")
    assert versions("10.0") == {"qemu-system-x86": "2.0", "libc6": "1.0", "dropbear-bin": "1.0"}
    assert versions("7.2") == {"qemu-system-x86": "1.0", "libc6": "1.0"}, "backports are for who asks"
    archive.publish_backport("3.0", "qemu-system-x86", "libc6")
    make(refresh=True).qemu_release("10.0")
    assert versions("10.0") == {"qemu-system-x86": "3.0", "libc6": "3.0", "dropbear-bin": "1.0"}


def test_a_suite_that_does_not_exist_is_named(archive: Archive, make: Make, recipes: Path) -> None:
    (recipes / "qemu/7.2.toml").write_text(
        'default = true\nrelease = "bookworm"\nsuite = "bookworm-backport"\npackages = ["qemu-system-x86"]\n'
    )
    with pytest.raises(
        SetupError, match=r"apt-get update for bookworm-backport failed: .*/dists/bookworm-backport/"
    ):
        make().qemu_release()


def test_a_filled_cache_needs_neither_archive_nor_apt(
    archive: Archive, make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = make().guest_image(), make().qemu_release()
    archive.vanish()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert (make().guest_image(), make().qemu_release()) == first


def _truncate(path: Path) -> None:
    os.truncate(path, 5)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [_truncate, _flip, Path.unlink])
@pytest.mark.parametrize("name", ["initramfs.cpio", "manifest.json"])
def test_a_damaged_entry_is_repaired_without_the_archive(
    archive: Archive, make: Make, reports: Reports, damage: Callable[[Path], None], name: str
) -> None:
    image = make().guest_image()
    files = sorted(image.initramfs.parent.iterdir())
    before = [path.read_bytes() for path in files]
    archive.vanish()
    damage(image.initramfs.with_name(name))
    assert make().guest_image() == image
    assert [path.read_bytes() for path in files] == before
    assert reports.about("damaged")


def test_a_link_missing_from_a_release_is_noticed(archive: Archive, make: Make) -> None:
    link = make().qemu_release().binary.parents[2] / "lib64/ld-linux-x86-64.so.2"
    link.unlink()
    make().qemu_release()
    assert link.is_symlink()


def test_a_damaged_package_is_fetched_again(archive: Archive, make: Make, cache: Cache) -> None:
    image = make().guest_image()
    for deb in (cache.root / "debs").iterdir():
        _truncate(deb)
    image.initramfs.unlink()
    assert make().guest_image() == image


def test_a_withdrawn_version_is_resolved_again(
    archive: Archive, make: Make, cache: Cache, reports: Reports
) -> None:
    image = make().guest_image()
    archive.replace_all_versions("2.0")
    assert make().guest_image() == image, "what is there is used, whatever the archive has"
    shutil.rmtree(cache.root / "debs")
    image.initramfs.unlink()
    assert make().guest_image().key != image.key
    assert reports.about("replaced in the archive")


def test_only_refresh_takes_newer_versions(archive: Archive, make: Make) -> None:
    old = make().qemu_release()
    archive.replace_all_versions("2.0")
    assert make().qemu_release() == old
    new = make(refresh=True).qemu_release()
    assert new.key != old.key
    assert make().qemu_release() == new, "the newer versions are remembered"


@pytest.mark.parametrize(
    ("edit", "same"),
    [
        (lambda root: (root / "guests/root/etc/inittab").write_text("::sysinit:/bin/true\n"), False),
        (lambda root: (root / "guests/root/etc/inittab").chmod(0o755), False),
        (lambda root: os.utime(root / "guests/root/etc/inittab", (1, 1)), True),
        (lambda root: _replace(root / "guests/1.0.toml", "ttyS0", "ttyS1"), False),
        (lambda root: _replace(root / "guests/1.0.toml", "\nroot", "\n# a remark\nroot"), True),
    ],
)
def test_the_key_follows_the_content(
    archive: Archive, make: Make, recipes: Path, edit: Callable[[Path], object], same: bool
) -> None:
    before = make().guest_image()
    edit(recipes)
    assert (make().guest_image().key == before.key) is same


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_processes_that_come_together_fetch_once(archive: Archive, cache: Cache, recipes: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from harness.provision import Cache, Provisioner\n"
        "made = Provisioner(Cache(Path(sys.argv[1])), recipes=Path(sys.argv[2]), report=print)\n"
        "print(made.guest_image().key)"
    )
    argv = [sys.executable, "-c", program, str(cache.root), str(recipes)]
    both = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0].splitlines() for process in both]
    assert outputs[0][-1] == outputs[1][-1]
    assert sum("package lists" in line for output in outputs for line in output) == 1
    assert sum("fetching" in line and "MB" in line for output in outputs for line in output) == 1


def test_the_hosts_hooks_do_not_run(archive: Archive, make: Make) -> None:
    make().qemu_release()
    assert not (archive.folder / HOOK_MARK).exists()


def test_without_an_archive_the_error_is_one_line(archive: Archive, make: Make, cache: Cache) -> None:
    archive.vanish()
    with pytest.raises(SetupError) as error:
        make().guest_image()
    assert "apt-get update for bookworm failed: E: " in error.value.message
    assert f"file:{archive.folder}/archive" in error.value.message
    assert "check the network" in error.value.message
    assert leftovers(cache) == []


def test_a_package_that_does_not_exist_is_named(archive: Archive, make: Make, recipes: Path) -> None:
    _replace(recipes / "qemu/7.2.toml", "qemu-system-x86", "qemu-system-vax")
    with pytest.raises(SetupError, match="Unable to locate package qemu-system-vax"):
        make().qemu_release()


def test_a_module_that_does_not_exist_is_named(
    archive: Archive, make: Make, recipes: Path, cache: Cache
) -> None:
    _replace(recipes / "guests/1.0.toml", '"9p"', '"10p"')
    with pytest.raises(SetupError, match="no module 10p"):
        make().guest_image()
    assert leftovers(cache) == []


@pytest.mark.parametrize("tool", ["apt-get", "dpkg-deb"])
def test_a_missing_tool_is_named(
    archive: Archive, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool: str
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for other in {"apt-get", "dpkg-deb"} - {tool}:
        (tools / other).symlink_to(str(shutil.which(other)))
    monkeypatch.setenv("PATH", str(tools))
    with pytest.raises(SetupError, match=f"{tool} is not on PATH"):
        make().guest_image()


def test_a_full_disk_is_one_line_and_leaves_nothing(
    archive: Archive, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Cache
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "dpkg-deb").write_text(
        "#!/bin/sh\necho 'dpkg-deb: error: failed to write: No space left on device' >&2\nexit 2\n"
    )
    (tools / "dpkg-deb").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    with pytest.raises(SetupError) as error:
        make().guest_image()
    assert f"no space left in the cache {cache.root}" in error.value.message
    assert "HARNESS_CACHE" in error.value.message
    assert "\n" not in str(error.value)
    assert leftovers(cache) == []


def test_an_unknown_name_lists_the_known_ones(make: Make) -> None:
    with pytest.raises(UsageError, match=r"known: 1\.0, sid"):
        make().guest_image("9.9")
    assert make().guest_names() == ["1.0", "sid"]
    assert make().qemu_names() == ["7.2"]


#: What the harness and its users run in a guest.
TOOLS = (
    "sh mount umount dd md5sum sha256sum cat sync stty devmem chroot find xargs timeout insmod rmmod lsmod "
    "hexdump stat seq kill ps dmesg reboot poweroff"
)


@pytest.mark.qemu
def test_the_default_image_boots_and_reads_a_share(tmp_path: Path) -> None:
    """Fills the default cache when it is empty. The devices are there from the start: no hotplug here."""
    made = Provisioner(Cache(default_cache_root()))
    image, install = made.guest_image(), made.qemu_release()
    run = RunFolder()
    cell = Cell(install, probe(install), image, MACHINE_TYPES["pc"], Accel("tcg", "for a test"))
    testbed = Testbed(cell, run, Artifacts.create(tmp_path, "boot"))
    try:
        share = testbed.shares[0]
        (share.path / "file").write_text("hello from the host\n")
        guest = testbed.boot(testbed.spec(plugged=frozenset({share.id})))
        mount = guest.mount(share)
        assert guest.succeed(f"cat {mount.mountpoint}/file") == "hello from the host\n"
        assert guest.succeed("uname -r").strip() == image.kernel_version
        missing = guest.succeed(f"for tool in {TOOLS}; do command -v $tool >/dev/null || echo $tool; done")
        assert missing == ""
        assert "guest: network is up" in testbed.machines[0].artifacts.kernel.read_text()
    finally:
        testbed.close()
        run.close()


@pytest.fixture
def glibc(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Gives this host another libc."""
    return lambda version: monkeypatch.setattr(os, "confstr", lambda _: version)


def test_a_heap_library_needs_no_newer_libc_than_the_hosts(
    archive: Archive, make: Make, cache: Cache, glibc: Callable[[str], None]
) -> None:
    """The newest first; the next one is made only when the iterator reaches it."""
    glibc("glibc 2.40")
    found = make().heap_libraries()
    first = next(found)
    assert first.read_text() == "profiles"
    assert first.parent.name.startswith("fitting-")
    assert [path.name.split("-")[0] for path in (cache.root / "heap").iterdir()] == ["fitting"]
    assert [path.parent.name.split("-")[0] for path in found] == ["old"]


def test_a_filled_cache_has_the_heap_library_without_a_network(
    archive: Archive, make: Make, glibc: Callable[[str], None]
) -> None:
    glibc("glibc 2.36")
    with pytest.raises(SetupError, match="heap fitting is not in the cache"):
        next(make(offline=True).heap_libraries())
    made = next(make().heap_libraries())
    archive.vanish()
    assert next(make(offline=True).heap_libraries()) == made


@pytest.mark.parametrize("version", ["glibc 2.8", "musl", ""])
def test_a_libc_without_a_heap_library(make: Make, glibc: Callable[[str], None], version: str) -> None:
    glibc(version)
    with pytest.raises(SetupError, match="this host's libc"):
        next(make().heap_libraries())


def test_virtiofsd_runs_with_its_own_loader(archive: Archive, make: Make) -> None:
    with pytest.raises(SetupError, match=r"virtiofsd 1\.0 is not in the cache"):
        make(offline=True).virtiofsd()
    loader, _, libraries, program = make().virtiofsd()
    root = Path(program).parents[2]
    assert Path(program).is_file()
    assert Path(loader).is_relative_to(root)
    assert str(root) in libraries
    archive.vanish()
    assert make(offline=True).virtiofsd() == (loader, "--library-path", libraries, program)


def test_packages_without_virtiofsd(archive: Archive, make: Make) -> None:
    with pytest.raises(SetupError, match="the packages of virtiofsd empty contain no /usr/libexec/virtiofsd"):
        make().virtiofsd("empty")
