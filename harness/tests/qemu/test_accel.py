from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.errors import UsageError
from harness.qemu import accel
from harness.qemu.accel import Accel, Verdict, choose, for_foreign_guest
from harness.qemu.spec import MachineSpec
from harness.tests.qemu.specs import spec

_HANGS = (
    "a guest did not boot under it: waited 10.0 s for the guest's first process, the guest printed nothing"
)


class _Boots:
    """A stand-in for booting a guest under KVM; it counts the boots."""

    def __init__(self, answer: str | None, *, timed_out: bool = False) -> None:
        self.verdict, self.count, self.allowed_s = Verdict(answer, timed_out), 0, 0.0

    def __call__(
        self, spec: MachineSpec, accel: str, deadline_s: float, host_factor: float
    ) -> Verdict | float:
        self.count += 1
        self.allowed_s = deadline_s
        return self.verdict if self.verdict.reason is not None else 8.5


@pytest.fixture
def kvm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /dev/kvm that can be opened."""
    device = tmp_path / "kvm"
    device.write_text("")
    monkeypatch.setattr(accel, "KVM", device)
    return device


def _boots(monkeypatch: pytest.MonkeyPatch, answer: str | None, *, timed_out: bool = False) -> _Boots:
    boots = _Boots(answer, timed_out=timed_out)
    monkeypatch.setattr(accel, "_try_boot", boots)
    return boots


def _choose(tmp_path: Path, wanted: str = "auto", identity: str = "qemu/guest") -> Accel:
    return choose(wanted, spec(), identity, tmp_path / "memory")


def test_tcg_is_not_probed(tmp_path: Path, kvm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boots = _boots(monkeypatch, None)
    assert _choose(tmp_path, "tcg") == Accel("tcg", "selected by the user")
    assert boots.count == 0


def test_an_unknown_name(tmp_path: Path, kvm: Path) -> None:
    with pytest.raises(UsageError, match=r"^--accel hvf: unknown accelerator \(auto, kvm or tcg\)$"):
        _choose(tmp_path, "hvf")


def test_no_device(tmp_path: Path, kvm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kvm.unlink()
    boots = _boots(monkeypatch, None)
    assert _choose(tmp_path) == Accel("tcg", f"KVM rejected: no {kvm} on this host")
    assert boots.count == 0


def test_no_permission(tmp_path: Path, kvm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boots = _boots(monkeypatch, None)
    monkeypatch.setattr(os, "access", lambda path, mode: not (path == kvm and mode & os.W_OK))
    chosen = _choose(tmp_path)
    assert chosen.name == "tcg"
    assert chosen.reason.startswith(f"KVM rejected: no permission to open {kvm}")
    assert boots.count == 0
    assert not (tmp_path / "memory").exists(), "a permission can change at any time: it is not cached"


def test_a_guest_that_booted_is_cached(tmp_path: Path, kvm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boots = _boots(monkeypatch, None)
    reports: list[str] = []
    first = choose("auto", spec(), "qemu/guest", tmp_path / "memory", reports.append)
    assert first == _choose(tmp_path) == _choose(tmp_path, "kvm") == Accel("kvm", "a guest booted under it")
    assert boots.count == 1
    assert reports == ["trying KVM: booting a guest, 10 s at the most …"]


def test_a_cached_hang_names_the_file_to_remove(
    tmp_path: Path, kvm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boots = _boots(monkeypatch, _HANGS)
    assert _choose(tmp_path) == Accel("tcg", f"KVM rejected: {_HANGS}")
    (file,) = (tmp_path / "memory").iterdir()
    assert _choose(tmp_path) == Accel("tcg", f"KVM rejected: {_HANGS} (cached in {file})")
    assert boots.count == 1
    file.unlink()
    _choose(tmp_path)
    assert boots.count == 2


@pytest.mark.parametrize(("later_s", "tried"), [(3599, 1), (3601, 2), (-1, 2)])
def test_a_time_out_is_kept_for_an_hour(
    tmp_path: Path, kvm: Path, monkeypatch: pytest.MonkeyPatch, later_s: float, tried: int
) -> None:
    """The host may have been busy. A verdict from the future, after the clock was set back, is not used."""
    boots = _boots(monkeypatch, _HANGS, timed_out=True)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    _choose(tmp_path)
    monkeypatch.setattr(time, "time", lambda: now + later_s)
    reason = _choose(tmp_path).reason
    assert boots.count == tried
    assert (" until " in reason) is (tried == 1)


def test_a_refusal_is_kept_for_as_long_as_the_host_is_the_same(
    tmp_path: Path, kvm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boots = _boots(monkeypatch, "QEMU did not start under it: no nesting")
    _choose(tmp_path)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 1e7)
    _choose(tmp_path)
    assert boots.count == 1
    kvm.unlink()
    kvm.write_text("of a module that was loaded anew")
    _choose(tmp_path)
    assert boots.count == 2
    (tmp_path / "boot_id").write_text("another boot")
    monkeypatch.setattr(accel, "_BOOT_ID", tmp_path / "boot_id")
    _choose(tmp_path)
    assert boots.count == 3


def test_a_success_survives_a_reboot_of_the_host(
    tmp_path: Path, kvm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boots = _boots(monkeypatch, None)
    _choose(tmp_path)
    monkeypatch.setattr(accel, "_BOOT_ID", tmp_path / "none")
    assert _choose(tmp_path).name == "kvm"
    assert boots.count == 1


def test_a_verdict_of_an_older_harness_is_not_used(
    tmp_path: Path, kvm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not say whether it was a time-out, and would be kept for ever."""
    boots = _boots(monkeypatch, None)
    _choose(tmp_path)
    (file,) = (tmp_path / "memory").iterdir()
    file.write_text(json.dumps({"reason": _HANGS, "host": "this"}))
    assert _choose(tmp_path).name == "kvm"
    assert boots.count == 2


