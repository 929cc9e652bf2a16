"""What a run reached of QEMU: gcovr's data reduced, the shares, and the reasons for what is not reached."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.errors import SetupError, UsageError
from harness.provision import Cache, Provisioner, default_cache_root, gcov
from harness.provision.build_root import BuildRoot
from harness.provision.gcov import Coverage, Part, Reason
from harness.provision.unpacked import command_in
from harness.report import coverage
from harness.report.coverage import FileReport, Share

SOURCE = """static int used(int a)
{
    if (a > 3) {
        return -ENOMEM;
    }
    return a;
}
static int unused(void)
{
    return 1;
}
"""


def _line(number: int, function: str, count: int, *branches: int) -> dict[str, Any]:
    made = [
        {"branchno": n, "count": c, "fallthrough": n == 0, "throw": False} for n, c in enumerate(branches)
    ]
    return {"line_number": number, "function_name": function, "count": count, "branches": made}


def _function(name: str, line: int, count: int) -> dict[str, Any]:
    return {"name": name, "lineno": line, "execution_count": count, "blocks_percent": 100.0}


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The version of the format that this gcovr writes, and reads."""
    empty = tmp_path_factory.mktemp("empty")
    coverage._gcovr(empty, "--root", str(empty), "--json", str(empty / "none.json"), str(empty))
    return str(json.loads((empty / "none.json").read_text())["gcovr/format_version"])


@pytest.fixture
def data(tmp_path: Path, version: str) -> dict[str, Any]:
    source = tmp_path / "counters/work/source/hw/9pfs"
    source.mkdir(parents=True)
    (source / "9p.c").write_text(SOURCE)
    lines = [_line(1, "used", 5), _line(3, "used", 5, 0, 5), _line(4, "used", 0), _line(6, "used", 5)]
    lines += [_line(8, "unused", 0), _line(10, "unused", 0)]
    functions = [_function("used", 1, 5), _function("unused", 8, 0)]
    of_9p = {"file": "hw/9pfs/9p.c", "lines": lines, "functions": functions}
    return {"gcovr/format_version": version, "files": [of_9p]}


ALL = Part(file="hw/9pfs/")
NO_MEMORY = Reason(file="hw/9pfs/9p.c", function="used", lines=["return -ENOMEM"], why="no memory")
UNUSED = Reason(file="hw/9pfs/9p.c", function="unused", why="nobody calls it")


def _written(tmp_path: Path, data: dict[str, Any], *reasons: Reason) -> tuple[FileReport, str]:
    (found,) = coverage.write(tmp_path, data, Coverage(part=[ALL], reason=list(reasons)))
    return found, (tmp_path / coverage.NOT_REACHED).read_text()


