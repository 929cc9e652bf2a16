"""The choice of the accelerator: KVM is used only if a test guest boots under it.

``/dev/kvm`` can exist and create a VM in which a Linux guest still hangs, so a guest is booted until it
starts its first process. The verdict is cached for each binary, guest image and host. A success is kept for
good. A failure of QEMU or the guest is kept until the host reboots or has another ``/dev/kvm``. A timeout is
kept for an hour, as the host may have been busy.
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

import psutil

from harness.artifacts import MachineArtifacts
from harness.deadline import TimeoutScale, wait_until
from harness.errors import HarnessError, QmpSilent, UsageError, WaitTimeout
from harness.history import History
from harness.qemu.machine import Machine
from harness.qemu.process import processor_s
from harness.qemu.spec import MachineSpec
from harness.reaper import RunFolder

KVM = Path("/dev/kvm")
#: The timeout scale of each accelerator. A cold boot takes about 1 s under KVM and 5 to 6 s under TCG on an
#: idle host; two busy cores double that.
TIMEOUT_SCALES = {"kvm": TimeoutScale(1.0), "tcg": TimeoutScale(6.0)}
#: Seconds, before scaling for a slow host, in which the test guest must start its first process; after that,
#: KVM is rejected.
KVM_DEADLINE_S = 10.0
#: Seconds, before scaling for a slow host, in which a guest of another architecture must start its first
#: process, and the highest scale that follows from them.
FOREIGN_DEADLINE_S = 120.0
_MAX_SCALE = 30.0
#: Seconds for which a timeout of the test guest is cached.
TIMEOUT_KEPT_S = 3600.0
#: A random id of the host's boot (``man 4 random``).
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
#: The kernel prints this when it starts PID 1 (kernel: ``init/main.c``, ``run_init_process``).
_FIRST_PROCESS = "Run /init as init process"


@dataclass(frozen=True)
class Accel:
    """An accelerator and the reason for choosing it.

    :ivar host_factor: multiplies its timeout scale: more than 1.0 for a slow host (``--timeout-scale``).
    :ivar measured: its timeout scale where that was measured; otherwise it is one of :data:`TIMEOUT_SCALES`.
    """

    name: str
    reason: str
    host_factor: float = 1.0
    measured: float | None = None

    @property
    def timeout_scale(self) -> TimeoutScale:
        """The factor for timeouts of guests under this accelerator."""
        factor = self.measured or TIMEOUT_SCALES[self.name].factor
        return TimeoutScale(factor * self.host_factor, self.host_factor)


@dataclass(frozen=True)
class Verdict:
    """The result of a test boot under KVM.

    :ivar reason: why guests cannot run under KVM; ``None`` if the test guest booted.
    :ivar timed_out: whether the test guest was too slow. :ivar at: the time of the boot in seconds since the
        epoch.
    """

    reason: str | None
    timed_out: bool = False
    at: float = 0.0


def choose(
    wanted: str,
    spec: MachineSpec,
    identity: str,
    verdicts: Path,
    report: Callable[[str], None] = lambda _: None,
    *,
    host_factor: float = 1.0,
) -> Accel:
    """Choose the accelerator for ``wanted`` (``auto``, ``kvm`` or ``tcg``).

    :param spec: the machine of the test guest; its ``accel`` is replaced.
    :param identity: identifies binary and guest image, as part of the key of the cached verdict.
    :param verdicts: the folder with cached verdicts.
    :param report: called with a message before a guest is booted, which takes seconds.
    :param host_factor: as in :class:`Accel`; the test guest gets more time as well.
    :raises UsageError: for an unknown name, or for ``kvm`` if guests do not run under it.
    """
    if wanted == "tcg":
        return Accel("tcg", "selected by the user", host_factor)
    if wanted not in ("auto", "kvm"):
        raise UsageError(f"--accel {wanted}: unknown accelerator (auto, kvm or tcg)")
    reason = why_not_kvm(spec, identity, verdicts, report, host_factor=host_factor)
    if reason is None:
        return Accel("kvm", "a guest booted under it", host_factor)
    if wanted == "kvm":
        raise UsageError(f"--accel kvm: {reason}; use --accel tcg or auto")
    return Accel("tcg", f"KVM rejected: {reason}", host_factor)


def for_foreign_guest(
    wanted: str,
    spec: MachineSpec,
    identity: str,
    verdicts: Path,
    report: Callable[[str], None] = lambda _: None,
    *,
    host_factor: float = 1.0,
) -> Accel:
    """TCG, for guests of another architecture than the host's, with a timeout scale of their own.

    How fast TCG is depends on the guest's architecture. So a guest is booted once, and the scale is QEMU's
    processor time until the guest's first process, in seconds: a boot takes about one second under KVM, for
    which timeouts are written. The scale is not below TCG's for the host's own architecture.

    Parameters as for :func:`choose`.

    :raises UsageError: for an unknown name, or for ``kvm``.
    """
    own, host = spec.machine_type.architecture.name, platform.machine()
    if wanted not in ("auto", "tcg"):
        raise UsageError(f"--accel {wanted}: guests of {own} run under TCG alone on this host ({host})")
    key = hashlib.sha256(f"{identity}\n{platform.node()}".encode()).hexdigest()[:16]
    file = verdicts / f"tcg-{key}.json"
    try:
        boot_s = float(json.loads(file.read_text())["boot_cpu_s"])
    except (OSError, ValueError, KeyError, TypeError):
        deadline_s = FOREIGN_DEADLINE_S * host_factor
        report(f"booting a guest of {own}, to see how fast it is: {deadline_s:.0f} s at the most …")
        result = _try_boot(spec, "tcg", deadline_s, host_factor)
        if isinstance(result, Verdict):
            # The tests' guests will fail in the same way, and leave their artefacts.
            return Accel("tcg", f"guests of {own} on a host of {host}; {result.reason}", host_factor)
        boot_s = result
        with contextlib.suppress(OSError):
            _write_verdict(file, {"boot_cpu_s": boot_s, "at": time.time()})
    scale = min(max(TIMEOUT_SCALES["tcg"].factor, boot_s), _MAX_SCALE)
    reason = f"guests of {own} on a host of {host}; a boot takes {boot_s:.1f} s"
    return Accel("tcg", reason, host_factor, measured=scale)


def why_not_kvm(
    spec: MachineSpec,
    identity: str,
    verdicts: Path,
    report: Callable[[str], None] = lambda _: None,
    *,
    host_factor: float = 1.0,
) -> str | None:
    """The reason why guests cannot run under KVM, or ``None`` if the test guest booted."""
    if not KVM.exists():
        return f"no {KVM} on this host"
    if not os.access(KVM, os.R_OK | os.W_OK):
        return f"no permission to open {KVM} (is this user in the group kvm?)"
    host = f"{platform.node()} {platform.release()} {_text(Path('/etc/machine-id'))}"
    key = hashlib.sha256(f"{identity}\n{host}".encode()).hexdigest()[:16]
    file = verdicts / f"kvm-{key}.json"
    known = cached_verdict(file)
    if known is not None:
        return None if known.reason is None else f"{known.reason} (cached in {file}{_until(known)})"
    deadline_s = KVM_DEADLINE_S * host_factor
    report(f"trying KVM: booting a guest, {deadline_s:.0f} s at the most …")
    result = _try_boot(spec, "kvm", deadline_s, host_factor)
    verdict = result if isinstance(result, Verdict) else Verdict(None)
    # If the verdict cannot be written, the next run boots a test guest again.
    with contextlib.suppress(OSError):
        _write_verdict(file, {**vars(verdict), "host": host, "state": _state(), "at": time.time()})
    return verdict.reason


def cached_verdict(file: Path) -> Verdict | None:
    """The verdict about KVM in ``file``, or ``None`` if there is none or it has expired."""
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
    """The state of the host that a failure of KVM may depend on: its boot, and its KVM device."""
    return f"{_text(_BOOT_ID)} {KVM.stat().st_ctime_ns}"


def _write_verdict(path: Path, verdict: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(verdict) + "\n")
    partial.replace(path)


def _try_boot(spec: MachineSpec, accel: str, deadline_s: float, host_factor: float) -> Verdict | float:
    """Boot a test guest: QEMU's processor time in seconds until its first process, or what went wrong."""
    run = RunFolder()
    try:
        folder = run.path / "artifacts"
        folder.mkdir()
        history = History(folder / "history.ndjson")
        probe = replace(spec, name=f"{accel}-probe", accel=accel, shares=(), devices=(), plugged=frozenset())
        artifacts = MachineArtifacts(folder)
        try:
            scale = Accel(accel, "tried", host_factor).timeout_scale
            machine = Machine.launch(probe, run, run.path / "m", artifacts, history, timeout_scale=scale)
        except HarnessError as exc:
            return Verdict(f"QEMU did not start under it: {exc.message}", isinstance(exc, QmpSilent))
        try:
            wait_until(
                lambda: machine.kernel_log.contains(_FIRST_PROCESS),
                what="the guest's first process",
                timeout_s=deadline_s,
                watch=machine.watch,
            )
            used_s = processor_s(machine.pid)
        except psutil.NoSuchProcess:
            return Verdict("a guest did not boot under it: QEMU ended when the guest's first process started")
        except HarnessError as exc:
            lines = machine.kernel_log.tail(1)
            seen = f"the last line of its console is {lines[0]!r}" if lines else "the guest printed nothing"
            reason = f"a guest did not boot under it: {exc.message.split(';')[0]}, {seen}"
            return Verdict(reason, timed_out=isinstance(exc, WaitTimeout))
        finally:
            machine.kill()
            machine.close()
        return used_s
    finally:
        run.close()


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
