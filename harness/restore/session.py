"""A template's SSH session, gone on with while the QEMU of its guest is still starting.

Its handshake is only replayed (:mod:`harness.channel.guestfwd`): no guest is asked anything. QEMU's start
takes longer, so nobody waits for it.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from functools import partial

from harness.background import Background
from harness.channel.guestfwd import GuestfwdSocket, SavedSession
from harness.channel.handshake import CLIENT
from harness.channel.remote_shell import COMMAND, inside_script
from harness.channel.ssh import Ssh
from harness.deadline import TimeoutScale
from harness.errors import ChannelLost, HarnessError
from harness.guest.guest import NETWORK_IS_UP, Guest
from harness.guest.image import GuestImage
from harness.qemu.argv import GUESTFWD_ADDRESS, GUESTFWD_PORT
from harness.qemu.machine import Machine
from harness.restore import reseed

#: An sshd for one session, over a connection that the guest makes itself.
_SERVE = (
    f"setsid nc {GUESTFWD_ADDRESS} {GUESTFWD_PORT} -e /sbin/dropbear -i -s -r /etc/dropbear/host_key "
    "</dev/null >/dev/null 2>&1 &"
)
#: Whom QEMU's user network speaks for, and what it calls them (libslirp: ``src/slirp.c``,
#: ``special_ethaddr``). A restored guest is asked for its own address first, and then knows who asks.
_NEIGHBOURS = "arp -s 10.0.2.2 52:55:0a:00:02:02; " + (
    f"arp -s {GUESTFWD_ADDRESS} 52:55:" + ":".join(f"{int(part):02x}" for part in GUESTFWD_ADDRESS.split("."))
)
#: Until the session's shell, and whatever was started for it, has slept for a while: what a guest is saved in
#: the middle of, each that is restored has to do, and in code that is translated for the first time.
_QUIET = (
    "looks=0; while [ $looks -lt 10 ]; do usleep 50000; looks=$((looks + 1)); pidof cat >/dev/null "
    r"&& ! grep -qsE '^[0-9]+ \((dropbear|sh|cat|perl)\) [^S]' /proc/[0-9]*/stat || looks=0; done"
)
#: Seconds, before scaling. No guest takes part in it. What is not there by then does not come: the server's
#: recorded answers do not fit.
TIMEOUT_S = 4.0


class SessionReplay:
    """To be closed.

    :param frozen: the session. :param image: its guest's. :param timeout_scale: how patient to be.
    """

    def __init__(self, frozen: SavedSession, image: GuestImage, timeout_scale: TimeoutScale) -> None:
        self._log_in = partial(
            Ssh,
            None,
            client_key=image.client_key,
            host_key=image.host_key,
            timeout_s=timeout_scale.seconds(TIMEOUT_S),
            guestfwd=GuestfwdSocket(None, frozen),
            rehearsal=reseed.command(),
        )
        self._working: Background[Ssh] | None = None

    def begin(self) -> None:
        """Replay the handshake; idempotent."""
        self._begun()

    def _begun(self) -> Background[Ssh]:
        if self._working is None:
            self._working = Background(self._log_in)
        return self._working

    def take(self, machine: Machine) -> Ssh | str:
        """The session, with the guest that runs on in ``machine``; or why there is none.

        :raises HarnessError: the cause, when waiting on is pointless.
        """
        working = self._begun()
        machine.wait_until(lambda: working.done, what="the SSH session to be resumed", timeout_s=TIMEOUT_S)
        try:
            ssh = working.wait()
        except ChannelLost as exc:
            return exc.message
        if not ssh.move(machine.paths.guestfwd, port=lambda: machine.ssh_port, watch=machine.watch):
            return f"nobody listens on {machine.paths.guestfwd}"
        self._working = None
        return ssh

    def close(self) -> None:
        """End the session, unless it was taken. Idempotent."""
        working, self._working = self._working, None
        if working is not None:
            with suppress(HarnessError):
                working.wait().close()


def freeze(guest: Guest) -> SavedSession:
    """Prepare a guest for being saved as a template: an SSH session that can be resumed, and :mod:`.reseed`.

    The guest is spoken to over its console. :raises ChannelLost: when there is no such session.
    """
    guest.use("console")
    guest.succeed(reseed.start_command(), stdin=reseed.program())
    guest.succeed(_NEIGHBOURS)
    guestfwd = GuestfwdSocket(guest.machine.paths.guestfwd)
    guest.succeed(_SERVE)
    ssh = guest.log_in(guestfwd, reseed.command())
    guest.use_session(ssh)
    if ssh.resumed is not True:
        raise ChannelLost(f"{guest.actor}: no SSH session over {GUESTFWD_ADDRESS}: {ssh.resumed}")
    guest.succeed(_QUIET)
    return ssh.freeze()


def wait_restored(guest: Guest, session: SessionReplay) -> None:
    """The guest runs on from a template: make it one of its own, with the time and randomness of now.

    :param session: the SSH session that the template had; where it cannot go on, a new one is begun.
    :raises HarnessError: the cause, when it does not answer.
    """
    machine = guest.machine
    with machine.history.operation(guest.actor, "guest:restore"):
        try:
            found = session.take(machine)
            machine.history.note(guest.actor, "ssh:resumed", found if isinstance(found, str) else True)
            guest.use_session(guest.log_in() if isinstance(found, str) else found)
        except HarnessError as exc:
            raise machine.root_cause(exc) from exc
        guest.check(guest.run_inside(reseed.command()))


def restored(machine: Machine, image: GuestImage) -> Guest:
    """The guest of a machine that is restored: its kernel log begins with the template's."""
    return Guest(machine, image, boots=machine.kernel_log.text().count(NETWORK_IS_UP))


def session_key() -> str:
    """What a guest that was frozen depends on here: what is put into it, and whose session it remembers."""
    said = inside_script("", 1, reseed.SUBMIT)
    words = (CLIENT, COMMAND, *said, _NEIGHBOURS, _SERVE, _QUIET, reseed.start_command())
    put = "\0".join(words).encode() + reseed.program()
    return hashlib.sha256(put).hexdigest()[:16]
