"""Reports of sanitizers, with symbols, and without leaks outside of 9p."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from harness.qemu import sanitizers, symbols

_LOADER = "/cache/root/lib64/ld-linux-x86-64.so.2"
_FREED = f"""==7==ERROR: AddressSanitizer: heap-use-after-free on address 0x61b
READ of size 8 at 0x61b thread T0
    #0 0x7f00 in malloc ../../src/asan_malloc_linux.cpp:69
    #1 0x7f01  ({_LOADER}+0x10) (BuildId: 42)
    #2 0x7f02  (/cache/root/lib/libglib-2.0.so.0+0x10) (BuildId: 43)
"""
_LEAKS = f"""==7==ERROR: LeakSanitizer: detected memory leaks

Direct leak of 112 byte(s) in 1 object(s) allocated from:
    #0 0x7f01  ({_LOADER}+0x20) (BuildId: 42)

Indirect leak of 8 byte(s) in 1 object(s) allocated from:
    #0 0x7f01  ({_LOADER}+0x20) (BuildId: 42)

%sSUMMARY: AddressSanitizer: 120 byte(s) leaked in 2 allocation(s).
"""
_OURS = f"""Direct leak of 24 byte(s) in 1 object(s) allocated from:
    #0 0x7f01  ({_LOADER}+0x10) (BuildId: 42)

"""


@pytest.fixture
def collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of the report. Address 0x10 is v9fs_walk, 0x20 a function with suppressed leaks."""
    names = {0x10: "v9fs_walk+0x1 (qemu)", 0x20: "qio_channel_block_new+0x17 (qemu)"}
    monkeypatch.setattr(symbols, "at_address", lambda file, address: names[address])
    return tmp_path / "sanitizer.txt"


def _collect(text: str, to: Path, *, quit_cleanly: bool = True) -> str | None:
    log = to.parent / "qemu.log"
    log.write_text(f"QEMU's own words\n{text}")
    sanitizers.collect(log, Path("/qemu"), _LOADER, to, quit_cleanly=quit_cleanly)
    return to.read_text() if to.exists() else None


def test_frames_of_qemu_get_names(collected: Path) -> None:
    text = _collect(_FREED, collected)
    assert text is not None
    assert text.startswith("==7==ERROR: AddressSanitizer: heap-use-after-free")
    assert "    #1 0x7f01 in v9fs_walk+0x1 (qemu)\n" in text
    assert "libglib-2.0.so.0+0x10" in text, "the libraries' frames stay as they are"


def test_a_suppressed_leak_does_not_count(collected: Path) -> None:
    text = _collect(_LEAKS % "", collected)
    assert text == "(not of 9p: 1 leaks in qio_channel_block_new)\n"


def test_a_leak_beside_a_suppressed_one_counts(collected: Path) -> None:
    text = _collect(_LEAKS % _OURS, collected)
    assert text is not None
    assert text.startswith("ERROR: LeakSanitizer\n\nDirect leak of 24 byte(s)")
    assert "v9fs_walk" in text
    assert "112" not in text


def test_a_qemu_that_did_not_quit_has_leaked_nothing(collected: Path) -> None:
    assert _collect(_LEAKS % _OURS, collected, quit_cleanly=False) == "(leaks of a QEMU that did not quit)\n"
    freed = _collect(_FREED, collected, quit_cleanly=False)
    assert freed is not None
    assert "heap-use-after-free" in freed


def test_another_report_before_the_leaks_is_kept(collected: Path) -> None:
    line = "../hw/9pfs/9p.c:7:3: runtime error: null pointer passed"
    text = _collect(f"{line}\n" + _LEAKS % "", collected)
    assert text is not None
    assert text.startswith(line)


def test_without_a_report_there_is_no_file(collected: Path) -> None:
    assert _collect("", collected) is None
    sanitizers.collect(collected.parent / "none.log", Path("/qemu"), _LOADER, collected)
    assert not collected.exists()


@pytest.mark.parametrize(
    ("content", "is_one"), [(b"", False), (b"\x7fELF", False), (b"..__asan_init..", True)]
)
def test_a_sanitized_binary_is_recognised(tmp_path: Path, content: bytes, is_one: bool) -> None:
    (tmp_path / "qemu").write_bytes(content)
    assert sanitizers.is_sanitized(tmp_path / "qemu") is is_one


def test_a_users_own_options_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASAN_OPTIONS", "abort_on_error=1")
    assert sanitizers.environment()["ASAN_OPTIONS"].endswith(":abort_on_error=1")


def test_every_suppression_has_a_reason() -> None:
    lines = (Path(sanitizers.__file__).parent / "leaks.supp").read_text().splitlines()
    for before, line in itertools.pairwise(lines):
        if line:
            assert line.startswith(("#", "leak:"))
        assert not line.startswith("leak:") or before.startswith("#")