def test_each_identity_and_host_has_its_own_verdict(
    tmp_path: Path, kvm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boots = _boots(monkeypatch, None)
    _choose(tmp_path)
    _choose(tmp_path, identity="other/guest")
    assert boots.count == 2
    monkeypatch.setattr("platform.release", lambda: "another kernel")
    _choose(tmp_path)
    assert boots.count == 3


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "null", b"\xff\xfe"])
def test_a_corrupt_verdict_is_replaced(
    tmp_path: Path, kvm: Path, monkeypatch: pytest.MonkeyPatch, content: str | bytes
) -> None:
    boots = _boots(monkeypatch, None)
    _choose(tmp_path)
    (file,) = (tmp_path / "memory").iterdir()
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert _choose(tmp_path).name == "kvm"
    assert boots.count == 2
    assert json.loads(file.read_text())["reason"] is None
    assert [path.name for path in (tmp_path / "memory").iterdir()] == [file.name]


def test_asking_for_kvm_where_no_guest_runs(
    tmp_path: Path, kvm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _boots(monkeypatch, _HANGS)
    with pytest.raises(UsageError) as caught:
        _choose(tmp_path, "kvm")
    assert str(caught.value) == f"--accel kvm: {_HANGS}; use --accel tcg or auto"


def test_on_a_slow_host_the_test_guest_has_more_time(
    tmp_path: Path, kvm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boots = _boots(monkeypatch, None)
    chosen = choose("auto", spec(), "qemu/guest", tmp_path / "memory", host_factor=3.0)
    assert (chosen.name, chosen.timeout_scale.host_factor, boots.allowed_s) == ("kvm", 3.0, 30.0)
    foreign = for_foreign_guest("auto", spec("s390-ccw"), "id", tmp_path / "memory", host_factor=3.0)
    assert (foreign.timeout_scale.factor, boots.allowed_s) == (25.5, 360.0)


def test_a_qemu_that_ends_as_its_first_process_starts(
    tmp_path: Path, kvm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with subprocess.Popen(["true"]) as gone:
        pass
    machine = SimpleNamespace(
        pid=gone.pid,
        kernel_log=SimpleNamespace(contains=lambda _: True),
        watch=lambda: None,
        kill=lambda: None,
        close=lambda: None,
    )
    monkeypatch.setattr(accel, "Machine", SimpleNamespace(launch=lambda *_, **__: machine))
    assert "QEMU ended when the guest's first process started" in _choose(tmp_path).reason


def test_a_boot_that_is_interrupted_is_not_cached(
    tmp_path: Path, kvm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> Verdict:
        raise KeyboardInterrupt

    monkeypatch.setattr(accel, "_try_boot", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _choose(tmp_path)
    assert not list(tmp_path.glob("memory/*"))


def _foreign(tmp_path: Path, wanted: str = "auto") -> Accel:
    return for_foreign_guest(wanted, spec("s390-ccw"), "qemu/guest", tmp_path / "memory")


def test_a_guest_of_another_architecture_is_measured_once(
    tmp_path: Path, kvm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KVM is not tried, and the processor time of a boot is the timeout scale."""
    boots = _boots(monkeypatch, None)
    first = _foreign(tmp_path)
    assert first == _foreign(tmp_path, "tcg")
    assert boots.count == 1
    assert (first.name, first.timeout_scale.factor) == ("tcg", 8.5)
    slow = replace(first, host_factor=2.0).timeout_scale
    assert (slow.factor, slow.host_factor) == (17.0, 2.0)
    assert "guests of s390x" in first.reason


@pytest.mark.parametrize(("boot_s", "factor"), [(0.5, 6.0), (1e3, 30.0)])
def test_the_scale_of_another_architecture_has_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, boot_s: float, factor: float
) -> None:
    monkeypatch.setattr(accel, "_try_boot", lambda *_: boot_s)
    assert _foreign(tmp_path).timeout_scale.factor == factor


def test_a_guest_of_another_architecture_that_does_not_boot_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boots = _boots(monkeypatch, _HANGS)
    assert _foreign(tmp_path).reason.endswith(_HANGS)
    assert _foreign(tmp_path).timeout_scale.factor == 6.0
    assert boots.count == 2


def test_kvm_for_another_architecture(tmp_path: Path, kvm: Path) -> None:
    with pytest.raises(UsageError, match=r"^--accel kvm: guests of s390x run under TCG alone on this host"):
        _foreign(tmp_path, "kvm")


def test_guests_without_hardware_help_are_given_more_time() -> None:
    assert Accel("tcg", "").timeout_scale.seconds(10) > Accel("kvm", "").timeout_scale.seconds(10) == 10
