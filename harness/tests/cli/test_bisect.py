"""``harness bisect``: its options, what it prints and writes. The QEMUs are text files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from harness.cli import bisect as command
from harness.errors import SetupError
from harness.explore import tree_builds
from harness.explore.compilers import Compiler
from harness.explore.observations import Answer, Observation
from harness.explore.tree import Tree
from harness.history import History
from harness.layout import recipes_folder
from harness.provision import Cache, Provisioner
from harness.reaper import RunFolder
from harness.tests.cli.conftest import Harness
from harness.tests.explore.git_tree import Copies, commit_files, git, make, pack

SCENARIO = "test_leak.py::test_way"
DEVICE = "hw/9pfs/virtio-9p-device.c"


class Fails:
    """A scenario that fails on a QEMU with ``bad`` in its text, or in its name."""

    runs = 0

    def __init__(self, of: object, run: RunFolder, artifacts: Path) -> None:
        pass

    def __call__(self, qemu: str) -> Observation:
        type(self).runs += 1
        text = Path(qemu).read_text() if "/" in qemu else qemu
        return Observation(Answer.BAD, "no leak | leak: fds") if "bad" in text else Observation(Answer.GOOD)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test_leak.py").write_text("def test_way(): pass\n")
    Fails.runs = 0
    monkeypatch.setattr(command, "ScenarioTrial", Fails)
    monkeypatch.setattr(command, "_compiler", lambda *arguments: Copies(arguments[-1]))
    monkeypatch.setattr(tree_builds, "require_9p", lambda qemu: None)
    return tmp_path


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten commits: bad from the third on, good again from the eighth on; the sixth does not build."""
    folder = tmp_path_factory.mktemp("original") / "qemu"
    make(folder)
    for number in range(1, 10):
        text = "bad" if 3 <= number < 8 else "good"
        commit_files(folder, f"edit {number}", {DEVICE: "syntax" if number == 6 else f"{text} {number}\n"})
        git(folder, "tag", f"v{number}")
    pack(folder)
    return folder


@pytest.fixture
def repo(original: Path, here: Path) -> Path:
    return Path(shutil.copytree(original, here / "qemu", symlinks=True))


def test_the_first_bad_commit(harness: Harness, repo: Path, here: Path) -> None:
    ended = harness("bisect", SCENARIO, "--tree", repo, "--good", "v1", "--bad", "v5")
    assert ended.status == 0
    first = git(repo, "rev-parse", "v3")
    lines = ended.out.splitlines()
    assert lines[0] == f'first bad commit: {first[:12]} "edit 3" (Ada, 2022-03-04)'
    assert lines[1:3] == ["failure: no leak | leak: fds", "of the bad end: failed 10 of 10"]
    assert lines[3].startswith("confidence: at least 9")
    qemu = here / f"artifacts/bisect/qemu/{first}/qemu-system-x86_64"
    shows = next(line for line in lines if line.startswith("it fails: pytest "))
    assert shows.endswith(f"test_leak.py::test_way --machine pc --kernel default --thorough --qemu {qemu}")
    assert qemu.read_text() == "bad 3\n"
    assert len(list(qemu.parents[1].iterdir())) == 2
    result = json.loads((here / "artifacts/bisect/result.json").read_text())
    assert (result["exact"], result["among"][0]["id"], result["before"]["subject"]) == (True, first, "edit 2")
    assert result["builds"] == 4
    assert git(repo, "worktree", "list").count("\n") == 0
    runs = Fails.runs
    again = harness("bisect", SCENARIO, "--tree", repo, "--good", "v1", "--bad", "v5")
    assert (again.status, Fails.runs) == (0, runs)
    assert "runs of" in again.err
    assert again.out.splitlines()[0] == lines[0]


def test_the_first_good_commit(harness: Harness, repo: Path) -> None:
    ended = harness("bisect", SCENARIO, "--tree", repo, "--bad", "v4", "--good", "v9", "--find", "fix")
    assert '"edit 8"' in ended.out.splitlines()[0]
    assert ended.out.startswith("first good commit: ")


