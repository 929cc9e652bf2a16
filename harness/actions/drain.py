"""Checks whether QEMU waits for a request in flight before it ends the request's device.

QEMU drains under the big lock (``hw/9pfs/9p.c``, ``v9fs_reset``). Until the request completes, QEMU answers
no QMP command, and the guest access that triggered the drain does not return. This silence is the witness
that the trigger has reached QEMU.
"""

from __future__ import annotations

from collections.abc import Callable

from harness.deadline import Deadline
from harness.qemu.machine import Machine

#: Seconds, before scaling.
WINDOW_S = 0.35
TRIGGER_TIMEOUT_S = 10.0


def happens_while(
    machine: Machine,
    happened: Callable[[], bool],
    *,
    while_: Callable[[], object],
    what: str,
    returned: Callable[[], bool] = lambda: False,
    window_s: float = WINDOW_S,
) -> bool:
    """Whether ``happened`` becomes true while a request is in flight, over a window after the trigger.

    The window begins when the trigger has reached QEMU: the access has returned, or a QMP command gets no
    answer. Each QMP command that is answered restarts the window.

    :param happened: what must not happen while the request is in flight; the window ends when it does.
    :param while_: the witness that the request is in flight. It is called at both ends of the window, has to
        raise when no request is in flight, and must not use QMP.
    :param what: the trigger, as text for the timeout, for example "the eject of share0".
    :param returned: whether the access that triggers the drain has returned.
    :param window_s: seconds, before scaling.
    :raises WaitTimeout: when QEMU keeps answering QMP commands: the trigger did not reach it.
    """
    scaled_s = machine.timeout_scale.seconds(window_s)
    while_()
    asked, window = machine.qmp.request("query-status"), Deadline.after(scaled_s)

    def over() -> bool:
        nonlocal asked, window
        expired = window.expired  # Before the answer is looked for: the silence has to last until then.
        if happened():
            return True
        if asked.done and not returned():
            asked, window = machine.qmp.request("query-status"), Deadline.after(scaled_s)
            return False
        return expired

    machine.wait_until(
        over,
        what=f"QEMU to act on {what}",
        timeout_s=TRIGGER_TIMEOUT_S + window_s,
        watch=machine.watch_process,
    )
    while_()
    seen = happened()
    value = {"what": what, "happened": seen, "qmp_answers": asked.done, "returned": returned()}
    machine.history.note(machine.name, "drain:observed", value)
    return seen
