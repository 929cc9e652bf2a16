from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from harness.errors import HarnessError, SetupError, Unsupported, UsageError, Violation
from harness.qemu import binary
from harness.qemu.binary import (
    FIRMWARE,
    PROGRAM,
    QemuInstall,
    from_path,
    has_memory_backend,
    on_path,
    probe,
    refusal_to_start,
    require_device,
    require_named_fds,
    require_options,
    require_property,
)
from harness.reaper import MARK, processes_of

_FAKE = """#!/bin/sh
case "$*" in
*--version) echo "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)"; echo "Copyright (c) 2003-2022" ;;
*"-L help"*) echo "$(dirname "$0")/firmware" ;;
*logfile*) echo "harness-ends-here: not a device model" >&2; exit 1 ;;
*"-machine help") echo "Supported machines are:"; echo "pc      Standard PC (alias of pc-i440fx-7.2)"
    echo "none                 empty machine" ;;
*"-device help") echo "Storage devices:"; echo 'name "virtio-9p-pci", bus PCI, alias "virtio-9p"' ;;
*) echo "unexpected: $*" >&2; exit 9 ;;
esac
"""


def _program(folder: Path, text: str = _FAKE, *, firmware: str | None = "firmware") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / PROGRAM
    path.write_text(text)
    path.chmod(0o755)
    if firmware is not None:
        (folder / firmware).mkdir(parents=True, exist_ok=True)
        (folder / firmware / FIRMWARE).write_text("")
    return path


def _refused(path: Path) -> str:
    """The error message for a path."""
    with pytest.raises(UsageError) as caught:
        probe(from_path(path))
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(f"--qemu {path}: "), line
    return line.removeprefix(f"--qemu {path}: ")


def test_a_good_one(tmp_path: Path) -> None:
    path = _program(tmp_path)
    install = from_path(path)
    assert (install.binary, install.command, install.arguments) == (path, (str(path),), ())
    capabilities = probe(install)
    assert capabilities.version == (7, 2, 22)
    assert capabilities.version_text == "7.2.22"
    assert capabilities.banner == "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)"
    assert capabilities.machines == {"pc", "none"}
    assert capabilities.devices == {"virtio-9p-pci"}
    capabilities.require_9p(install)
    capabilities.require_machine(install, "pc")


def test_the_key_follows_the_content(tmp_path: Path) -> None:
    first, second = _program(tmp_path / "a"), _program(tmp_path / "b")
    changed = _program(tmp_path / "c", _FAKE + "# rebuilt\n")
    assert from_path(first).key == from_path(second).key != from_path(changed).key


def test_a_script_that_starts_a_qemu(tmp_path: Path) -> None:
    """The files that it names are part of its key, and its libraries are unknown."""
    binary_behind = tmp_path / "qemu-behind"
    binary_behind.write_text("one build")
    path = _program(tmp_path, f'{_FAKE}# exec {binary_behind} "$@"\n')
    before = from_path(path)
    assert before.libraries == ()
    binary_behind.write_text("another")
    assert from_path(path).key != before.key


