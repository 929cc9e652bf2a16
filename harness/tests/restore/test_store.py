"""The store of templates, and real guests that are restored from a template."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from harness.actions.hotplug import Hotplug
from harness.actions.migration import Migration
from harness.actions.run_state import RunState
from harness.artifacts import Artifacts
from harness.checkers import Judgement, Verdict, judge
from harness.deadline import TimeoutScale
from harness.errors import GuestError
from harness.guest.image import GuestImage
from harness.history import read
from harness.matrix import Matrix, Selection
from harness.provision import Cache, default_cache_root
from harness.qemu.binary import QemuInstall
from harness.qemu.spec import MachineSpec
from harness.reaper import RunFolder
from harness.restore import store
from harness.restore.store import TemplateStore
from harness.restore.template import Template
from harness.testbed import Cell, Testbed
from harness.tests.qemu.specs import spec

TIMEOUT_SCALE = TimeoutScale(6.0)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The machine types for which a template was made; no guest is booted for it."""
    names: list[str] = []

    def make(run: RunFolder, into: Path, spec: MachineSpec, *_: object, plain: bool) -> None:
        names.append(spec.machine_type.name)
        for name in ("stream", "guest-kernel.log", *(() if plain else ("memory",))):
            (into / name).write_bytes(b"x" * 65536)

    monkeypatch.setattr(store, "_make", make)
    return names


@pytest.fixture
def image(tmp_path: Path) -> GuestImage:
    here = tmp_path
    return GuestImage("6.1", "6.1.0", here, here, here, "", here, here, "ssh-ed25519 A", "key")


def store_in(
    cache: Cache, report: Callable[[str], None] = lambda _: None, limit_bytes: int = store.LIMIT_BYTES
) -> TemplateStore:
    """A store for a QEMU that supports memory files."""
    return TemplateStore(cache, report, limit_bytes, plain=lambda _: False)


def test_a_template_is_made_once(cache: Cache, image: GuestImage, made: list[str]) -> None:
    found = [store_in(cache).find(spec(), image, TIMEOUT_SCALE) for _ in range(3)]
    assert len(set(map(str, found))) == 1
    assert isinstance(found[0], Template)
    assert found[0].memory
    assert made == ["pc"]
    store_in(cache).find(spec("q35"), image, TIMEOUT_SCALE)
    assert made == ["pc", "q35"]


def test_a_damaged_template_is_made_again(cache: Cache, image: GuestImage, made: list[str]) -> None:
    found = store_in(cache).find(spec(), image, TIMEOUT_SCALE)
    assert isinstance(found, Template)
    assert found.memory
    os.truncate(found.memory, 100)
    found.stream.write_bytes(b"y" * 65536)
    assert store_in(cache).find(spec(), image, TIMEOUT_SCALE) == found
    assert made == ["pc", "pc"]
    assert found.stream.read_bytes()[:1] == b"x"


def _change(path: Path, *, secretly: bool = False) -> None:
    """Change one bit; ``secretly`` without a new modification time, as a faulty disk does."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(4096)
        byte = file.read(1)[0]
        file.seek(4096)
        file.write(bytes([byte ^ 1]))
    if secretly:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _summed(found: Template | str, name: str) -> Path:
    assert isinstance(found, Template)
    return found.folder / name


@pytest.mark.parametrize("name", ["memory", "stream"])
def test_a_modified_template_is_made_again(
    cache: Cache, image: GuestImage, made: list[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The size of the file is the same, so the cache itself does not notice."""
    monkeypatch.setattr("harness.provision.cache._HASH_LIMIT_BYTES", 1000)
    found = store_in(cache).find(spec(), image, TIMEOUT_SCALE)
    _change(_summed(found, name))
    reports: list[str] = []
    assert store_in(cache, reports.append).find(spec(), image, TIMEOUT_SCALE) == found
    assert made == ["pc", "pc"]
    assert any(f"the content of its {name} has changed" in line for line in reports)
    assert set(_summed(found, name).read_bytes()) == {ord("x")}


def test_a_copied_template_is_kept(cache: Cache, image: GuestImage, made: list[str]) -> None:
    """A copy has another modification time."""
    found = store_in(cache).find(spec(), image, TIMEOUT_SCALE)
    os.utime(_summed(found, "memory"), (1, 1))
    assert store_in(cache).find(spec(), image, TIMEOUT_SCALE) == found
    assert made == ["pc"]


