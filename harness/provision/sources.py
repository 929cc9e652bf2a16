"""Makes apt sources for any Debian release from the archives that this host's apt is configured for.

apt lists its archives (``apt-get indextargets``, ``man 8 apt-get``). What it does not list, such as the
keyring, is read from the file that it names (``man 5 sources.list``). Mirrors, keyrings and trust are those
of the host; only the release differs.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from harness.errors import SetupError

#: Names by which a configured suite is recognised as one of Debian's.
_RELEASES = "stretch|buster|bullseye|bookworm|trixie|forky|sid|unstable|testing|stable|oldstable|oldoldstable"
#: Fields that select packages, which the generated sources set themselves. All other fields are copied.
_OURS = {"types", "uris", "suites", "components", "architectures", "arch", "languages", "lang"}
_OURS |= {"targets", "target", "pdiffs", "enabled"}


def sources(
    release: str, suite: str | None = None, *, types: str = "deb", architecture: str = "amd64"
) -> str:
    """The apt sources for ``release``: a deb822 file with main, its updates and its security archive.

    :param suite: a further suite, such as ``bookworm-backports``. It is in the archive of the release and has
        no updates or security suites.
    :param architecture: Debian's name of that of the packages.
    :param types: ``deb``, or ``deb deb-src`` for source packages as well.
    :raises SetupError: when apt is configured for no Debian archive.
    """
    stanzas = []
    for entry, uri, configured in _configured():
        match = re.fullmatch(rf"(?:{_RELEASES})(|-updates|-security|/updates)/?", configured)
        if match is None:
            continue
        ours = release + match[1].replace("/updates", "-security")
        if release in ("sid", "unstable") and ours != release:
            continue
        if suite and ours == release:
            ours = f"{release} {suite}"
        options = "".join(f"{name}: {value}\n" for name, value in _options(Path(entry), uri).items())
        stanzas.append(
            f"Types: {types}\nURIs: {uri}\nSuites: {ours}\nComponents: main\n"
            f"Architectures: {architecture}\n{options}"
        )
    if not stanzas:
        raise SetupError(
            "apt on this host has no Debian archive (component main) configured; "
            "add one to /etc/apt/sources.list.d"
        )
    return "\n".join(dict.fromkeys(stanzas))


def _configured() -> list[tuple[str, str, str]]:
    """The sources file, URI and suite of the component main of every configured archive."""
    listed = subprocess.run(
        [
            *("apt-get", "indextargets", "--no-release-info", "--format"),
            "$(SOURCESENTRY)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)",
            "Created-By: Packages",
        ],
        env={**os.environ, "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode != 0:
        printed = (listed.stderr.strip().splitlines() or ["nothing"])[0]
        raise SetupError(f"apt-get indextargets failed; check apt's configuration; it printed: {printed}")
    rows = [line.split("|") for line in dict.fromkeys(listed.stdout.splitlines())]
    return [(row[0].rpartition(":")[0], row[1], row[2]) for row in rows if len(row) == 4 and row[3] == "main"]


def _options(path: Path, uri: str) -> dict[str, str]:
    """Further fields of apt's entry for ``uri`` in the file ``path``.

    Such as ``signed-by`` and ``trusted``.
    """
    try:
        text = path.read_text()
    except OSError:
        return {}  # Only root may read it; what apt has listed has to suffice.
    entries = _stanzas(text) if path.suffix == ".sources" else _lines(text)
    for entry in entries:
        addresses = [address.rstrip("/") for address in entry.get("uris", "").split()]
        if uri.rstrip("/") in addresses:
            return {k: v for k, v in entry.items() if k not in _OURS and not k.startswith("x-")}
    return {}


def _stanzas(text: str) -> list[dict[str, str]]:
    """The stanzas of a ``.sources`` file of apt, with lower-case field names and continuation lines."""
    kept = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    return [
        {
            name.lower(): value.rstrip()
            for name, value in re.findall(r"^([\w-]+):[ \t]*(.*(?:\n[ \t].*)*)", stanza, re.MULTILINE)
        }
        for stanza in re.split(r"\n\s*\n", kept)
    ]


def _lines(text: str) -> list[dict[str, str]]:
    """The entries of a one-line ``.list`` file of apt: ``deb [option=value …] uri suite component…``."""
    entries = []
    for match in re.finditer(r"^\s*deb\s+(?:\[([^]]*)\]\s*)?(\S+)\s", text, re.MULTILINE):
        pairs = (word.partition("=") for word in (match[1] or "").split())
        entries.append({"uris": match[2], **{name.lower(): value for name, _, value in pairs}})
    return entries
