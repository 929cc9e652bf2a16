"""Other users have no access to the cache, whatever umask made it; another user's cache is refused."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from harness.artifacts import Artifacts
from harness.errors import SetupError
from harness.matrix import Matrix, Selection
from harness.provision import Cache, keys
from harness.reaper import RunFolder
from harness.restore.store import TemplateStore
from harness.testbed import Testbed

NOBODY = 65534


def _ignore(line: str) -> None:
    pass


def fill(into: Path) -> None:
    """As a guest's template, and as a package with programs in it."""
    (into / "session.json").write_text("secret")
    (into / "root").mkdir()
    (into / "root" / "program").touch()
    (into / "root" / "program").chmod(0o755)
    (into / "link").symlink_to("/etc/passwd")


def everything(root: Path) -> Iterator[tuple[str, str]]:
    """Each name below ``root``, and its mode; folders end with a slash."""
    for path in (root, *sorted(root.rglob("*"))):
        if not path.is_symlink():
            name = str(path.relative_to(root)) + ("/" if path.is_dir() else "")
            yield name, f"{stat.S_IMODE(path.stat().st_mode):04o}"


def open_to_all(root: Path) -> None:
    """As an older version of the harness left it, under a umask of 0."""
    for path in (root, *root.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o777 if path.is_dir() or path.name == "program" else 0o666)


def is_private(root: Path) -> None:
    modes = dict(everything(root))
    assert [name for name, mode in modes.items() if not mode.endswith("00")] == []
    assert {mode for name, mode in modes.items() if name.endswith("/")} == {"0700"}
    secrets = ("session.json", "client", "host", "memory", "stream")
    assert {mode for name, mode in modes.items() if name.split("/")[-1] in secrets} == {"0600"}
    assert {mode for name, mode in modes.items() if name.endswith("program")} <= {"0700"}


@pytest.fixture(params=[0, 0o022, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.parametrize("made_before", [None, 0o755, 0o777])
def test_a_cache_that_is_filled(tmp_path: Path, umask: int, made_before: int | None) -> None:
    """Also when HARNESS_CACHE names a folder that exists, or one whose parents do not exist."""
    root = tmp_path / "made" / "cache"
    if made_before is not None:
        root.mkdir(parents=True)
        root.chmod(made_before)
    cache = Cache(root)
    cache.entry("template", "key", fill, _ignore)
    with cache.lock("keys", _ignore), cache.scratch():
        keys.load_or_make(root / "keys")
    for lock in (root / "locks").iterdir():
        lock.unlink()  # Nothing is in them, and their modes are filelock's.
    is_private(root)
    if made_before is None:
        assert stat.S_IMODE(root.parent.stat().st_mode) == 0o700


def test_a_cache_that_was_open_to_others_is_closed(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    Cache(root).entry("template", "key", fill, _ignore)
    keys.load_or_make(root / "keys")
    open_to_all(root)
    Cache(root).entry("template", "key", _never, _ignore)
    keys.load(root / "keys")
    for folder in (root / "locks", root / "tmp"):
        folder.chmod(0o777)
    with Cache(root).scratch(), Cache(root).lock("x", _ignore):
        pass
    for lock in (root / "locks").iterdir():
        lock.unlink()
    is_private(root)


def test_a_file_of_an_entry_that_was_opened_to_others_is_closed(tmp_path: Path) -> None:
    """Though the folder it is in is closed."""
    folder = Cache(tmp_path / "cache").entry("template", "key", fill, _ignore)
    (folder / "session.json").chmod(0o644)
    Cache(tmp_path / "cache").entry("template", "key", _never, _ignore)
    assert stat.S_IMODE((folder / "session.json").stat().st_mode) == 0o600


def _never(into: Path) -> None:
    raise AssertionError("it is complete")


def test_a_cache_that_stays_open_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "cache"
    Cache(root).entry("template", "key", fill, _ignore)
    root.chmod(0o755)

    def refuse(path: Path, mode: int) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "chmod", refuse)
    with pytest.raises(SetupError) as error:
        Cache(root).entry("template", "key", _never, _ignore)
    assert str(error.value) == (
        f"{root} in the cache is open to others (mode 0755), and this cannot be changed: "
        "Read-only file system; chmod -R go= the cache, or set HARNESS_CACHE to another folder"
    )


@pytest.mark.parametrize("use", ["entry", "lock", "scratch", "check_owner"])
def test_a_cache_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: str
) -> None:
    """Root is no exception: what it starts from there would be theirs."""
    root = tmp_path / "cache"
    Cache(root).entry("template", "key", fill, _ignore)
    before = dict(everything(root))
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 4242)
    with pytest.raises(SetupError) as error:
        _use(Cache(root), use)
    text = str(error.value)
    assert re.match(
        rf"{root} in the cache belongs to .*\(uid {mine}\), and this process runs as uid {mine + 4242}: ",
        text,
    )
    what_to_do = "set HARNESS_CACHE to a folder of your own (or, if the cache is yours, chown -R it to uid"
    assert text.endswith(f"{what_to_do} {mine + 4242})")
    assert dict(everything(root)) == before


