"""``--stay-on-failure``: the machines of a failed test run on until the user presses Enter.

This is between the end of the test's body and the end of its machines, so nothing of the test has been
cleaned up. A checker that would fail the test afterwards is not waited for: its record is judged when the
machines have ended.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.guest.ways_in import line, ways_in
from harness.plugin.options import is_worker, option
from harness.testbed import Testbed

_OPTION = "stay-on-failure"
#: The terminal that controls the process (``man 4 tty``): pytest captures stdin and stdout.
_TERMINAL = "/dev/tty"


def pytest_configure(config: pytest.Config) -> None:
    """Refuse ``--stay-on-failure`` where nobody can press Enter.

    :raises pytest.UsageError: with workers of pytest-xdist, or without a terminal.
    """
    if not option(config, _OPTION):
        return
    # Options of pytest-xdist; it may not be there.
    if is_worker(config) or config.getoption("numprocesses", None) or config.getoption("tx", None):
        raise pytest.UsageError(f"--{_OPTION} is for one test at a time: leave -n out")
    try:
        Path(_TERMINAL).open().close()
    except OSError as exc:
        raise pytest.UsageError(
            f"--{_OPTION} needs a terminal, at which Enter is pressed ({_TERMINAL}: {exc.strerror})"
        ) from None


def stay(item: pytest.Item, testbed: Testbed, failure: BaseException) -> None:
    """With ``--stay-on-failure``: print how the machines of a test are reached, and wait for Enter.

    Ctrl-C ends the run as usual; the machines are ended then as well.
    """
    if not option(item.config, _OPTION):
        return
    running = [machine for machine in testbed.machines if machine.running]
    if not running:
        return
    testbed.history.note("host", "stays", [machine.name for machine in running])
    first = (str(failure).splitlines() or [type(failure).__name__])[0]
    lines = ["", f"{item.nodeid} failed: {first}", line("record", str(testbed.artifacts.folder))]
    for machine in running:
        lines += [f"machine {machine.name}:", *ways_in(machine, testbed.guest_of(machine))]
    with Path(_TERMINAL).open("w") as screen, Path(_TERMINAL).open() as keyboard:
        screen.write("\n".join([*lines, "Press Enter to end the machines: "]))
        screen.flush()
        keyboard.readline()
    testbed.history.note("host", "stayed")
