from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from harness.background import Background
from harness.errors import ChannelLost, QemuError, SetupError, WaitTimeout
from harness.qemu.argv import render, script
from harness.qemu.machine import Machine
from harness.qemu.migration_socket import stream_to_file
from harness.qemu.spec import Boot, MachineSpec
from harness.restore import template
from harness.restore.template import Template
from harness.tests.fakes import World, world
from harness.tests.qemu.specs import PATHS, share, spec


@pytest.fixture
def w(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return world(tmp_path, monkeypatch)


SAME = {
    "name": spec(name="another"),
    "shares": spec(shares=(share(0), share(1))),
    "devices": spec(devices=(share(2),)),
    "disk": spec(disk=Path("/elsewhere")),
}
OTHER = {
    "machine type": spec("q35"),
    "native hotplug": spec("q35-pcie"),
    "memory": spec(memory_mib=512),
    "cpu": spec(cpu="max"),
    "arguments": spec(extra=("-device", "VGA")),
    "QEMU": spec(qemu=replace(spec().qemu, key="rebuilt")),
    "firmware": spec(qemu=replace(spec().qemu, arguments=("-L", "/other"))),
    "a machine type's firmware": spec(firmware=Path("/share/QEMU_EFI.fd")),
    "kernel command line": spec(
        boot=Boot(Path("/c/vmlinuz"), Path("/c/initrd"), "quiet", Path("/c/bzImage"))
    ),
}


@pytest.mark.parametrize("what", SAME)
def test_what_a_template_does_not_depend_on(what: str) -> None:
    assert template.key(SAME[what], "image") == template.key(spec(), "image")


@pytest.mark.parametrize("what", OTHER)
def test_what_a_template_depends_on(what: str) -> None:
    assert template.key(OTHER[what], "image") != template.key(spec(), "image")
    assert template.key(spec(), "other image") != template.key(spec(), "image")


def _memory_arguments(made: MachineSpec) -> list[str]:
    words = render(made, PATHS)
    return [word for word in words if word.startswith("memory-backend-file") or "memory-backend=" in word]


def test_the_memory_is_shared_in_the_template_and_private_in_restored_machines() -> None:
    making = spec(memory_file=template.memory_of(Path("/t,1")))
    machine, backend = _memory_arguments(making)
    assert machine.endswith(",memory-backend=pc.ram")
    assert backend == "memory-backend-file,id=pc.ram,size=256M,mem-path=/t,,1/memory,share=on"
    restored = spec().restored(Path("/t/memory"))
    assert _memory_arguments(restored)[1].endswith(",mem-path=/t/memory,share=off")
    assert render(restored, PATHS)[-2:] == ["-incoming", "defer"]
    assert _memory_arguments(spec()) == []


def test_a_destination_has_memory_of_its_own() -> None:
    destination = spec().restored(Path("/t/memory")).destination("next", plugged=frozenset())
    assert destination == spec().destination("next", plugged=frozenset())


def test_the_script_boots_the_guest() -> None:
    """It must work without a template."""
    restored = spec().restored(Path("/t/memory"))
    assert restored.booted() == spec()
    assert "-incoming" not in script(restored.booted(), Path("/r"))
    waiting = spec().destination("next", plugged=frozenset())
    assert waiting.booted() == waiting


def send(w: World, uri: str) -> None:
    """Send a stream as QEMU does, and close the connection."""
    with open(w.qmp.given[uri.removeprefix("fd:")], "wb") as stream:  # noqa: PTH123
        stream.write(b"section" * 100_000)


@pytest.mark.parametrize("plain", [False, True])
def test_saving(w: World, tmp_path: Path, plain: bool) -> None:
    memory_file = None if plain else template.memory_of(tmp_path)
    w.machine.spec = replace(w.machine.spec, memory_file=memory_file)
    w.machine.artifacts.kernel.write_text("booted\n")
    for command in ("migrate-set-capabilities", "migrate-set-parameters"):
        w.qmp.on(command, {})
    w.qmp.on("migrate", lambda arguments: send(w, arguments["uri"]))
    w.qmp.on("query-migrate", {"status": "active"}, {"status": "completed"})
    template.save(cast(Machine, w.machine), tmp_path)
    capability = {"capabilities": [{"capability": "x-ignore-shared", "state": True}]}
    assert (("migrate-set-capabilities", capability) in w.qmp.sent) is not plain
    assert Template(tmp_path).stream.read_bytes() == b"section" * 100_000
    assert Template(tmp_path).kernel_log.read_text() == "booted\n"


def test_a_template_that_is_never_saved(w: World, tmp_path: Path) -> None:
    for command in ("migrate-set-capabilities", "migrate-set-parameters", "migrate"):
        w.qmp.on(command, {})
    w.qmp.on("query-migrate", {"status": "active"})
    w.impatient()
    with pytest.raises(WaitTimeout, match="the template of source to be saved"):
        template.save(cast(Machine, w.machine), tmp_path)
    w.qmp.on("query-migrate", {"status": "failed", "error-desc": "no space"})
    with pytest.raises(SetupError, match=r"^the template of source was not saved: no space"):
        template.save(cast(Machine, w.machine), tmp_path)


def test_a_disk_that_is_full(w: World) -> None:
    for command in ("migrate-set-capabilities", "migrate-set-parameters"):
        w.qmp.on(command, {})

    def migrate(arguments: dict[str, str]) -> None:
        with pytest.raises(BrokenPipeError):
            send(w, arguments["uri"])

    w.qmp.on("migrate", migrate)
    w.qmp.on("query-migrate", {"status": "failed"})
    full = stream_to_file(cast(Machine, w.machine), Path("/dev/full"))
    with pytest.raises(SetupError, match=r"^cannot write the stream /dev/full: No space left"), full as uri:
        w.qmp.execute("migrate", {"uri": uri})


def _incoming(w: World, *, resumes: bool = True) -> list[bytes]:
    """Let the fake QEMU accept a stream and then resume; returns a list that will have the stream."""
    received: list[bytes] = []

    def load(arguments: dict[str, str]) -> None:
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(arguments["uri"].removeprefix("unix:"))
        listening.listen()
        Background(lambda: receive(listening))

    def receive(listening: socket.socket) -> None:
        with listening, listening.accept()[0] as stream, stream.makefile("rb") as file:
            received.append(file.read())
        if resumes:
            w.qmp.emit("RESUME")

    w.qmp.on("migrate-incoming", load)
    return received


def test_restoring_resets_the_capability(w: World, tmp_path: Path) -> None:
    w.qmp.on("migrate-set-capabilities", {})
    received = _incoming(w)
    restored = spec().restored(Template(tmp_path).memory)
    w.machine.spec = replace(w.machine.spec, memory_file=restored.memory_file)
    Template(tmp_path).stream.write_bytes(b"section" * 100_000)
    template.restore(cast(Machine, w.machine), Template(tmp_path))()
    assert received == [b"section" * 100_000]
    assert w.qmp.sent[-1] == (
        "migrate-set-capabilities",
        {"capabilities": [{"capability": "x-ignore-shared", "state": False}]},
    )


def test_a_plain_template_needs_no_capability(w: World, tmp_path: Path) -> None:
    _incoming(w)
    Template(tmp_path).stream.write_bytes(b"section")
    template.restore(cast(Machine, w.machine), Template(tmp_path))()
    assert [command for command, _ in w.qmp.sent] == ["migrate-incoming"]
    assert spec().restored(Template(tmp_path, plain=True).memory).booted() == spec()
    assert template.key(spec(), "image", plain=True) != template.key(spec(), "image")


def test_a_qemu_without_the_capability(w: World, tmp_path: Path) -> None:
    w.machine.spec = replace(w.machine.spec, memory_file=template.memory_of(tmp_path))
    w.qmp.refuse("migrate-set-capabilities", "Parameter 'capability' does not accept value 'x-ignore-shared'")
    with pytest.raises(QemuError, match="x-ignore-shared"):
        template.restore(cast(Machine, w.machine), Template(tmp_path))


def test_a_template_without_its_stream(w: World, tmp_path: Path) -> None:
    w.qmp.on("migrate-set-capabilities", {})
    with pytest.raises(SetupError, match=f"cannot read the stream {tmp_path}/stream: No such file"):
        template.restore(cast(Machine, w.machine), Template(tmp_path))


def test_a_guest_that_does_not_resume(w: World, tmp_path: Path) -> None:
    Template(tmp_path).stream.write_bytes(b"section" * 100_000)
    w.qmp.on("migrate-set-capabilities", {})
    _incoming(w, resumes=False)
    w.impatient()
    with pytest.raises(WaitTimeout, match="the restored guest of source to run"):
        template.restore(cast(Machine, w.machine), Template(tmp_path))


def test_a_qemu_that_died_before_its_stream_is_sent(w: World, tmp_path: Path) -> None:
    Template(tmp_path).stream.write_bytes(b"section")
    w.qmp.on("migrate-incoming", {})
    with pytest.raises(ChannelLost, match="does not listen for the migration stream"):
        template.restore(cast(Machine, w.machine), Template(tmp_path))


def test_a_copy_of_the_memory_keeps_its_holes(tmp_path: Path) -> None:
    mib = 1 << 20
    with (tmp_path / "memory").open("wb") as memory:
        for at in (8 * mib, 24 * mib):
            memory.seek(at)
            memory.write(b"data" * 1024)
        memory.truncate(64 * mib)
    Template(tmp_path).copy_memory(tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "memory").read_bytes()
    assert (tmp_path / "copy").stat().st_blocks * 512 < mib


def test_a_copy_of_the_memory_that_fails(tmp_path: Path) -> None:
    (tmp_path / "memory").write_bytes(b"x")
    with pytest.raises(SetupError, match="cannot copy the template's memory to /nowhere/copy: No such file"):
        Template(tmp_path).copy_memory(Path("/nowhere/copy"))
