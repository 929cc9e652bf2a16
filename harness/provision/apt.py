"""Fetches Debian packages of any release with the host's own apt, without root.

apt keeps its lists, archives and status in a private folder. The rest of the host's apt configuration stays
in effect, such as proxies, certificates and time-outs. apt verifies signatures and hashes as usual.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness.deadline import wait_until
from harness.errors import SetupError, WaitTimeout
from harness.provision.sources import sources

Report = Callable[[str], None]
_TIMEOUT_S = 1800
_REPORT_EVERY_S = 2.0
_POLL_S = 0.01
#: Commands that the host's configuration runs around an update. They concern the host's packages, not ours.
_HOOKS = ("APT::Update::Pre-Invoke", "APT::Update::Post-Invoke", "APT::Update::Post-Invoke-Success")
_ENVIRONMENT = {"LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}


class Withdrawn(SetupError):
    """The archive no longer has a version that was resolved earlier; resolving again finds another."""


@dataclass(frozen=True)
class Package:
    """A resolved package; ``digest`` is apt's ``ALGORITHM:hex`` of the archive file, ``size`` in bytes."""

    name: str
    version: str
    filename: str
    size: int
    digest: str

    @property
    def is_source(self) -> bool:
        """Whether the Debian package is a file of a source package."""
        return not self.filename.endswith(".deb")

    def is_intact(self, archive: Path) -> bool:
        """Whether the file ``archive`` exists and has this package's digest."""
        algorithm, _, expected = self.digest.partition(":")
        try:
            with archive.open("rb") as file:
                return hashlib.file_digest(file, algorithm.lower()).hexdigest() == expected
        except OSError:
            return False


class Apt:
    """apt for one release, in an empty private folder, with fresh package lists.

    :param suite: a suite of the release that is preferred for packages that it has (apt's target release).
    :param sources_too: fetch the lists of source packages as well.
    :param architecture: Debian's name of that of the packages.
    :raises SetupError: when the host has no apt, or its apt configuration has no Debian archive, or the
        archive cannot be reached (with apt's message).
    """

    def __init__(
        self,
        folder: Path,
        release: str,
        report: Report,
        *,
        suite: str | None = None,
        sources_too: bool = False,
        architecture: str = "amd64",
    ) -> None:
        require_tools()
        self._folder, self._release, self._report = folder, suite or release, report
        for name in ("lists/partial", "archives/partial"):
            (folder / name).mkdir(parents=True)
        types = "deb deb-src" if sources_too else "deb"
        (folder / "debian.sources").write_text(
            sources(release, suite, types=types, architecture=architecture)
        )
        self._config = folder / "apt.conf"
        self._config.write_text(_configuration(folder, suite, architecture))
        report(f"fetching the package lists of {self._release} …")
        self._run("update", "--error-on=any")

    def resolve(self, *packages: str) -> list[Package]:
        """Resolve Debian packages and all dependencies, as apt would install them on an empty system."""
        output = self._run("install", "--print-uris", "-y", "--no-install-recommends", *packages)
        found = []
        for match in re.finditer(r"^'[^']+' (\S+\.deb) (\d+) (\S+:\w+)$", output, re.MULTILINE):
            name, version, _ = match[1].split("_", 2)
            version = version.replace("%3a", ":")
            found.append(Package(name, version, match[1], int(match[2]), match[3]))
        return sorted(found, key=lambda package: package.name)

    def resolve_source(self, package: str) -> list[Package]:
        """The files of a source package: its description (.dsc), the upstream archive, Debian's changes."""
        output = self._run("source", "--print-uris", package)
        found = re.findall(r"^'[^']+' (\S+) (\d+) (\S+:\w+)$", output, re.MULTILINE)
        description = next((name for name, _, _ in found if name.endswith(".dsc")), None)
        if description is None:
            raise SetupError(f"the source package {package} of {self._release} has no description (.dsc)")
        version = description.removesuffix(".dsc").split("_", 1)[1]
        return [Package(package, version, name, int(size), digest) for name, size, digest in found]

    def download(self, packages: list[Package], into: Path, progress: Report) -> None:
        """Fetch exactly these versions of ``packages`` into the folder ``into``; apt verifies their hashes.

        :param progress: called every two seconds with the number of bytes fetched, as text.
        :raises Withdrawn: when the archive no longer has one of these versions.
        """
        wanted = [f"{package.name}={package.version}" for package in packages if not package.is_source]
        total = sum(package.size for package in packages)

        def report_size() -> None:
            done = sum(path.stat().st_size for path in into.iterdir())
            progress(f"  {done / 1e6:.0f} of {total / 1e6:.0f} MB ({100 * done // max(total, 1)} %)")

        if wanted:
            self._run("download", *wanted, cwd=into, while_waiting=report_size)
        for name in dict.fromkeys(package.name for package in packages if package.is_source):
            self._run("source", "--download-only", name, cwd=into, while_waiting=report_size)
        for package in packages:
            # apt fetches the newest source: it cannot select one by the version in the file's name.
            if package.is_source and not package.is_intact(into / package.filename):
                raise Withdrawn(f"{package.filename} is no longer in the archive of {self._release}")

    def _run(
        self,
        command: str,
        *arguments: str,
        cwd: Path | None = None,
        while_waiting: Callable[[], None] | None = None,
    ) -> str:
        argv = ["apt-get", "-c", str(self._config), "-q", command, *arguments]
        log = self._folder / "apt.log"
        with log.open("w") as out:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=cwd or self._folder,
                env={**os.environ, **_ENVIRONMENT},
            )
            try:
                _await(process, while_waiting)
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
        output = log.read_text(errors="replace")
        if process.returncode != 0:
            raise _failure(command, self._release, output)
        return output


