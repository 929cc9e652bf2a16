from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import SetupError
from harness.provision.sources import sources

_KEY = "-----BEGIN PGP PUBLIC KEY BLOCK-----"
DEB822 = f"""\
# The main archive.
Types: deb deb-src
URIs: http://mirror.invalid/debian
Suites: bookworm bookworm-updates
# between two fields
Components: main contrib
Signed-By:
 {_KEY}
 .
 abc

Enabled: no
Types: deb
URIs: http://disabled.invalid/debian
Suites: bookworm
Components: main

Types: deb
URIs: http://security.invalid/debian-security/
Suites: bookworm-security
Components: main
Signed-By: /usr/share/keyrings/some.gpg

Types: deb
URIs: http://other.invalid/nodistro
Suites: nodistro
Components: main
"""
ONE_LINE = """\
deb [ arch=amd64,i386 signed-by=/k.gpg trusted=yes ] http://mirror.invalid/debian stable main non-free
deb http://plain.invalid/debian bookworm-updates main
# deb http://commented.invalid/debian bookworm main
deb-src [ signed-by=/k.gpg trusted=yes ] http://mirror.invalid/debian stable main
deb http://flat.invalid/debian ./
"""


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty ``sources.list.d`` that apt believes to be this host's."""
    parts = tmp_path / "sources.list.d"
    parts.mkdir()
    config = tmp_path / "apt.conf"
    config.write_text(f'Dir::Etc::sourcelist "/dev/null";\nDir::Etc::sourceparts "{parts}";\n')
    monkeypatch.setenv("APT_CONFIG", str(config))
    return parts


def stanzas(text: str) -> list[dict[str, str]]:
    return [
        dict(line.split(": ", 1) for line in stanza.splitlines() if ": " in line)
        for stanza in text.split("\n\n")
    ]


def test_deb822_sources_keep_all_but_the_release(host: Path) -> None:
    (host / "debian.sources").write_text(DEB822)
    text = sources("trixie")
    found = {(s["URIs"], s["Suites"]): s for s in stanzas(text)}
    assert set(found) == {
        ("http://mirror.invalid/debian/", "trixie"),
        ("http://mirror.invalid/debian/", "trixie-updates"),
        ("http://security.invalid/debian-security/", "trixie-security"),
    }
    security = found["http://security.invalid/debian-security/", "trixie-security"]
    assert security["signed-by"] == "/usr/share/keyrings/some.gpg"
    assert all(s["Types"] == "deb" and s["Components"] == "main" for s in found.values())
    assert f"signed-by: \n {_KEY}\n .\n abc" in text, "a key within the file is kept whole"


def test_one_line_sources_keep_all_but_the_release(host: Path) -> None:
    (host / "debian.list").write_text(ONE_LINE)
    first, second = stanzas(sources("bookworm"))
    assert (first["URIs"], first["Suites"]) == ("http://mirror.invalid/debian/", "bookworm")
    assert (first["signed-by"], first["trusted"], first["Architectures"]) == ("/k.gpg", "yes", "amd64")
    assert (second["URIs"], second["Suites"]) == ("http://plain.invalid/debian/", "bookworm-updates")
    assert "signed-by" not in second


def test_a_further_suite_is_only_in_the_releases_own_archive(host: Path) -> None:
    """Backports have neither updates nor a security archive: apt would find no Release file there."""
    (host / "debian.sources").write_text(DEB822)
    found = {(s["URIs"], s["Suites"]) for s in stanzas(sources("bookworm", "bookworm-backports"))}
    assert found == {
        ("http://mirror.invalid/debian/", "bookworm bookworm-backports"),
        ("http://mirror.invalid/debian/", "bookworm-updates"),
        ("http://security.invalid/debian-security/", "bookworm-security"),
    }


def test_apt_reads_what_was_written(host: Path, tmp_path: Path) -> None:
    """Applied to its own output, nothing changes: both formats mean what was meant."""
    (host / "debian.sources").write_text(DEB822)
    once = sources("trixie")
    (host / "debian.sources").write_text(once)
    assert sources("trixie") == once


def test_unstable_has_neither_updates_nor_security(host: Path) -> None:
    (host / "debian.sources").write_text(DEB822)
    assert [s["Suites"] for s in stanzas(sources("sid"))] == ["sid"]


def test_a_host_without_a_debian_archive(host: Path) -> None:
    (host / "other.list").write_text("deb http://other.invalid/nodistro nodistro main\n")
    with pytest.raises(SetupError, match="has no Debian archive"):
        sources("bookworm")


def test_a_broken_configuration_is_reported_with_apts_message(host: Path) -> None:
    (host / "broken.list").write_text("deb\n")
    with pytest.raises(SetupError, match=r"apt-get indextargets failed.*E: Malformed line 1"):
        sources("bookworm")
