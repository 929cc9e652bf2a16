"""Keeps a 9p request in flight in a worker thread's system call; the virtqueue is the witness."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from harness.errors import GuestError, QemuError, Unsupported
from harness.holds import probe, seccomp, zero_block_size
from harness.holds.supervisor import Rule, Rules, Supervisor
from harness.qemu.machine import Machine, Wrapping
from harness.qemu.schema import require_command
from harness.qemu.spec import Device, MachineSpec, Share
from harness.testbed import Testbed

#: The data of Tread and Twrite (QEMU: ``hw/9pfs/9p-local.c``, ``local_preadv`` and ``local_pwritev``).
DATA = ("preadv", "preadv2", "pwritev", "pwritev2")
#: The same, at the file's position: of a QEMU that has no preadv (before 0.14).
AT_POSITION = ("readv", "writev")
#: The file's attributes, for Tattach and Tgetattr (``local_lstat``).
STAT = ("newfstatat", "lstat")
#: Treaddir (``local_readdir``, through libc).
READDIR = ("getdents64", "getdents")
#: Tfsync (``local_fsync``).
FSYNC = ("fsync", "fdatasync")
#: The call that sets an extended attribute (``hw/9pfs/9p-util-linux.c``, ``fsetxattrat_nofollow``; before 2.9
#: ``hw/9pfs/virtio-9p-local.c``, ``local_set_xattr``).
SETXATTR = ("lsetxattr", "setxattr")
#: The calls that make a folder, move, and remove (``local_mkdir``, ``local_renameat``, ``local_unlinkat``).
#: Before 2.9 they take whole paths.
MKDIR, RENAME, UNLINK = ("mkdirat", "mkdir"), ("renameat", "rename"), ("unlinkat", "unlink", "rmdir")

#: Seconds, before scaling, for a guest's request to reach QEMU.
CAUGHT_TIMEOUT_S = 10.0
#: Seconds, scaled for a slow host only, in which a supervisor must end after its machine.
_JOIN_TIMEOUT_S = 5.0
_QUEUE_STATUS, _QUEUE_STATUS_SINCE = "x-query-virtio-queue-status", "it came with 7.2"


class FileBacked(Device, Protocol):
    """A device whose requests QEMU serves by system calls on a file, or on what is in a folder: a share."""

    @property
    def path(self) -> Path:
        """That file or folder on the host, whose system calls can be held."""


class Held:
    """Requests of one device that are kept in flight; made by :meth:`Hold.requests`.

    They belong to one machine: the one that was given, or else the one whose request is held first. The
    destination of a migration is another machine.
    """

    def __init__(self, testbed: Testbed, rules: Rules, rule: Rule, share: FileBacked) -> None:
        self._testbed, self._rules, self._rule, self.share = testbed, rules, rule, share

    @property
    def count(self) -> int:
        """The number of system calls that this hold keeps now."""
        return len(self._rule.held)

    def _count(self) -> int:
        self._rules.check()
        return self.count

    def wait_caught(self, count: int = 1) -> None:
        """Wait until ``count`` requests are held.

        Call it after each request that is sent, with a ``count`` that grows: of requests that come together
        one may wait for a thread that another request has taken (see :meth:`wait_in_flight`).

        :raises WaitTimeout: when the guest does not send that many.
        :raises SetupError: when the harness fails to hold them.
        """
        self._machine.wait_until(
            lambda: self._count() >= count,
            what=f"{count} held request(s) of {self.share.id}",
            timeout_s=CAUGHT_TIMEOUT_S,
        )
        self.in_flight()

    def wait_in_flight(self, count: int) -> None:
        """Wait until the virtqueue has ``count`` requests in flight, and at least one of them is held.

        At most 128 can be in flight (QEMU: ``hw/9pfs/9p.h``, ``MAX_REQ``). QEMU counts a request when it
        takes it from the ring, before a thread makes the system call. Fewer may be held: QEMU runs at most 64
        worker threads, and a request waits for a thread that was counted as idle but has just got another
        request (``util/thread-pool.c``, ``idle_threads``).

        :raises Unsupported: when this QEMU does not report the number.
        :raises WaitTimeout: when the guest does not send that many.
        :raises SetupError: when the harness fails to hold them.
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
        """Assert that a held call's thread still waits and that the virtqueue counts a request in flight.

        :raises GuestError: when no request is in flight (any more).
        """
        self.waiting()
        inuse = requests_in_use(self._machine, self.share)
        self._machine.history.note(self._machine.name, "hold:inuse", {"inuse": inuse, "id": self.share.id})
        if inuse == 0:
            raise GuestError(f"no request of {self.share.id} is in flight: its virtqueue's inuse is 0")

    def waiting(self) -> None:
        """Assert that a held call's thread still waits; needs no QMP, which may stall.

        :raises GuestError: when no call is held (any more).
        """
        waiting = [call for call in self._rule.held if Path(f"/proc/{call.tid}").exists()]
        if not waiting:
            raise GuestError(f"no request of {self.share.id} is held (any more)")
        self._machine.history.note(
            self._machine.name, "hold:waiting", {"held": len(waiting), "id": self.share.id}
        )

    def release(self) -> None:
        """Let the held requests continue, and hold no further ones. Idempotent."""
        count = self._rules.lift(self._rule)
        self._testbed.history.note("host", "hold:released", {"id": self.share.id, "calls": count})

    @property
    def _machine(self) -> Machine:
        """The machine whose requests are held; the newest machine while no request has been held yet."""
        named = (machine for machine in self._testbed.machines if machine.name == self._rule.machine)
        return next(named, self._testbed.machines[-1])


