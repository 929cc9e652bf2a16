from __future__ import annotations

import os
import shutil
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.deadline import wait_until
from harness.qemu.argv import render, script
from harness.qemu.binary import QemuInstall
from harness.qemu.machine_types import MACHINE_TYPES
from harness.qemu.spec import Boot, MachineSpec, Share
from harness.tests.qemu.specs import PATHS, share, spec

_PORTS = [
    word
    for slot in range(4)
    for word in (
        "-device",
        f"pcie-root-port,id=rp{slot},chassis={slot + 1},slot={slot + 1},bus=pcie.0,addr={0x10 + slot:#x}",
    )
]
_NATIVE = ["-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"]


def _expected(qemu_machine: str, after_display: list[str], before_fsdev: list[str]) -> list[str]:
    return [
        *("/q/qemu", "-L", "/q/bios", "-name", "harness-source"),
        *("-machine", f"{qemu_machine},accel=tcg,dump-guest-core=off"),
        *(
            "-cpu",
            "qemu64,+rdrand",
            "-smp",
            "1",
            "-m",
            "256",
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
        ),
        *after_display,
        *("-chardev", "socket,id=qmp,path=/r/m/qmp.sock,server=on,wait=off"),
        *("-mon", "chardev=qmp,mode=control"),
        *("-chardev", "file,id=ttyS0,path=/a/guest-kernel.log,append=on", "-serial", "chardev:ttyS0"),
        "-chardev",
        "socket,id=ttyS1,path=/r/m/console.sock,server=on,wait=off,logfile=/a/console.log,logappend=on",
        *("-serial", "chardev:ttyS1"),
        *("-chardev", "socket,id=guestfwd,path=/r/m/guestfwd.sock,server=on,wait=off", "-netdev"),
        "user,id=net0,restrict=on,hostfwd=tcp:127.0.0.1:0-:22,guestfwd=tcp:10.0.2.100:22-chardev:guestfwd",
        *(
            "-device",
            "virtio-net-pci,id=nic0,netdev=net0,mac=52:54:00:9b:00:01,romfile=,addr=0x8,guest_announce=off,"
            "ctrl_guest_offloads=off",
        ),
        *("-drive", "if=none,id=drive0,node-name=disk0,file=/r/m/disk.qcow2,format=qcow2,cache=unsafe"),
        *("-kernel", "/c/vmlinuz", "-initrd", "/c/initrd", "-append", "console=ttyS0 panic=0"),
        *before_fsdev,
        *("-fsdev", "local,id=fs-share0,path=/r/share0,security_model=none"),
    ]


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        ("pc", _expected("pc", [], [])),
        ("q35", _expected("q35", [], _PORTS)),
        ("q35-pcie", _expected("q35", _NATIVE, _PORTS)),
    ],
)
def test_each_machine_type(machine: str, expected: list[str]) -> None:
    assert render(spec(machine), PATHS) == expected


def test_a_qemu_that_lacks_options() -> None:
    """No chardev logs, an explicit port, the compressed kernel; the rest is the same."""
    old = replace(spec().qemu, chardev_logs=False, any_port=False, boots_elf=False)
    changed = {
        "file,id=ttyS0,path=/a/guest-kernel.log,append=on": "file,id=ttyS0,path=/a/guest-kernel.log",
        "socket,id=ttyS1,path=/r/m/console.sock,server=on,wait=off,logfile=/a/console.log,logappend=on": (
            "socket,id=ttyS1,path=/r/m/console.sock,server=on,wait=off"
        ),
        "user,id=net0,restrict=on,hostfwd=tcp:127.0.0.1:0-:22,guestfwd=tcp:10.0.2.100:22-chardev:guestfwd": (
            "user,id=net0,restrict=on,hostfwd=tcp:127.0.0.1:4022-:22,guestfwd=tcp:10.0.2.100:22-chardev:guestfwd"
        ),
        "/c/vmlinuz": "/c/bzImage",
    }
    words = render(spec(), PATHS)
    assert set(changed) < set(words)
    expected = [changed.get(word, word) for word in words]
    assert render(spec(qemu=old), PATHS, ssh_port=4022) == expected


@pytest.mark.parametrize(
    ("changes", "added"),
    [
        pytest.param(
            {"plugged": frozenset({"share0"})},
            ["-device", "virtio-9p-pci,id=share0,fsdev=fs-share0,mount_tag=tag0,bus=pci.0,addr=0x10"],
            id="cold-plugged",
        ),
        pytest.param({"incoming": True}, ["-incoming", "defer"], id="waits for a stream"),
    ],
)
def test_additions_to_the_plain_machine(changes: dict[str, Any], added: list[str]) -> None:
    assert render(spec(**changes), PATHS) == [*render(spec(), PATHS), *added]


