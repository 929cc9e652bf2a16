"""Restored guests are guests of their own; their SSH session goes on, and goes with them."""

from __future__ import annotations

import struct
import time

import pytest

from harness.actions.migration import Migration
from harness.history import read
from harness.restore import reseed
from harness.testbed import Testbed

pytestmark = pytest.mark.qemu
_SAYS = reseed.text(reseed.message()).encode() + b"\n"
#: More nanoseconds than a second has.
_NO_TIME = reseed.text(struct.pack("<qq", 1, 10**9) + bytes(reseed.MESSAGE_SIZE - 16)).encode() + b"\n"


def test_two_guests_of_one_template(testbed: Testbed) -> None:
    """The time of now, and random numbers of their own; a message that is cut short is refused."""
    first, second = testbed.boot(), testbed.boot(testbed.spec(name="second"))
    random = {guest.succeed("cat /proc/sys/kernel/random/uuid") for guest in (first, second)}
    assert len(random) == 2
    for guest in (first, second):
        assert abs(int(guest.succeed("date +%s")) - time.time()) < 30
    for stdin, answer in (
        (_SAYS, "0\n"),
        (_SAYS[:-1], ""),
        (b"", ""),
        (_NO_TIME, "1\n"),
        (_SAYS + _NO_TIME, "0\n1\n"),
    ):
        done = first.run(reseed.PROGRAM, stdin=stdin)
        assert (done.returncode, done.stdout) == (1, answer)  # What is no message ends it, and be it none.


def test_the_session_goes_on_and_moves_along(testbed: Testbed) -> None:
    guest = testbed.boot()
    ssh = guest.ssh
    assert ssh.resumed is True
    for _ in range(3):
        Migration(guest, testbed).migrate()
        assert guest.ssh is ssh, "a new connection was made"
    resumed = [entry.value for entry in read(testbed.artifacts.history) if entry.f == "ssh:resumed"]
    assert resumed == [True]
    guest.disconnect()
    guest.succeed("true")
    assert guest.ssh is not ssh
    Migration(guest, testbed).migrate()
    guest.succeed("true")
