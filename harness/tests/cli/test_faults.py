from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.cli import faults
from harness.mutation import runner
from harness.mutation.catalogue import Catalogue
from harness.mutation.peers import PeerFinding
from harness.mutation.verdicts import Controls, Failure, Finding
from harness.tests.cli.conftest import Harness


def test_the_catalogue_is_listed(harness: Harness) -> None:
    listed = harness("faults", "list", "--json")
    assert list(listed.json) == Catalogue().names()
    assert "tag-kept" in harness("faults", "list").out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ("build", "--qemu", "1.0"),
            "--qemu 1.0: no QEMU by that name is built from source; known: 7.2, 10",
        ),
        (("run", "-n", "0"), "-n"),
        (("run", "--qemu", "/usr/bin/true"), "no QEMU by that name is built from source"),
        (("run", "--beside", "avocado"), "'avocado' is not 'qtest'"),
        (("run", "--controls", "-1"), "-1 is not in the range x>=0"),
        (("run", "--scenarios", "all"), "--scenarios says how much --per-test runs: give both, or none"),
        (("run", "--per-test", "--scenarios", "some"), "'some' is not one of"),
        (("run", "--per-test", "-n", "2"), "one fault after the other and nothing else: no -n"),
        (("run", "--per-test", "--controls", "5"), "nothing else: no --controls"),
        (("run", "--per-test", "--control-qemu", "7.2"), "nothing else: no --control-qemu"),
        (("run", "--per-test", "--beside", "qtest"), "nothing else: no --beside"),
        (("run", "--control-qemu", "/nowhere"), "--control-qemu /nowhere: neither a provisioned QEMU (5.2, "),
        (("run", "--table", "pyproject.toml"), "pyproject.toml: no table of 'harness faults run --per-test'"),
        (("cover", "/nowhere.json"), "/nowhere.json: there is no table; 'harness faults run --per-test'"),
        (("cover", "--budget", "-1"), "-1.0 is not in the range x>=0"),
    ],
)
def test_bad_input_is_one_line(harness: Harness, words: tuple[str, ...], told: str) -> None:
    ended = harness("faults", *words)
    assert ended.status != 0
    assert told in ended.err


SECONDS = {"t.py::needed[pc]": 2.0, "t.py::cheap[pc]": 1.0, "t.py::always[pc]": 4.0}
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
    assert "tag-kept" in ended.json["unmeasured"]["faults"], "the catalogue's is another by now"
    assert ended.json["unmeasured"]["scenarios"] == ["t.py::new[pc]"]
    shown = harness("faults", "cover", tmp_path / "t.json", "--budget", budget)
    assert f"default set: 2 scenarios catch 1 faults in 2 s (budget: {budget} s)" in shown.out
    assert ("thorough" in shown.out) == ("t.py::needed[pc]" in default)


def test_what_is_found_is_told_in_every_way(
    harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU and pytest are not started: the findings are given."""
    failed = (Failure("test_leak.py", "test_a[pc]", "leak"),)
    findings = [
        Finding("", "", "7.2-src", 3, ()),
        Finding("f", "no leak", "7.2-src", 1, failed, True, PeerFinding("caught", "qos-test /a", "dead")),
        Finding("e", "no leak", "7.2-src", 1, (), False, PeerFinding("passed")),
    ]
    given: dict[str, object] = {}

    def look(*_: object, **options: object) -> list[Finding]:
        given.update(options)
        return findings

    monkeypatch.setattr(faults, "look_for_all", look)
    monkeypatch.setattr(faults, "_chosen", lambda *_: {})
    monkeypatch.setattr(faults, "_build", lambda *_: {})
    monkeypatch.setattr(faults, "_own_tests", lambda *_: None)
    monkeypatch.setattr(runner, "collected", lambda *_: ())
    words = ("--beside", "qtest", "--controls", "5", "--control-qemu", "7.2", "--table", tmp_path / "none")
    page = tmp_path / "page.html"
    ended = harness("faults", "run", *words, "--page", page, "--json")
    assert ended.status == 1, "one was missed"
    assert given["controls"] == Controls(("7.2-src", "7.2"), 5)
    assert [one["fault"] for one in ended.json["findings"]] == ["e", "f", ""]
    assert ended.json["findings"][1]["beside"] == {"verdict": "caught", "test": "qos-test /a", "why": "dead"}
    numbers = {one["of"]: (one["caught"], one["faults"], one["by_peers"]) for one in ended.json["figures"]}
    assert numbers == {"all": (1, 2, 1), "real": (1, 1, 1), "planted": (0, 1, 0)}
    assert "own tests" in page.read_text()
    assert "1 of 2 (50 %)" in page.read_text()
