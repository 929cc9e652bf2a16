"""The probe distinguishes hosts that can hold a system call from hosts that cannot; both are really tried."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.errors import Unsupported
from harness.holds import probe
from harness.holds.hold import Hold
from harness.testbed import Testbed
from harness.tests import forked
from harness.tests.holds import policy
from harness.tests.holds.policy import RECEIVE, SEND, under

REPOSITORY = Path(probe.__file__).parents[2]
DOCTOR = "from harness.cli.main import main; main()"
REFUSED = r"^no filter with user notification: .*seccomp\(SECCOMP_FILTER_FLAG_NEW_LISTENER\): "


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def ask(call: str, answer: str, timeout_s: float) -> int:
    """Print the reason on such a host, or None: for :func:`forked.run`, as the policy is for good."""
    policy.impose(call, answer)
    probe._TIMEOUT_S = timeout_s
    print(probe.why_no_holds(), flush=True)
    return 0


def reason(call: str, answer: str, *, timeout_s: float = probe._TIMEOUT_S) -> str:
    ended = forked.run(ask, call, answer, timeout_s, folder=REPOSITORY, environment=os.environ)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def test_this_host_holds_calls() -> None:
    """Skipped with the reason on a host that cannot hold calls: the other tests mean little there."""
    if (why_not := probe.why_no_holds()) is not None:
        pytest.skip(why_not)
    probe.require_holds()


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS, errno.EINVAL, errno.EBUSY])
def test_a_host_that_refuses_the_filter(number: int) -> None:
    with pytest.raises(AssertionError, match=REFUSED + os.strerror(number)):
        raise AssertionError(reason("seccomp", str(number)))


def test_a_host_that_refuses_to_receive_notifications() -> None:
    assert reason(RECEIVE, str(errno.EPERM)).startswith("the supervisor of 'probe' failed and ended: ")


def test_a_kernel_that_cannot_let_a_call_continue() -> None:
    """Before 5.5 there was no SECCOMP_USER_NOTIF_FLAG_CONTINUE."""
    assert "failed while it handled" in reason(SEND, str(errno.EINVAL))


def test_a_host_on_which_the_trial_hangs() -> None:
    """The limit is short because the call never returns, however long one waits."""
    found = reason("seccomp", "hang", timeout_s=2.0)
    assert re.fullmatch(r"a trial hold waited \d+ s for a system call to be notified", found)


def test_a_hold_on_such_a_host_skips_before_anything_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "why_no_holds", lambda: "somebody's policy")
    testbed = SimpleNamespace()  # Any use of it fails.
    with pytest.raises(Unsupported, match=r"^this host cannot hold a system call: somebody's policy$"):
        Hold(cast(Testbed, testbed))


def doctors(*command: str, cache: Path) -> dict[str, Any]:
    argv = [*command, sys.executable, "-c", DOCTOR, "doctor", "--json"]
    ended = run(*argv, HARNESS_CACHE=str(cache))
    (found,) = [finding for finding in json.loads(ended.stdout) if finding["name"] == "holds"]
    return cast(dict[str, Any], found)


def test_the_doctor_names_it(tmp_path: Path) -> None:
    found = doctors(*under("seccomp", str(errno.EPERM)), cache=tmp_path / "cache")
    assert found["state"] == "warning"
    assert found["what"].startswith("tests that hold a 9p request in flight are skipped: no filter with user")
    assert "Operation not permitted" in found["what"]


@pytest.mark.qemu
def test_a_scenario_on_such_a_host_is_skipped_for_that_reason(tmp_path: Path) -> None:
    scenario = "scenarios/test_unplug_busy.py::test_device_del_waits_for_a_request"
    argv = [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", "--artifacts", str(tmp_path)]
    ended = run(*under("seccomp", str(errno.EPERM), *argv, scenario))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "this host cannot hold a system call: no filter with user notification" in ended.stdout
    assert " passed" not in ended.stdout
    assert " failed" not in ended.stdout
