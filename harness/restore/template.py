"""A guest that was booted once, kept as a stream and a memory file, to be restored many times.

The guest's memory lies in a file that QEMU maps: shared while the template is made, so that the stream need
not carry it (``x-ignore-shared``), and privately in each machine that is restored, so that none of them sees
what another writes. Where QEMU cannot do that, the memory is in the stream: a *plain* template. Sources: QEMU
``docs/devel/migration``, ``migration/ram.c`` (``ramblock_is_ignored``), ``backends/hostmem-file.c``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from harness.errors import SetupError
from harness.qemu.argv import MachinePaths, render
from harness.qemu.bandwidth import limit_bandwidth
from harness.qemu.machine import Machine
from harness.qemu.migration_socket import fed, kept
from harness.qemu.spec import MachineSpec, MemoryFile

#: Part of every key: a change of what a template is makes all older ones worthless.
_FORMAT = "4"
#: Seconds, before scaling.
_SAVE_TIMEOUT_S = 20.0
_RESTORE_TIMEOUT_S = 10.0
_CAPABILITY = "x-ignore-shared"
_MAX_BANDWIDTH = 1 << 34


@dataclass(frozen=True)
class Template:
    """A saved guest: the folder with its memory, its stream, and what its kernel had printed.

    :ivar plain: its memory is in the stream.
    """

    folder: Path
    plain: bool = False

    @property
    def memory(self) -> Path | None:
        """The guest's memory, as large as that, sparse; ``None`` when it is in the stream."""
        return None if self.plain else _memory(self.folder)

    @property
    def stream(self) -> Path:
        """Everything else: a migration stream."""
        return self.folder / "stream"

    @property
    def session(self) -> Path:
        """The SSH session that the guest had when it was saved (:class:`.SavedSession`)."""
        return self.folder / "session.json"

    @property
    def kernel_log(self) -> Path:
        """The kernel's console, from the boot to the moment at which the guest was saved."""
        return self.folder / "guest-kernel.log"


def bare(spec: MachineSpec) -> MachineSpec:
    """What all machines that one template can become have in common: no device, no name of its own."""
    return replace(spec, name="template", shares=(), devices=(), plugged=frozenset())


def key(spec: MachineSpec, image: str, *, plain: bool = False) -> str:
    """What a template's content depends on: QEMU, its arguments, and the guest's ``image`` (its key).

    :param image: of the guest, and of whatever was done to it before it was saved.
    """
    kind = ["plain"] if plain else []
    nowhere = Path("/")
    argv = render(bare(spec), MachinePaths(*[nowhere] * 6))
    identity = "\0".join([_FORMAT, *kind, spec.qemu.key, image, *argv])
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def memory_of(folder: Path) -> MemoryFile:
    """The memory with which a machine is launched, to become the template in ``folder``, unless plain."""
    return MemoryFile(_memory(folder), share=True)


def _memory(folder: Path) -> Path:
    return folder / "memory"


def save(machine: Machine, folder: Path) -> None:
    """Save the guest of ``machine``; it does not run on.

    It becomes a plain template, unless it was launched with :func:`memory_of`.

    :raises QemuError: when this QEMU cannot. :raises WaitTimeout: when it does not get done.
    :raises SetupError: when the stream cannot be written.
    """
    template = Template(folder)
    if machine.spec.memory_file is not None:
        _ignore_shared(machine, state=True)()
    limit_bandwidth(machine, _MAX_BANDWIDTH)
    with kept(machine, template.stream) as uri:
        machine.qmp.execute("migrate", {"uri": uri})
        machine.wait_until(
            lambda: _is_saved(machine),
            what=f"the template of {machine.name} to be saved",
            timeout_s=_SAVE_TIMEOUT_S,
        )
    template.kernel_log.write_text(machine.kernel_log.text())


def _is_saved(machine: Machine) -> bool:
    told = machine.qmp.execute("query-migrate", watch=machine.watch)
    if told.get("status") == "failed":
        why = told.get("error-desc", "QEMU gives no reason")
        raise SetupError(f"the template of {machine.name} was not saved: {why}")
    return bool(told.get("status") == "completed")


def restore(machine: Machine, template: Template) -> Callable[[], None]:
    """Let the guest of ``template`` go on in ``machine``, launched with ``MachineSpec.restored``.

    :returns: what to call before anything else is done to the machine; its guest may run meanwhile.
    :raises QemuError: when QEMU refuses the stream. :raises QemuDied: when it gave up over it.
    """
    shared = machine.spec.memory_file is not None
    if shared:
        _ignore_shared(machine, state=True)()
    with machine.qmp.listen("RESUME") as events, fed(machine, template.stream):
        events.wait(
            what=f"the restored guest of {machine.name} to run",
            timeout_s=machine.timeout_scale.seconds(_RESTORE_TIMEOUT_S),
            watch=machine.watch,
        )
    if not shared:
        return lambda: None
    # From here on it is a machine like any other: its own migrations carry its memory.
    return _ignore_shared(machine, state=False)


def _ignore_shared(machine: Machine, *, state: bool) -> Callable[[], None]:
    capabilities = [{"capability": _CAPABILITY, "state": state}]
    pending = machine.qmp.request("migrate-set-capabilities", {"capabilities": capabilities})
    return lambda: pending.wait(watch=machine.watch)
