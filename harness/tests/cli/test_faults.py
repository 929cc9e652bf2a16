from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.cli import faults
from harness.mutation import runner
from harness.mutation.catalogue import Catalogue
from harness.mutation.qtests import QtestResult
from harness.mutation.verdicts import Controls, Failure, Finding
from harness.tests.cli.conftest import Harness


def test_the_catalogue_is_listed(harness: Harness) -> None:
    listed = harness("faults", "list", "--json")
    assert list(listed.json) == Catalogue().names()
    assert "tag-kept" in harness("faults", "list").out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("build", "--qemu", "1.0"),
            "--qemu 1.0: no QEMU of that name is built from source; known: 7.2, 10",
        ),
        (("run", "-n", "0"), "-n"),
        (("run", "--qemu", "/usr/bin/true"), "no QEMU of that name is built from source"),
        (("run", "--beside", "avocado"), "'avocado' is not 'qtest'"),
        (("run", "--controls", "-1"), "-1 is not in the range x>=0"),
        (("run", "--scenarios", "all"), "--scenarios can only be used with --per-test"),
        (("run", "--per-test", "--scenarios", "some"), "'some' is not one of"),
        (("run", "--per-test", "-n", "2"), "one fault after the other: -n cannot be used with it"),
        (("run", "--per-test", "--controls", "5"), "--controls cannot be used with it"),
        (("run", "--per-test", "--control-qemu", "7.2"), "--control-qemu cannot be used with it"),
        (("run", "--per-test", "--beside", "qtest"), "--beside cannot be used with it"),
        (("run", "--per-test", "--default-set"), "--default-set cannot be used with it"),
        (("run", "--control-qemu", "/nowhere"), "--control-qemu /nowhere: neither a provisioned QEMU (5.2, "),
        (
            ("run", "--table", "pyproject.toml"),
            "pyproject.toml: not a table of 'harness faults run --per-test'",
        ),
        (("cover", "/nowhere.json"), "/nowhere.json: no such file; 'harness faults run --per-test'"),
        (("cover", "--budget", "-1"), "-1.0 is not in the range x>=0"),
    ],
)
def test_bad_input(harness: Harness, words: tuple[str, ...], message: str) -> None:
    ended = harness("faults", *words)
    assert ended.status != 0
    assert message in ended.err


def test_an_installed_harness_does_not_write_its_own_table(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults, "checkout", lambda: None)
    ended = harness("faults", "run", "--per-test", "--fault", "tag-kept")
    assert (ended.status, ended.line.partition(": ")[2]) == (
        2,
        "--per-test changes a table, and that of an installed harness stays as it is: add --table PATH",
    )


SECONDS = {"t.py::needed[pc]": 20.0, "t.py::cheap[pc]": 1.0, "t.py::always[pc]": 4.0}
TABLE = {
    "qemus": {
        "7.2-src": {
            "scenarios": SECONDS,
            "at_once": 2.0,
            "faults": {"tag-kept": {"key": "old", "failed": {"t.py::cheap[pc]": 1.0}}},
        }
    }
}


@pytest.mark.parametrize(
    ("default", "budget", "status"),
    [
        (["t.py::needed[pc]", "t.py::always[pc]"], "90", 1),
        (["t.py::cheap[pc]", "t.py::always[pc]"], "90", 0),
        (["t.py::cheap[pc]", "t.py::always[pc]"], "2", 1),
    ],
)
def test_the_default_set_is_computed(
    harness: Harness,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    default: list[str],
    budget: str,
    status: int,
) -> None:
    answers = {
        "--thorough": (*SECONDS, "t.py::new[pc]"),
        "": tuple(default),
        "-m always": ("t.py::always[pc]",),
    }
    monkeypatch.setattr(runner, "collected", lambda *words: answers[" ".join(words)])
    (tmp_path / "t.json").write_text(json.dumps(TABLE))
    ended = harness("faults", "cover", tmp_path / "t.json", "--budget", budget, "--json")
    assert ended.status == status
    assert ended.json["chosen"] == ["t.py::always[pc]", "t.py::cheap[pc]"]
    assert ended.json["seconds"] == 2.5
    assert "tag-kept" in ended.json["unmeasured"]["faults"], "its edits have changed since"
    assert ended.json["unmeasured"]["scenarios"] == ["t.py::new[pc]"]
    shown = harness("faults", "cover", tmp_path / "t.json", "--budget", budget)
    assert f"default set: 2 scenarios catch 1 faults in 2 s (budget: {budget} s)" in shown.out
    assert ("thorough" in shown.out) == ("t.py::needed[pc]" in default)