def test_a_relative_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU is started in another folder than the user's."""
    _program(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert from_path(Path(PROGRAM)).command == (str(tmp_path / PROGRAM),)


def test_missing(tmp_path: Path) -> None:
    assert _refused(tmp_path / "none").startswith("no such file")


def test_a_folder(tmp_path: Path) -> None:
    assert _refused(tmp_path) == f"is a folder; give the binary in it, such as {tmp_path / PROGRAM}"


def test_not_executable(tmp_path: Path) -> None:
    path = _program(tmp_path)
    path.chmod(0o644)
    assert _refused(path).startswith("not executable")


def test_not_a_program(tmp_path: Path) -> None:
    assert _refused(_program(tmp_path, "just text")) == "cannot be executed: Exec format error"


def test_an_interpreter_that_is_not_there(tmp_path: Path) -> None:
    assert _refused(_program(tmp_path, "#!/no/such/interpreter\n")).startswith("cannot be executed: ")


@pytest.mark.parametrize("printed", ["GNU bash, version 5", "", "qemu-img version 7.2.22"])
def test_not_qemu(tmp_path: Path, printed: str) -> None:
    line = _refused(_program(tmp_path, f"#!/bin/sh\necho '{printed}'\n"))
    assert line == f"not a QEMU system emulator: --version printed {printed!r}"


def test_exits_non_zero_with_a_complaint(tmp_path: Path) -> None:
    text = "#!/bin/sh\necho first >&2\necho 'libfoo.so.1: cannot open shared object file' >&2\nexit 127\n"
    line = _refused(_program(tmp_path, text))
    assert line == "'--version' exited with 127: libfoo.so.1: cannot open shared object file"


def test_exits_non_zero_without_a_word(tmp_path: Path) -> None:
    assert (
        _refused(_program(tmp_path, "#!/bin/sh\nexit 1\n")) == "'--version' exited with 1: it printed nothing"
    )


def test_killed_by_a_signal(tmp_path: Path) -> None:
    line = _refused(_program(tmp_path, "#!/bin/sh\nkill -ILL $$\n"))
    assert line.startswith("'--version' was killed by SIGILL")


def test_prints_what_is_not_text(tmp_path: Path) -> None:
    line = _refused(_program(tmp_path, "#!/bin/sh\nprintf '\\377\\376\\000'\n"))
    assert line.startswith("not a QEMU system emulator")


@pytest.mark.parametrize("hanging", ["exec sleep 600", "sleep 600", "trap '' TERM; sleep 600 & wait"])
def test_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hanging: str) -> None:
    """Also if a child process keeps the pipe open after it was killed."""
    monkeypatch.setenv(MARK, str(tmp_path))
    monkeypatch.setattr(binary, "_PROBE_TIMEOUT_S", 0.3)
    assert _refused(_program(tmp_path, f"#!/bin/sh\n{hanging}\n")) == "'--version' did not end within 0.3 s"
    for child in processes_of(tmp_path):
        os.kill(child, signal.SIGKILL)


def test_without_9p(tmp_path: Path) -> None:
    install = from_path(_program(tmp_path, _FAKE.replace("virtio-9p", "virtio-fs")))
    with pytest.raises(
        UsageError, match=r"has no virtio-9p-pci device \(built without 9p; .*--enable-virtfs\)$"
    ):
        probe(install).require_9p(install)


def test_without_the_machine_type(tmp_path: Path) -> None:
    install = from_path(_program(tmp_path))
    with pytest.raises(UsageError, match=rf"has no machine type 'q35' \(see '{PROGRAM} -machine help'\)$"):
        probe(install).require_machine(install, "q35")


@pytest.mark.parametrize(
    ("where", "pc_bios"),
    [
        ("build", "build/pc-bios"),
        ("build", "pc-bios"),
        ("build/x86_64-softmmu", "pc-bios"),
    ],
)
def test_a_build_tree(tmp_path: Path, where: str, pc_bios: str) -> None:
    path = _program(tmp_path / where, firmware=None)
    (tmp_path / pc_bios).mkdir(parents=True)
    (tmp_path / pc_bios / FIRMWARE).write_text("")
    install = from_path(path)
    assert install.arguments == ("-L", str(tmp_path / pc_bios))
    assert install.argv("-S") == [str(path), "-L", str(tmp_path / pc_bios), "-S"]


def test_a_link_into_a_build_tree(tmp_path: Path) -> None:
    path = _program(tmp_path / "src" / "build", firmware="pc-bios")
    (tmp_path / "bin").mkdir()
    link = tmp_path / "bin" / "my-qemu"
    link.symlink_to(path)
    assert from_path(link).arguments == ("-L", str(path.parent / "pc-bios"))


def test_no_firmware(tmp_path: Path) -> None:
    path = _program(tmp_path / "a" / "b", firmware=None)
    with pytest.raises(SetupError) as caught:
        from_path(path)
    line = str(caught.value)
    assert line.startswith(f"--qemu {path}: no firmware ({FIRMWARE}); looked in {path.parent}/firmware, ")
    assert str(tmp_path / "pc-bios") in line
    assert "\n" not in line


