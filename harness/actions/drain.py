"""A window in which QEMU has been told to end a device that has a request in flight: does it wait?

QEMU drains under the big lock (``hw/9pfs/9p.c``, ``v9fs_reset``): until the request is done it answers no QMP
command, and the guest's access that told it does not return. That is the witness that it was told at all.
"""

from __future__ import annotations

from collections.abc import Callable

from harness.deadline import Deadline
from harness.qemu.machine import Machine

#: Seconds, before scaling.
WINDOW_S = 0.35
TOLD_TIMEOUT_S = 10.0


def happens_while(
    machine: Machine,
    happened: Callable[[], bool],
    *,
    while_: Callable[[], object],
    what: str,
    returned: Callable[[], bool] = lambda: False,
    window_s: float = WINDOW_S,
) -> bool:
    """Whether ``happened`` while ``while_`` held, over a window that begins when QEMU has been told.

    It has been told when the access returned, or when a QMP command gets no answer. A command that is
    answered begins the window anew.

    :param happened: what must not happen while the request is in flight; the window ends when it does.
    :param while_: the witness that the request is in flight; called at both ends of the window, it must raise
        when it is not, and must not need QMP.
    :param what: what QEMU is told, in words, for the timeout.
    :param returned: whether the access that tells QEMU has returned.
    :param window_s: seconds, before scaling.
    :raises WaitTimeout: when QEMU goes on answering: it was not told.
    """
    scaled_s = machine.timeout_scale.seconds(window_s)
    while_()
    asked, window = machine.qmp.request("query-status"), Deadline.after(scaled_s)

    def over() -> bool:
        nonlocal asked, window
        if happened():
            return True
        if asked.done and not returned():
            asked, window = machine.qmp.request("query-status"), Deadline.after(scaled_s)
            return False
        return window.expired

    machine.wait_until(
        over,
        what=f"QEMU to be told of {what}",
        timeout_s=TOLD_TIMEOUT_S + window_s,
        watch=machine.watch_process,
    )
    while_()
    seen = happened()
    value = {"what": what, "happened": seen, "qmp_answers": asked.done, "returned": returned()}
    machine.history.note(machine.name, "drain:observed", value)
    return seen
