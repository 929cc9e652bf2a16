"""``--stay-on-failure``, on a terminal: stand-ins for machines, and once a real guest."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pexpect
import pytest

from harness.tests import forked
from harness.tests.plugin.conftest import Pytest
from harness.tests.ways_in import assert_running, expect_qmp

_CASES = """
import pytest
from harness.errors import Violation

def test_fails(testbed):
    raise Violation("the cause\\nmore")

def test_passes(testbed):
    pass

def test_skips(testbed):
    pytest.skip("not here")

@pytest.fixture
def broken(testbed):
    raise Violation("the set-up")

def test_set_up_fails(broken):
    pass

def test_nothing_runs_any_more(testbed):
    testbed.machines[0].running = False
    raise Violation("it died")
"""
#: The conftest of the other tests of the plugin, with a machine that says that it runs.
_MACHINE = """

from harness.guest import ways_in as _ways_in

def _machine():
    paths = SimpleNamespace(monitor="/run/qmp2.sock")
    spec = SimpleNamespace(monitor=True)
    return SimpleNamespace(name="source", running=True, pid=4711, paths=paths, spec=spec)

_made = RecordedTestbed.__init__

def _with_machine(self, *args, **options):
    _made(self, *args, **options)
    self.machines = [_machine()]
    self.guest_of = lambda machine: None

RecordedTestbed.__init__ = _with_machine
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inner = Path(__file__).with_name("inner.py").read_text()
    (tmp_path / "conftest.py").write_text(inner + _MACHINE)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_cases.py").write_text(_CASES)
    return tmp_path


def on_terminal(folder: Path, *options: str) -> pexpect.spawn[str]:
    environment = {
        "PATH": "/usr/sbin:/nowhere",
        "HOME": str(folder),
        "HARNESS_CACHE": str(folder / "cache"),
        "PYTEST_ADDOPTS": os.environ["PYTEST_ADDOPTS"],
    }
    argv = [
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "--artifacts",
        "out",
        "--stay-on-failure",
        "--color=no",
        *options,
    ]
    return pexpect.spawn(
        sys.executable,
        argv,
        cwd=str(folder),
        env=environment,
        dimensions=(40, 300),
        encoding="utf-8",
        timeout=120,
    )


def test_a_failed_test_waits_for_enter(folder: Path) -> None:
    session = on_terminal(folder)
    session.expect(r"test_cases.py::test_fails failed: the cause\r\n")
    session.expect(rf"record: +{folder}/out/test_cases.test_fails\r\n")
    session.expect(r"machine source:\r\nQMP: +\S+/qmp-shell /run/qmp2.sock\r\ngdb: +gdb -p 4711\r\n")
    session.expect("Press Enter to end the machines: ")
    record = (folder / "out/test_cases.test_fails/history.ndjson").read_text()
    assert '"stays"' in record
    assert '"closed"' not in record
    session.sendline()
    session.expect("test_cases.py::test_set_up_fails failed: the set-up")
    record = (folder / "out/test_cases.test_fails/history.ndjson").read_text()
    assert record.index('"stayed"') < record.index('"closed"')
    session.expect("Press Enter")
    session.sendline()
    session.expect(pexpect.EOF)
    assert "2 failed, 1 passed, 1 skipped, 1 error" in (session.before or "")
    assert "Press Enter" not in (session.before or "")
    session.close()
    assert session.exitstatus == 1


def test_ctrl_c_ends_the_run(folder: Path) -> None:
    session = on_terminal(folder)
    session.expect("Press Enter")
    session.sendintr()
    session.expect("KeyboardInterrupt")
    session.expect(pexpect.EOF)
    session.close()
    assert session.exitstatus == 2
    assert '"closed"' in (folder / "out/test_cases.test_fails/history.ndjson").read_text()


@pytest.mark.parametrize("options", [("-n", "2"), ("-n", "1"), ("--tx", "popen", "--dist", "load")])
def test_workers_are_refused(folder: Path, run_pytest: Pytest, options: tuple[str, ...]) -> None:
    done = run_pytest(folder, "--stay-on-failure", *options)
    assert "ERROR: --stay-on-failure is for one test at a time: leave -n out" in done.stderr
    assert done.returncode == 4


def in_a_new_session(options: Sequence[str]) -> int:
    """Without a terminal: for :func:`forked.run`."""
    os.setsid()
    return forked.run_pytest(options)


def test_it_needs_a_terminal(folder: Path) -> None:
    options = ("--artifacts", "out", "--stay-on-failure")
    environment = {"PATH": "/nowhere", "HOME": str(folder), "HARNESS_CACHE": str(folder / "cache")}
    done = forked.run(in_a_new_session, options, folder=folder, environment=environment)
    assert done.returncode == 4
    assert "ERROR: --stay-on-failure needs a terminal, at which Enter is pressed (/dev/tty: " in done.stderr


def test_without_the_option_nothing_waits(folder: Path, run_pytest: Pytest) -> None:
    done = run_pytest(folder, "--artifacts", "out")
    assert "2 failed, 1 passed, 1 skipped, 1 error" in done.stdout


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_guest.py").write_text(
        "def test_it(guest, hotplug, share):\n    hotplug.plug(share)\n    assert 0\n"
    )
    return tmp_path


@pytest.mark.qemu
def test_a_real_guest_answers_on_every_way(scenario: Path) -> None:
    session = pexpect.spawn(
        sys.executable,
        [
            "-m",
            "pytest",
            "--stay-on-failure",
            "--machine",
            "pc",
            "--artifacts",
            "out",
            "-p",
            "no:cacheprovider",
        ],
        cwd=str(scenario),
        env=dict(os.environ),
        dimensions=(40, 400),
        encoding="utf-8",
        timeout=300,
    )
    qmp = expect_qmp(session)
    session.expect(r"SSH: +(ssh .*) root@127\.0\.0\.1")
    assert isinstance(session.match, re.Match)
    ssh = session.match.group(1).split()
    session.expect("Press Enter")
    assert_running(*qmp)
    free = ("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR")
    listed = subprocess.run(
        [*ssh, *free, "root@127.0.0.1", "ls /sys/bus/virtio/devices"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert "virtio" in listed.stdout, listed
    session.sendline()
    session.expect("1 failed")
    session.expect(pexpect.EOF)
