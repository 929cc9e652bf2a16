"""Restored guests are guests of their own; their SSH session goes on, and goes with them."""

from __future__ import annotations

import time

import pytest

from harness.actions.migration import Migration
from harness.history import read
from harness.restore import reseed
from harness.testbed import Testbed

pytestmark = pytest.mark.qemu
_MESSAGE = f"{reseed.message()}\n".encode()
#: A time that the kernel refuses (``include/linux/time64.h``, ``timespec64_valid_settod``).
_NO_TIME = b"9999999999" + _MESSAGE[10:]


def test_two_guests_of_one_template(testbed: Testbed) -> None:
    """The time of now, and random numbers of their own; a message that is cut short is refused."""
    first, second = testbed.boot(), testbed.boot(testbed.spec(name="second"))
    random = {guest.succeed("cat /proc/sys/kernel/random/uuid") for guest in (first, second)}
    assert len(random) == 2
    for guest in (first, second):
        assert abs(int(guest.succeed("date +%s")) - time.time()) < 30
    for stdin, answer in (
        (_MESSAGE, "0\n"),
        (_MESSAGE[:-1], ""),
        (b"", ""),
        (_NO_TIME, "1\n"),
        (_MESSAGE + _NO_TIME, "0\n1\n"),
    ):
        done = first.run(reseed.RUN, stdin=stdin)
        assert (done.returncode, done.stdout) == (1, answer)  # What is no message ends it, and be it none.


def test_a_machine_that_the_program_does_not_know(testbed: Testbed) -> None:
    done = testbed.boot().run(f"perl {reseed.PROGRAM} pdp11", stdin=_MESSAGE)
    assert done.returncode != 0
    assert (done.stdout, done.stderr) == ("", "reseed.pl: no numbers for pdp11\n")


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
