"""What own tests do with the lines of :mod:`harness.guest.ways_in` at a terminal."""

from __future__ import annotations

import re
import subprocess
from typing import Any


def expect_qmp(session: Any) -> tuple[str, str]:
    """Wait for the line about QMP; return the program and the socket that it names.

    :param session: a ``pexpect.spawn``.
    """
    session.expect(r"QMP: +(\S+) (\S+qmp2\.sock)")
    assert isinstance(session.match, re.Match)
    qmp_shell, socket_path = session.match.groups()
    return qmp_shell, socket_path


def assert_running(qmp_shell: str, socket_path: str) -> None:
    """The machine behind the socket answers, and runs."""
    answer = subprocess.run(
        [qmp_shell, socket_path],
        input="query-status\n",
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert re.search(r"""["']running["']: [tT]rue""", answer.stdout), answer
