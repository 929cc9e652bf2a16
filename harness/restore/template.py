"""A template: a booted guest, saved as a migration stream and a memory file, to be restored many times.

QEMU maps the guest's memory from a file. While the template is made, the mapping is shared, so that the
stream does not contain the memory (``x-ignore-shared``). In each restored machine the mapping is private, so
that no machine sees what another one writes. If QEMU cannot do this, the stream contains the memory: a
*plain* template. Sources: QEMU ``docs/devel/migration``, ``migration/ram.c`` (``ramblock_is_ignored``),
``backends/hostmem-file.c``.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from harness.errors import SetupError
from harness.qemu.argv import MachinePaths, render
from harness.qemu.bandwidth import limit_bandwidth
from harness.qemu.machine import Machine
from harness.qemu.migration_socket import stream_from_file, stream_to_file
from harness.qemu.spec import MachineSpec, MemoryFile

#: Part of every key. Increase it when the format of templates changes, so that older ones are not used.
_FORMAT = "4"
#: Seconds, before scaling.
_SAVE_TIMEOUT_S = 20.0
_RESTORE_TIMEOUT_S = 10.0
_CAPABILITY = "x-ignore-shared"
_MAX_BANDWIDTH = 1 << 34


@dataclass(frozen=True)
class Template:
    """A saved guest: the folder with its memory, its stream, its SSH session and its kernel log.

    :ivar plain: whether the memory is in the stream.
    """

    folder: Path
    plain: bool = False

    @property
    def memory(self) -> Path | None:
        """The file with the guest's memory (sparse); ``None`` if the memory is in the stream."""
        return None if self.plain else _memory(self.folder)

    def copy_memory(self, to: Path) -> None:
        """Copy the file with the guest's memory; its holes stay holes.

        :raises SetupError: when it cannot be copied.
        """
        try:
            with _memory(self.folder).open("rb") as source, to.open("xb") as copy:
                _copy_data(source.fileno(), copy.fileno())
        except OSError as exc:
            raise SetupError(f"cannot copy the template's memory to {to}: {exc.strerror}") from exc

    @property
    def stream(self) -> Path:
        """The migration stream: all other state of the machine."""
        return self.folder / "stream"

    @property
    def session(self) -> Path:
        """The SSH session that the guest had when it was saved (:class:`.SavedSession`)."""
        return self.folder / "session.json"

    @property
    def kernel_log(self) -> Path:
        """The output of the kernel's console from the boot until the guest was saved."""
        return self.folder / "guest-kernel.log"


def _copy_data(source: int, copy: int) -> None:
    """Copy what is not a hole of the memory of a template (``man 2 lseek``, SEEK_DATA)."""
    size, offset = os.fstat(source).st_size, 0
    os.ftruncate(copy, size)
    while offset < size:
        try:
            offset = os.lseek(source, offset, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno == errno.ENXIO:  # No more data.
                return
            raise
        end = os.lseek(source, offset, os.SEEK_HOLE)
        os.lseek(copy, offset, os.SEEK_SET)
        while offset < end:
            offset += os.sendfile(copy, source, offset, end - offset)


def bare(spec: MachineSpec) -> MachineSpec:
    """A template's ``spec``: without what differs between its machines, which is name and devices.

    And without what no guest sees.
    """
    return replace(spec, name="template", shares=(), devices=(), plugged=frozenset(), monitor=False)


def key(spec: MachineSpec, image: str, *, plain: bool = False) -> str:
    """A hash of everything that a template depends on: QEMU, its arguments, and the guest.

    :param image: the key of the guest's image, and of what was done to the guest before it was saved.
    """
    kind = ["plain"] if plain else []
    nowhere = Path("/")
    argv = render(bare(spec), MachinePaths(*[nowhere] * 6))
    identity = "\0".join([_FORMAT, *kind, spec.qemu.key, image, *argv])
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def memory_of(folder: Path) -> MemoryFile:
    """The memory file with which to launch the machine that is saved as a template, unless plain.

    It is in ``folder``.
    """
    return MemoryFile(_memory(folder), share=True)


def _memory(folder: Path) -> Path:
    return folder / "memory"


def save(machine: Machine, folder: Path) -> None:
    """Save the guest of ``machine`` as the template in ``folder``; the guest is stopped.

    The template is plain, unless the machine was launched with :func:`memory_of`.

    :raises QemuError: when this QEMU refuses. :raises WaitTimeout: when the migration does not complete.
    :raises SetupError: when the migration fails, or the stream cannot be written.
    """
    template = Template(folder)
    if machine.spec.memory_file is not None:
        _ignore_shared(machine, state=True)()
    limit_bandwidth(machine, _MAX_BANDWIDTH)
    with stream_to_file(machine, template.stream) as uri:
        machine.qmp.execute("migrate", {"uri": uri})
        machine.wait_until(
            lambda: _is_saved(machine),
            what=f"the template of {machine.name} to be saved",
            timeout_s=_SAVE_TIMEOUT_S,
        )
    template.kernel_log.write_text(machine.kernel_log.text())


def _is_saved(machine: Machine) -> bool:
    answer = machine.qmp.execute("query-migrate", watch=machine.watch)
    if answer.get("status") == "failed":
        why = answer.get("error-desc", "QEMU gives no reason")
        raise SetupError(f"the template of {machine.name} was not saved: {why}")
    return bool(answer.get("status") == "completed")


def restore(machine: Machine, template: Template) -> Callable[[], None]:
    """Restore the guest of ``template`` in ``machine``, which was launched with ``MachineSpec.restored``.

    :returns: a function that completes the restoring. Call it before any other operation on the machine;
        commands in the guest are allowed before it.
    :raises QemuError: when QEMU refuses the stream. :raises QemuDied: when it exits because of it.
    """
    shared = machine.spec.memory_file is not None
    if shared:
        _ignore_shared(machine, state=True)()
    with machine.qmp.listen("RESUME") as events, stream_from_file(machine, template.stream):
        events.wait(
            what=f"the restored guest of {machine.name} to run",
            timeout_s=machine.timeout_scale.seconds(_RESTORE_TIMEOUT_S),
            watch=machine.watch,
        )
    if not shared:
        return lambda: None
    # Reset the capability: migrations of the restored machine must contain its memory.
    return _ignore_shared(machine, state=False)


def _ignore_shared(machine: Machine, *, state: bool) -> Callable[[], None]:
    capabilities = [{"capability": _CAPABILITY, "state": state}]
    pending = machine.qmp.request("migrate-set-capabilities", {"capabilities": capabilities})
    return lambda: pending.wait(watch=machine.watch)
