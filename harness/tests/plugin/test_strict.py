"""Guarantees that nothing asserted in a run: named at its end, and with ``--strict`` a failure."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from harness.cli.main import main
from harness.report import summary
from harness.tests.plugin import inner
from harness.tests.plugin.conftest import Pytest

_SKIPPED = """
import pytest
from harness.errors import Unsupported, Violation

@pytest.fixture(autouse=True)
def axes(qemu_name, kernel_name, machine_name): pass

def test_skips(testbed): pytest.skip("no libjemalloc2")
def test_skips_too(testbed): pytest.skip("no libjemalloc2")
def test_unsupported(testbed): raise Unsupported("no such command")
"""
_ASSERTED = """
import pytest

@pytest.fixture(autouse=True)
def axes(qemu_name, kernel_name, machine_name): pass

def test_passes(testbed): pass
def test_skips(testbed): pytest.skip("no such command")
"""
_PINNED = """
import pytest

@pytest.mark.pin_machine("q35-pcie")
def test_pinned(qemu_name, kernel_name, machine_name): pass
"""
_THOROUGH = """
import pytest

@pytest.mark.thorough
def test_thorough(qemu_name, kernel_name, machine_name): pass
"""
_ON = "7.2 (7.2.22), Linux 6.1.0"
_LEAK = f"not asserted: no leak on {_ON} (why: 2 skipped: no libjemalloc2; 1 skipped: no such command)"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two guarantees, of which one is asserted."""
    (tmp_path / "conftest.py").write_text(Path(inner.__file__).read_text())
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_leak.py").write_text(_SKIPPED)
    (tmp_path / "test_crash.py").write_text(_ASSERTED)
    return tmp_path


def _named(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert "INTERNALERROR" not in done.stdout + done.stderr, done.stdout
    return [line for line in done.stdout.splitlines() if line.startswith("not asserted: ")]


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_guarantee_all_of_whose_tests_skipped_is_named(
    folder: Path, run_pytest: Pytest, workers: str
) -> None:
    done = run_pytest(folder, "--machine", "pc", "-n", workers, "--summary", "out")
    assert _named(done) == [_LEAK]
    assert done.returncode == 0
    written = json.loads((folder / "out" / summary.NAME).read_text())
    assert [(gap["guarantee"], gap["on"]) for gap in written["not_asserted"]] == [("no leak", _ON)]
    assert "no libjemalloc2" in (folder / "out" / summary.PAGE).read_text()
    strict = run_pytest(folder, "--machine", "pc", "-n", workers, "--strict")
    assert _named(strict) == [_LEAK]
    assert strict.returncode == 1
    assert "--strict: 1 not asserted: the run fails" in strict.stdout


@pytest.mark.parametrize(
    "options",
    [
        ("test_crash.py",),
        ("-k", "passes"),
        ("--deselect", "test_leak.py"),
        ("--ignore", "test_leak.py"),
        ("-m", "cold"),
    ],
)
def test_what_the_user_did_not_select_is_not_missed(
    folder: Path, run_pytest: Pytest, options: tuple[str, ...]
) -> None:
    nothing_ran = "-m" in options
    done = run_pytest(folder, "--machine", "pc", "--strict", *options)
    assert _named(done) == []
    assert done.returncode == (5 if nothing_ran else 0), done.stdout


def test_another_machine_type_may_assert_it(folder: Path, run_pytest: Pytest) -> None:
    (folder / "test_leak.py").write_text(
        _SKIPPED.replace(
            "def test_skips(testbed)", "def test_skips(testbed, machine_name):\n    if machine_name != 'pc'"
        )
    )
    done = run_pytest(folder, "--machine", "pc", "--machine", "q35", "--strict")
    assert _named(done) == []
    assert done.returncode == 0


def test_a_pin_that_leaves_nothing_is_named_for_its_qemu(folder: Path, run_pytest: Pytest) -> None:
    (folder / "test_leak.py").write_text(_PINNED)
    done = run_pytest(folder, "--machine", "pc", "--strict")
    (line,) = _named(done)
    assert line.startswith(
        f"not asserted: no leak on {_ON} (why: 1 skipped: it runs with machine type q35-pcie only"
    )
    assert done.returncode == 1


@pytest.mark.parametrize("workers", ["0", "2"])
def test_what_a_default_run_leaves_out_is_named(folder: Path, run_pytest: Pytest, workers: str) -> None:
    (folder / "test_leak.py").write_text(_THOROUGH)
    done = run_pytest(folder, "--machine", "pc", "--strict", "-n", workers)
    why = "1 left out of a default run: --thorough runs them"
    assert _named(done) == [f"not asserted: no leak on 7.2 (7.2.22) (why: {why})"]
    assert done.returncode == 1
    thorough = run_pytest(folder, "--machine", "pc", "--strict", "--thorough")
    assert (_named(thorough), thorough.returncode) == ([], 0)


def test_a_run_that_is_broken_off_names_what_it_did_not_get_to(folder: Path, run_pytest: Pytest) -> None:
    (folder / "test_crash.py").write_text(_ASSERTED.replace("(testbed): pass", "(testbed): assert 0"))
    done = run_pytest(folder, "--machine", "pc", "-x", "-p", "no:randomly")
    assert _named(done) == ["not asserted: no leak on 7.2 (7.2.22) (why: none of 3 ran)"]
    assert done.returncode == 1


@pytest.mark.parametrize("workers", ["0", "1"])
def test_the_shards_together_are_judged(
    folder: Path, run_pytest: Pytest, workers: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """By merge: one shard may have the tests that skip, and another the one that does not."""
    run_pytest(folder, "--machine", "pc", "--summary", "whole")
    for index in (1, 2):
        shard = ("--shard", f"{index}/2", "--durations-from", "whole", "--summary", f"part{index}")
        done = run_pytest(folder, "--machine", "pc", "--strict", *shard, "-n", workers)
        assert _named(done) == []
        assert done.returncode == 0
        assert "harness merge --strict checks" in done.stdout
    parts = [str(folder / f"part{index}") for index in (1, 2)]
    for options, status in (([], 0), (["--strict"], 1)):
        with pytest.raises(SystemExit) as ended:
            main(["merge", *parts, *options, "--into", str(folder / "all")])
        assert (ended.value.code or 0) == status
        assert _LEAK.split("(why")[0] in capsys.readouterr().out
    assert [gap.guarantee for gap in summary.read(folder / "all").not_asserted] == ["no leak"]