def test_a_table_without_a_measured_fault_has_no_default_set(harness: Harness, tmp_path: Path) -> None:
    """Every set of scenarios catches all of no faults."""
    path = tmp_path / "t.json"
    path.write_text('{"qemus": {"7.2-src": {}}}')
    ended = harness("faults", "cover", path)
    assert (ended.status, ended.line.partition(";")[0]) == (2, f"harness: {path}: no fault was measured")


def test_a_run_of_no_fault_is_refused(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would exit with 0, and its controls would run without a selection."""
    monkeypatch.setattr(faults, "_chosen", lambda *_: {"tag-kept": Catalogue().load("tag-kept")})
    assert not Catalogue().load("tag-kept").sample
    ended = harness("faults", "run", "--fault", "tag-kept", "--sample", "--controls", "0")
    assert ended.status == 2
    assert "none of the faults that --fault names is in the sample" in ended.line


def test_findings_are_printed_and_written_as_json_and_as_a_page(
    harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The findings are given: neither QEMU nor pytest is started."""
    failed = (Failure("test_leak.py", "test_a[pc]", "leak"),)
    findings = [
        Finding("", "", "7.2-src", 3, ()),
        Finding("f", "no leak", "7.2-src", 1, failed, True, QtestResult("caught", "qos-test /a", "dead")),
        Finding("e", "no leak", "7.2-src", 1, (), False, QtestResult("passed")),
    ]
    given: dict[str, object] = {}

    def run_all(*_: object, **options: object) -> list[Finding]:
        given.update(options)
        return findings

    monkeypatch.setattr(faults, "run_all", run_all)
    monkeypatch.setattr(faults, "_chosen", lambda *_: {"f": Catalogue().load("tag-kept")})
    monkeypatch.setattr(faults, "_build", lambda *_: {})
    monkeypatch.setattr(faults, "_run_qtests", lambda *_: None)
    monkeypatch.setattr(runner, "collected", lambda *_: ())
    words = ("--beside", "qtest", "--controls", "5", "--control-qemu", "7.2", "--table", tmp_path / "none")
    page = tmp_path / "page.html"
    ended = harness("faults", "run", *words, "--page", page, "--json")
    assert ended.status == 1, "a fault was missed"
    assert given["controls"] == Controls(("7.2-src", "7.2"), 5)
    assert [one["fault"] for one in ended.json["findings"]] == ["e", "f", ""]
    assert ended.json["findings"][1]["qtests"] == {"verdict": "caught", "test": "qos-test /a", "why": "dead"}
    numbers = {one["of"]: (one["caught"], one["faults"], one["by_qtests"]) for one in ended.json["figures"]}
    assert numbers == {"all": (1, 2, 1), "real": (1, 1, 1), "planted": (0, 1, 0)}
    assert "own tests" in page.read_text()
    assert "1 of 2 (50 %)" in page.read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--by", "exploration", "--per-test"], "--by exploration: --per-test is about scenarios"),
        (["--by", "exploration", "--default-set"], "--by exploration: --default-set is about scenarios"),
        (["--by", "exploration", "--controls", "2"], "--by exploration: --controls is about scenarios"),
        (["--seconds", "9"], "--seconds can only be used with --by exploration"),
    ],
)
def test_options_of_an_exploration(harness: Harness, options: list[str], message: str) -> None:
    ended = harness("faults", "run", *options)
    assert ended.status == 2
    assert message in ended.err
