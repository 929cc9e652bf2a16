"""Background work in a guest: jobs, transfers and mount users."""

from __future__ import annotations

import hashlib

import pytest

from harness.errors import CommandFailed, GuestError, Violation, WaitTimeout
from harness.guest import transfer
from harness.guest.job import Job
from harness.guest.mount import Mount
from harness.guest.mount_user import KINDS, mount_in_use
from harness.tests.fakes import World

_RUNNING, _ENDED = (1, "", ""), (0, "", "")


@pytest.fixture
def mount(world: World) -> Mount:
    world.ssh.on("mount -t 9p", "")
    return world.guest.mount(world.share)


def _job(world: World, *states: tuple[int, str, str], status: str = "0", out: str = "", err: str = "") -> Job:
    world.ssh.on("^setsid sh -c", "")
    world.ssh.on(r"^test -e .*\.rc$", *states)
    for kind, text in (("rc", status), ("out", out), ("err", err)):
        world.ssh.on(rf"^cat .*\.{kind}$", text)
    return Job(world.guest, "ls /", "listing")


def test_a_job_that_ends_well(world: World) -> None:
    job = _job(world, _RUNNING, _ENDED, out="bin\n")
    assert job.wait_succeeded() == "bin\n"
    assert not job.running


def test_a_job_that_fails_says_how(world: World) -> None:
    job = _job(world, _ENDED, status="2", err="ls: no such folder\n")
    with pytest.raises(GuestError, match=r"^guest:source: listing exited with 2: ls: no such folder$"):
        job.wait_succeeded()
    assert job.wait().returncode == 2


def test_a_job_that_runs_on(world: World) -> None:
    job = _job(world, _RUNNING)
    job.expect_running()
    assert not job.ends_within(0.02)
    with pytest.raises(WaitTimeout, match="the end of listing in guest:source"):
        job.wait(timeout_s=0.02)


def test_a_job_that_should_run_and_has_ended(world: World) -> None:
    job = _job(world, _ENDED, status="1", err="killed\n")
    with pytest.raises(GuestError, match=r"^guest:source: listing has ended with 1: killed$"):
        job.expect_running()


def test_a_reader_of_what_the_host_wrote(world: World, mount: Mount) -> None:
    world.ssh.on("^setsid sh -c", "")
    reader = transfer.reader(mount, size_kib=1)
    world.ssh.on(r"^test -e .*\.rc$", _ENDED)
    right = hashlib.sha256((world.share.path / "read-me").read_bytes()).hexdigest()
    for kind, text in (("rc", "0"), ("out", f"{right}  -\n"), ("err", "")):
        world.ssh.on(rf"^cat .*\.{kind}$", text)
    reader.wait_finished().expect_intact()
    world.ssh.on(r"^cat .*\.out$", f"{'0' * 64}  -\n")
    with pytest.raises(
        Violation, match=r"^share share0: reading 'read-me': the guest has other bytes than expected"
    ):
        reader.wait_finished().expect_intact()


def test_a_writer_whose_bytes_did_not_arrive(world: World, mount: Mount) -> None:
    right = hashlib.sha256(b"right").hexdigest()
    world.ssh.on("^dd if=/dev/urandom", f"{right}  -\n")
    world.ssh.on("^setsid sh -c", "")
    world.ssh.on(r"^test -e .*\.rc$", _ENDED)
    for kind, text in (("rc", "0"), ("out", f"{right}  -\n"), ("err", "")):
        world.ssh.on(rf"^cat .*\.{kind}$", text)
    writer = transfer.writer(mount)
    (world.share.path / "write-me").write_bytes(b"right")
    writer.wait_finished().expect_intact()
    (world.share.path / "write-me").write_bytes(b"wrong")
    with pytest.raises(Violation, match="the host has other bytes in 'write-me'"):
        writer.wait_finished().expect_intact()


@pytest.mark.parametrize("kind", KINDS)
def test_a_mount_user_starts_and_ends_once(world: World, mount: Mount, kind: str) -> None:
    world.ssh.on(".", "4711\n")
    with mount_in_use(mount, kind) as mount_user:
        mount_user.expect_present()
        mount_user.end()
    leaving = [c for c in world.ssh.commands if c.startswith(("kill 4711;", "umount /mnt/.bind"))]
    assert len(leaving) == 1


def test_a_mount_user_that_is_gone_is_no_witness(world: World, mount: Mount) -> None:
    world.ssh.on(".", "4711\n")
    with mount_in_use(mount, "open_file") as mount_user:
        world.ssh.on("/proc/4711/fd/0", (1, "", "cat: can't open"))
        with pytest.raises(CommandFailed):
            mount_user.expect_present()


def test_a_mount_user_that_does_not_start(world: World, mount: Mount) -> None:
    world.ssh.on(".", "sh: fork: no memory\n")
    with pytest.raises(GuestError, match="no process id from"), mount_in_use(mount, "open_file"):
        pass


def test_many_readers(world: World, mount: Mount) -> None:
    world.ssh.on("^setsid sh -c", "")
    readers = transfer.Readers(mount, 3)
    digests = [
        hashlib.sha256((world.share.path / f"file{number}").read_bytes()).hexdigest() for number in range(3)
    ]
    world.ssh.on(r"^test -e .*\.rc$", _ENDED)
    lines = [f"{digest}  file{number}\n" for number, digest in enumerate(digests)]
    for kind, text in (("rc", "0"), ("out", "".join(reversed(lines))), ("err", "")):
        world.ssh.on(rf"^cat .*\.{kind}$", text)
    readers.wait_finished()
    world.ssh.on(r"^cat .*\.out$", f"{lines[0]}{digests[0]}  file1\n")
    with pytest.raises(Violation, match="the readers of file1, file2 read other bytes"):
        readers.wait_finished()