def test_extra_arguments_are_there_before_any_share() -> None:
    plain, words = render(spec(), PATHS), render(spec(extra=("-device", "pcie-root-port,id=mine")), PATHS)
    first_share = plain.index("-fsdev")
    expected = [*plain[:first_share], "-device", "pcie-root-port,id=mine", *plain[first_share:]]
    assert words == expected


def test_a_cold_plugged_share_sits_in_its_own_root_port() -> None:
    words = render(spec("q35", shares=(share(2),), plugged=frozenset({"share2"})), PATHS)
    assert words[-1].endswith(",bus=rp2,addr=0x0")


def test_a_destination_differs_in_its_name_and_its_incoming_alone() -> None:
    source = spec("q35", plugged=frozenset({"share0"}))
    destination = render(source.destination("destination-1", plugged=source.plugged), PATHS)
    expected = [
        "harness-destination-1" if word == "harness-source" else word for word in render(source, PATHS)
    ]
    assert destination == [*expected, "-incoming", "defer"]


def test_a_machine_without_a_kernel_and_its_destination() -> None:
    """Kernel and initramfs are in a machine's memory, and so in each of its migration streams."""
    source = spec().without_kernel()
    for machine in (source, source.destination("destination-1", plugged=frozenset())):
        words = render(machine, PATHS)
        assert not {"-kernel", "-initrd", "-append"} & set(words)
        assert words[words.index("-m") + 1] == str(source.memory_mib)
    assert {"-kernel", "-initrd", "-append"} <= set(render(spec(), PATHS))


def test_fsdev_and_device_options_are_appended() -> None:
    device = {"disable-legacy": "on", "packed": True, "ioeventfd": False, "vectors": 0}
    throttled = share(fsdev_options={"throttling.bps-total": "1024"}, device_options=device)
    words = render(spec(shares=(throttled,), plugged=frozenset({"share0"})), PATHS)
    assert words[-3].endswith(",security_model=none,throttling.bps-total=1024")
    assert words[-1].endswith(",addr=0x10,disable-legacy=on,packed=on,ioeventfd=off,vectors=0")


def test_a_synth_export_has_no_path() -> None:
    words = render(spec(shares=(share(fsdriver="synth"),)), PATHS)
    assert words[words.index("-fsdev") + 1] == "synth,id=fs-share0"


def test_commas_inside_a_value_are_doubled_everywhere() -> None:
    odd = replace(PATHS, **{name: Path(f"/a,b/{name}") for name in vars(PATHS)})
    words = render(spec(shares=(share(path=Path("/s,1")),), plugged=frozenset({"share0"})), odd)
    options = [word for word in words if "/a," in word]
    assert len(options) == 5
    assert all("/a,,b/" in word and "/a,b/" not in word.replace(",,", "") for word in options)
    assert "local,id=fs-share0,path=/s,,1,security_model=none" in words


def test_every_share_of_the_pool_has_an_fsdev_and_only_the_plugged_have_devices() -> None:
    shares = tuple(share(slot) for slot in range(4))
    words = render(spec(shares=shares, plugged=frozenset({"share3"})), PATHS)
    assert words.count("-fsdev") == 4
    assert [word for word in words if word.startswith("virtio-9p-pci")] == [words[-1]]
    assert ",id=share3," in words[-1]


# argv.sh

