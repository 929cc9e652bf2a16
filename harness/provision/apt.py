"""Debian packages of any release, fetched with the host's own apt, without root.

apt is told to keep everything (lists, archives, status) in a private folder, on top of the host's own
configuration: proxies, certificates and time-outs stay. What apt signs and verifies stays verified.
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
_POLL_S = 0.05
#: Commands of the host that apt runs around an update: they are about the host's packages, not ours.
_HOOKS = ("APT::Update::Pre-Invoke", "APT::Update::Post-Invoke", "APT::Update::Post-Invoke-Success")
_ENVIRONMENT = {"LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}


class Withdrawn(SetupError):
    """The archive has replaced a version that was remembered; resolving again finds its destination."""


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
        """Whether it is a file of a source package."""
        return not self.filename.endswith(".deb")

    def is_intact(self, archive: Path) -> bool:
        """Whether ``archive`` is this package's file, whole."""
        algorithm, _, expected = self.digest.partition(":")
        try:
            with archive.open("rb") as file:
                return hashlib.file_digest(file, algorithm.lower()).hexdigest() == expected
        except OSError:
            return False


class Apt:
    """apt for one release, in an empty private folder, with fresh package lists.

    :param suite: a suite of the release that a package comes from where it is there (apt's target release).
    :param sources_too: fetch the lists of source packages as well.
    :raises SetupError: without apt, without a Debian archive in the host's configuration, or, with apt's own
        words, when that archive cannot be reached.
    """

    def __init__(
        self,
        folder: Path,
        release: str,
        report: Report,
        *,
        suite: str | None = None,
        sources_too: bool = False,
    ) -> None:
        require_tools()
        self._folder, self._release, self._report = folder, suite or release, report
        for name in ("lists/partial", "archives/partial"):
            (folder / name).mkdir(parents=True)
        types = "deb deb-src" if sources_too else "deb"
        (folder / "debian.sources").write_text(sources(release, suite, types=types))
        self._config = folder / "apt.conf"
        self._config.write_text(_configuration(folder, suite))
        report(f"fetching the package lists of {self._release} …")
        self._run("update", "--error-on=any")

    def resolve(self, *packages: str) -> list[Package]:
        """``packages`` and all that they depend on, as apt would install them on an empty system."""
        output = self._run("install", "--print-uris", "-y", "--no-install-recommends", *packages)
        found = []
        for match in re.finditer(r"^'[^']+' (\S+\.deb) (\d+) (\S+:\w+)$", output, re.MULTILINE):
            name, version, _ = match[1].split("_", 2)
            version = version.replace("%3a", ":")
            found.append(Package(name, version, match[1], int(match[2]), match[3]))
        return sorted(found, key=lambda package: package.name)

    def resolve_source(self, package: str) -> list[Package]:
        """The files of a source package: its description, the original archive, Debian's changes."""
        output = self._run("source", "--print-uris", package)
        found = re.findall(r"^'[^']+' (\S+) (\d+) (\S+:\w+)$", output, re.MULTILINE)
        description = next((name for name, _, _ in found if name.endswith(".dsc")), None)
        if description is None:
            raise SetupError(f"the source package {package} of {self._release} has no description (.dsc)")
        version = description.removesuffix(".dsc").split("_", 1)[1]
        return [Package(package, version, name, int(size), digest) for name, size, digest in found]

    def download(self, packages: list[Package], into: Path, progress: Report) -> None:
        """Fetch exactly ``packages``; apt verifies their hashes.

        :raises Withdrawn: when the archive no longer has one of these versions.
        """
        wanted = [f"{package.name}={package.version}" for package in packages if not package.is_source]
        total = sum(package.size for package in packages)

        def tell() -> None:
            done = sum(path.stat().st_size for path in into.iterdir())
            progress(f"  {done / 1e6:.0f} of {total / 1e6:.0f} MB ({100 * done // max(total, 1)} %)")

        if wanted:
            self._run("download", *wanted, cwd=into, tell=tell)
        for name in dict.fromkeys(package.name for package in packages if package.is_source):
            self._run("source", "--download-only", name, cwd=into, tell=tell)
        for package in packages:
            # The archive gives its newest: a source cannot be asked for by the version in its file's name.
            if package.is_source and not package.is_intact(into / package.filename):
                raise Withdrawn(f"{package.filename} is no longer in the archive of {self._release}")

    def _run(
        self, command: str, *arguments: str, cwd: Path | None = None, tell: Callable[[], None] | None = None
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
                _await(process, tell)
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
        output = log.read_text(errors="replace")
        if process.returncode != 0:
            raise _failure(command, self._release, output)
        return output


def require_tools() -> None:
    """:raises SetupError: when this host has not the tools of Debian."""
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise SetupError(
                f"{tool} is not on PATH: Debian packages are unpacked with Debian's own tools; "
                "use a host that has them, or copy a filled cache here (HARNESS_CACHE)"
            )


def unpack(archives: list[Path], root: Path, progress: Report) -> None:
    """Unpack Debian packages into ``root`` (``dpkg-deb -x``); needs no root.

    :raises SetupError: for a broken archive. :raises OSError: for a full disk.
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
            said = done.stderr.strip().splitlines() or ["nothing"]
            raise SetupError(f"cannot unpack {archive.name}; dpkg-deb said: {said[-1]}")


def _await(process: subprocess.Popen[bytes], tell: Callable[[], None] | None) -> None:
    turns = 0

    def ended() -> bool:
        nonlocal turns
        turns += 1
        if tell is not None and turns % int(_REPORT_EVERY_S / _POLL_S) == 0:
            tell()
        return process.poll() is not None

    try:
        wait_until(ended, what="apt-get", timeout_s=_TIMEOUT_S, interval_s=_POLL_S)
    except WaitTimeout as exc:
        raise SetupError(f"apt-get was not done after {_TIMEOUT_S} s; is the mirror stuck?") from exc


def _configuration(folder: Path, suite: str | None) -> str:
    """Read by apt after the host's configuration, over which it wins."""
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
        'APT::Architecture "amd64";',
        'APT::Architectures { "amd64"; };',
        'APT::Install-Recommends "0";',
        'APT::Sandbox::User "root";',
        'Acquire::ForceHash "SHA256";',
        'Acquire::Languages "none";',
        'Acquire::Retries "3";',
        'Debug::NoLocking "1";',
    ]
    return "\n".join(lines) + "\n"


def _raise_if_full(said: str) -> None:
    if "No space left" in said or "enough free space" in said:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _failure(command: str, release: str, output: str) -> SetupError:
    _raise_if_full(output)
    details = "\n".join(output.splitlines()[-15:])
    errors = [line for line in output.splitlines() if line.startswith("E: ")]
    gone = [line for line in errors if re.search(r"Version '.*' for '.*' was not found", line)]
    if gone:
        return Withdrawn(f"apt-get {command} for {release}: {gone[0]}", details=details)
    # The last line only counts the failures; the one before it has the reason.
    causes = [line for line in errors if "Some index files failed" not in line]
    said = (causes or errors or output.strip().splitlines() or ["nothing"])[-1]
    hint = "; is there a network? (A filled cache needs none)" if "fetch" in said else ""
    return SetupError(f"apt-get {command} for {release} failed: {said}{hint}", details=details)
