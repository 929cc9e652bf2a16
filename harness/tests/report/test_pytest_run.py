"""Starting pytest, and ending it when it hangs."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from harness.deadline import wait_until
from harness.errors import SetupError
from harness.reaper import start_time
from harness.report import pytest_run


def test_a_run_without_output_is_ended_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when it ignores SIGINT. The time without output is over as soon as the child runs."""

    class Silence:
        @classmethod
        def after(cls, _timeout_s: float) -> Silence:
            return cls()

        @property
        def expired(self) -> bool:
            return (tmp_path / "child").exists()

    monkeypatch.setattr(pytest_run, "Deadline", Silence)
    monkeypatch.setattr(pytest_run, "_END_S", 1.0)
    script = "trap '' INT; echo begun; sleep 1000 & echo $! > new; mv new child; wait; wait"
    with pytest.raises(
        SetupError, match=r"^the scenarios: pytest printed nothing for 2 s, and was ended"
    ) as caught:
        pytest_run.run_pytest(["sh", "-c", script], tmp_path, what="the scenarios", silence_s=2.0)
    assert "begun" in caught.value.details
    child = int((tmp_path / "child").read_text())
    wait_until(lambda: start_time(child) == 0, what="the end of the child", timeout_s=60)


def test_output_is_kept_and_shown_while_it_is_written(tmp_path: Path) -> None:
    """The process waits until its first line was shown."""

    class Shown(io.BytesIO):
        def flush(self) -> None:
            (tmp_path / "shown").touch()

    script = "echo out; until [ -e shown ]; do sleep 0.05; done; echo err >&2; exit 3"
    shown = Shown()
    done = pytest_run.run_pytest(["sh", "-c", script], tmp_path, what="it", show=shown)
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")
    assert shown.getvalue() == b"out\nerr\n"
