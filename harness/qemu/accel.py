"""Which accelerator really runs a guest here, found out by booting one.

``/dev/kvm`` can exist, open, and create a VM, and a Linux guest can still hang in it for ever; only a
guest that reached its first process proves an accelerator. The verdict is kept per binary, guest image
and host. That a guest booted is kept for good; that QEMU or the guest gave up, until the host boots anew or
has another ``/dev/kvm``; that a guest was not there in time, for an hour, as the host may have been busy.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from harness.artifacts import MachineArtifacts
from harness.deadline import TimeoutScale, wait_until
from harness.errors import HarnessError, QmpSilent, UsageError, WaitTimeout
from harness.history import History
from harness.qemu.machine import Machine
from harness.qemu.spec import MachineSpec
from harness.reaper import RunFolder

KVM = Path("/dev/kvm")
#: How much more patient to be than with hardware virtualisation. A cold boot takes about 1 s under KVM
#: and 5 to 6 s under TCG on an idle host; two busy cores double that.
TIMEOUT_SCALES = {"kvm": TimeoutScale(1.0), "tcg": TimeoutScale(6.0)}
#: Seconds in which a guest under KVM must reach its first process before KVM is believed to hang.
KVM_DEADLINE_S = 10.0
#: Seconds for which it is remembered that a guest did not boot in time.
TIMEOUT_KEPT_S = 3600.0
#: Random, and another with each boot of the host (``man 4 random``).
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
#: The kernel prints this when it starts PID 1 (kernel: ``init/main.c``, ``run_init_process``).
_FIRST_PROCESS = "Run /init as init process"


@dataclass(frozen=True)
class Accel:
    """An accelerator, and why it was chosen."""

    name: str
    reason: str

    @property
    def timeout_scale(self) -> TimeoutScale:
        """How patient to be with guests under it."""
        return TIMEOUT_SCALES[self.name]


@dataclass(frozen=True)
class Verdict:
    """Why a guest cannot run under KVM (``None`` when one did), whether it was only too slow, and since when
    that is remembered (seconds since the epoch)."""

    reason: str | None
    timed_out: bool = False
    at: float = 0.0


def choose(
    wanted: str,
    spec: MachineSpec,
    identity: str,
    memory: Path,
    report: Callable[[str], None] = lambda _: None,
) -> Accel:
    """Decide on ``wanted`` (``auto``, ``kvm`` or ``tcg``).

    :param spec: a machine to boot for the proof; its ``accel`` is replaced.
    :param identity: binary and guest image, for the memory's key.
    :param memory: the folder in which verdicts are kept.
    :param report: told when a guest is about to be booted, which takes seconds.
    :raises UsageError: for an unknown name, or ``kvm`` where no guest runs under it.
    """
    if wanted == "tcg":
        return Accel("tcg", "asked for")
    if wanted not in ("auto", "kvm"):
        raise UsageError(f"--accel {wanted}: unknown accelerator (auto, kvm or tcg)")
    reason = why_not_kvm(spec, identity, memory, report)
    if reason is None:
        return Accel("kvm", "a guest booted under it")
    if wanted == "kvm":
        raise UsageError(f"--accel kvm: {reason}; use --accel tcg or auto")
    return Accel("tcg", f"KVM rejected: {reason}")


def why_not_kvm(
    spec: MachineSpec, identity: str, memory: Path, report: Callable[[str], None] = lambda _: None
) -> str | None:
    """Why guests cannot run under KVM, or ``None`` when one did."""
    if not KVM.exists():
        return f"no {KVM} on this host"
    if not os.access(KVM, os.R_OK | os.W_OK):
        return f"no permission to open {KVM} (is this user in the group kvm?)"
    host = f"{platform.node()} {platform.release()} {_text(Path('/etc/machine-id'))}"
    key = hashlib.sha256(f"{identity}\n{host}".encode()).hexdigest()[:16]
    file = memory / f"kvm-{key}.json"
    known = remembered(file)
    if known is not None:
        return None if known.reason is None else f"{known.reason} (remembered in {file}{_until(known)})"
    report(f"trying KVM: booting a guest, {KVM_DEADLINE_S:.0f} s at the most …")
    verdict = _boot_under_kvm(spec)
    # A verdict that cannot be kept is found again next time.
    with contextlib.suppress(OSError):
        _remember(file, {**vars(verdict), "host": host, "state": _state(), "at": time.time()})
    return verdict.reason


def remembered(file: Path) -> Verdict | None:
    """The verdict in a file of the memory, if it still holds."""
    try:
        kept = json.loads(file.read_text())
        verdict = Verdict(kept["reason"], kept["timed_out"], kept["at"])
        age_s = time.time() - verdict.at
        if verdict.reason is None:
            return verdict
        if kept["state"] != _state() or (verdict.timed_out and not 0 <= age_s < TIMEOUT_KEPT_S):
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return verdict


def _until(known: Verdict) -> str:
    if not known.timed_out:
        return ""
    return time.strftime(" until %H:%M", time.localtime(known.at + TIMEOUT_KEPT_S))


def _state() -> str:
    """What a refusal may depend on besides: the boot of the host, and its device (a module loaded anew)."""
    return f"{_text(_BOOT_ID)} {KVM.stat().st_ctime_ns}"


def _remember(path: Path, verdict: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(verdict) + "\n")
    partial.replace(path)


def _boot_under_kvm(spec: MachineSpec) -> Verdict:
    run = RunFolder()
    try:
        folder = run.path / "artifacts"
        folder.mkdir()
        history = History(folder / "history.ndjson")
        probe = replace(spec, name="kvm-probe", accel="kvm", shares=(), devices=(), plugged=frozenset())
        artifacts = MachineArtifacts(folder)
        try:
            machine = Machine.launch(
                probe, run, run.path / "m", artifacts, history, timeout_scale=TIMEOUT_SCALES["kvm"]
            )
        except HarnessError as exc:
            return Verdict(f"QEMU did not start under it: {exc.message}", isinstance(exc, QmpSilent))
        try:
            wait_until(
                lambda: machine.kernel_log.contains(_FIRST_PROCESS),
                what="the guest's first process",
                timeout_s=KVM_DEADLINE_S,
                watch=machine.watch,
            )
        except HarnessError as exc:
            lines = machine.kernel_log.tail(1)
            seen = f"the guest's last words were {lines[0]!r}" if lines else "the guest printed nothing"
            reason = f"a guest did not boot under it: {exc.message.split(';')[0]}, {seen}"
            return Verdict(reason, timed_out=isinstance(exc, WaitTimeout))
        finally:
            machine.kill()
            machine.close()
        return Verdict(None)
    finally:
        run.close()


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