def test_a_range_names_each_commit(harness: Harness, repo: Path) -> None:
    commit_files(repo, "broken", {DEVICE: "syntax"})
    last = commit_files(repo, "bad again", {DEVICE: "bad 11"})
    ended = harness("bisect", SCENARIO, "--tree", repo, "--good", "v9", "--bad", last, "--json")
    assert [one["subject"] for one in ended.json["among"]] == ["broken", "bad again"]
    assert not ended.json["exact"]
    ended = harness("bisect", SCENARIO, "--tree", repo, "--good", "v9", "--bad", last)
    assert "first bad commit: one of these 2 (the others cannot be tested):" in ended.out
    assert "skipped: " in ended.out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "give either --releases or --tree DIR"),
        (["--releases", "--tree", "qemu"], "give either --releases or --tree DIR"),
        (["--tree", "qemu"], "--tree needs --good REV and --bad REV"),
        (["--releases", "--good", "v1"], "--good, --bad and --compiler can only be used with --tree"),
        (["--tree", "q", "--good", "a", "--bad", "b", "--qemu", "7.2"], "--qemu can only be used with"),
        (["--tree", "none", "--good", "a", "--bad", "b"], "--tree none: no such folder"),
        (["--tree", "qemu", "--good", "v5", "--bad", "v1"], "v5 and v1 are in the wrong order"),
        (["--tree", "qemu", "--good", "v1", "--bad", "v99"], "no revision v99"),
        (
            ["--tree", "qemu", "--good", "v1", "--bad", "v2"],
            "v2 is said to be bad, but does not fail (0 of 20 runs)",
        ),
        (
            ["--tree", "qemu", "--good", "v4", "--bad", "v5"],
            "v4 is said to be good, but fails (failed 1 of 1)",
        ),
    ],
)
def test_bad_input_is_one_line(harness: Harness, repo: Path, words: list[str], line: str) -> None:
    ended = harness("bisect", SCENARIO, *words)
    assert ended.status == 2
    assert line in ended.err.splitlines()[-1]
    assert "Traceback" not in ended.err


def test_what_is_no_subject(harness: Harness, repo: Path, here: Path) -> None:
    for subject, line in (
        ("nowhere", "nowhere: neither a program, nor the folder of a failed test, nor file.py::test"),
        ("qemu", "qemu: not the folder of a failed test: it has no history.ndjson"),
        ("test_none.py::test_way", "test_none.py::test_way: no such file, neither here nor in"),
    ):
        ended = harness("bisect", subject, "--releases")
        assert ended.status == 2
        assert line in ended.line


