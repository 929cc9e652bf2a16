"""Real failures of real guests: each names its own cause in the first line, with complete artefacts.

Every test runs a small scenario in a pytest of its own, with the real plugin and a real QEMU.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harness import artifacts, reaper
from harness.channel.qmp import Qmp
from harness.deadline import wait_until
from harness.history import History

pytestmark = pytest.mark.qemu

_FILES = (
    artifacts.ARGV,
    artifacts.QMP_LOG,
    artifacts.CONSOLE_LOG,
    artifacts.QEMU_LOG,
    artifacts.KERNEL_LOG,
    artifacts.HISTORY,
    artifacts.CELL,
    artifacts.VERDICT,
)
_HEADER = """
import os, signal
from dataclasses import replace
import pytest
from harness.actions.hotplug import Hotplug
from harness.guest import guest as guest_module
from harness.qemu import machine as machine_module
"""


def _pytest(folder: Path, body: str, *options: str) -> subprocess.CompletedProcess[str]:
    _write(folder, body)
    return subprocess.run(
        _argv(folder, *options), cwd=folder, capture_output=True, text=True, timeout=400, check=False
    )


def _write(folder: Path, body: str) -> None:
    (folder / "conftest.py").write_text('pytest_plugins = ["harness.plugin"]\n')
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "test_it.py").write_text(_HEADER + body)


def _argv(folder: Path, *options: str) -> list[str]:
    given = ["--artifacts", str(folder / "out"), "--machine", "pc", "-p", "no:cacheprovider", *options]
    return [sys.executable, "-m", "pytest", "test_it.py", *given]


def _first_line(output: str) -> str:
    """The first line of the (only) failure's error: the first one marked E."""
    found = re.search(r"^E\s+(.*)$", output, re.MULTILINE)
    assert found, output
    return found[1]


def _expect_complete(folder: Path) -> Path:
    (left,) = (folder / "out").iterdir()
    missing = [name for name in _FILES if not (left / name).exists()]
    assert not missing, f"{left} lacks {missing}"
    return left


def test_a_qemu_killed_by_sigsegv(tmp_path: Path) -> None:
    done = _pytest(
        tmp_path,
        """
def test_it(guest, hotplug, share):
    hotplug.plug(share)
    os.kill(guest.machine.pid, signal.SIGSEGV)
    guest.succeed("true")
""",
    )
    assert "QEMU 'source' was killed by SIGSEGV" in _first_line(done.stdout)
    left = _expect_complete(tmp_path)
    verdict = json.loads((left / artifacts.VERDICT).read_text())
    assert verdict["verdict"] == "invalid"
    assert str(left) in done.stdout
    assert "last QMP exchanges" in done.stdout
    assert "last kernel lines" in done.stdout
    assert (left / artifacts.BACKTRACE).read_text()


def test_a_guest_whose_kernel_panics(tmp_path: Path) -> None:
    done = _pytest(
        tmp_path,
        """
def test_it(guest):
    guest.succeed("echo c > /proc/sysrq-trigger")
""",
    )
    assert re.search(r"GuestPanicked: .*'source'.*panic", _first_line(done.stdout)), _first_line(done.stdout)
    assert "sysrq" in (_expect_complete(tmp_path) / artifacts.KERNEL_LOG).read_text(errors="replace")


def test_a_guest_that_never_boots(tmp_path: Path) -> None:
    done = _pytest(
        tmp_path,
        """
def test_it(testbed, monkeypatch):
    monkeypatch.setattr(guest_module, "BOOT_TIMEOUT_S", 0.5)
    testbed.boot(replace(testbed.spec(), extra=("-S",)))
""",
    )
    assert "the guest of 'source' did not boot: its kernel printed nothing" in _first_line(done.stdout)
    _expect_complete(tmp_path)


def test_a_guest_that_never_boots_in_set_up(tmp_path: Path) -> None:
    done = _pytest(
        tmp_path,
        """
@pytest.fixture
def guest(testbed, monkeypatch):
    monkeypatch.setattr(guest_module, "BOOT_TIMEOUT_S", 0.5)
    return testbed.boot(replace(testbed.spec(), extra=("-S",)))

def test_it(guest):
    pass
""",
    )
    assert "did not boot" in _first_line(done.stdout)
    _expect_complete(tmp_path)


def test_a_qmp_socket_that_goes_silent(tmp_path: Path) -> None:
    done = _pytest(
        tmp_path,
        """
def test_it(guest):
    os.kill(guest.machine.pid, signal.SIGSTOP)
    guest.machine.qmp.execute("query-status", timeout_s=2)
""",
    )
    assert re.search(r"QmpSilent: QEMU 'source' did not answer query-status", _first_line(done.stdout))
    _expect_complete(tmp_path)