def _use(cache: Cache, use: str) -> None:
    if use == "entry":
        cache.entry("template", "key", _never, _ignore)
    elif use == "check_owner":
        cache.check_owner()
    else:
        with cache.scratch() if use == "scratch" else cache.lock("x", _ignore):
            pass


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away, which root alone can")
@pytest.mark.parametrize("what", [".", "template", "template/key", "link", "link to theirs"])
def test_an_entry_of_another_user_is_refused(tmp_path: Path, what: str) -> None:
    root = tmp_path / "cache"
    Cache(root).entry("template", "key", fill, _ignore)
    link = tmp_path / "link"
    link.symlink_to(root)
    if what.startswith("link"):
        given, used = (link if what == "link" else root), link
        os.chown(given, NOBODY, -1, follow_symlinks=False)
    else:
        used = root
        os.chown(root / what, NOBODY, -1)
    with pytest.raises(SetupError, match=r"belongs to .*uid 65534.*HARNESS_CACHE"):
        Cache(used).entry("template", "key", _never, _ignore)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away, which root alone can")
@pytest.mark.parametrize("what", [".", "client", "host"])
def test_keys_of_another_user_are_refused(tmp_path: Path, what: str) -> None:
    folder = tmp_path / "keys"
    keys.load_or_make(folder)
    os.chown(folder / what, NOBODY, -1)
    with pytest.raises(SetupError, match=r"belongs to .*uid 65534.*HARNESS_CACHE"):
        keys.load(folder)


def test_a_cache_that_is_a_link_to_a_folder_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o755)
    (tmp_path / "cache").symlink_to("elsewhere")
    Cache(tmp_path / "cache").entry("template", "key", fill, _ignore)
    assert stat.S_IMODE((tmp_path / "elsewhere").stat().st_mode) == 0o700


def test_a_folder_with_other_things_in_it_is_not_closed(tmp_path: Path) -> None:
    """Such as ``/tmp``, by mistake. An empty file system, with its lost+found, is accepted."""
    tmp_path.chmod(0o777)
    (tmp_path / "lost+found").mkdir()
    (tmp_path / ".hidden").touch()
    other = tmp_path / "somebody's"
    other.touch()
    with pytest.raises(SetupError, match=r"^.* \(HARNESS_CACHE\) is no cache: .*; name a folder of its own$"):
        Cache(tmp_path).entry("template", "key", fill, _ignore)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o777
    other.unlink()
    Cache(tmp_path).entry("template", "key", fill, _ignore)
    other.touch()
    tmp_path.chmod(0o777)
    Cache(tmp_path).entry("template", "key", _never, _ignore)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700


@pytest.mark.parametrize("name", ["debs", "faults", "guests", "heap", "qemu", "qtests", "template"])
def test_a_cache_is_recognised_by_any_of_its_folders(tmp_path: Path, name: str) -> None:
    """A cache that was copied by hand, in part and with a file beside it, is closed to others and used."""
    (tmp_path / name).mkdir()
    (tmp_path / "notes.txt").touch()
    tmp_path.chmod(0o755)
    Cache(tmp_path).entry("kind", "key", fill, _ignore)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700


@pytest.mark.qemu
def test_a_template_is_private_and_no_secret_is_among_the_artefacts(tmp_path: Path) -> None:
    """Under the laxest umask; QEMU itself writes the guest's memory."""
    cell = Matrix(Selection(accel="tcg")).cell("default", "default", "pc")
    root, run = tmp_path / "cache", RunFolder()
    root.mkdir()
    root.chmod(0o777)
    before = os.umask(0)
    try:
        testbed = Testbed(
            replace(cell, templates=TemplateStore(Cache(root))), run, Artifacts.create(tmp_path, "private")
        )
        try:
            guest = testbed.boot()
            assert guest.machine.spec.from_template
            guest.succeed("true")
        finally:
            testbed.close()
    finally:
        os.umask(before)
        run.close()
    for lock in (root / "locks").iterdir():
        lock.unlink()
    is_private(root)
    (session,) = root.glob("template/*/session.json")
    secrets = [line for line in cell.image.client_key.read_text().splitlines() if "-----" not in line]
    secrets += re.findall(r'"([A-Za-z0-9+/=]{20,})"', session.read_text())
    assert len(secrets) > 5
    kept = [path for path in testbed.artifacts.folder.rglob("*") if path.is_file()]
    assert kept
    found = [(path, text) for path in kept for text in secrets if text.encode() in path.read_bytes()]
    assert found == []
