"""A build root: a Debian release's compiler and libraries in a folder, with which commands run as their root.

A QEMU of any release is compiled by that release's own compiler against its own libraries, on any host and
without root. The packages are unpacked, not installed: maintainer scripts do not run, and :func:`complete`
makes the few links that they would have made.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from harness.deadline import wait_until
from harness.errors import SetupError, WaitTimeout
from harness.provision.apt import Report

#: Links that ``update-alternatives`` would have made.
_ALTERNATIVES = {"usr/bin/awk": "gawk", "usr/bin/cc": "gcc"}
_WORK = "work"
#: When this process ends in any way, ``unshare`` is killed, and with it (``--kill-child``) all that it runs.
_DIE_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL")
_NAMESPACES = ("unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--kill-child")
_POLL_S = 0.02
_REPORT_EVERY_S = 10.0
#: Runs in the namespaces: mounts the host's /dev and /proc and the work folder, then changes the root.
_ENTER = """
set -e
root=$1 work=$2; shift 2
mount --rbind /dev "$root/dev"
mount --rbind /proc "$root/proc"
mount --bind "$work" "$root/work"
exec chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 HOME=/tmp "$@"
"""


class ScriptFailed(SetupError):
    """A script failed in a build root: it ran, and what it builds is at fault."""


def complete(root: Path) -> None:
    """Make a folder of unpacked packages usable as a build root."""
    for name, target in _ALTERNATIVES.items():
        if not (root / name).exists():
            (root / name).symlink_to(target)
    for name in (_WORK, "dev", "proc", "tmp"):
        (root / name).mkdir(exist_ok=True)
    # QEMU's configure makes a venv with pip, which loads this file even when it fetches nothing.
    certificates = sorted((root / "usr/share/ca-certificates").rglob("*.crt"))
    bundle = root / "etc/ssl/certs/ca-certificates.crt"
    bundle.parent.mkdir(parents=True, exist_ok=True)
    bundle.write_bytes(b"".join(path.read_bytes() for path in certificates))


class BuildRoot:
    """Runs commands in the unpacked release at ``root``, where the folder ``work`` is ``/work``."""

    def __init__(self, root: Path, work: Path, report: Report) -> None:
        self._root, self._work, self._report = root, work, report

    def run(self, script: str, *, what: str, timeout_s: float = 3600) -> str:
        """Run a shell script in the build root and return its output, which is kept in ``work/WHAT.log``.

        The script has its own mount, pid and user namespaces (``man 1 unshare``), which end with it.

        :param what: the script's name, for messages and the log.
        :param timeout_s: seconds.
        :raises ScriptFailed: when the script fails, with its last lines.
        :raises SetupError: when it does not end in time; when the host has no user namespaces.
        """
        for tool in (_DIE_WITH_PARENT[0], _NAMESPACES[0]):
            if shutil.which(tool) is None:
                raise SetupError(f"{tool} is not on PATH: a QEMU is built in namespaces; install util-linux")
        log = self._work / f"{what}.log"
        argv = [*_DIE_WITH_PARENT, *_NAMESPACES, "sh", "-c", _ENTER, "sh"]
        inside = f"cd /{_WORK} && {script}"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*argv, str(self._root), str(self._work), "sh", "-c", inside],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
            try:
                self._await(process, log, what, timeout_s)
            finally:
                _end(process)
        output = log.read_text(errors="replace")
        if process.returncode != 0:
            raise _failure(what, log, output)
        return output

    def _await(self, process: subprocess.Popen[bytes], log: Path, what: str, timeout_s: float) -> None:
        turns = 0

        def ended() -> bool:
            nonlocal turns
            turns += 1
            if turns % int(_REPORT_EVERY_S / _POLL_S) == 0:
                last = log.read_text(errors="replace").splitlines()[-1:]
                self._report(f"  {what}: {''.join(last)[:90]}")
            return process.poll() is not None

        try:
            wait_until(ended, what=what, timeout_s=timeout_s, interval_s=_POLL_S)
        except WaitTimeout as exc:
            raise SetupError(f"{what} did not end within {timeout_s} s; its output is in {log}") from exc


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a command in the build root that still runs, and everything that it started."""
    if process.poll() is None:
        process.kill()
        process.wait()


def _failure(what: str, log: Path, output: str) -> SetupError:
    lines = output.strip().splitlines()
    if lines and lines[0].startswith("unshare:"):
        return SetupError(
            f"this host does not permit user namespaces, in which a QEMU is built ({lines[0]}); "
            "see user.max_user_namespaces and kernel.unprivileged_userns_clone in sysctl"
        )
    causes = [line for line in lines if "error:" in line.lower() or line.startswith("FAILED")]
    cause = (causes or lines or ["it printed nothing"])[-1 if not causes else 0]
    return ScriptFailed(f"{what} failed: {cause} (its output: {log})", details="\n".join(lines[-15:]))
