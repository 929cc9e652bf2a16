from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from harness.artifacts import Artifacts, of_command, slug, tail
from harness.errors import SetupError


@pytest.mark.parametrize(
    ("test_id", "expected"),
    [
        ("scenarios/test_leak.py::test_one[7.2-6.1-pc]", "test_leak.test_one-7.2-6.1-pc"),
        ("test_leak.py::test_one", "test_leak.test_one"),
    ],
)
def test_an_ordinary_id_stays_readable(test_id: str, expected: str) -> None:
    assert slug(test_id) == expected


def test_ids_that_read_alike_get_different_folders() -> None:
    ids = ["a.py::t[/usr/bin/qemu-pc]", "a.py::t[-usr-bin-qemu-pc]", "a.py::T::t", "b/c/a.py::t"]
    assert len({slug(i) for i in ids}) == len(ids)


@given(st.text(min_size=1, max_size=400))
@example(".")
@example("..")
@example("a/..")
def test_a_slug_is_one_file_name(test_id: str) -> None:
    name = slug(test_id)
    assert 0 < len(name.encode()) <= 255
    assert "/" not in name
    assert "\0" not in name
    assert name not in (".", "..")


def test_each_machine_has_its_folder(tmp_path: Path) -> None:
    artifacts = Artifacts.create(tmp_path, "a.py::t")
    first, second = artifacts.machine("source", first=True), artifacts.machine("destination-1", first=False)
    assert first.folder == artifacts.folder
    assert second.folder.parent == artifacts.folder
    assert artifacts.machines() == [first, second]
    (artifacts.folder / "old").write_text("")
    assert list(Artifacts.create(tmp_path, "a.py::t").folder.iterdir()) == []
    artifacts.discard()
    assert not artifacts.folder.exists()


def test_the_paths_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        Artifacts.create_at(Path("of/a test")).machine("source", first=True).folder == tmp_path / "of/a test"
    )


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match=r"cannot make the artefact folder .*file/"):
        Artifacts.create(tmp_path / "file", "a.py::t")


def test_the_tail_of_a_log(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert tail(path, 3) == []
    path.write_bytes(b"one\ntwo\nth\xffree\n")
    assert tail(path, 2) == ["two", "th�ree"]
    path.write_text("x" * 100_000 + "\nlast\n")
    assert tail(path, 1) == ["last"]


@pytest.mark.parametrize(("content", "stays"), [("", False), ("what happened", True)])
def test_the_folder_of_a_command_stays_if_it_has_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, stays: bool
) -> None:
    """Also when the command fails."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    made: list[Path] = []

    def fails() -> None:
        with of_command("replay") as folder:
            made.append(folder)
            (folder / "attempt").mkdir()
            (folder / "attempt" / "log").write_text(content)
            raise SetupError("the disk is full")

    with pytest.raises(SetupError):
        fails()
    (folder,) = made
    assert folder.parent == tmp_path
    assert folder.name.startswith("virtio-9p-harness-replay-")
    assert folder.exists() is stays