def require_tools() -> None:
    """Check that this host has ``apt-get`` and ``dpkg-deb``.

    :raises SetupError: when one of them is missing.
    """
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise SetupError(
                f"{tool} is not on PATH, and is needed to unpack Debian packages; "
                "use a host that has it, or copy a filled cache to this one (HARNESS_CACHE)"
            )


def unpack(archives: list[Path], root: Path, progress: Report) -> None:
    """Unpack Debian packages into ``root`` (``dpkg-deb -x``); needs no root.

    :raises SetupError: when an archive is broken. :raises OSError: when the disk is full.
    """
    root.mkdir(parents=True, exist_ok=True)
    for number, archive in enumerate(archives):
        if number % 25 == 0:
            progress(f"unpacking {number} of {len(archives)} packages …")
        done = subprocess.run(
            ["dpkg-deb", "-x", str(archive), str(root)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **_ENVIRONMENT},
        )
        if done.returncode != 0:
            _raise_if_full(done.stderr)
            printed = done.stderr.strip().splitlines() or ["nothing"]
            raise SetupError(f"cannot unpack {archive.name}; dpkg-deb printed: {printed[-1]}")


def _await(process: subprocess.Popen[bytes], while_waiting: Callable[[], None] | None) -> None:
    turns = 0

    def ended() -> bool:
        nonlocal turns
        turns += 1
        if while_waiting is not None and turns % int(_REPORT_EVERY_S / _POLL_S) == 0:
            while_waiting()
        return process.poll() is not None

    try:
        wait_until(ended, what="apt-get", timeout_s=_TIMEOUT_S, interval_s=_POLL_S)
    except WaitTimeout as exc:
        raise SetupError(f"apt-get did not end within {_TIMEOUT_S} s; check that its mirror answers") from exc


def _configuration(folder: Path, suite: str | None, architecture: str) -> str:
    """The configuration for apt, which reads it after the host's: these settings override that."""
    lines = [f"#clear {hook};" for hook in _HOOKS]
    lines += [
        f'Dir::State "{folder}";',
        f'Dir::State::Lists "{folder}/lists";',
        'Dir::State::status "/dev/null";',
        f'Dir::Cache "{folder}";',
        f'Dir::Cache::Archives "{folder}/archives";',
        f'Dir::Etc::sourcelist "{folder}/debian.sources";',
        'Dir::Etc::sourceparts "/dev/null";',
        'Dir::Etc::preferences "/dev/null";',
        'Dir::Etc::preferencesparts "/dev/null";',
        f'APT::Default-Release "{suite or ""}";',
        f'APT::Architecture "{architecture}";',
        f'APT::Architectures {{ "{architecture}"; }};',
        'APT::Install-Recommends "0";',
        'APT::Sandbox::User "root";',
        'Acquire::ForceHash "SHA256";',
        'Acquire::Languages "none";',
        'Acquire::Retries "3";',
        'Debug::NoLocking "1";',
    ]
    return "\n".join(lines) + "\n"


def _raise_if_full(output: str) -> None:
    if "No space left" in output or "enough free space" in output:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _failure(command: str, release: str, output: str) -> SetupError:
    _raise_if_full(output)
    details = "\n".join(output.splitlines()[-15:])
    errors = [line for line in output.splitlines() if line.startswith("E: ")]
    gone = [line for line in errors if re.search(r"Version '.*' for '.*' was not found", line)]
    if gone:
        return Withdrawn(f"apt-get {command} for {release}: {gone[0]}", details=details)
    # The last line is only a summary of the failures; the one before it has the reason.
    causes = [line for line in errors if "Some index files failed" not in line]
    cause = (causes or errors or output.strip().splitlines() or ["it printed nothing"])[-1]
    hint = "; check the network (a filled cache needs none)" if "fetch" in cause else ""
    return SetupError(f"apt-get {command} for {release} failed: {cause}{hint}", details=details)