def test_firmware_that_is_elsewhere(tmp_path: Path) -> None:
    path = _program(tmp_path / "a" / "b", firmware=None)
    (tmp_path / "data").mkdir()
    with pytest.raises(UsageError, match=rf"^--qemu-data {tmp_path}/data: no firmware \({FIRMWARE}\) in it"):
        from_path(path, tmp_path / "data")
    (tmp_path / "data" / FIRMWARE).write_text("")
    assert from_path(path, tmp_path / "data").arguments == ("-L", str(tmp_path / "data"))


def test_the_firmware_of_a_machine_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder of QEMU's own or given one, or in the distribution's; the first name wins in a folder."""
    path = _program(tmp_path / "a" / "b", firmware=None)
    given, elsewhere = tmp_path / "data", tmp_path / "distribution"
    monkeypatch.setattr(binary, "_EFI", elsewhere)
    install = QemuInstall("x", path, (str(path),), arguments=("-L", str(given)))
    with pytest.raises(Unsupported, match=rf"^no firmware A\.fd or B\.fd in {given}, .*, {elsewhere}$"):
        binary.find_firmware(install, ("A.fd", "B.fd"))
    for folder, name in ((elsewhere, "A.fd"), (given, "B.fd"), (given, "A.fd")):
        folder.mkdir(exist_ok=True)
        (folder / name).write_text("")
        assert binary.find_firmware(install, ("A.fd", "B.fd")) == folder / name


def test_the_environment_of_an_install_reaches_it(tmp_path: Path) -> None:
    path = _program(tmp_path, '#!/bin/sh\necho "QEMU emulator version $QEMU_MODULE_DIR"\n')
    install = QemuInstall("x", path, (str(path),), environment={"QEMU_MODULE_DIR": "10.0.3"})
    assert binary.read_banner(install)[1] == (10, 0, 3)


def test_memory_backend(tmp_path: Path) -> None:
    """A QEMU that lists no properties does not support it."""
    script = 'case "$*" in *none,help) echo "  memory-backend=<string>" ;; *) exit 9 ;; esac'
    scripts = {"5.0": script, "4.2": "echo '  memory-encryption=<string>'", "2.4": "exit 1"}
    paths = {name: _program(tmp_path / name, f"#!/bin/sh\n{text}\n") for name, text in scripts.items()}
    found = [n for n, path in paths.items() if has_memory_backend(QemuInstall(n, path, (str(path),)))]
    assert found == ["5.0"]


#: What 2.5.0 does: it takes "help" for a folder, and complains of the first option that it does not know.
_OLD = (
    _FAKE.replace('*"-L help"*) echo "$(dirname "$0")/firmware" ;;', '*"-L help"*) exit 1 ;;')
    .replace("harness-ends-here: not a device model", "-chardev null: Invalid parameter 'logfile'")
    .replace('bus PCI, alias "virtio-9p"\'', "bus PCI' >&2")
    .replace('echo "Storage devices:"', 'echo "Storage devices:" >&2')
)
_BAD_RULE = "-netdev user: invalid host forwarding rule 'tcp:127.0.0.1:0-:22'"


def test_an_old_one(tmp_path: Path) -> None:
    """It does not list its firmware folders, prints help on stderr, and lacks options."""
    install = from_path(_program(tmp_path / "bin", _OLD, firmware="../share/seabios"))
    assert install.arguments == ("-L", str(tmp_path / "share/seabios"))
    assert (install.chardev_logs, install.any_port, install.boots_elf) == (False, False, False)
    assert probe(install).devices == {"virtio-9p-pci"}


@pytest.mark.parametrize(
    ("message", "files", "has"),
    [
        ("harness-ends-here: not a device model", ["pvh.bin"], (True, True, True)),
        ("harness-ends-here: not a device model", [], (True, True, False)),
        (_BAD_RULE, [], (True, False, False)),
    ],
)
def test_which_options_it_lacks(
    tmp_path: Path, message: str, files: list[str], has: tuple[bool, bool, bool]
) -> None:
    path = _program(tmp_path, _FAKE.replace("harness-ends-here: not a device model", message))
    for name in files:
        (tmp_path / "firmware" / name).write_text("")
    install = from_path(path)
    assert (install.chardev_logs, install.any_port, install.boots_elf) == has


@pytest.mark.parametrize(
    "message",
    ["-only-migratable: invalid option", "-fsdev local,throttling=1: Invalid parameter 'throttling'"],
)
def test_an_option_that_it_does_not_know(tmp_path: Path, message: str) -> None:
    """Messages of 2.5.0; any other error is about a later option."""
    install = from_path(_program(tmp_path))
    require_options(install, "-only-migratable")
    unknowing = from_path(_program(tmp_path / "old", _FAKE.replace("unexpected: $*", message)))
    with pytest.raises(Unsupported, match=f"^this QEMU: {message}$"):
        require_options(unknowing, "-only-migratable")


def test_what_qemu_prints_when_it_refuses_to_start(tmp_path: Path) -> None:
    refusing = "*-fsdev*) echo 'no path' >&2; exit 1 ;;\n*-machine*) echo started; exit 0 ;;\n*logfile*)"
    install = from_path(_program(tmp_path, _FAKE.replace("*logfile*)", refusing, 1)))
    assert refusal_to_start(install, "-fsdev", "local") == "no path"
    with pytest.raises(Violation, match="QEMU with -name x ended with 0, not 1"):
        refusal_to_start(install, "-name", "x")


def test_whether_an_incoming_fd_can_be_named(tmp_path: Path) -> None:
    knows = "-incoming: Invalid file descriptor number 'harness-has-none'"
    require_named_fds(from_path(_program(tmp_path, _FAKE.replace("unexpected: $*", knows))))
    old = from_path(_program(tmp_path / "old", _FAKE.replace("unexpected: $*", "Not a migration stream")))
    with pytest.raises(Unsupported, match="accepts no named file descriptor"):
        require_named_fds(old)


def test_a_device_that_a_qemu_has_not(tmp_path: Path) -> None:
    install = from_path(_program(tmp_path))
    require_device(install, "virtio-9p-pci")
    with pytest.raises(Unsupported, match=r"^this QEMU has no device virtio-9p$"):
        require_device(install, "virtio-9p")


def test_a_property_that_a_device_has_not(tmp_path: Path) -> None:
    script = "*PIIX4_PM,help) echo 'PIIX4_PM.memory-hotplug-support=bool' >&2 ;;\n*logfile*)"
    install = from_path(_program(tmp_path, _FAKE.replace("*logfile*)", script)))
    require_property(install, "PIIX4_PM", "memory-hotplug-support")
    killed = "*acpi-ged,help) kill -TRAP $$ ;;\n*logfile*)"
    dies = from_path(_program(tmp_path / "dies", _FAKE.replace("*logfile*)", killed)))
    with pytest.raises(Unsupported, match=r"the properties of acpi-ged: .* was killed by SIGTRAP: "):
        require_property(dies, "acpi-ged", "acpi-pci-hotplug-with-bridge-support")
    with pytest.raises(Unsupported, match=r"^this QEMU's PIIX4_PM has no property acpi-root-pci-hotplug$"):
        require_property(install, "PIIX4_PM", "acpi-root-pci-hotplug")


def test_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = _program(tmp_path / "good")
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("sh", "dirname"):
        (tools / tool).symlink_to(str(shutil.which(tool)))
    monkeypatch.setenv("PATH", str(tools))
    assert on_path() is None
    monkeypatch.setenv("PATH", f"{tmp_path / 'good'}:{tools}")
    found = on_path()
    assert found is not None
    assert found.binary == good


def test_on_path_and_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken QEMU on PATH is not silently replaced by another."""
    _program(tmp_path, "#!/bin/sh\nexit 1\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HarnessError, match="exited with 1"):
        on_path()