class Hold:
    """Holds for the machines of one testbed; to be created before they are launched.

    :raises Unsupported: when the host has no seccomp user notification, or does not permit it.
    """

    def __init__(self, testbed: Testbed) -> None:
        probe.require_holds()
        self._testbed = testbed
        self._rules = Rules(testbed.history)
        self._supervisors: list[Supervisor] = []
        testbed.attach(self)

    def wrap(self, spec: MachineSpec, folder: Path) -> Wrapping:
        """Start QEMU under the filter for holds (see :mod:`harness.holds.seccomp`)."""
        path = folder / f"{spec.name}.hold"
        self._supervisors.append(Supervisor(path, spec.name, self._rules))
        return Wrapping(prefix=seccomp.launcher(path))

    def release(self) -> None:
        """Lift every rule of holds; called before the machines are ended."""
        self._rules.clear()

    def close(self) -> None:
        """End the supervisors of holds; called when the machines have ended."""
        for supervisor in self._supervisors:
            supervisor.join(self._testbed.cell.accel.timeout_scale.host_seconds(_JOIN_TIMEOUT_S))

    @contextmanager
    def requests(self, share: FileBacked, *calls: str, machine: Machine | None = None) -> Iterator[Held]:
        """From now on hold every request of ``share`` that makes one of ``calls`` (default: :data:`DATA`).

        The requests continue when the block is left, or at :meth:`Held.release`.

        :param machine: the machine whose requests are held; by default the one that makes the first of them.
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
            self._rules.check()  # A failed supervisor is the root cause of any error of the block.

    @contextmanager
    def failing(self, share: Share, error: int, *calls: str, main_thread: bool = False) -> Iterator[Rule]:
        """In place of a hold, let every such system call fail with the errno ``error``.

        As on a broken file system.

        The rule's ``hits`` counts the calls that failed.

        :param main_thread: only those of QEMU's main thread fail, which realizes devices. By default only
            those of its other threads fail, which serve requests.
        """
        rule = Rule(frozenset(calls or DATA), _resolved(share), error=error, main_thread=main_thread)
        with self._applied(rule) as applied:
            yield applied

    @contextmanager
    def halving(self, share: Share) -> Iterator[Rule]:
        """In place of a hold, let every read and write transfer half of the bytes, and return that.

        The rule's ``hits`` counts the calls that were shortened.
        """
        with self._applied(Rule(frozenset(DATA), _resolved(share), halved=True)) as rule:
            yield rule

    @contextmanager
    def without_block_size(self, share: Share) -> Iterator[Rule]:
        """In place of a hold, let ``fstatfs`` and ``statfs`` report a block size of 0, as a file system in
        user space may.

        The rule's ``hits`` counts these calls.
        """
        rule = Rule(frozenset(zero_block_size.CALLS), _resolved(share), zero_block_size=True)
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
    """The real path of a held share, which the kernel uses below ``/proc/PID/fd``."""
    return Path(os.path.realpath(share.path))


def require_counted_requests(machine: Machine) -> None:
    """Check that this QEMU reports how many requests a virtqueue has in flight.

    To be called before a device is plugged.

    :raises Unsupported: when it does not.
    """
    require_command(machine, _QUEUE_STATUS, _QUEUE_STATUS_SINCE)


def requests_in_use(machine: Machine, device: Device, queue: int = 0) -> int | None:
    """The number of requests in flight of one of the device's virtqueues.

    It is ``inuse`` of ``x-query-virtio-queue-status``.

    ``None`` when this QEMU has no such command (before 7.2), or no such device (any more).
    """
    path = f"/machine/peripheral/{device.id}/virtio-backend"
    try:
        status = machine.qmp.execute(_QUEUE_STATUS, {"path": path, "queue": queue}, watch=machine.watch)
    except QemuError:
        return None
    return int(status["inuse"])
