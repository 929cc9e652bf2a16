from __future__ import annotations

import hashlib
import re

import pytest

from harness.errors import CommandFailed, CommandTimeout, GuestError, Violation
from harness.guest.mount import Mount, TagState, expect_no_mount, host_sha256, tag_state
from harness.tests.fakes import BUSY, NO_ENTRY, World

_CONTENT = b"some bytes\n"
_SUM = hashlib.sha256(_CONTENT).hexdigest()
_OTHER = hashlib.sha256(b"other bytes\n").hexdigest()
_TOKEN = r"^echo ([0-9a-f]+) > /mnt/share0/\.alive-\1$"


@pytest.fixture
def mount(world: World) -> Mount:
    world.ssh.on("mount -t 9p", "")
    return world.guest.mount(world.share)


def test_mount_and_unmount(world: World) -> None:
    world.ssh.on("mount", "")
    mount = world.guest.mount(world.share, options="msize=65536")
    mount.unmount()
    assert world.ssh.commands == [
        "mkdir -p /mnt/share0 && mount -t 9p -o trans=virtio,version=9p2000.L,msize=65536 tag0 /mnt/share0"
        " && [ -d /mnt/share0 ]",
        "umount /mnt/share0",
    ]


def test_a_mount_that_the_guest_refuses_carries_its_reason(world: World) -> None:
    world.ssh.on(
        "mount -t 9p", (255, "", "mount: mounting tag0 on /mnt/share0 failed: Operation not permitted")
    )
    with pytest.raises(CommandFailed, match=r"Operation not permitted$") as caught:
        world.guest.mount(world.share)
    assert caught.value.message.startswith("guest:source: ")


def test_a_mount_that_hangs(world: World) -> None:
    world.ssh.on("mount -t 9p", CommandTimeout("ssh", "mount", 60.0, "", ""))
    with pytest.raises(
        GuestError, match=r"^guest:source: the mount of tag0 hangs: its device does not answer"
    ):
        world.guest.mount(world.share)


def test_an_unmount_that_fails_is_not_hidden(world: World, mount: Mount) -> None:
    world.ssh.on("^umount", (1, "", "umount: can't unmount /mnt/share0: Device or resource busy"))
    with pytest.raises(CommandFailed, match="can't unmount"):
        mount.unmount()


# What a further mount meets


@pytest.mark.parametrize(("answer", "state"), [(BUSY, TagState.IN_USE), (NO_ENTRY, TagState.DELISTED)])
def test_tag_state_of_a_mount_that_fails(world: World, answer: tuple[int, str, str], state: TagState) -> None:
    world.ssh.on("mount -t 9p", answer)
    assert tag_state(world.guest, "tag0") is state
    assert len(world.ssh.commands) == 1


def test_tag_state_of_a_mount_that_succeeds_is_undone(world: World) -> None:
    world.ssh.on("mount -t 9p", "")
    world.ssh.on("^umount", "")
    assert tag_state(world.guest, "tag0") is TagState.FREE
    assert world.ssh.commands[-1] == "umount /mnt/.probe"


@pytest.mark.parametrize(
    "stderr",
    [
        "mount: mounting tag0 on /mnt/.probe failed: Invalid argument",
        "mount: mounting tag0 on /mnt/.probe failed: Input/output error",
        "sh: mount: not found",
        "",
    ],
)
def test_tag_state_with_any_other_error(world: World, stderr: str) -> None:
    world.ssh.on("mount -t 9p", (255, "", stderr))
    with pytest.raises(CommandFailed, match=f"exited with 255.*{re.escape(stderr)}"):
        tag_state(world.guest, "tag0")


# Both sides


def _sides(world: World, *, host: bytes | None, guest: str) -> None:
    if host is not None:
        (world.share.path / "file").write_bytes(host)
    world.ssh.on("^sha256sum < /mnt/share0/file$", f"{guest}  -\n")


def test_intact(world: World, mount: Mount) -> None:
    _sides(world, host=_CONTENT, guest=_SUM)
    mount.expect_intact("file", _SUM)


