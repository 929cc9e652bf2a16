"""The examples of GUIDE.md: as far as they need no guest, they run."""

from __future__ import annotations

import importlib
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from harness.mutation.catalogue import Fault
from harness.provision.recipes import QemuRecipe
from harness.qemu.argv import render
from harness.qemu.machine_types import MACHINE_TYPES
from harness.report import ledger
from harness.tests.plugin import inner
from harness.tests.plugin.conftest import Pytest
from harness.tests.qemu.specs import PATHS, spec

GUIDE = (Path(__file__).parents[2] / "GUIDE.md").read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)


def _example(text: str) -> dict[str, Any]:
    """What the one example with ``text`` defines."""
    (block,) = (block for block in _blocks("python") if text in block)
    found: dict[str, Any] = {}
    exec(block, found)
    return found


def _file_name(number: int, block: str) -> str:
    named = re.match(r"# (\w+\.py)\n", block)
    return named[1] if named else f"test_example{number}.py"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with all examples."""
    (tmp_path / "conftest.py").write_text(Path(inner.__file__).read_text())
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    for number, block in enumerate(_blocks("python")):
        (tmp_path / _file_name(number, block)).write_text(block)
    (bugs,) = (block for block in _blocks("toml") if "[[bug]]" in block)
    (tmp_path / "bugs.toml").write_text(bugs)
    return tmp_path


def test_every_example_is_a_test_and_the_known_bug_names_one(run_pytest: Pytest, repository: Path) -> None:
    options = ("--machine", "pc", "--known-bugs", "bugs.toml", "--strict", "--collect-only", "-q")
    done = run_pytest(repository, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {line.partition("::")[0] for line in done.stdout.splitlines() if "::" in line} == {
        path.name for path in repository.glob("test_*.py")
    }
    assert "known bug MY1" not in done.stdout
    # The entry has every key that there is, but those for messages of the guest's kernel and for programs.
    (bug,) = tomllib.loads((repository / "bugs.toml").read_text())["bug"]
    assert bug.keys() == ledger.Bug.model_fields.keys() - {"guest_kernel", "in_program"}


def test_the_recipe_and_the_fault_are_valid() -> None:
    recipe, fault = (block for block in _blocks("toml") if "[[bug]]" not in block)
    QemuRecipe.model_validate(tomllib.loads(recipe))
    Fault.model_validate(tomllib.loads(fault))


def test_the_device_of_ones_own_is_given_to_qemu() -> None:
    device = _example("class Entropy")["Entropy"]()
    device.check()
    argv = render(spec(devices=(device,)), PATHS)
    assert argv[argv.index("rng-random,id=urandom,filename=/dev/urandom") - 1] == "-object"
    assert device.device(MACHINE_TYPES["pc"])["driver"] == "virtio-rng-pci"


def test_the_methods_that_the_guide_lists_exist() -> None:
    """A row of the table of fixtures: its type's full name, and methods in the last column."""
    rows = re.findall(r"^\| `\w+` \| `(harness\.[\w.]+)\.(\w+)` \| (.*) \|$", GUIDE, re.MULTILINE)
    assert len(rows) > 8
    for path, name, text in rows:
        module = importlib.import_module(path)
        source = Path(str(module.__file__)).read_text()
        known = {*dir(getattr(module, name)), *re.findall(r"self\.(\w+)", source), "device_add", "device_del"}
        assert [method for method in re.findall(r"`(\w+)`", text) if method not in known] == [], name
