"""A template's SSH session, gone on with while the QEMU of its guest is still starting.

Its handshake is only replayed (:mod:`harness.channel.guestfwd`): no guest is asked anything. QEMU's start
takes longer, so nobody waits for it.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial

from harness.background import Background
from harness.channel.guestfwd import Frozen, Line
from harness.channel.ssh import Ssh
from harness.deadline import Pace
from harness.errors import ChannelLost, HarnessError
from harness.guest.image import GuestImage
from harness.qemu.machine import Machine
from harness.restore import reseed

#: Seconds, before scaling by the accelerator's pace. No guest has a part in it; what is not there by then,
#: does not come: the server said something else that time.
TIMEOUT_S = 4.0


class Resuming:
    """To be closed.

    :param frozen: the session. :param image: its guest's. :param pace: how patient to be.
    """

    def __init__(self, frozen: Frozen, image: GuestImage, pace: Pace) -> None:
        self._log_in = partial(
            Ssh,
            None,
            client_key=image.client_key,
            host_key=image.host_key,
            timeout_s=pace.seconds(TIMEOUT_S),
            line=Line(None, frozen),
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
        if not ssh.move(machine.paths.line, port=lambda: machine.ssh_port, watch=machine.watch):
            return f"nobody listens on {machine.paths.line}"
        self._working = None
        return ssh

    def close(self) -> None:
        """End the session, unless it was taken. Idempotent."""
        working, self._working = self._working, None
        if working is not None:
            with suppress(HarnessError):
                working.wait().close()
