"""Background reads and writes of files, whose content is checked afterwards."""

from __future__ import annotations

import hashlib
import os

from harness.errors import Violation
from harness.guest.commands import quote
from harness.guest.job import Job
from harness.guest.mount import Mount, host_sha256

#: Seconds, before scaling.
_READERS_TIMEOUT_S = 30.0


class Transfer:
    """A file that the guest reads or writes in the background; made by :func:`reader` or :func:`writer`."""

    def __init__(self, mount: Mount, name: str, job: Job, expected_sha256: str) -> None:
        self.mount, self.name, self.job, self.expected_sha256 = mount, name, job, expected_sha256

    def in_progress(self) -> None:
        """The witness that the transfer has neither finished nor failed.

        :raises GuestError: when it has.
        """
        self.job.expect_running()

    def wait_finished(self) -> Transfer:
        """Wait for the end of the transfer.

        :raises GuestError: when it failed. :raises WaitTimeout: when it does not end.
        """
        self._done = self.job.wait_succeeded()
        return self

    def expect_intact(self) -> None:
        """Check the transfer's content on both sides; call it after :meth:`wait_finished`.

        :raises Violation: when one side has other bytes.
        """
        seen = self._done.split()[0]
        if seen != self.expected_sha256:
            raise Violation(
                f"share {self.mount.share.id}: {self.job.what}: the guest has other bytes than expected",
                details=f"expected {self.expected_sha256}, got {seen}",
            )
        host = host_sha256(self.mount.share.path / self.name)
        if host != self.expected_sha256:
            raise Violation(
                f"share {self.mount.share.id}: the host has other bytes in {self.name!r} than the guest",
                details=f"expected {self.expected_sha256}, the host has {host}",
            )


#: Opens all files, then forks a process for each that copies it, so that the requests in flight are reads.
_READERS = """
my ($copies, @names) = @ARGV;
my @files = map { open(my $file, "<", $_) or die "$_: $!\\n"; $file } @names;
for my $i (0 .. $#names) {
    my $pid = fork; defined $pid or die "fork: $!\\n"; next if $pid;
    open(my $copy, ">", "$copies/$names[$i]") or die "$names[$i]: $!\\n";
    my $got;
    while ($got = sysread($files[$i], my $bytes, 65536)) { syswrite($copy, $bytes) }
    defined $got or die "$names[$i]: $!\\n";
    exit 0;
}
my $failed = 0;
while (wait() != -1) { $failed++ if $? }
exit($failed ? 1 : 0);
"""


class Readers:
    """Many small files, read at the same time by as many processes.

    :param count: the number of files and processes. :param size_bytes: the size of each file in bytes.
    """

    def __init__(self, mount: Mount, count: int, *, size_bytes: int = 4096) -> None:
        self._mount = mount
        self._expected: dict[str, str] = {}
        for number in range(count):
            name, content = f"file{number}", os.urandom(size_bytes)
            (mount.share.path / name).write_bytes(content)
            self._expected[name] = hashlib.sha256(content).hexdigest()
        names, copies = " ".join(self._expected), "/tmp/readers"
        command = f"rm -rf {copies}; mkdir {copies} && cd {quote(mount.mountpoint)} && "
        command += f"perl -e {quote(_READERS)} {copies} {names} && cd {copies} && sha256sum *"
        self._job = Job(mount.guest, command, f"{count} readers")

    def wait_finished(self) -> None:
        """Wait until every reading process has read its file to the end.

        :raises Violation: when one read other bytes. :raises GuestError: when one failed.
        """
        lines = self._job.wait_succeeded(timeout_s=_READERS_TIMEOUT_S).splitlines()
        seen = {name: digest for digest, name in (line.split() for line in lines)}
        wrong = sorted(name for name, digest in self._expected.items() if seen.get(name) != digest)
        if wrong:
            raise Violation(
                f"share {self._mount.share.id}: the readers of {', '.join(wrong)} read other bytes"
            )


def reader(mount: Mount, name: str = "read-me", *, size_kib: int = 256) -> Transfer:
    """Start a transfer: create a file of random bytes on the host, and read it in the guest."""
    content = os.urandom(size_kib * 1024)
    (mount.share.path / name).write_bytes(content)
    job = Job(mount.guest, f"sha256sum < {_inside(mount, name)}", f"reading {name!r}")
    return Transfer(mount, name, job, hashlib.sha256(content).hexdigest())


def writer(mount: Mount, name: str = "write-me", *, size_kib: int = 256) -> Transfer:
    """Start a transfer: write a file of random bytes in the guest, and sync it."""
    guest, copy = mount.guest, f"/tmp/{name}"
    made = guest.succeed(
        f"dd if=/dev/urandom of={quote(copy)} bs=1024 count={size_kib} && sha256sum < {quote(copy)}"
    )
    target = _inside(mount, name)
    # The hash of the copy is computed again after the write, as the output of the job.
    command = f"dd if={quote(copy)} of={target} bs=65536 conv=fsync && sha256sum < {quote(copy)}"
    return Transfer(mount, name, Job(guest, command, f"writing {name!r}"), made.split()[0])


def _inside(mount: Mount, name: str) -> str:
    return quote(f"{mount.mountpoint}/{name}")
