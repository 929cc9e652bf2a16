from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from harness import reaper
from harness.errors import SetupError, UsageError
from harness.provision import Cache, default_cache_root


def _fill(into: Path) -> None:
    (into / "file").write_text("content")


def _ignore(line: str) -> None:
    pass


def test_a_second_process_waits_and_names_the_first(cache: Cache) -> None:
    """The first fills until the second has reported that it waits; then the second has nothing to do."""
    filling, second_waits = threading.Event(), threading.Event()
    reported: list[str] = []
    fills: list[str] = []

    def slow_fill(into: Path) -> None:
        fills.append("first")
        filling.set()
        assert second_waits.wait(60)
        _fill(into)

    def second_fill(into: Path) -> None:
        fills.append("second")
        _fill(into)

    def report(line: str) -> None:
        reported.append(line)
        second_waits.set()

    first = threading.Thread(target=cache.entry, args=("kind", "key", slow_fill, _ignore))
    first.start()
    assert filling.wait(60)
    folder = cache.entry("kind", "key", second_fill, report)
    first.join(20)
    assert fills == ["first"]
    assert (folder / "file").read_text() == "content"
    assert f"waiting for process {os.getpid()} " in reported[0]
    assert "kind-key" in reported[0]


@pytest.mark.parametrize(
    ("raised", "expected", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), SetupError, "no space left in the cache"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), SetupError, "no space left in the cache"),
        (PermissionError(errno.EACCES, "Permission denied"), SetupError, "Permission denied"),
        (KeyboardInterrupt(), KeyboardInterrupt, ""),
    ],
)
def test_an_interrupted_fill_leaves_nothing(
    cache: Cache, raised: BaseException, expected: type[BaseException], words: str
) -> None:
    def fill(into: Path) -> None:
        _fill(into)
        raise raised

    with pytest.raises(expected) as error:
        cache.entry("kind", "key", fill, _ignore)
    assert words in str(error.value)
    if isinstance(error.value, SetupError):
        assert str(cache.root) in str(error.value)
        assert "HARNESS_CACHE" in str(error.value)
    assert not (cache.root / "kind").exists()
    assert list((cache.root / "tmp").iterdir()) == []
    assert (cache.entry("kind", "key", _fill, _ignore) / "file").exists(), "the lock is free again"


def test_scratch_folders_of_dead_processes_are_removed_and_others_kept(cache: Cache) -> None:
    """The living one may be of another container, which shares the cache and no process ids."""
    with cache.scratch() as living:
        dead = living.with_name("fill-dead")
        (dead / "half").mkdir(parents=True)
        reaper.unlock(reaper.lock_folder(dead))
        with cache.scratch():
            assert not dead.exists()
            assert living.exists()


def test_the_scratch_of_another_pid_namespace_is_kept(cache: Cache) -> None:
    """Its name, once, was a process id and a start time; here, no such process lives."""
    with cache.scratch() as mine:
        theirs = mine.with_name(f"{2**22}-1-x")
        theirs.mkdir()
        lock = reaper.lock_folder(theirs)
        with cache.scratch():
            assert theirs.exists()
        reaper.unlock(lock)


def test_a_cache_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SetupError, match=r"cannot use the cache .*HARNESS_CACHE"):
        Cache(tmp_path / "file/cache").entry("kind", "key", _fill, _ignore)


def test_a_filled_cache_may_be_read_only(cache: Cache) -> None:
    folder = cache.entry("kind", "key", _fill, _ignore)
    locks = list((cache.root / "locks").iterdir())
    times = [path.stat().st_mtime_ns for path in (cache.root, *locks)]
    assert cache.entry("kind", "key", _fill, _ignore) == folder
    assert [path.stat().st_mtime_ns for path in (cache.root, *locks)] == times, "a look wrote to the cache"


def test_a_new_cache_is_private(cache: Cache) -> None:
    cache.entry("kind", "key", _fill, _ignore)
    assert stat.S_IMODE(cache.root.stat().st_mode) == 0o700


def test_a_path_that_a_loader_would_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="HARNESS_CACHE"):
        Cache(tmp_path / "a:b")


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "given"))
    assert default_cache_root() == tmp_path / "given"
    monkeypatch.setenv("HARNESS_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_root() == tmp_path / "xdg/virtio-9p-harness"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_root() == tmp_path / ".cache/virtio-9p-harness"
