"""A git tree: what it refuses, its worktree, builds of its commits by a compiler that only copies a file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.errors import SetupError, UsageError
from harness.explore import compilers, tree_builds
from harness.explore.bisect import Find
from harness.explore.compilers import HostCompiler, flavour_for
from harness.explore.observations import Answer, Observation
from harness.explore.tree import Tree
from harness.explore.tree_bisect import ask_builds, bisect
from harness.explore.tree_builds import NotTestable, TreeBuilds
from harness.provision.build_root import ScriptFailed
from harness.qemu.binary import PROGRAM
from harness.tests.explore.git_tree import Copies, commit, git, make, pack

DEVICE = "hw__9pfs__virtio-9p-device.c"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Twelve commits; the tag is 2 from the fifth on, and 3 from the ninth."""
    folder = tmp_path_factory.mktemp("original") / "qemu"
    ids = [make(folder)]
    for number in range(1, 12):
        tag = 1 + (number >= 4) + (number >= 8)
        ids.append(commit(folder, f"edit {number}", **{DEVICE: f"int tag = {tag};\n", "docs": str(number)}))
    pack(folder)
    return folder, ids


@pytest.fixture
def repo(original: tuple[Path, list[str]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(original[0], tmp_path / "qemu", symlinks=True))


@pytest.fixture
def line(original: tuple[Path, list[str]]) -> list[str]:
    return original[1]


def test_the_history_between_two_revisions(repo: Path, line: list[str]) -> None:
    git(repo, "tag", "v1", line[2])
    tree = Tree(repo)
    assert tree.history("v1", "master") == line[2:]
    assert tree.history(line[3][:10], "master~1") == line[3:-1]
    found = tree.describe(line[4])
    assert str(found) == f'{line[4][:12]} "edit 4" (Ada, 2022-03-04)'


def test_bad_revisions_are_one_line_each(repo: Path, line: list[str], tmp_path: Path) -> None:
    tree = Tree(repo)
    git(repo, "checkout", "--quiet", "-b", "aside", line[3])
    commit(repo, "aside", other="1")
    git(repo, "checkout", "--quiet", "--orphan", "elsewhere")
    commit(repo, "elsewhere", other="2")
    git(repo, "rm", "-rq", "qemu-options.hx", "hw")
    commit(repo, "no QEMU")
    for old, new, message in (
        ("v9", "master", f"^--tree {repo}: no revision v9$"),
        ("--all", "master", "no revision --all$"),
        ("master", "master", "^master and master are the same commit$"),
        (
            "master",
            line[3],
            f"^master and {line[3]} are in the wrong order, as {line[3]} is an ancestor of master",
        ),
        ("aside", "master", f"^aside is not an ancestor of master; both began at {line[3][:12]}: try that"),
        ("elsewhere~1", "master", "^elsewhere~1 and master have no common history$"),
        ("elsewhere", "master", "elsewhere is no QEMU: it has neither qemu-options.hx nor hw/i386/pc.c$"),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            tree.history(old, new)
        assert "\n" not in str(caught.value)


def test_what_is_no_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"no such folder$"):
        Tree(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"not a folder$"):
        Tree(tmp_path / "file")
    with pytest.raises(UsageError, match=r"^--tree .*: not a git tree \(fatal: not a git repository"):
        Tree(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SetupError, match="git is not on PATH"):
        Tree(tmp_path)


def test_a_shallow_clone_that_lacks_the_range(repo: Path, line: list[str], tmp_path: Path) -> None:
    git(repo, "clone", "--quiet", "--depth", "3", f"file://{repo}", str(tmp_path / "shallow"))
    tree = Tree(tmp_path / "shallow")
    assert tree.history(line[-3], "master") == line[-3:]
    with pytest.raises(UsageError, match=r"; this is a shallow clone: git fetch --unshallow$"):
        tree.history(line[1], "master")


def snapshot(repo: Path) -> dict[str, tuple[bytes, int]]:
    """The files of the user's checkout and of its git folder, with their times; without worktrees."""
    return {
        str(path.relative_to(repo)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(repo.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("end", [None, KeyboardInterrupt, SetupError("full")])
def test_the_users_checkout_is_not_touched(
    repo: Path, line: list[str], tmp_path: Path, end: BaseException | type[BaseException] | None
) -> None:
    (repo / "VERSION").write_text("mine\n")
    (repo / "untracked").touch()
    hook = repo / ".git/hooks/post-checkout"
    hook.parent.mkdir()
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/hooked\n")
    hook.chmod(0o755)
    before, said, tree = snapshot(repo), list[str](), Tree(repo)
    folder = tmp_path / "work/source"
    folder.parent.mkdir()
    try:
        with tree.worktree(folder, line[0], said.append) as worktree:
            for index in (3, 9, 5):
                worktree.check_out(line[index])
                assert (folder / "docs").read_text() == str(index)
                assert (folder / "VERSION").read_text() == "7.2.0\n"
            if end is not None:
                raise end
    except (KeyboardInterrupt, SetupError):
        assert end is not None
    assert said == [f"{repo} has uncommitted changes: they are left alone, and are in no build"]
    assert not folder.exists()
    assert snapshot(repo) == before
    assert git(repo, "worktree", "list").count("\n") == 0
    assert not (tmp_path / "hooked").exists()


def test_the_worktree_of_a_killed_bisection_is_forgotten(repo: Path, line: list[str], tmp_path: Path) -> None:
    """Only where its folder is gone, and not a worktree of the user's that is gone for a while."""
    cache = tmp_path / "cache"
    git(repo, "worktree", "add", "-q", "--detach", str(cache / "killed/source"))
    git(repo, "worktree", "add", "-q", "--detach", str(tmp_path / "users"))
    (cache / "killed").rename(tmp_path / "gone")
    (tmp_path / "users").rename(tmp_path / "moved")
    (cache / "next").mkdir()
    with Tree(repo).worktree(cache / "next/source", line[0]):
        pass
    listed = git(repo, "worktree", "list")
    assert str(cache) not in listed
    assert str(tmp_path / "users") in listed


def test_an_unchanged_file_keeps_its_time(repo: Path, line: list[str], tmp_path: Path) -> None:
    with Tree(repo).worktree(tmp_path / "work/source", line[0]) as worktree:
        worktree.check_out(line[1])
        device = worktree.folder / "hw/9pfs/virtio-9p-device.c"
        before = device.stat().st_mtime_ns
        worktree.check_out(line[2])
        assert device.stat().st_mtime_ns == before
        worktree.check_out(line[5])
        assert device.stat().st_mtime_ns != before


def test_submodules_and_subprojects_are_those_of_the_users_checkout(repo: Path, tmp_path: Path) -> None:
    other = make(tmp_path / "other")
    for name in ("ui/keycodemapdb", "roms/seabios", "dtc"):
        git(repo, "update-index", "--add", "--cacheinfo", f"160000,{other},{name}")
    (repo / "subprojects").mkdir()
    (repo / "subprojects/softfloat.wrap").touch()
    git(repo, "add", "subprojects")
    git(repo, "commit", "-q", "-m", "submodules")
    for name in ("ui/keycodemapdb", "roms/seabios", "subprojects/softfloat"):
        (repo / name).mkdir(parents=True)
        (repo / name / "file").touch()
        (repo / name / ".git").touch()
    with Tree(repo).worktree(tmp_path / "work/source", "master") as worktree:
        worktree.check_out("master")
        files = {str(path.relative_to(worktree.folder)) for path in worktree.folder.rglob("file")}
        assert files == {"ui/keycodemapdb/file", "subprojects/softfloat/file"}
        assert not (worktree.folder / "ui/keycodemapdb/.git").exists()
        assert worktree.empty == ["dtc"]


def test_the_options_that_configure_does_not_know_are_left_out(bench: Bench) -> None:
    bench.compiler.unknown = {"--disable-download", "--with-git-submodules"}
    bench.builds.qemu("master")
    assert bench.compiler.runs == ["configure", "configure", "configure", "ninja"]
    assert bench.compiler.configured == [
        "--enable-virtfs",
        "--target-list=x86_64-softmmu",
        "--disable-werror",
    ]


def test_the_flavour_that_builds_a_version() -> None:
    assert [flavour_for(version) for version in ("5.2.0\n", "8.1.94", "9.0.50", "11.0.1")] == [
        *("7.2-src", "7.2-src", "10.0-src", "10.0-src"),
    ]


class Bench:
    """Builds of a tree, with the compiler that copies."""

    def __init__(self, repo: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tree, self.work, self.into = Tree(repo), folder / "work", folder / "into"
        self.work.mkdir()
        self.into.mkdir()
        self.compiler = Copies(self.work)
        self.said: list[str] = []

        def require_9p(qemu: Path) -> None:
            if "without" in qemu.read_text():
                raise NotTestable("unusable: no virtio-9p-pci")

        monkeypatch.setattr(tree_builds, "require_9p", require_9p)
        self._open = self.tree.worktree(self.work / "source", "master")
        self.builds = TreeBuilds(
            self.tree, self._open.__enter__(), self.compiler, self.work, self.into, self.said.append
        )

    def close(self) -> None:
        self._open.__exit__(None, None, None)


@pytest.fixture
def bench(repo: Path, line: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    made = Bench(repo, tmp_path, monkeypatch)
    yield made
    made.close()


def test_a_commit_is_built_once_and_configured_if_need_be(repo: Path, line: list[str], bench: Bench) -> None:
    qemu = bench.builds.qemu(line[5])
    assert qemu.read_text() == "int tag = 2;\n"
    assert bench.builds.qemu(line[5]) == qemu
    assert bench.builds.qemu(line[1]).read_text() == "int tag = 1;\n"
    assert bench.compiler.runs == ["configure", "ninja", "ninja"]
    assert bench.builds.builds == 2
    changed = commit(repo, "configure", configure="--target-list --enable-virtfs --enable-new")
    bench.builds.qemu(changed)
    assert bench.compiler.runs[3:] == ["configure", "ninja"]
    bench.builds.forget_all_but({line[5]})
    assert [path.name for path in bench.into.iterdir()] == [line[5]]


def test_a_commit_that_does_not_build_is_skipped_with_the_end_of_the_log(repo: Path, bench: Bench) -> None:
    bad = commit(repo, "bad", **{DEVICE: "syntax"})
    bench.builds.qemu("master~1")
    with pytest.raises(NotTestable, match=r"^does not build: \.\./source/hw/.*: error: expected ';' \(see "):
        bench.builds.qemu(bad)
    assert bench.compiler.runs == ["configure", "ninja", "ninja"]
    assert "ninja: stopped" in (bench.into / f"{bad[:12]}.log").read_text()


def test_an_empty_submodule_is_named_when_configure_fails(repo: Path, bench: Bench) -> None:
    git(repo, "update-index", "--add", "--cacheinfo", f"160000,{git(repo, 'rev-parse', 'HEAD')},ui/keys")
    git(repo, "commit", "-q", "-m", "submodule")
    bench.compiler.lacks = "ui/keys"
    with pytest.raises(NotTestable, match=r"qemu has nothing in ui/keys: git submodule update --init \(see "):
        bench.builds.qemu("master")


def test_a_build_folder_that_another_commit_has_spoiled_is_made_again(repo: Path, bench: Bench) -> None:
    bench.builds.qemu("master")
    stale = commit(repo, "stale", **{DEVICE: "stale"})
    assert bench.builds.qemu(stale).read_text() == "stale"
    assert bench.compiler.runs == ["configure", "ninja", "ninja", "configure", "ninja"]


def test_a_commit_without_9p_is_skipped(repo: Path, bench: Bench) -> None:
    without = commit(repo, "without", **{DEVICE: "without"})
    with pytest.raises(NotTestable, match=r"^unusable: no virtio-9p-pci$"):
        bench.builds.qemu(without)
    git(repo, "rm", "-q", DEVICE.replace("__", "/"))
    gone = commit(repo, "gone")
    builds = bench.builds.builds
    with pytest.raises(NotTestable, match=r"^no 9p: it has no hw/9pfs/virtio-9p-device\.c$"):
        bench.builds.qemu(gone)
    assert bench.builds.builds == builds
    assert not (bench.into / without).exists()


def test_a_full_disk_is_no_fault_of_the_commit(repo: Path, bench: Bench) -> None:
    full = commit(repo, "full", **{DEVICE: "full"})
    with pytest.raises(SetupError, match=r"^no space left in .*work, in which QEMU is built; free some$"):
        bench.builds.qemu(full)


def fails_with(tag: int) -> Callable[[str], Observation]:
    def trial(qemu: str) -> Observation:
        bad = Path(qemu).read_text() == f"int tag = {tag};\n"
        return Observation(Answer.BAD, "tag") if bad else Observation(Answer.GOOD)

    return trial


def test_the_first_bad_and_the_first_good_commit(line: list[str], bench: Bench) -> None:
    ask = ask_builds(bench.builds, fails_with(2))
    bug = bisect(bench.tree, bench.tree.history(line[0], line[7]), ask)
    assert bug.commit == bench.tree.describe(line[4])
    assert (bug.before.subject, bug.found.exact, bug.merge) == ("edit 3", True, None)
    fix = bisect(bench.tree, bench.tree.history(line[5], "master"), ask, find=Find.FIX)
    assert (fix.commit.subject, fix.before.subject) == ("edit 8", "edit 7")


def merge(repo: Path, subject: str) -> str:
    git(repo, "merge", "-q", "--no-ff", "-m", subject, "topic")
    return git(repo, "rev-parse", "HEAD")


def test_the_search_goes_on_inside_of_a_merge(repo: Path, line: list[str], bench: Bench) -> None:
    git(repo, "checkout", "-q", "-b", "topic", line[9])
    inside = [
        commit(repo, f"topic {n}", **{DEVICE: f"int tag = {9 if n > 2 else 3};\n", "t": str(n)})
        for n in range(5)
    ]
    git(repo, "checkout", "-q", "master")
    merged = merge(repo, "Merge topic")
    last = commit(repo, "last", last="1")
    found = bisect(bench.tree, bench.tree.history(line[0], last), ask_builds(bench.builds, fails_with(9)))
    assert found.commit.id == inside[3]
    assert found.merge is not None
    assert found.merge.id == merged


def test_a_merge_can_itself_be_at_fault(repo: Path, line: list[str], bench: Bench) -> None:
    git(repo, "checkout", "-q", "-b", "topic", line[9])
    commit(repo, "topic", t="1")
    git(repo, "checkout", "-q", "master")
    git(repo, "merge", "-q", "--no-ff", "--no-commit", "topic")
    merged = commit(repo, "evil merge", **{DEVICE: "int tag = 9;\n"})
    found = bisect(bench.tree, bench.tree.history(line[0], "master"), ask_builds(bench.builds, fails_with(9)))
    assert found.commit.id == merged
    assert found.merge is None


def test_the_hosts_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bin_, work, into = tmp_path / "bin", tmp_path / "work", tmp_path / "into"
    for folder in (bin_, work / "source/pc-bios", work / "build", into):
        folder.mkdir(parents=True)
    (work / "source/pc-bios/bios-256k.bin").touch()
    (work / "build" / PROGRAM).write_text("elf")
    assert HostCompiler(("--enable-virtfs",), work).options == ("--enable-virtfs",)
    (bin_ / "ccache").touch(mode=0o755)
    monkeypatch.setenv("PATH", f"{bin_}:{os.environ['PATH']}")
    compiler = HostCompiler(("--enable-virtfs",), work)
    assert compiler.options == ("--enable-virtfs", "--cc=ccache cc")
    assert compiler.run("pwd; echo to stderr >&2", what="it") == f"{work}\nto stderr\n"
    with pytest.raises(ScriptFailed, match=r"^it failed: last\nlast$"):
        compiler.run("echo last; false", what="it")
    kept = compiler.keep(work / "build" / PROGRAM, into)
    assert (kept, kept.read_text()) == (into / PROGRAM, "elf")
    assert os.access(kept, os.X_OK)
    assert (into / "pc-bios/bios-256k.bin").exists()
    monkeypatch.setattr(compilers, "_TIMEOUT_S", 0.2)
    with pytest.raises(SetupError, match=r"^it did not end within 0 s"):
        compiler.run("sleep 60", what="it")
