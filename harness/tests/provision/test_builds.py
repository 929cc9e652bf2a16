"""Building QEMU, without a compiler: ``unshare`` is a script that stays outside and plays the build root."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.errors import SetupError, UsageError
from harness.mutation.catalogue import Catalogue, Fault
from harness.provision import Cache, Provisioner, build_root, edits
from harness.provision.build_root import BuildRoot
from harness.provision.builds import Build
from harness.qemu.binary import PROGRAM
from harness.reaper import MARK, processes_of

#: Takes ROOT WORK sh -c SCRIPT from the end of the command line; the tools are the functions below.
FAKE = f"""#!/bin/bash
while [ "$1" != sh ]; do shift; done
work=$6
dpkg-source() {{ mkdir -p source/hw source/scripts; echo "int tag = 1;" > source/hw/9p.c;
    echo 7.2.22 > source/VERSION
    echo "//" > source/scripts/cocci-macro-file.h; echo x >> "$work/unpacked"; }}
ninja() {{ case $1 in tests/*) for test; do mkdir -p tests/qtest; echo "$test" > $test; done; return;; esac
    [ -e "$work/broken" ] && {{ echo "9p.c:1: error: expected ';'"; return 1; }};
    cat ../source/hw/9p.c > {PROGRAM}; }}
strip() {{ tr a-z A-Z < "$4" > "$3"; }}
spatch() {{ grep -q nothing fault.cocci || sed -i s/1/2/ "${{@: -1}}"; }}
patch() {{ grep -q elsewhere fault.diff && {{ echo "1 out of 1 hunk FAILED"; return 1; }};
    sed -i s/1/3/ "${{@: -2:1}}"; }}
../source/configure() {{ echo "$@" > "$work/configured"; }}
cd "$work"
eval "${{9#cd /work && }}"
"""
REPOSITORY = Path(__file__).parents[3]
FAULT = {
    "guarantee": "no leak",
    "title": "a title",
    "caught_by": ["test_leak.py::test_heavy_use"],
    "edit": [{"file": "hw/9p.c", "patch": "@@ @@\n-1\n+2\n"}],
}


@pytest.fixture
def unshare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    tool = folder / "unshare"
    tool.write_text(FAKE)
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return tool


@pytest.fixture
def tree(cache: Cache, tmp_path: Path, unshare: Path) -> Build:
    (tmp_path / "tools/sources").mkdir(parents=True)
    (tmp_path / "tools/sources/qemu.dsc").touch()
    return Build(cache, "7.2-src", "key", tmp_path / "tools", ["--enable-virtfs"], lambda _: None)


@pytest.fixture
def into(tmp_path: Path) -> Path:
    folder = tmp_path / "into"
    folder.mkdir()
    return folder


def fault(**changed: object) -> Fault:
    return Fault.model_validate({**FAULT, **changed})


def test_a_tree_is_prepared_once(tree: Build, into: Path) -> None:
    tree.make(into)
    tree.make(into)
    assert (into / PROGRAM).read_text() == "int tag = 1;\n"
    assert os.access(into / PROGRAM, os.X_OK)
    work = tree.source.parent
    assert (work / "unpacked").read_text() == "x\n"
    assert "--enable-virtfs" in (work / "configured").read_text()


def test_a_tree_whose_preparation_was_interrupted_is_prepared_again(tree: Build, into: Path) -> None:
    tree.source.mkdir(parents=True)
    (tree.source / "half").touch()
    tree.make(into)
    assert not (tree.source / "half").exists()


def test_a_compiler_s_error_is_the_message(tree: Build, into: Path) -> None:
    with tree.tree():
        (tree.source.parent / "broken").touch()
    with pytest.raises(
        SetupError, match=r"ninja failed: 9p.c:1: error: expected .* \(its output: .*ninja.log"
    ):
        tree.make(into)
    assert list(into.iterdir()) == []


def test_a_fault_is_built_and_the_tree_left_as_it_was(tree: Build, into: Path) -> None:
    edits.build(tree, "one", fault(), "", into)
    assert (into / PROGRAM).read_text() == "int tag = 2;\n"
    tree.make(into)
    assert (into / PROGRAM).read_text() == "int tag = 1;\n"


#: Ends without any clean-up while the edited source is about to be compiled, as SIGKILL ends a process.
KILLED = """
import os, sys
from pathlib import Path
from harness.mutation.catalogue import Fault
from harness.provision import Cache, edits
from harness.provision.builds import Build
cache, tools, into, fault = sys.argv[1:]
tree = Build(Cache(Path(cache)), "7.2-src", "key", Path(tools), ["--enable-virtfs"], lambda _: None)
tree.compile = lambda _: os._exit(9)
edits.build(tree, "one", Fault.model_validate_json(fault), "", Path(into))
"""


def test_the_edits_of_a_build_that_was_killed_are_undone(
    tree: Build, cache: Cache, tmp_path: Path, into: Path
) -> None:
    argv = [str(cache.root), str(tmp_path / "tools"), str(into), fault().model_dump_json()]
    killed = subprocess.run([sys.executable, "-c", KILLED, *argv], check=False, cwd=REPOSITORY)
    assert killed.returncode == 9
    assert (tree.source / "hw/9p.c").read_text() == "int tag = 2;\n"
    edits.build(tree, "two", fault(edit=[{"file": "hw/9p.c", "diff": "-1\n+3\n"}]), "", into)
    assert (into / PROGRAM).read_text() == "int tag = 3;\n"
    tree.make(into)
    assert (into / PROGRAM).read_text() == "int tag = 1;\n"


def test_an_edit_that_changes_nothing_is_an_error(tree: Build, into: Path) -> None:
    twice = [*FAULT["edit"], {"file": "hw/9p.c", "patch": "nothing"}]
    with pytest.raises(SetupError, match=r"fault one: its edit of hw/9p.c changes nothing in QEMU 7.2-src"):
        edits.build(tree, "one", fault(edit=twice), "", into)
    assert (tree.source / "hw/9p.c").read_text() == "int tag = 1;\n"


def test_a_fault_can_be_a_unified_diff(tree: Build, into: Path) -> None:
    edits.build(tree, "one", fault(edit=[{"file": "hw/9p.c", "diff": "-1\n+3\n"}]), "", into)
    assert (into / PROGRAM).read_text() == "int tag = 3;\n"
    tree.make(into)
    assert (into / PROGRAM).read_text() == "int tag = 1;\n"


def test_a_diff_that_does_not_apply_is_an_error_that_names_the_fault(tree: Build, into: Path) -> None:
    elsewhere = [{"file": "hw/9p.c", "diff": "elsewhere"}]
    message = r"fault one: its edit of hw/9p.c does not apply to QEMU 7.2-src: patch failed: 1 out of 1 hunk"
    with pytest.raises(SetupError, match=message):
        edits.build(tree, "one", fault(edit=elsewhere), "", into)


def test_an_edit_is_made_in_the_versions_that_it_is_for(tree: Build, into: Path) -> None:
    both = [
        {"file": "hw/9p.c", "diff": "-1\n+3\n", "qemu": ">=8"},
        {"file": "hw/9p.c", "patch": "-1\n+2\n", "qemu": "<8"},
    ]
    edits.build(tree, "one", fault(edit=both), "", into)
    assert (into / PROGRAM).read_text() == "int tag = 2;\n"
    with pytest.raises(SetupError, match=r"fault one: none of its edits is for QEMU 7.2.22"):
        edits.build(tree, "one", fault(edit=both[:1]), "", into)


@pytest.mark.parametrize("both", [{}, {"patch": "x", "diff": "x"}])
def test_an_edit_is_either_a_patch_or_a_diff(both: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"a patch \(semantic\) or a diff \(unified\)"):
        fault(edit=[{"file": "hw/9p.c", **both}])


def test_a_file_that_this_qemu_does_not_have(tree: Build, into: Path) -> None:
    elsewhere = [{"file": "hw/new.c", "patch": "x"}]
    with pytest.raises(SetupError, match=r"fault one: QEMU 7.2-src has no hw/new.c"):
        edits.build(tree, "one", fault(edit=elsewhere), "", into)


def test_a_host_without_user_namespaces(unshare: Path, tmp_path: Path) -> None:
    unshare.write_text("#!/bin/sh\necho 'unshare: unshare failed: Operation not permitted'; exit 1\n")
    with pytest.raises(SetupError, match="does not permit user namespaces") as caught:
        BuildRoot(tmp_path, tmp_path, lambda _: None).run("true", what="ninja")
    assert "Operation not permitted" in caught.value.message


def test_a_host_without_the_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SetupError, match="install util-linux"):
        BuildRoot(tmp_path, tmp_path, lambda _: None).run("true", what="ninja")


def test_a_build_that_does_not_end_is_ended(
    unshare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MARK, str(tmp_path))
    unshare.write_text("#!/bin/sh\nexec sleep 600\n")
    with pytest.raises(SetupError, match=r"ninja did not end within 0.5 s; its output is in .*ninja.log"):
        BuildRoot(tmp_path, tmp_path, lambda _: None).run("true", what="ninja", timeout_s=0.5)
    assert processes_of(tmp_path) == [], "it was ended"


def test_a_root_is_completed(tmp_path: Path) -> None:
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "usr/bin/cc").touch()
    (tmp_path / "usr/share/ca-certificates").mkdir(parents=True)
    (tmp_path / "usr/share/ca-certificates/a.crt").write_text("certificate\n")
    build_root.complete(tmp_path)
    assert str((tmp_path / "usr/bin/awk").readlink()) == "gawk"
    assert not (tmp_path / "usr/bin/cc").is_symlink()
    assert (tmp_path / "etc/ssl/certs/ca-certificates.crt").read_text() == "certificate\n"


def test_a_fault_that_is_not_valid(tmp_path: Path) -> None:
    text = 'guarantee = "no leaks"\ntitle = "t"\ncaught_by = ["a"]\n[[edit]]\nfile = "f"\npatch = "p"\n'
    (tmp_path / "bad.toml").write_text(text)
    with pytest.raises(UsageError, match=r"bad.toml:1: guarantee: .*no such guarantee; there are: no leak;"):
        Catalogue(tmp_path).load("bad")
    with pytest.raises(UsageError, match=r"no recipe .*worse.toml; known: bad"):
        Catalogue(tmp_path).load("worse")


def test_an_edit_applies_to_its_versions() -> None:
    assert fault().applies_to("7.2.22")
    assert not fault(qemu=">=10").applies_to("7.2.22")


def test_a_binary_without_symbols_is_made_of_the_same_tree(tree: Build, into: Path) -> None:
    tree.strip(into)
    assert (into / PROGRAM).read_text() == "INT TAG = 1;\n"
    assert os.access(into / PROGRAM, os.X_OK)
    tree.make(into)
    assert (into / PROGRAM).read_text() == "int tag = 1;\n", "the tree's own binary keeps them"


def test_qemu_s_own_tests_are_built_in_the_same_tree(tree: Build, into: Path) -> None:
    tree.make_tests(["qos-test", "drive_del-test"], into)
    assert (into / "qos-test").read_text() == "tests/qtest/qos-test\n"
    assert sorted(path.name for path in into.iterdir()) == ["drive_del-test", "qos-test"]
    assert os.access(into / "qos-test", os.X_OK)


def test_qemu_s_own_tests_are_built_once(cache: Cache, tree: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    provisioner = Provisioner(cache)
    monkeypatch.setattr(provisioner, "build", lambda _name: tree)
    made = provisioner.own_tests("7.2-src", ("qos-test",))
    assert (made / "qos-test").is_file()
    with tree.tree():
        (tree.source.parent / "ninja.log").unlink()
    assert provisioner.own_tests("7.2-src", ("qos-test",)) == made
    assert not (tree.source.parent / "ninja.log").exists()
    assert provisioner.own_tests("7.2-src", ("drive_del-test",)) != made