@pytest.mark.parametrize(
    ("host", "guest", "side"),
    [
        (b"other bytes\n", _SUM, "host"),
        (_CONTENT, _OTHER, "guest"),
        (b"other bytes\n", _OTHER, "host"),
        (b"", _SUM, "host"),
        (None, _SUM, "host"),
    ],
)
def test_each_side_is_compared_and_named(
    world: World, mount: Mount, host: bytes | None, guest: str, side: str
) -> None:
    _sides(world, host=host, guest=guest)
    with pytest.raises(
        Violation, match=rf"^the {side} reads other bytes in 'file' of share share0"
    ) as caught:
        mount.expect_intact("file", _SUM)
    assert all(word in caught.value.details for word in (_SUM, guest))


def test_write_returns_the_hash_of_the_bytes_before_they_are_written(world: World, mount: Mount) -> None:
    world.ssh.on("dd if=/dev/urandom", f"{_SUM}  -\n")
    assert mount.write("a b", size_kib=3) == _SUM
    command = world.ssh.commands[-1]
    assert "count=3" in command
    assert "sha256sum < /tmp/w && cat /tmp/w > '/mnt/share0/a b' && sync" in command


def test_large_requests(world: World, mount: Mount) -> None:
    world.ssh.on("dd if=", f"{_SUM}  -\n")
    assert mount.write("a", size_kib=3, block_kib=512) == _SUM
    assert "sha256sum < /tmp/w && dd if=/tmp/w of=/mnt/share0/a bs=512k && sync" in world.ssh.commands[-1]
    (world.share.path / "a").write_bytes(_CONTENT)
    mount.expect_intact("a", _SUM, block_kib=512)
    read = "dd if=/mnt/share0/a of=/tmp/r bs=512k && sha256sum < /tmp/r && rm /tmp/r"
    assert world.ssh.commands[-1] == read


def test_nothing_is_mounted(world: World) -> None:
    world.ssh.on("/proc/mounts", "", "tag0 /mnt/share0 9p rw 0 0\n")
    expect_no_mount(world.guest)
    with pytest.raises(GuestError, match=r"^guest:source: a 9p mount is left behind: tag0 /mnt/share0 9p"):
        expect_no_mount(world.guest)


def test_a_name_is_one_word_of_the_guests_shell(world: World, mount: Mount) -> None:
    world.ssh.on("^sha256sum", f"{_SUM}  -\n")
    mount.sha256("a'; reboot; '")
    assert world.ssh.commands[-1] == """sha256sum < '/mnt/share0/a'"'"'; reboot; '"'"''"""


# The witness


def test_usable_is_a_round_trip_to_the_host(world: World, mount: Mount) -> None:
    def through(command: str) -> str:
        found = re.search(_TOKEN, command)
        assert found, command
        (world.share.path / f".alive-{found[1]}").write_text(found[1] + "\n")
        return ""

    world.ssh.on("^echo", through)
    mount.expect_usable()
    mount.expect_usable()
    assert list(world.share.path.iterdir()) == []
    assert len({command for command in world.ssh.commands if command.startswith("echo")}) == 2


def test_not_usable_when_the_guest_says_so(world: World, mount: Mount) -> None:
    world.ssh.on("^echo", (1, "", "sh: can't create /mnt/share0/.alive: Input/output error"))
    with pytest.raises(GuestError, match="Input/output error"):
        mount.expect_usable()


def test_not_usable_when_the_host_has_no_file(world: World, mount: Mount) -> None:
    """As when the guest wrote to the mount point of an unmounted share."""
    world.ssh.on("^echo", "")
    with pytest.raises(GuestError, match=r"^share share0: the guest wrote [0-9a-f]+, the host reads nothing"):
        mount.expect_usable()


def test_not_usable_when_the_host_reads_something_else(world: World, mount: Mount) -> None:
    def garbled(command: str) -> str:
        found = re.search(_TOKEN, command)
        assert found, command
        (world.share.path / f".alive-{found[1]}").write_text("something else")
        return ""

    world.ssh.on("^echo", garbled)
    with pytest.raises(
        GuestError, match=r"^share share0: the guest wrote [0-9a-f]+, the host reads something else$"
    ):
        mount.expect_usable()


def test_host_sha256(world: World) -> None:
    (world.share.path / "file").write_bytes(_CONTENT)
    assert host_sha256(world.share.path / "file") == _SUM