def test_damage_without_a_new_modification_time(
    cache: Cache, image: GuestImage, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.provision.cache._HASH_LIMIT_BYTES", 1000)
    store = store_in(cache)
    found = store.find(spec(), image, TIMEOUT_SCALE)
    assert isinstance(found, Template)
    assert store.damage_of(found) is None
    _change(_summed(found, "memory"), secretly=True)
    assert store.find(spec(), image, TIMEOUT_SCALE) == found
    assert store.damage_of(found) == "the content of its memory has changed since it was made"
    assert not found.folder.exists()
    assert store.find(spec(), image, TIMEOUT_SCALE) == found
    assert store.damage_of(found) is None
    assert made == ["pc", "pc"]


def test_a_template_that_another_process_has_made_again(
    cache: Cache, image: GuestImage, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.provision.cache._HASH_LIMIT_BYTES", 1000)
    store, other = store_in(cache), store_in(cache)
    found = store.find(spec(), image, TIMEOUT_SCALE)
    assert isinstance(found, Template)
    _change(_summed(found, "memory"))
    kept = found.stream.open("rb")  # Its number is not given to another file.
    assert other.find(spec(), image, TIMEOUT_SCALE) == found
    kept.close()
    assert store.damage_of(found) == "another process has removed the template meanwhile"
    assert found.folder.exists()


def test_the_least_recently_used_goes_first(cache: Cache, image: GuestImage, made: list[str]) -> None:
    store = store_in(cache, limit_bytes=500_000)  # Two and a half of them.
    first, second = (store.find(spec(kind), image, TIMEOUT_SCALE) for kind in ("pc", "q35"))
    assert isinstance(first, Template)
    assert isinstance(second, Template)
    os.utime(second.folder, (1, 1))
    third = store.find(spec("q35-pcie"), image, TIMEOUT_SCALE)
    assert isinstance(third, Template)
    assert [t.folder.exists() for t in (first, second, third)] == [True, False, True]


def test_a_template_that_another_process_removes_meanwhile(
    cache: Cache, image: GuestImage, made: list[str]
) -> None:
    """It is listed, and then it is gone: here a link to nothing."""
    (cache.root / "template").mkdir(parents=True)
    (cache.root / "template" / "removed").symlink_to("nothing")
    assert isinstance(store_in(cache).find(spec("pc"), image, TIMEOUT_SCALE), Template)


def test_the_newest_is_kept_even_above_the_limit(cache: Cache, image: GuestImage, made: list[str]) -> None:
    found = store_in(cache, limit_bytes=1).find(spec(), image, TIMEOUT_SCALE)
    assert isinstance(found, Template)
    assert found.memory


def test_making_a_template_is_tried_once(
    cache: Cache, image: GuestImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[None] = []

    def cannot(run: RunFolder, *_: object, **__: object) -> None:
        calls.append(None)
        (run.path / "trial-artifacts").mkdir()
        (run.path / "trial-artifacts" / "history.ndjson").write_text("{}\n")
        raise GuestError("it never booted")

    monkeypatch.setattr(store, "_make", cannot)
    reports: list[str] = []
    kept = store_in(cache, reports.append)
    first, second = (kept.find(spec(), image, TIMEOUT_SCALE) for _ in range(2))
    assert len(calls) == 1
    assert first == second
    message, folder = str(first).split("; artefacts: ")
    assert message == "it never booted"
    assert (Path(folder) / "trial" / "history.ndjson").read_text() == "{}\n"
    assert reports[-1] == f"no template of pc, so guests are booted: {first}"
    assert not list((cache.root / "template").glob("*"))
    # The artefacts of the next failure replace these.
    assert store_in(cache).find(spec(), image, TIMEOUT_SCALE) == first
    assert len(calls) == 2


def test_kvm_needs_none(cache: Cache, image: GuestImage, made: list[str]) -> None:
    assert "kvm" in str(store_in(cache).find(spec(accel="kvm"), image, TIMEOUT_SCALE))
    assert made == []


def test_the_qemu_is_probed_once(cache: Cache, image: GuestImage, made: list[str]) -> None:
    """If QEMU cannot keep the memory in a file, it is in the stream."""
    calls: list[str] = []

    def plain(qemu: QemuInstall) -> bool:
        calls.append(qemu.key)
        return True

    store = TemplateStore(cache, plain=plain)
    found = [store.find(kind, image, TIMEOUT_SCALE) for kind in (spec(), spec(), spec("q35"))]
    assert all(isinstance(one, Template) and one.memory is None for one in found)
    assert calls == [spec().qemu.key]
    assert store_in(cache).find(spec(), image, TIMEOUT_SCALE) != found[0]


@pytest.fixture(scope="module")
def run() -> Iterator[RunFolder]:
    folder = RunFolder()
    yield folder
    folder.close()


@pytest.fixture(scope="module")
def cell() -> Cell:
    return Matrix(Selection(accel="tcg")).cell("default", "default", "pc")


@pytest.fixture
def testbeds(cell: Cell, run: RunFolder, tmp_path: Path) -> Iterator[Callable[[], Testbed]]:
    opened: list[Testbed] = []

    def make() -> Testbed:
        opened.append(Testbed(cell, run, Artifacts.create(tmp_path, f"testbed{len(opened)}")))
        return opened[-1]

    yield make
    for testbed in opened:
        testbed.close()


@pytest.mark.qemu
def test_restored_guests_are_independent(testbeds: Callable[[], Testbed]) -> None:
    """Neither sees the other's files, and their random numbers differ."""
    first, second = (testbeds().boot() for _ in range(2))
    spec = first.machine.spec
    assert spec.memory_file is not None
    assert second.machine.spec.memory_file == spec.memory_file
    memory = spec.memory_file.path
    before = _sha256(memory)
    first.succeed("echo mine > /tmp/file; sync")
    second.fail("test -e /tmp/file")
    drawn = {guest.succeed("head -c 16 /dev/urandom | md5sum") for guest in (first, second)}
    assert len(drawn) == 2
    assert _sha256(memory) == before


@pytest.mark.qemu
def test_guests_restored_from_a_plain_stream(cell: Cell, run: RunFolder, tmp_path: Path) -> None:
    """As with every QEMU before 5.0."""
    store = TemplateStore(Cache(default_cache_root()), plain=lambda _: True)
    testbed = Testbed(replace(cell, templates=store), run, Artifacts.create(tmp_path, "plain"))
    try:
        first, second = testbed.boot(), testbed.boot(testbed.spec(name="second"))
        assert first.machine.spec.from_template
        assert first.machine.spec.memory_file is None
        assert first.ssh.resumed is True
        first.succeed("echo mine > /tmp/file")
        second.fail("test -e /tmp/file")
        Hotplug(first).plug(testbed.shares[0])
        Migration(first, testbed).migrate()
        first.mount(testbed.shares[0]).expect_usable()
    finally:
        testbed.close()


@pytest.mark.qemu
def test_with_a_damaged_template_the_guest_is_booted(cell: Cell, run: RunFolder, tmp_path: Path) -> None:
    """Only its content shows the damage. The failure is not attributed to QEMU."""
    own = replace(cell, templates=TemplateStore(Cache(tmp_path / "cache")))

    def boot(name: str) -> tuple[list[object], list[Judgement]]:
        testbed = Testbed(own, run, Artifacts.create(tmp_path, name))
        try:
            assert testbed.boot().succeed("echo up") == "up\n"
        finally:
            testbed.close()
        entries = read(testbed.artifacts.history)
        return [e.value for e in entries if e.f == "guest:started"], judge(testbed.artifacts.folder)

    assert boot("sound")[0] == ["restored"]
    (memory,) = (tmp_path / "cache" / "template").glob("*/memory")
    before = memory.stat()
    memory.write_bytes(bytes(before.st_size))
    os.utime(memory, ns=(before.st_atime_ns, before.st_mtime_ns))
    (restored, booted), judged = boot("damaged")
    assert restored == "restored"
    assert "the content of its memory has changed" in str(booted)
    assert [j for j in judged if j.verdict is not Verdict.VALID] == []
    assert boot("again")[0] == ["restored"]


@pytest.mark.qemu
def test_a_restored_guest_has_the_right_time(testbeds: Callable[[], Testbed]) -> None:
    guest = testbeds().boot()
    before = int(time.time())
    assert before - 2 <= int(guest.succeed("date +%s")) <= time.time() + 1


@pytest.mark.qemu
def test_a_restored_guest_reboots(testbeds: Callable[[], Testbed]) -> None:
    """It needs firmware, kernel and initramfs, which restoring did not use."""
    guest = testbeds().boot()
    RunState(guest).system_reset()
    assert guest.succeed("echo up") == "up\n"


@pytest.mark.qemu
def test_boot_cold(testbeds: Callable[[], Testbed]) -> None:
    assert not testbeds().boot(cold=True).machine.spec.from_template


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def test_the_option_cold_uses_no_template(tmp_path: Path) -> None:
    assert Matrix(Selection(cold=True), tmp_path)._templates is None
    assert Matrix(Selection(), tmp_path)._templates is not None
