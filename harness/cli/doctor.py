"""``harness doctor``: reports what this host can run, and why not the rest. It changes nothing."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import psutil
from rich.markup import escape
from rich.table import Table

from harness.errors import HarnessError, UsageError
from harness.holds.probe import why_no_holds
from harness.provision import Cache, Provisioner, default_cache_root
from harness.provision.gcov import FLAVOUR
from harness.qemu import binary
from harness.qemu.accel import KVM, TIMEOUT_KEPT_S, Verdict, cached_verdict
from harness.qemu.architectures import ARCHITECTURES, X86_64
from harness.qemu.machine_types import MACHINE_TYPES
from harness.report import tables
from harness.report.coverage import require_gcovr

_OK, _WARNING, _MISSING = "ok", "warning", "missing"
_STYLES = {_OK: "green", _WARNING: "yellow", _MISSING: "red"}
#: MB: a guest image and one QEMU, and their packages while they are unpacked.
_CACHE_MB = 700
#: MiB: the memory of a guest and of its QEMU, twice for a migration.
_MEMORY_MIB = 2 * 400


@dataclass(frozen=True)
class Finding:
    """One property of this host. ``missing``: no scenario runs; ``warning``: some are slower or skipped."""

    name: str
    state: str
    what: str


@click.command(epilog="Example: harness doctor --json")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(as_json: bool) -> None:
    """Report what this host can run, and why it cannot run the rest.

    Changes nothing on the host. Exits with 0 when the scenarios can run, otherwise with 1.
    """
    findings = list(examine())
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        table = Table("property", "state", "details")
        for finding in findings:
            table.add_row(finding.name, f"[{_STYLES[finding.state]}]{finding.state}[/]", escape(finding.what))
        tables.show(table)
    if any(finding.state == _MISSING for finding in findings):
        sys.exit(1)


def examine() -> Iterator[Finding]:
    """Every finding of ``harness doctor``, in the order in which a run would reach them."""
    cache = Cache(default_cache_root())
    for name, look in (
        ("cache", lambda: _cache(cache)),
        ("QEMU", lambda: _qemu(cache)),
        ("guest image", lambda: _guest(cache)),
        ("architectures", lambda: _architectures(cache)),
        ("KVM", lambda: _kvm(cache)),
        ("memory", _memory),
        ("holds", _holds),
        ("backtraces", _backtraces),
        ("coverage", lambda: _coverage(cache)),
        ("temporary folder", _temporary),
    ):
        yield Finding(name, *_safely(look))


def _safely(look: Callable[[], tuple[str, str]]) -> tuple[str, str]:
    try:
        return look()
    except HarnessError as exc:
        return _MISSING, exc.message
    except OSError as exc:
        return _MISSING, str(exc)


def _cache(cache: Cache) -> tuple[str, str]:
    cache.check_owner()
    there = next(p for p in (cache.root, *cache.root.parents) if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        return _MISSING, f"{cache.root} cannot be written; set HARNESS_CACHE to another folder"
    free_mb = shutil.disk_usage(there).free / 1e6
    if free_mb < _CACHE_MB and not _entries(cache, "guests"):
        return _MISSING, f"{cache.root}: {free_mb:.0f} MB free, {_CACHE_MB} MB needed"
    return _OK, f"{cache.root}, {free_mb:.0f} MB free"


def _qemu(cache: Cache) -> tuple[str, str]:
    found = binary.on_path()
    if found is not None:
        capabilities = binary.probe(found)
        capabilities.require_9p(found)
        return _OK, f"on PATH: {found.binary}, {capabilities.version_text}"
    unpacked = _entries(cache, "qemu")
    return (_OK, f"in the cache: {', '.join(unpacked)}") if unpacked else _fetchable("none on PATH")


def _guest(cache: Cache) -> tuple[str, str]:
    made = _entries(cache, "guests")
    return (_OK, f"in the cache: {', '.join(made)}") if made else _fetchable("not built yet")


def _architectures(cache: Cache) -> tuple[str, str]:
    """``harness doctor``: guests of other architectures than the default; what is made, and what can be."""
    provisioner, found = Provisioner(cache), []
    for architecture in ARCHITECTURES.values():
        if architecture is not X86_64:
            kinds = [name for name, kind in MACHINE_TYPES.items() if kind.architecture is architecture]
            qemus = f"QEMU {', '.join(provisioner.qemu_names(architecture))}"
            guests = f"Linux {', '.join(provisioner.guest_names(architecture))}"
            made = [
                entry
                for folder in ("qemu", "guests")
                for entry in _entries(cache, folder)
                if entry.startswith(f"{architecture.name}-")
            ]
            state = f"{len(made)} in the cache" if made else "not in the cache"
            found.append(f"{architecture.name} ({', '.join(kinds)}): {qemus}, {guests}; {state}")
    return _OK, "; ".join(found)


def _fetchable(why: str) -> tuple[str, str]:
    """``harness doctor``: the state of what the first run fetches, if this host has the tools for it."""
    tools = [tool for tool in ("apt-get", "dpkg-deb") if shutil.which(tool) is None]
    if tools:
        return _MISSING, f"{why}, and it cannot be fetched without {' and '.join(tools)}"
    known = ", ".join(Provisioner(Cache(default_cache_root())).qemu_names())
    return _WARNING, f"{why}: the first run, or 'harness provision', fetches it (QEMU recipes: {known})"


def _entries(cache: Cache, kind: str) -> list[str]:
    folder = cache.root / kind
    return sorted(p.name for p in folder.iterdir() if cache.is_sound(p)) if folder.is_dir() else []


def _kvm(cache: Cache) -> tuple[str, str]:
    if not KVM.exists():
        return _WARNING, f"no {KVM}: guests run under TCG, about six times slower"
    if not os.access(KVM, os.R_OK | os.W_OK):
        return _WARNING, f"no permission to open {KVM}: add this user to the group kvm"
    verdicts = [
        found for path in (cache.root / "accel").glob("kvm-*.json") if (found := cached_verdict(path))
    ]
    if not verdicts:
        return _OK, f"{KVM} can be opened; the first run tries whether a guest boots under it"
    reasons = sorted({_reason(verdict) for verdict in verdicts if verdict.reason})
    return (
        (_WARNING, f"TCG is used instead: {'; '.join(reasons)}") if reasons else (_OK, "guests boot under it")
    )


def _reason(verdict: Verdict) -> str:
    minutes = TIMEOUT_KEPT_S / 60
    return f"{verdict.reason}" + (f" (tried again after {minutes:.0f} minutes)" if verdict.timed_out else "")


def _memory() -> tuple[str, str]:
    free_mib = psutil.virtual_memory().available >> 20
    cores = psutil.cpu_count() or 1
    what = f"{free_mib} MiB available, {cores} cores: pytest -n {min(cores, max(1, free_mib // _MEMORY_MIB))}"
    return (_OK if free_mib >= _MEMORY_MIB else _MISSING), what


def _holds() -> tuple[str, str]:
    reason = why_no_holds()
    if reason is not None:
        return _WARNING, f"tests that hold a 9p request in flight are skipped: {reason}"
    return _OK, "system calls can be held (seccomp user notification)"


def _backtraces() -> tuple[str, str]:
    if shutil.which("gdb") is None:
        return _WARNING, "no gdb: a crashed QEMU leaves no backtrace (apt-get install gdb)"
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    if pattern.startswith("|"):
        return _WARNING, f"kernel.core_pattern is {pattern!r}: core files go elsewhere, so no backtraces"
    return _OK, "gdb is installed, and core files are written"


def _coverage(cache: Cache) -> tuple[str, str]:
    try:
        require_gcovr()
    except UsageError as exc:
        return _WARNING, f"'harness coverage' cannot run: {exc.message}"
    built = [name for name in _entries(cache, "qemu") if f"+{FLAVOUR}-" in name]
    return (
        _OK,
        f"gcovr is installed; in the cache: {', '.join(built) or 'no QEMU that counts, it is built once'}",
    )


def _temporary() -> tuple[str, str]:
    folder = Path(tempfile.gettempdir())
    # The path of a unix socket has at most 107 bytes (man 7 unix); the harness appends about 50.
    if len(str(folder)) > 50:
        return _MISSING, f"{folder} is too long for the paths of unix sockets; set TMPDIR to a shorter path"
    return _OK, f"{folder}, {shutil.disk_usage(folder).free / 1e6:.0f} MB free"