@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["alone", "xdist"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_stays_behind_when_pytest_is_ended(
    tmp_path: Path, number: signal.Signals, workers: tuple[str, ...]
) -> None:
    """In the middle of a migration, the process that the user started."""
    process, folder, qemus = _in_a_migration(tmp_path, *workers)
    process.send_signal(number)
    process.communicate(timeout=60)
    _expect_gone(folder, qemus)


def test_nothing_stays_behind_after_ctrl_c(tmp_path: Path) -> None:
    """The terminal sends SIGINT to the whole process group: pytest and its workers alike."""
    process, folder, qemus = _in_a_migration(tmp_path, "-n", "1")
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    _expect_gone(folder, qemus)


def test_nothing_stays_behind_when_a_worker_is_killed(tmp_path: Path) -> None:
    """In the middle of a migration, one xdist worker; pytest itself continues and reports it."""
    process, folder, qemus = _in_a_migration(tmp_path, "-n", "1", "--max-worker-restart", "0")
    worker = int((tmp_path / "worker").read_text())
    assert worker != process.pid
    os.kill(worker, signal.SIGKILL)
    _expect_gone(folder, qemus)
    output, _ = process.communicate(timeout=60)
    assert "crashed" in output


_MIGRATES_FOR_EVER = """
def test_it(guest, testbed, run_folder, pytestconfig):
    destination = testbed.launch_destination(guest.machine)
    uri = f"unix:{destination.folder}/in.sock"
    destination.qmp.execute("migrate-incoming", {"uri": uri})
    guest.machine.qmp.execute("migrate-set-parameters", {"max-bandwidth": 1000})
    guest.machine.qmp.execute("migrate", {"uri": uri})
    pids = f"{guest.machine.pid} {destination.pid}"
    here = pytestconfig.rootpath
    (here / "worker").write_text(str(os.getpid()))
    (here / "migrating.new").write_text(f"{run_folder.path} {pids}")
    (here / "migrating.new").rename(here / "migrating")
    guest.run("sleep 600", timeout_s=600)
"""


def _in_a_migration(tmp_path: Path, *options: str) -> tuple[subprocess.Popen[str], Path, list[int]]:
    _write(tmp_path, _MIGRATES_FOR_EVER)
    process = subprocess.Popen(
        _argv(tmp_path, *options),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    wait_until((tmp_path / "migrating").exists, what="the migration to begin", timeout_s=200)
    folder, *pids = (tmp_path / "migrating").read_text().split()
    assert all(reaper.start_time(int(pid)) for pid in pids)
    return process, Path(folder), [int(pid) for pid in pids]


def _expect_gone(folder: Path, qemus: list[int]) -> None:
    def gone() -> bool:
        living = [pid for pid in qemus if reaper.start_time(pid)]
        return not living and not reaper.processes_of(folder) and not folder.exists()

    wait_until(gone, what=f"the end of {qemus} and of {folder}", timeout_s=15)


def test_argv_sh_starts_the_same_qemu_by_itself(tmp_path: Path) -> None:
    """Long after the test, in a folder of its own, with the devices that the command line had."""
    _pytest(
        tmp_path,
        """
def test_it(testbed):
    testbed.boot(replace(testbed.spec(), plugged=frozenset(["share0"])))
    assert False
""",
    )
    temporary = tmp_path / "t"
    temporary.mkdir()
    process = subprocess.Popen(
        [_expect_complete(tmp_path) / artifacts.ARGV],
        stderr=subprocess.PIPE,
        text=True,
        env={"PATH": os.environ["PATH"], "TMPDIR": str(temporary)},
    )
    try:
        assert process.stderr is not None
        ways = re.search(r"QMP: (\S+) .* kernel: (\S+)", process.stderr.readline())
        assert ways
        log = Path(ways[2])
        wait_until(
            lambda: log.exists() and "guest: network is up" in log.read_text(errors="replace"),
            what="the guest of argv.sh",
            timeout_s=120,
        )
        qmp = Qmp("again", Path(ways[1]), History(tmp_path / "h"), tmp_path / "q")
        qmp.connect(timeout_s=20)
        names = [child["name"] for child in qmp.execute("qom-list", {"path": "/machine/peripheral"})]
        assert "share0" in names
        qmp.execute("quit")
        qmp.close()
        assert process.wait(timeout=60) == 0
        assert list(temporary.iterdir()) == []
    finally:
        process.kill()
        process.communicate()
