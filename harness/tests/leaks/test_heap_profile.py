"""Which library profiles a heap: tried on scripts that play a QEMU, and leave a profile or do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.leaks import heap_profile
from harness.qemu.binary import HEAP_LIBRARY, QemuInstall, content_key

PROFILE = "heap_v2/1\\n@ 0x1\\n  t*: 1: 3 [0: 0]\\nMAPPED_LIBRARIES:\\n"
#: Does as jemalloc would: writes a profile to the prefix in MALLOC_CONF, if the right library is preloaded.
QEMU = f"""#!/bin/sh
prefix=${{MALLOC_CONF##*prof_prefix:}}
case "$LD_PRELOAD" in
    */works) printf '{PROFILE}' > "${{prefix%%,*}}.$$.0.f.heap" ;;
    */empty) printf 'heap_v2/1\\nMAPPED_LIBRARIES:\\n' > "${{prefix%%,*}}.$$.0.f.heap" ;;
    *) echo "object '$LD_PRELOAD' cannot be preloaded: ignored." >&2 ;;
esac
"""


@pytest.fixture
def install(tmp_path: Path) -> QemuInstall:
    binary = tmp_path / "qemu"
    binary.write_text(QEMU)
    binary.chmod(0o755)
    return QemuInstall(
        "q", binary, (str(binary),), key=str(tmp_path) + content_key(binary), libraries=(tmp_path,)
    )


def given(install: QemuInstall, *names: str) -> QemuInstall:
    profilers = tuple(install.binary.parent / name for name in names)
    return QemuInstall(
        install.name,
        install.binary,
        install.command,
        key=install.key,
        libraries=install.libraries,
        profilers=profilers,
    )


def test_the_first_library_that_writes_a_profile_is_used(install: QemuInstall, tmp_path: Path) -> None:
    assert heap_profile.library(given(install, "foreign", "empty", "works")) == tmp_path / "works"


def test_the_library_in_qemus_own_folders_is_tried_first(install: QemuInstall, tmp_path: Path) -> None:
    (tmp_path / HEAP_LIBRARY).touch()
    with pytest.raises(heap_profile.NotFound) as error:
        heap_profile.library(given(install, "empty"))
    refusals = error.value.message
    assert refusals.index(f"{HEAP_LIBRARY}: QEMU wrote no profile") < refusals.index(
        "empty: QEMU wrote no profile"
    )
    assert "cannot be preloaded" in refusals


def test_without_a_library_the_error_names_the_folders(install: QemuInstall, tmp_path: Path) -> None:
    with pytest.raises(heap_profile.NotFound, match=f"^no libjemalloc.so.2 for QEMU q .*none in {tmp_path}"):
        heap_profile.library(install)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"sanitized": True}, "this QEMU uses AddressSanitizer's allocator"),
        ({"libraries": ()}, "a script starts this QEMU"),
    ],
)
def test_where_nothing_can_be_preloaded(install: QemuInstall, options: dict[str, bool], why: str) -> None:
    with pytest.raises(heap_profile.NotProfiled, match=why) as error:
        heap_profile.library(QemuInstall("q", install.binary, install.command, **options))  # type: ignore[arg-type]
    assert not isinstance(error.value, heap_profile.NotFound), "no other library would help"