_ODD = "a b'c\"d$HOME -x `e`"
_FAKE = r"""#!/bin/sh
out="$(dirname "$0")/out"; mkdir -p "$out"
printf '%s\0' "$@" > "$out/arguments"
printf '%s' "$QEMU_MODULE_DIR" > "$out/environment"
printf '%s' "$RUN" > "$out/run"
(cd "$RUN" && find . | sort) > "$out/tree"
cat "$RUN/disk.qcow2" > "$out/disk"
: > "$out/done"
"""


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A folder whose name has every character that is special to a shell."""
    folder = tmp_path / _ODD
    folder.mkdir()
    return folder


def _recorded(odd: Path, run: Path, fake: str = _FAKE) -> tuple[Path, MachineSpec]:
    """An argv.sh as a machine leaves it: a fake QEMU with its own path and environment."""
    program = odd / "qemu"
    program.write_text(fake)
    program.chmod(0o755)
    disk = odd / "empty.qcow2"
    disk.write_text("a disk")
    made = spec(
        qemu=QemuInstall("7.2", program, (str(program),), ("-L", str(odd)), {"QEMU_MODULE_DIR": f"{odd}/m"}),
        boot=Boot(odd / "vmlinuz", odd / "initrd", "console=ttyS0 -- a'b $c", odd / "bzImage"),
        disk=disk,
        shares=(Share("share0", run / "share0", "tag $0"), share(1, path=odd / "elsewhere")),
    )
    written = odd / "argv.sh"
    # RUN is exported for the fake's sake only.
    written.write_text(script(made, run).replace("set -eu\n", "set -eu\nexport RUN\n"))
    return written, made


def _run(written: Path, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    (tmp_path / "t").mkdir(exist_ok=True)
    environment = {**os.environ, "TMPDIR": str(tmp_path / "t")}
    return subprocess.run(
        ["sh", str(written)], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("run_name", ["run", f"run,{_ODD}"])
def test_argv_sh_starts_the_same_machine_in_a_folder_of_its_own(
    odd: Path, tmp_path: Path, run_name: str
) -> None:
    run = tmp_path / run_name
    written, made = _recorded(odd, run)
    done = _run(written, tmp_path)
    assert done.returncode == 0, done.stderr

    out = odd / "out"
    scratch = (out / "run").read_text()
    moved = replace(made, shares=(replace(made.shares[0], path=Path(scratch) / "share0"), made.shares[1]))
    paths = {name: Path(scratch) / path.name for name, path in vars(PATHS).items()}
    expected = render(moved, replace(PATHS, **paths))[1:]
    assert (out / "arguments").read_text().split("\0")[:-1] == expected
    assert (out / "environment").read_text() == f"{odd}/m"
    assert (out / "tree").read_text().split() == [".", "./disk.qcow2", "./share0"]
    assert (out / "disk").read_text() == "a disk"
    assert list((tmp_path / "t").iterdir()) == [], "its folder must go with it"


def test_argv_sh_makes_a_firmware_that_was_of_the_run(odd: Path, tmp_path: Path) -> None:
    """The file itself is gone with the run; one that is elsewhere is used where it is."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "halt.rom").write_bytes(bytes(range(256)))
    _, made = _recorded(odd, run)
    written = script(replace(made, firmware=run / "halt.rom"), run).replace(
        "set -eu\n", "set -eu\nexport RUN\n"
    )
    (odd / "argv.sh").write_text(written)
    (odd / "qemu").write_text(_FAKE + 'cat "$RUN/halt.rom" > "$out/firmware"\n')
    shutil.rmtree(run)
    done = _run(odd / "argv.sh", tmp_path)
    assert done.returncode == 0, done.stderr
    assert (odd / "out" / "firmware").read_bytes() == bytes(range(256))
    elsewhere = script(replace(made, firmware=odd / "bios"), run)
    assert "gunzip" not in elsewhere


def test_argv_sh_never_touches_the_run_that_it_came_from(odd: Path, tmp_path: Path) -> None:
    written, _ = _recorded(odd, tmp_path / "run")
    assert str(tmp_path / "run") not in written.read_text()
    assert _run(written, tmp_path).returncode == 0
    assert not (tmp_path / "run").exists()


def test_argv_sh_ends_with_qemus_own_status(odd: Path, tmp_path: Path) -> None:
    written, _ = _recorded(odd, tmp_path / "run", "#!/bin/sh\nexit 7\n")
    assert _run(written, tmp_path).returncode == 7
    assert list((tmp_path / "t").iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_argv_sh_leaves_nothing_when_interrupted(odd: Path, tmp_path: Path, number: int) -> None:
    """A terminal's Ctrl-C reaches the script and QEMU alike."""
    written, _ = _recorded(odd, tmp_path / "run", _FAKE + "exec sleep 60\n")
    (tmp_path / "t").mkdir()
    process = subprocess.Popen(
        ["sh", str(written)],
        env={**os.environ, "TMPDIR": str(tmp_path / "t")},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_until((odd / "out" / "done").exists, what="the fake QEMU", timeout_s=60)
        os.killpg(process.pid, number)
        assert process.wait(60) != 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(60)
    assert list((tmp_path / "t").iterdir()) == []


def test_what_a_machine_type_adds_to_the_kernels_command_line() -> None:
    argv = render(spec(machine_type=MACHINE_TYPES["microvm"]), PATHS)
    assert argv[argv.index("-append") + 1] == "console=ttyS0 panic=0 tsc_early_khz=2600000"
    assert "virtio-net-device,id=nic0" in " ".join(argv)
