"""The table of faults and scenarios: its file, and which entries are out of date."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.mutation import detection
from harness.mutation.detection import Detection, Measured, OnQemu, covers, fingerprint

SOURCE = '''
"""What it asserts."""
import pytest

WAYS = [*by_default("a", of="abc"), "d"]

@pytest.mark.parametrize("way", by_default("a", of=WAYS))
def test_a(way):
    """Why."""
    # A comment.
    assert way
'''


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    measured = Measured(key="k", of={"test_a.py": "h"}, failed={"test_a.py::test_a[pc]": 1.5})
    data = Detection(qemus={"7.2-src": OnQemu(at_once=5.5, faults={"f": measured})})
    detection.write(data, tmp_path / "t.json")
    assert detection.read(tmp_path / "t.json") == data
    assert [path.name for path in tmp_path.iterdir()] == ["t.json"]
    lines = (tmp_path / "t.json").read_text().splitlines()
    assert '"test_a.py::test_a[pc]": 1.5' in [line.strip() for line in lines], "one line an entry, for diff"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"t.json: no such file; 'harness faults run --per-test' writes one"),
        ("[]", r"t.json: not a table of 'harness faults run --per-test': it: "),
        ('{"qemus": {"7.2-src": {"fault": {}}}}', r"t.json: not a table .*: qemus.7.2-src.fault: Extra"),
    ],
)
def test_a_file_that_is_not_a_table(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "t.json").write_text(text)
    with pytest.raises(UsageError, match=message):
        detection.read(tmp_path / "t.json")


def test_an_older_table_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text('{"qemus": {"7.2-src": {"alarms": {"test_a.py::test_a[pc]": "why"}}}}')
    assert detection.read(tmp_path / "t.json").on("7.2-src").false_positives == {
        "test_a.py::test_a[pc]": "why"
    }


def test_a_new_table_is_empty(tmp_path: Path) -> None:
    assert detection.read(tmp_path / "t.json", missing_is_empty=True) == Detection()


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ('by_default("a", of', 'by_default("a", "b", of', True),
        ("@pytest.mark.parametrize", "@pytest.mark.thorough\n@pytest.mark.parametrize", True),
        ("@pytest.mark.parametrize", "@pytest.mark.any_plug\n@pytest.mark.parametrize", False),
        ("@pytest.mark.parametrize", '@pytest.mark.pin_machine("pc")\n@pytest.mark.parametrize', False),
        ('*by_default("a", of', '*by_default("a", "b", of', True),
        ('of="abc"', 'of="ab"', False),
        ("# A comment.", "# Another one.", True),
        ('"""Why."""', '"""Why not."""', True),
        ('"""What it asserts."""', "", True),
        ("assert way", "assert not way", False),
        ("import pytest", "import pytest\nLIMIT = 3", False),
        ("import pytest", "import pytest\nfrom harness.plugin.thorough import by_default", True),
        ("import pytest", "import pytest\nfrom harness.errors import QemuError", False),
    ],
)
def test_the_hash_of_a_file_ignores_marks_and_comments(before: str, after: str, same: bool) -> None:
    assert before in SOURCE
    assert (fingerprint(SOURCE) == fingerprint(SOURCE.replace(before, after))) is same


def test_a_measured_file_covers_its_tests() -> None:
    measured = {"test_a.py": "h", "test_b.py::test_x": "h"}
    assert covers(measured, "test_a.py", "h")
    assert covers(measured, "test_a.py::test_y", "h")
    assert covers(measured, "test_b.py::test_x", "h")
    assert not covers(measured, "test_b.py", "h")
    assert not covers(measured, "test_a.py", "another")
    assert not covers(measured, "test_c.py", "h")


def test_a_new_measurement_replaces_the_old_one() -> None:
    kept = {"test_a.py::test_x[pc]": 1.0, "test_a.py::test_xy[pc]": 2.0, "test_b.py::test_x[pc]": 3.0}
    assert detection.replace(kept, ["test_a.py::test_x"], {"test_a.py::test_x[q35]": 4.0}) == {
        "test_a.py::test_xy[pc]": 2.0,
        "test_b.py::test_x[pc]": 3.0,
        "test_a.py::test_x[q35]": 4.0,
    }
    assert list(detection.replace(kept, ["test_a.py"], {})) == ["test_b.py::test_x[pc]"]


def test_a_scenario_that_fails_without_a_fault_catches_none() -> None:
    failed = {"test_a.py::test_x[pc]": 1.0, "test_a.py::test_y[pc]": 1.0}
    known = OnQemu(
        false_positives={"test_a.py::test_x[pc]": "why"}, faults={"f": Measured(key="k", failed=failed)}
    )
    assert known.catches("f") == {"test_a.py::test_y[pc]"}
    assert known.catches("unknown") == set()


def test_whether_all_scenarios_were_measured_with_a_fault() -> None:
    known = OnQemu(
        of={"test_a.py": "h"},
        scenarios={"test_a.py::test_x[pc]": 1.0},
        faults={"f": Measured(key="k", of={"test_a.py::test_x": "h"})},
    )
    assert known.has_all(["test_a.py::test_x[pc]"], "f")
    assert known.has_all(["test_a.py::test_x[pc]", "test_a.py::skipped_here[pc]"], "f")
    assert not known.has_all(["test_a.py::test_x[pc]", "test_b.py::unknown[pc]"], "f")
    assert not known.has_all(["test_a.py::test_x[pc]"], "another")