def test_the_folder_of_a_failed_test(harness: Harness, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_available", lambda provisioner: {"5.2": "5.2.0", "bad": "7.2.22"})
    folder = here / "test_way"
    folder.mkdir()
    history = History(folder / "history.ndjson")
    history.note("host", "test", {"id": "test_leak.py::test_way[7.2-default-q35-ejected]"})
    history.close()
    found = harness("bisect", folder, "--releases", "--json")
    assert (found.status, found.json["changes"]) == (0, [["5.2", "bad"]])
    log = (here / "artifacts/bisect/log.ndjson").read_text()
    assert '"what": "test_leak.py::test_way[ejected] on q35, kernel default"' in log


def test_the_log_of_another_bisection_is_refused(harness: Harness, repo: Path, here: Path) -> None:
    words = ("bisect", SCENARIO, "--tree", repo, "--good", "v1", "--bad")
    assert harness(*words, "v5").status == 0
    ended = harness(*words, "v4")
    assert ended.status == 2
    assert "the log of another bisection: newest is" in ended.err
    (here / "test_leak.py").write_text("def test_way(): pass  # changed\n")
    assert "the log of another bisection: content is" in harness(*words, "v5").err


_compiler = command._compiler


def test_which_compiler_is_used(
    repo: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tools of the release; the host's where these cannot be had, or when it is asked for."""

    def unavailable(flavour: str, *rest: object) -> Compiler:
        raise SetupError(f"tools of {flavour} are not in the cache")

    provisioner, tree = Provisioner(Cache(here / "cache")), Tree(repo)
    monkeypatch.setattr(command, "ReleaseCompiler", unavailable)
    used = _compiler(None, tree, "v1", provisioner, here)
    assert used.name == "the host's compiler"
    assert "--enable-virtfs" in used.options
    assert "no tools of 7.2-src: tools of 7.2-src are not in the cache" in capsys.readouterr().err
    assert _compiler("host", tree, "v1", provisioner, here).name == "the host's compiler"
    with pytest.raises(SetupError, match=r"^tools of 10\.0-src are not in the cache$"):
        _compiler("10.0-src", tree, "v1", provisioner, here)


R2 = recipes_folder() / "programs/R2.json"


@pytest.mark.qemu
@pytest.mark.parametrize(
    ("program", "qemu", "status"),
    [
        (R2, "7.2", 1),
        (R2, "11.1", 0),
        (R2, "/bin/true", 125),
        (R2, "/nowhere", 128),
        (R2, "6.66", 128),
        (Path("none.json"), "7.2", 128),
    ],
)
def test_the_exit_status_for_git_bisect_run(
    harness: Harness,
    program: Path,
    qemu: str,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.delenv("HARNESS_CACHE")
    words = ("--qemu", qemu, "--accel", "tcg", "--exit-for-bisect", "--times", "3", "-n", "1")
    ended = harness("replay", program, *words, "--into", tmp_path / "records")
    assert ended.status == status
    assert ("failed 1 of 1" in ended.out) == (status == 1)
    assert "Traceback" not in ended.err


def test_a_signature_is_for_git_bisect_run(harness: Harness) -> None:
    ended = harness("replay", R2, "--signature", "x")
    assert (ended.status, ended.line) == (
        2,
        "harness: --signature can only be used with --exit-for-bisect",
    )


def test_the_releases(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"5.2": "5.2.0", "7.2-bad": "7.2.22", "10.0": "10.0.13"}
    monkeypatch.setattr(command, "_released", lambda provisioner: list(versions))
    monkeypatch.setattr(command, "_version", lambda name, provisioner: versions[name])
    ended = harness("bisect", SCENARIO, "--releases")
    assert "first bad: 7.2-bad (7.2.22) (after 5.2 (5.2.0))" in ended.out
    assert "first good: 10.0 (10.0.13) (after 7.2-bad (7.2.22))" in ended.out
    assert 'affected = ["==7.2.22"]' in ended.out
    found = harness("bisect", SCENARIO, "--releases", "--json").json
    assert found["changes"] == [["5.2", "7.2-bad"], ["7.2-bad", "10.0"]]


def test_a_release_that_cannot_be_had_is_left_out(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str, provisioner: object) -> str:
        if name != "7.2-bad":
            raise SetupError(f"cannot fetch QEMU {name}: no network\nmore")
        return "7.2.22"

    monkeypatch.setattr(command, "_released", lambda provisioner: ["7.2-bad", "99.1"])
    monkeypatch.setattr(command, "_version", version)
    ended = harness("bisect", SCENARIO, "--releases")
    assert "QEMU 99.1 is left out: cannot fetch QEMU 99.1: no network\n" in ended.err
    assert 'affected = ["==7.2.22"]' in ended.out
    monkeypatch.setattr(command, "_released", lambda provisioner: ["99.1"])
    alone = harness("bisect", SCENARIO, "--releases", "--into", "other")
    assert alone.status == 3
    assert alone.err.splitlines()[-1].startswith("harness: none of the releases can be had: cannot fetch")
    named = harness("bisect", SCENARIO, "--releases", "--qemu", "99.1", "--into", "third")
    assert (named.status, named.out) == (3, "")
    assert "left out" not in named.err
