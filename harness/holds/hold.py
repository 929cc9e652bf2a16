"""A 9p request kept in flight in a worker thread's system call, with the virtqueue as witness."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from harness.errors import GuestError, QemuError, Unsupported
from harness.holds import probe, seccomp, sizeless
from harness.holds.supervisor import Rule, Rules, Supervisor
from harness.qemu.machine import Machine, Wrapping
from harness.qemu.schema import require_command
from harness.qemu.spec import Device, MachineSpec, Share
from harness.testbed import Testbed

#: The data of Tread and Twrite (QEMU: ``hw/9pfs/9p-local.c``, ``local_preadv`` and ``local_pwritev``).
DATA = ("preadv", "preadv2", "pwritev", "pwritev2")
#: Tattach's and Tgetattr's look at the file (``local_lstat``).
STAT = ("newfstatat", "lstat")
#: Treaddir (``local_readdir``, through libc).
READDIR = ("getdents64", "getdents")
#: Tfsync (``local_fsync``).
FSYNC = ("fsync", "fdatasync")
#: What sets an extended attribute (``hw/9pfs/9p-util-linux.c``, ``fsetxattrat_nofollow``).
SETXATTR = ("lsetxattr",)

#: Seconds, before scaling: a guest's request has to reach QEMU.
CAUGHT_TIMEOUT_S = 10.0
_JOIN_TIMEOUT_S = 5.0
_QUEUE_STATUS, _QUEUE_STATUS_SINCE = "x-query-virtio-queue-status", "it came with 7.2"


class FileBacked(Device, Protocol):
    """A device whose requests QEMU serves by system calls on a file, or on what is in a folder: a share."""

    @property
    def path(self) -> Path:
        """That file or folder on the host."""


class Held:
    """Requests of one device that are kept in flight; made by :meth:`Hold.requests`.

    They are of one machine: the one that was given, or else that whose request is held first. A migration's
    destination is another.
    """

    def __init__(self, testbed: Testbed, rules: Rules, rule: Rule, share: FileBacked) -> None:
        self._testbed, self._rules, self._rule, self.share = testbed, rules, rule, share

    @property
    def count(self) -> int:
        """How many system calls are held now."""
        return len(self._rule.held)

    def _count(self) -> int:
        self._rules.check()
        return self.count

    def wait_caught(self, count: int = 1) -> None:
        """Wait until ``count`` requests are held.

        :raises WaitTimeout: when the guest did not send that many.
        :raises SetupError: when the harness failed to hold them.
        """
        self._machine.wait_until(
            lambda: self._count() >= count,
            what=f"{count} held request(s) of {self.share.id}",
            timeout_s=CAUGHT_TIMEOUT_S,
        )
        self.in_flight()

    def wait_in_flight(self, count: int) -> None:
        """Wait until the virtqueue has ``count`` requests in flight (128 at most: QEMU's ``hw/9pfs/9p.h``).

        QEMU counts a request when it takes it, a moment before a thread makes its call. Fewer are held: QEMU
        serves 64 at a time, and leaves one in the queue when the thread that it took for idle has just been
        given another (``util/thread-pool.c``, ``idle_threads``).

        :raises Unsupported: when this QEMU does not say how many.
        :raises WaitTimeout: when the guest did not send that many.
        :raises SetupError: when the harness failed to hold them.
        """
        if requests_in_use(self._machine, self.share) is None:
            raise Unsupported(f"this QEMU has no {_QUEUE_STATUS} ({_QUEUE_STATUS_SINCE})")
        self._machine.wait_until(
            lambda: requests_in_use(self._machine, self.share) == count and self._count() > 0,
            what=f"{count} request(s) of {self.share.id} in flight, and held",
            timeout_s=CAUGHT_TIMEOUT_S,
        )
        self.in_flight()

    def in_flight(self) -> None:
        """The witness: a call is held by a thread that still waits, and the virtqueue counts it.

        :raises GuestError: when nothing is in flight (any more).
        """
        self.waiting()
        inuse = requests_in_use(self._machine, self.share)
        self._machine.history.note(self._machine.name, "hold:inuse", {"inuse": inuse, "id": self.share.id})
        if inuse == 0:
            raise GuestError(f"no request of {self.share.id} is in flight: its virtqueue's inuse is 0")

    def waiting(self) -> None:
        """The witness that needs no QMP, which may stall: a call is held by a thread that still waits.

        :raises GuestError: when none is (any more).
        """
        waiting = [call for call in self._rule.held if Path(f"/proc/{call.tid}").exists()]
        if not waiting:
            raise GuestError(f"no request of {self.share.id} is held (any more)")
        self._machine.history.note(
            self._machine.name, "hold:waiting", {"held": len(waiting), "id": self.share.id}
        )

    def release(self) -> None:
        """Let the held requests go on, and hold no more of them; idempotent."""
        count = self._rules.lift(self._rule)
        self._testbed.history.note("host", "hold:released", {"id": self.share.id, "calls": count})

    @property
    def _machine(self) -> Machine:
        """The machine whose requests these are; as long as none is known, the newest is waited for."""
        named = (machine for machine in self._testbed.machines if machine.name == self._rule.machine)
        return next(named, self._testbed.machines[-1])


class Hold:
    """Holds for the machines of one testbed; it has to exist before they are launched.

    :raises Unsupported: on a host without seccomp user notification, or that does not let us use it.
    """

    def __init__(self, testbed: Testbed) -> None:
        probe.require_holds()
        self._testbed = testbed
        self._rules = Rules(testbed.history)
        self._supervisors: list[Supervisor] = []
        testbed.attach(self)

    def wrap(self, spec: MachineSpec, folder: Path) -> Wrapping:
        """Start QEMU under the filter (see :mod:`harness.holds.seccomp`)."""
        path = folder / f"{spec.name}.hold"
        self._supervisors.append(Supervisor(path, spec.name, self._rules))
        return Wrapping(prefix=seccomp.launcher(path))

    def release(self) -> None:
        """Let everything go on; called before the machines are ended."""
        self._rules.clear()

    def close(self) -> None:
        """Called when the machines have ended."""
        for supervisor in self._supervisors:
            supervisor.join(_JOIN_TIMEOUT_S)

    @contextmanager
    def requests(self, share: FileBacked, *calls: str, machine: Machine | None = None) -> Iterator[Held]:
        """Hold every request of ``share`` that makes one of ``calls`` (default: :data:`DATA`) from now on.

        They go on when the block is left, or at :meth:`Held.release`.

        :param machine: whose requests; by default of the machine that makes the first one.
        :raises UsageError: for a call that cannot be held.
        :raises SetupError: at the end of the block, when the harness failed to hold them.
        """
        rule = Rule(frozenset(calls or DATA), _resolved(share), machine=machine.name if machine else None)
        held = Held(self._testbed, self._rules, rule, share)
        self._testbed.history.note("host", "hold:armed", {"id": share.id, "calls": sorted(rule.calls)})
        self._rules.add(rule)
        try:
            yield held
        finally:
            held.release()
            self._rules.check()  # Whatever the block ended with, this is its cause.

    @contextmanager
    def failing(self, share: Share, error: int, *calls: str) -> Iterator[Rule]:
        """Let every such system call fail with the errno ``error``, as a broken file system does.

        The rule's ``hits`` tell how often that happened.
        """
        with self._applied(Rule(frozenset(calls or DATA), _resolved(share), error=error)) as rule:
            yield rule

    @contextmanager
    def halving(self, share: Share) -> Iterator[Rule]:
        """Let every read and write transfer half of the bytes it was asked for, and return that short count.

        The rule's ``hits`` tell how often that happened.
        """
        with self._applied(Rule(frozenset(DATA), _resolved(share), halved=True)) as rule:
            yield rule

    @contextmanager
    def without_block_size(self, share: Share) -> Iterator[Rule]:
        """Let the export's file system tell a block size of 0, as one in user space (FUSE) may.

        The rule's ``hits`` tell how often that happened.
        """
        rule = Rule(frozenset([sizeless.CALL]), _resolved(share), sizeless=True)
        with self._applied(rule) as applied:
            yield applied

    @contextmanager
    def _applied(self, rule: Rule) -> Iterator[Rule]:
        self._rules.add(rule)
        try:
            yield rule
        finally:
            self._rules.lift(rule)
            self._rules.check()  # As above.


def _resolved(share: FileBacked) -> Path:
    """The kernel names a file by its real path."""
    return Path(os.path.realpath(share.path))


def require_counted_requests(machine: Machine) -> None:
    """:raises Unsupported: when this QEMU does not say how many requests a virtqueue has in flight.

    To be asked before anything is plugged.
    """
    require_command(machine, _QUEUE_STATUS, _QUEUE_STATUS_SINCE)


def requests_in_use(machine: Machine, device: Device, queue: int = 0) -> int | None:
    """How many requests the device's virtqueue has in flight (``x-query-virtio-queue-status``, ``inuse``).

    ``None`` for a QEMU that has no such command (before 7.2), or no such device (any more).
    """
    path = f"/machine/peripheral/{device.id}/virtio-backend"
    try:
        status = machine.qmp.execute(_QUEUE_STATUS, {"path": path, "queue": queue}, watch=machine.watch)
    except QemuError:
        return None
    return int(status["inuse"])
