"""Debian packages of any release, fetched through the host's own apt configuration, without root.

apt is told to keep everything (lists, archives, status) in a private folder. The mirror, proxies and
certificates are those that the host is configured for; only the release is another. What apt signs and
verifies stays verified.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness.deadline import wait_until
from harness.errors import SetupError
from harness.provision.space import no_space

Report = Callable[[str], None]
#: Names by which a configured source can be recognised as a Debian release (or a suite of one).
_RELEASES = "stretch|buster|bullseye|bookworm|trixie|forky|sid|unstable|testing|stable|oldstable|oldoldstable"
_KEYRINGS = ("debian-archive-keyring.gpg", "debian-archive-keyring.pgp")
_TIMEOUT_S = 1800
_HOOKS = ("APT::Update::Pre-Invoke", "APT::Update::Post-Invoke", "APT::Update::Post-Invoke-Success")


@dataclass(frozen=True)
class Package:
    """A resolved package: its name, full version, archive file name and size in bytes."""

    name: str
    version: str
    filename: str
    size: int


class Apt:
    """apt for one release, in a private folder.

    :param folder: an empty folder for its lists and archives.
    :raises SetupError: without apt, or without a Debian archive in the host's configuration.
    """

    def __init__(self, folder: Path, release: str, report: Report) -> None:
        for tool in ("apt-get", "dpkg-deb"):
            if shutil.which(tool) is None:
                raise SetupError(f"{tool} is not installed; packages are fetched with Debian's own tools")
        self._folder, self._release, self._report = folder, release, report
        for name in ("lists/partial", "archives/partial"):
            (folder / name).mkdir(parents=True)
        (folder / "sources.list").write_text("\n".join(_sources(release)) + "\n")
        self._config = folder / "apt.conf"
        self._config.write_text(_configuration(folder))

    def update(self) -> None:
        """Fetch the package lists.

        :raises SetupError: with apt's own words, when the archive cannot be reached.
        """
        self._report(f"fetching the package lists of {self._release} …")
        self._run("update", "--error-on=any")

    def resolve(self, *packages: str) -> list[Package]:
        """``packages`` and all that they depend on, as apt would install them on an empty system."""
        output = self._run("install", "--print-uris", "-y", "--no-install-recommends", *packages)
        found = re.findall(r"^'[^']+' (\S+)_(\S+)_\S+\.deb (\d+) ", output, re.MULTILINE)
        names = re.findall(r"^'[^']+' (\S+\.deb) \d+ ", output, re.MULTILINE)
        return sorted(
            (
                Package(name, version.replace("%3a", ":"), filename, int(size))
                for (name, version, size), filename in zip(found, names, strict=True)
            ),
            key=lambda package: package.name,
        )

    def download(self, packages: list[Package]) -> list[Path]:
        """Fetch exactly ``packages``; apt verifies their hashes. Returns the archives' paths."""
        archives = self._folder / "debs"
        archives.mkdir(exist_ok=True)
        total_mb = sum(package.size for package in packages) / 1e6
        self._report(f"fetching {len(packages)} packages of {self._release}, {total_mb:.0f} MB …")
        wanted = [f"{package.name}={package.version}" for package in packages]
        self._run("download", *wanted, cwd=archives, progress=lambda: _progress(archives, total_mb))
        return [archives / package.filename for package in packages]

    def _run(
        self,
        command: str,
        *arguments: str,
        cwd: Path | None = None,
        progress: Callable[[], str] | None = None,
    ) -> str:
        argv = ["apt-get", "-c", str(self._config), "-q", command, *arguments]
        log = self._folder / "apt.log"
        with log.open("w+") as out:
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, cwd=cwd or self._folder
            )
            try:
                self._await(process, progress)
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
        output = log.read_text(errors="replace")
        if process.returncode != 0:
            raise _failure(command, self._release, output)
        return output

    def _await(self, process: subprocess.Popen[bytes], progress: Callable[[], str] | None) -> None:
        turns = 0

        def ended() -> bool:
            nonlocal turns
            turns += 1
            if progress is not None and turns % 20 == 0:
                self._report(progress())
            return process.poll() is not None

        wait_until(ended, what="apt-get", timeout_s=_TIMEOUT_S, interval_s=0.1)


