"""The SSH session of a template: saved with the guest, and resumed when the guest is restored.

Resuming only replays the recorded handshake (:mod:`harness.channel.guestfwd`), which needs no guest. It runs
while QEMU starts and takes less time than that, so it does not delay a test.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from functools import partial

from harness.background import Background
from harness.channel.guestfwd import GuestfwdSocket, SavedSession
from harness.channel.remote_shell import COMMAND, in_shell_script
from harness.channel.ssh import CLIENT, Ssh
from harness.deadline import TimeoutScale
from harness.errors import ChannelLost, HarnessError
from harness.guest.guest import BOOT_TIMEOUT_S, NETWORK_IS_UP, Guest
from harness.guest.image import GuestImage
from harness.qemu.argv import GUESTFWD_ADDRESS, GUESTFWD_PORT
from harness.qemu.machine import Machine
from harness.restore import reseed

#: Starts an sshd for one session over a connection that the guest itself opens.
_SERVE = (
    f"setsid nc {GUESTFWD_ADDRESS} {GUESTFWD_PORT} -e /sbin/dropbear -i -s -r /etc/dropbear/host_key "
    "</dev/null >/dev/null 2>&1 &"
)
#: Adds the addresses of QEMU's user network to the guest's ARP table (libslirp: ``src/slirp.c``,
#: ``special_ethaddr``). After a restore, libslirp first asks for the guest's address; with these entries the
#: guest answers without asking for libslirp's.
_NEIGHBOURS = "arp -s 10.0.2.2 52:55:0a:00:02:02; " + (
    f"arp -s {GUESTFWD_ADDRESS} 52:55:" + ":".join(f"{int(part):02x}" for part in GUESTFWD_ADDRESS.split("."))
)
#: Waits until the processes of the session have slept for half a second. Every restored guest would have to
#: finish what they are doing when the guest is saved, in code that TCG has to translate first.
_QUIET = (
    "looks=0; while [ $looks -lt 10 ]; do usleep 50000; looks=$((looks + 1)); pidof cat >/dev/null "
    r"&& ! grep -qsE '^[0-9]+ \((dropbear|sh|cat|perl)\) [^S]' /proc/[0-9]*/stat || looks=0; done"
)
#: Seconds, before scaling, in which the replay must complete. It does not depend on a guest; if it takes
#: longer, the recorded answers do not fit.
TIMEOUT_S = 4.0


class SessionReplay:
    """Resumes a saved session while the QEMU of its guest starts; call :meth:`close` at the end.

    :param saved: the session. :param image: the image of its guest. :param timeout_scale: for timeouts.
    """

    def __init__(self, saved: SavedSession, image: GuestImage, timeout_scale: TimeoutScale) -> None:
        self._log_in = partial(
            Ssh,
            None,
            client_key=image.client_key,
            host_key=image.host_key,
            timeout_s=timeout_scale.seconds(BOOT_TIMEOUT_S),
            resume_s=timeout_scale.seconds(TIMEOUT_S),
            guestfwd=GuestfwdSocket(None, saved),
            first_command=reseed.command(),
        )
        self._replay: Background[Ssh] | None = None

    def begin(self) -> None:
        """Begin to replay a template's handshake, in the background; idempotent."""
        self._started_replay()

    def _started_replay(self) -> Background[Ssh]:
        if self._replay is None:
            self._replay = Background(self._log_in)
        return self._replay

    def connect(self, machine: Machine) -> Ssh | str:
        """Connect the template's session to the restored guest in ``machine``; the caller then owns it.

        :returns: the session, or the reason why it could not be resumed.
        :raises HarnessError: the root cause, when QEMU or the guest failed meanwhile.
        """
        replay = self._started_replay()
        # The replay has TIMEOUT_S of its own, and closes what it opened: it ends before this wait does.
        machine.wait_until(
            lambda: replay.done, what="the SSH session to be resumed", timeout_s=TIMEOUT_S + BOOT_TIMEOUT_S
        )
        try:
            ssh = replay.wait()
        except ChannelLost as exc:
            return exc.message
        if not ssh.move(machine.paths.guestfwd, port=lambda: machine.ssh_port, watch=machine.watch):
            return f"QEMU does not listen on {machine.paths.guestfwd}"
        self._replay = None
        return ssh

    def close(self) -> None:
        """Close a template's session, unless :meth:`connect` returned it. Idempotent."""
        replay, self._replay = self._replay, None
        if replay is not None:
            with suppress(HarnessError):
                replay.wait().close()


def save_session(guest: Guest) -> SavedSession:
    """Prepare a guest for being saved as a template: start :mod:`.reseed` and a session that can be resumed.

    Until the session exists, commands go through the guest's console.

    :raises ChannelLost: when no session over the guestfwd socket could be opened.
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
    return ssh.save_session()


def wait_restored(guest: Guest, session: SessionReplay) -> None:
    """Connect to a guest that was restored from a template, and reseed it (clock and random numbers).

    :param session: the SSH session of the template; if it cannot be resumed, a new one is opened.
    :raises HarnessError: the root cause, when the guest does not answer.
    """
    machine = guest.machine
    with machine.history.operation(guest.actor, "guest:restore"):
        try:
            found = session.connect(machine)
            machine.history.note(guest.actor, "ssh:resumed", found if isinstance(found, str) else True)
            guest.use_session(guest.log_in() if isinstance(found, str) else found)
        except HarnessError as exc:
            raise machine.root_cause(exc) from exc
        guest.check(guest.run_in_session_shell(reseed.command()))


def restored(machine: Machine, image: GuestImage) -> Guest:
    """The guest of a restored machine; its kernel log begins with that of the template."""
    return Guest(machine, image, boots=machine.kernel_log.text().count(NETWORK_IS_UP))


def session_key() -> str:
    """A hash of what a saved guest depends on in this module: programs in it, and its SSH client."""
    submitted = in_shell_script("", 1, reseed.SUBMIT)
    texts = (CLIENT, COMMAND, *submitted, _NEIGHBOURS, _SERVE, _QUIET, reseed.start_command())
    content = "\0".join(texts).encode() + reseed.program()
    return hashlib.sha256(content).hexdigest()[:16]