@pytest.fixture
def without_gcovr(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its table and page are not written: half a second each time."""
    monkeypatch.setattr(coverage, "_gcovr", lambda *words: None)


def test_the_shares_of_a_file_and_gcovr_s_table_and_page(tmp_path: Path, data: dict[str, Any]) -> None:
    found, missing = _written(tmp_path, data, NO_MEMORY)
    assert found == FileReport("hw/9pfs/9p.c", Share(3, 6), Share(1, 2), Share(1, 2), unexplained=2)
    assert str(found.lines) == "3 of 6 (50.0 %)"
    assert "hw/9pfs/9p.c: used\n      4 return -ENOMEM;    [no memory]\n" in missing
    assert "hw/9pfs/9p.c: unused\n      8 static int unused(void)\n     10 return 1;" in missing
    assert "50%" in (tmp_path / coverage.TABLE).read_text()
    page = (tmp_path / coverage.PAGE).read_text()
    assert "9p.c" in page


def test_a_file_that_one_set_does_not_reach_at_all() -> None:
    one, other = (
        FileReport(file, Share(1, 4), Share(0, 0), Share(1, 2), unexplained=3)
        for file in ("one.c", "other.c")
    )
    assert coverage.total([one, other]) == FileReport(
        "all of them", Share(2, 8), Share(0, 0), Share(2, 4), unexplained=6
    )
    made = coverage.compared({"default": [one], "thorough": [one, other]})
    rows = [tuple(column) for column in zip(*(column.cells for column in made.columns), strict=True)]
    assert [row[:3] for row in rows] == [
        ("one.c", "1 of 4 (25.0 %)", "1 of 4 (25.0 %)"),
        ("other.c", "-", "1 of 4 (25.0 %)"),
        ("all of them", "1 of 4 (25.0 %)", "2 of 8 (25.0 %)"),
    ]
    assert [row[-1] for row in rows] == ["3", "3", "6"]


@pytest.mark.usefixtures("without_gcovr")
def test_a_reason_without_lines_is_about_the_whole_function(tmp_path: Path, data: dict[str, Any]) -> None:
    assert _written(tmp_path, data, NO_MEMORY, UNUSED)[0].unexplained == 0


@pytest.mark.usefixtures("without_gcovr")
@pytest.mark.parametrize(("after", "unexplained"), [("if (a > 3) {", 2), ("return a;", 3)])
def test_a_reason_may_name_a_line_before(
    tmp_path: Path, data: dict[str, Any], after: str, unexplained: int
) -> None:
    reason = NO_MEMORY.model_copy(update={"after": after})
    assert _written(tmp_path, data, reason)[0].unexplained == unexplained


@pytest.mark.usefixtures("without_gcovr")
def test_a_reason_without_a_function_is_about_the_whole_file(tmp_path: Path, data: dict[str, Any]) -> None:
    whole = Reason(file="hw/9pfs/9p.c", why="another driver")
    assert _written(tmp_path, data, whole)[0].unexplained == 0


@pytest.mark.usefixtures("without_gcovr")
def test_a_reason_for_what_is_reached_is_named(tmp_path: Path, data: dict[str, Any]) -> None:
    stale = Reason(file="hw/9pfs/9p.c", function="used", lines=["return a;"], why="cannot be")
    _, missing = _written(tmp_path, data, stale, NO_MEMORY)
    assert "reached, although a reason says why not: hw/9pfs/9p.c: used: cannot be" in missing
    assert "no memory]" in missing
    assert missing.count("although") == 1


def test_the_data_is_reduced_to_the_parts(data: dict[str, Any]) -> None:
    part = Part(file="hw/9pfs/9p.c", functions="unus.*")
    (file,) = coverage.reduced(data, [part])["files"]
    assert [line["line_number"] for line in file["lines"]] == [8, 10]
    assert [function["name"] for function in file["functions"]] == ["unused"]
    assert coverage.reduced(data, [Part(file="fsdev/")])["files"] == []


def test_a_gcovr_that_fails_gives_one_line(tmp_path: Path, data: dict[str, Any]) -> None:
    with pytest.raises(SetupError, match="gcovr failed: ") as caught:
        coverage.write(tmp_path, {**data, "gcovr/format_version": "of nobody"}, Coverage(part=[ALL]))
    assert "\n" not in caught.value.message


def test_no_counters(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"no QEMU wrote counters below .*counters"):
        coverage.gather(tmp_path, tmp_path, tmp_path, ["gcov"], [ALL])


def test_gcovr_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    coverage.require_gcovr()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'virtio-9p-harness\[coverage\]'"):
        coverage.require_gcovr()


MAIN = """#include <stdio.h>
int other(int);
static int used(int a)
{
    if (a > 3) {
        return 7;
    }
    return a;
}
int main(int argc, char **argv)
{
    printf("%d\\n", used(argc) + other(1));
    return 0;
}
"""


@pytest.mark.qemu
def test_a_program_that_is_compiled_as_qemu_is(tmp_path: Path) -> None:
    """Only the files of the report count, and the counters go where the variables say."""
    tools = Provisioner(Cache(default_cache_root())).build("7.2-src").root
    work = tmp_path / "tree"
    for file, text in (("hw/9pfs/9p.c", MAIN), ("tcg/tcg.c", "int other(int a)\n{\n    return a;\n}\n")):
        (work / "source" / file).parent.mkdir(parents=True)
        (work / "source" / file).write_text(text)
    (work / "build").mkdir()
    (work / "cc").write_text(gcov.compiler([ALL]))
    (work / "cc").chmod(0o755)
    compiled = [
        f"/work/cc -O2 -c ../source/{f} -o {f.replace('/', '_')}.o" for f in ("hw/9pfs/9p.c", "tcg/tcg.c")
    ]
    script = " && ".join(["cd build", *compiled, "gcc --coverage *.o -o program"])
    BuildRoot(tools, work, lambda _: None).run(script, what="gcc")
    into = tmp_path / "into"
    into.mkdir()
    environment = gcov.environment(into / coverage.COUNTERS)
    done = subprocess.run([work / "build/program"], capture_output=True, check=True, env=environment)
    assert (done.stdout, done.stderr) == (b"2\n", b"")
    data = coverage.gather(
        into, work / "build", work / "source", command_in(tools, tools / "usr/bin/gcov"), [ALL]
    )
    lines = {line.number: line.count for line in coverage.lines_of(data, work / "source")}
    assert lines == {3: 1, 5: 1, 6: 0, 8: 1, 10: 1, 12: 1, 13: 1}
    assert [file["file"] for file in data["files"]] == ["hw/9pfs/9p.c"]


def _functions(text: str) -> Iterator[tuple[str, str]]:
    """The functions of a file of QEMU, whose bodies begin and end at the left margin: name and text."""
    for head, body in re.findall(r"^(\w[^\n;{}]*\([^;{}]*\))\n\{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL):
        for name in re.findall(r"(\w+)\(", head):  # Attributes as well.
            yield name, f"{head}\n{body}"


@pytest.mark.qemu
def test_the_lines_that_have_a_reason_are_lines_of_qemu() -> None:
    """By function and text, because the numbers change with each release."""
    build = Provisioner(Cache(default_cache_root())).build("7.2-src")
    wrong = []
    with build.tree() as source:
        for reason in gcov.load().reason:
            text = (source / reason.file).read_text()
            body = dict(_functions(text)).get(reason.function, "") if reason.function else text
            lines = [line.strip() for line in body.splitlines()]
            wanted = [*reason.lines, *([reason.after] if reason.after else [])]
            missing = [text for text in wanted if not any(line.startswith(text) for line in lines)]
            wrong += [(reason.file, reason.function, text) for text in missing]
            wrong += [] if lines else [(reason.file, reason.function, "no such function")]
    assert wrong == []


@pytest.mark.qemu
def test_the_parts_are_files_and_functions_of_qemu() -> None:
    build = Provisioner(Cache(default_cache_root())).build("7.2-src")
    with build.tree() as source:
        for part in gcov.load().part:
            assert (source / part.file).exists(), part.file
            if part.functions:
                names = dict(_functions((source / part.file).read_text()))
                assert sum(part.has(part.file, name) for name in names) >= 5, part.file
