"""A default run leaves out what is marked thorough, and reports how many; --thorough runs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.plugin.thorough import by_default
from harness.tests.plugin import inner
from harness.tests.plugin.conftest import Pytest

_SCENARIOS = """
import pytest
from harness.plugin.thorough import by_default

def test_usual(qemu_name, kernel_name): pass
@pytest.mark.thorough
def test_rare(qemu_name, kernel_name): pass
@pytest.mark.thorough("q35", "q35-pcie")
def test_plug(machine_name): pass
@pytest.mark.parametrize("way", by_default("b", of=["a", "b"]))
def test_way(qemu_name, kernel_name, way): pass
"""
_USUAL = ["test_plug[pc]", "test_usual[default-default]", "test_way[default-default-b]"]
_MORE = ["test_plug[q35]", "test_plug[q35-pcie]", "test_rare[default-default]", "test_way[default-default-a]"]
_EVERY = sorted([*_USUAL, *_MORE])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["harness.plugin"]\n')
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_it.py").write_text(_SCENARIOS)
    (tmp_path / "test_other.py").write_text(
        "import pytest\n@pytest.mark.thorough\ndef test_rare(qemu_name, kernel_name): pass\n"
    )
    return tmp_path


@pytest.mark.parametrize(
    ("options", "tests"),
    [
        (["test_it.py"], _USUAL),
        (["test_it.py", "--thorough"], _EVERY),
        (["test_it.py", "--full"], _EVERY),
        # What is asked for by name is run, and nothing else of its file, nor its like in another.
        (["test_it.py::test_rare", "test_other.py"], ["test_rare[default-default]"]),
        (["test_it.py::test_way"], ["test_way[default-default-a]", "test_way[default-default-b]"]),
        (["test_it.py::test_way[default-default-a]"], ["test_way[default-default-a]"]),
        (["test_it.py::test_plug[q35]"], ["test_plug[q35]"]),
        # Given machine types are run, but no scenario for their sake.
        (
            ["test_it.py", "--machine", "q35"],
            ["test_plug[q35]", "test_usual[default-default]", "test_way[default-default-b]"],
        ),
    ],
)
def test_what_a_run_is_of(folder: Path, run_pytest: Pytest, options: list[str], tests: list[str]) -> None:
    done = run_pytest(folder, "--collect-only", "-q", *options)
    collected = [line.partition("::")[2] for line in done.stdout.splitlines() if "::" in line]
    assert sorted(collected) == tests, done.stdout + done.stderr


@pytest.fixture
def light(folder: Path) -> Path:
    """The same without what would have to be provisioned."""
    (folder / "conftest.py").write_text(Path(inner.__file__).read_text())
    (folder / "test_it.py").write_text(_SCENARIOS.replace("def test_plug(machine_name)", "def test_plug()"))
    return folder


@pytest.mark.parametrize(
    ("options", "reported"),
    [
        ((), "tests left out of a default run: 3 (--thorough runs them)"),
        (("-n", "2"), "tests left out of a default run: 3 (--thorough runs them)"),
        (("-k", "way or usual"), "tests left out of a default run: 1 (--thorough runs them)"),
        (("--thorough",), None),
        (("--thorough", "-n", "1"), None),
    ],
)
def test_what_is_left_out_is_reported(
    light: Path, run_pytest: Pytest, options: tuple[str, ...], reported: str | None
) -> None:
    done = run_pytest(light, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if "left out" in line]
    assert lines == ([reported] if reported else [])


def test_another_projects_mark_of_that_name_is_its_own(light: Path, run_pytest: Pytest) -> None:
    (light / "test_it.py").write_text("import pytest\n@pytest.mark.thorough\ndef test_theirs(): pass\n")
    done = run_pytest(light, "test_it.py", "test_other.py")
    assert "1 passed, 1 deselected" in done.stdout, done.stdout + done.stderr


def test_a_parameter_that_is_none() -> None:
    with pytest.raises(ValueError, match=r"no such parameter: c \(known: a, b\)"):
        by_default("b", "c", of=["a", "b"])


def test_what_is_in_every_default_run_is_not_left_out_of_it(light: Path, run_pytest: Pytest) -> None:
    always = "@pytest.mark.always\n"
    scenarios = (light / "test_it.py").read_text()
    ways = '@pytest.mark.parametrize("way"'
    (light / "test_it.py").write_text(scenarios.replace(ways, always + ways))
    done = run_pytest(light, "--strict-markers", "test_it.py")
    assert done.returncode == 0, done.stdout + done.stderr
    rare = "@pytest.mark.thorough\ndef test_rare"
    (light / "test_it.py").write_text(scenarios.replace(rare, always + rare))
    done = run_pytest(light, "test_it.py")
    assert done.returncode == 4
    assert (
        "test_it.py::test_rare[default-default] is marked always and thorough: it can be one of them"
        in done.stderr
    )


@pytest.mark.parametrize(
    ("mark", "wrong"),
    [
        ('thorough("q35pcie")', "thorough names 'q35pcie'; write one of pc, "),
        ('pin_machine("pc", "q53")', "pin_machine names 'q53'; write one of pc, "),
        ("pin_machine", "pin_machine names nothing; write one of pc, "),
        ('pin_variant("plian")', "pin_variant names 'plian'; write one of plain, "),
    ],
)
def test_a_mark_that_names_nothing_is_refused(light: Path, run_pytest: Pytest, mark: str, wrong: str) -> None:
    test = f"import pytest\n@pytest.mark.{mark}\ndef test_it(machine_name, variant_name): pass\n"
    (light / "test_it.py").write_text(test)
    done = run_pytest(light, "test_it.py")
    assert done.returncode != 0
    assert wrong in done.stdout + done.stderr, done.stdout + done.stderr