def unpack(archives: list[Path], root: Path, report: Report) -> None:
    """Unpack Debian packages into ``root`` (``dpkg-deb -x``); needs no root.

    :raises SetupError: for a broken archive, or a full disk.
    """
    root.mkdir(parents=True, exist_ok=True)
    report(f"unpacking {len(archives)} packages …")
    for archive in archives:
        done = subprocess.run(
            ["dpkg-deb", "-x", str(archive), str(root)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            said = done.stderr.strip()
            if "No space left" in said:
                raise no_space(root)
            raise SetupError(f"cannot unpack {archive.name}: {said.splitlines()[-1] if said else 'dpkg-deb'}")


def _sources(release: str) -> list[str]:
    """One-line sources for ``release`` at the archives that the host is configured for."""
    found = subprocess.run(
        ["apt-get", "indextargets", "--no-release-info", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)"],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = []
    for target in dict.fromkeys(found.stdout.splitlines()):
        match = re.fullmatch(rf"(\S+) (?:{_RELEASES})(|-updates|-security|/updates)/? main", target)
        if match is not None:
            suite = release + match[2].replace("/updates", "-security")
            lines.append(f"deb {_options(match[1])} {match[1]} {suite} main")
    if not lines:
        raise SetupError(
            "apt's configuration on this host names no Debian archive (component main); "
            "add one to /etc/apt/sources.list.d"
        )
    if release in ("sid", "unstable"):
        lines = [line for line in lines if line.split()[-2] == release]
    return list(dict.fromkeys(lines))


def _options(uri: str) -> str:
    if uri.startswith(("file:", "copy:")):
        return "[arch=amd64 trusted=yes]"  # A repository on this host's own disk.
    for name in _KEYRINGS:
        keyring = Path("/usr/share/keyrings") / name
        if keyring.exists():
            return f"[arch=amd64 signed-by={keyring}]"
    return "[arch=amd64]"


def _configuration(folder: Path) -> str:
    """Read by apt after the host's configuration, over which it wins."""
    lines = [f"#clear {hook};" for hook in _HOOKS]
    lines += [
        f'Dir::State "{folder}";',
        f'Dir::State::Lists "{folder}/lists";',
        'Dir::State::status "/dev/null";',
        f'Dir::Cache "{folder}";',
        f'Dir::Cache::Archives "{folder}/archives";',
        f'Dir::Etc::sourcelist "{folder}/sources.list";',
        'Dir::Etc::sourceparts "/dev/null";',
        'Dir::Etc::preferences "/dev/null";',
        'Dir::Etc::preferencesparts "/dev/null";',
        'APT::Architecture "amd64";',
        'APT::Architectures { "amd64"; };',
        'APT::Install-Recommends "0";',
        'APT::Sandbox::User "root";',
        'Acquire::Languages "none";',
        'Acquire::Retries "3";',
        'Debug::NoLocking "1";',
    ]
    return "\n".join(lines) + "\n"


def _progress(archives: Path, total_mb: float) -> str:
    done_mb = sum(path.stat().st_size for path in archives.iterdir()) / 1e6
    return f"  {done_mb:.0f} of {total_mb:.0f} MB"


def _failure(command: str, release: str, output: str) -> SetupError:
    if "No space left" in output:
        return no_space(None)
    errors = [line for line in output.splitlines() if line.startswith(("E:", "Err:"))]
    said = errors[-1] if errors else (output.strip().splitlines() or ["and said nothing"])[-1]
    return SetupError(
        f"apt-get {command} for {release} failed: {said} (is there a network? A filled cache needs none)",
        details="\n".join(output.splitlines()[-15:]),
    )
