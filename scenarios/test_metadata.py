"""Plain use: types, owners, modes, times, links, attributes and names of files are as in any file system.

Most scenarios are tables of shell commands and the output that each must have. An errno's name in place of
the output means that the command must fail with it.

The security model of a share defines how the guest's files are kept on the host (``man 1
qemu-system-x86_64``, ``-fsdev local``). With ``none`` and ``passthrough`` they are there as the guest made
them. With the mapped models they are plain files of QEMU's user; owner, mode and type are in extended
attributes (``mapped-xattr``) or in a file in ``.virtfs_metadata`` (``mapped-file``).
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from harness.actions.hotplug import Hotplug
from harness.errors import Unsupported, Violation
from harness.guest.guest import Guest
from harness.guest.mount import Mount
from harness.guest.table import Row, calls, expect_printed, printed
from harness.holds.file_systems import FileSystems
from harness.holds.hold import MKDIR, SETXATTR, Hold
from harness.ninep import messages as p9
from harness.ninep.client import MSIZE, NineError, RawDriver, RawGuest
from harness.ninep.messages import UNIX_VERSION, T
from harness.ninep.session import METADATA, PROTOCOLS, error_context, start_session
from harness.plugin.thorough import by_default
from harness.qemu.spec import Share
from harness.testbed import Testbed

#: With the first two the guest's files have their type, owner and mode on the host as well.
MODELS = ("none", "passthrough", "mapped-xattr", "mapped-file")
MAPPED = MODELS[2:]


def _id(model: str) -> str:
    """The model as a parameter id, in which a dash would separate two parameters."""
    return model.replace("-", "_")


@pytest.fixture
def shares(testbed: Testbed) -> tuple[Share, ...]:
    """Four exports, one of each security model."""
    return testbed.declare(
        *(replace(share, security_model=model) for share, model in zip(testbed.shares, MODELS, strict=True))
    )


@pytest.fixture
def modelled(shares: tuple[Share, ...], model: str) -> Share:
    """The export with the test's security model."""
    return _of(shares, model)


def _of(shares: tuple[Share, ...], model: str) -> Share:
    """The export with that security model.

    :raises Unsupported: when this host cannot have such an export.
    """
    share = shares[MODELS.index(model)]
    if model not in MAPPED:
        _require_owners()
    if model == "mapped-xattr":
        _require_xattrs(share.path)
    return share


def _require_owners() -> None:
    """Require root: QEMU has to call chown and mknod on the host for the guest's files."""
    if os.geteuid() != 0:
        raise Unsupported("security_model=none, passthrough: chown and mknod need a QEMU that runs as root")


def _require_xattrs(folder: Path) -> None:
    try:
        os.setxattr(folder, "user.probe", b"1")
        os.removexattr(folder, "user.probe")
    except OSError as exc:
        raise Unsupported(f"the file system of {folder} has no user attributes: {exc.strerror}") from exc


def mounted(guest: Guest, hotplug: Hotplug, share: Share, options: str = "") -> Mount:
    """Plug and mount a share, and install the guest's program for calls that no shell command makes."""
    calls(guest)
    hotplug.plug(share)
    return guest.mount(share, options=options)


def on_host(share: Share) -> dict[str, os.stat_result]:
    """The status of each file that the guest has made, as the host sees it, by relative path."""
    found = sorted(share.path.rglob("*"))
    names = {str(path.relative_to(share.path)): path for path in found}
    return {name: path.lstat() for name, path in names.items() if not set(path.parts) & set(METADATA)}


SPECIAL: tuple[Row, ...] = (
    ("mkdir d", ""),
    ("mkfifo -m 640 d/fifo", ""),
    ("mknod -m 600 d/c c 1 3", ""),
    ("mknod -m 604 d/b b 259 70000", ""),
    ("calls socket d/sock", ""),
    ("mkfifo top", ""),
    ("stat -c '%F %a %u %g %s %h' d/fifo", "fifo 640 0 0 0 1"),
    ("stat -c '%F %a %t %T' d/c d/b", "character special file 600 1 3\nblock special file 604 103 11170"),
    ("stat -c '%F' d/sock top", "socket\nfifo"),
    ("echo carried > d/fifo & cat d/fifo", "carried"),
    ("calls talk d/sock2", "through it"),
    ("echo lost > d/c && wc -c < d/c", "0"),
    ("mkfifo d/fifo", "EEXIST"),
    ("chmod 444 d/fifo && chown 3:4 d/fifo && stat -c '%F %a %u %g' d/fifo", "fifo 444 3 4"),
    ("touch -d '2001-02-03 04:05:06' d/c && stat -c '%F %Y' d/c", "character special file 981173106"),
    ("mv d/fifo d/moved && ln d/moved d/linked && stat -c '%F %h' d/moved", "fifo 2"),
)
SPECIAL_REMOVED: tuple[Row, ...] = (
    ("rm d/moved && stat -c '%F %h %a' d/linked", "fifo 1 444"),
    ("rm d/linked d/c d/b d/sock d/sock2 top && ls -A d", ""),
    ("rmdir d && ls -A", ""),
)
#: The types in a Treaddir (kernel: ``include/linux/fs_types.h``): those of the host's files, or 0 (unknown)
#: in a mapped share.
TYPES = {
    "real": "b:6 c:2 linked:1 moved:1 sock:12 sock2:12",
    "mapped": "b:0 c:0 linked:0 moved:0 sock:0 sock2:0",
}


@pytest.mark.any_plug
@pytest.mark.parametrize("model", by_default("mapped-file", of=MODELS), ids=_id)
def test_special_files(guest: Guest, hotplug: Hotplug, modelled: Share, model: str) -> None:
    """FIFOs, sockets and device nodes can be made, listed, used, changed, renamed, linked and removed."""
    mount = mounted(guest, hotplug, modelled)
    kind = "mapped" if model in MAPPED else "real"
    expect_printed(guest, mount.mountpoint, [*SPECIAL, ("calls types d", TYPES[kind])])
    seen = on_host(modelled)
    if kind == "mapped":
        expect_plain(seen)
    else:
        types = [stat.S_IFMT(seen[name].st_mode) for name in ("d/b", "d/c", "d/sock", "top")]
        assert types == [stat.S_IFBLK, stat.S_IFCHR, stat.S_IFSOCK, stat.S_IFIFO]
        assert (seen["d/moved"].st_mode, seen["d/moved"].st_uid) == (stat.S_IFIFO | 0o444, 3)
        assert seen["d/b"].st_rdev == os.makedev(259, 70000)
    expect_printed(guest, mount.mountpoint, SPECIAL_REMOVED)
    expect_nothing_left(modelled)


def expect_plain(seen: Mapping[str, os.stat_result]) -> None:
    """The host has only plain files and folders of QEMU's user, and no other user may use them.

    :raises Violation: when there is another one.
    """
    for name, found in seen.items():
        plain = {stat.S_IFREG | 0o600, stat.S_IFDIR | 0o700}
        if found.st_mode not in plain or found.st_uid != os.geteuid():
            raise Violation(f"on the host {name} is {stat.filemode(found.st_mode)} of user {found.st_uid}")


def expect_nothing_left(share: Share) -> None:
    """The host has no file of the share, and no metadata of one.

    :raises Violation: with what is left.
    """
    left = {str(path.relative_to(share.path)) for path in share.path.rglob("*")} - set(METADATA)
    if left:
        raise Violation(f"{share.security_model}: on the host is left: {', '.join(sorted(left))}")


LINKS: tuple[Row, ...] = (
    ("echo content > f && ln -s f link && cat link", "content"),
    ("readlink link && stat -c '%F %s' link", "f\nsymbolic link 1"),
    ("ln -s /no/such/file dangling && readlink dangling", "/no/such/file"),
    ("cat dangling", "ENOENT"),
    ("ln -s loop loop && cat loop", "ELOOP"),
    ("ln -s $(printf '%4095s' | tr ' ' l) long && stat -c %s long && readlink long | wc -c", "4095\n4096"),
    ("ln -s $(printf '%4096s' | tr ' ' l) longer", "ENAMETOOLONG"),
    ("mkdir d && ln -s ../f d/up && cat d/up", "content"),
    ("ln -s d folder && echo in > folder/new && cat d/new", "in"),
    ("ln -s x link", "EEXIST"),
    ("ln -s \"$(printf 'a b\\nc')\" odd && readlink odd", "a b\nc"),
    (
        "chown -h 7:8 link && touch -h -d '2001-02-03 04:05:06' link && stat -c '%u %g %Y' link",
        "7 8 981173106",
    ),
    ("stat -c '%u %g' f && [ $(stat -c %Y f) != 981173106 ] && echo unchanged", "0 0\nunchanged"),
    ("mv link d/link && readlink d/link && stat -c '%F %u' d/link", "f\nsymbolic link 7"),
    ("rm d/link && cat f", "content"),
    ("ln f g && stat -c %h f g && [ $(stat -c %i f) = $(stat -c %i g) ] && echo same", "2\n2\nsame"),
    ("echo more >> g && cat f", "content\nmore"),
    ("chmod 600 g && chown 5:6 g && stat -c '%a %u %g' f", "600 5 6"),
    ("ln f d/h && stat -c %h f && rm f && stat -c '%h %a %u' g d/h", "3\n2 600 5\n2 600 5"),
    ("echo again > f && stat -c '%a %u %h' f", "644 0 1"),
    ("ln g f", "EEXIST"),
    ("ln d other", "EPERM"),
    ("mv d/h f && cat f && stat -c '%h %a' f", "content\nmore\n2 600"),
    ('perl -e \'rename("f", "g") or die "$!\\n"\' && stat -c %h f g', "2\n2"),
    ("rm f g && stat f", "ENOENT"),
    ("rm -r d && rm dangling folder long loop odd && ls -A", ""),
)


@pytest.mark.any_plug
@pytest.mark.parametrize("model", by_default("mapped-file", "passthrough", of=MODELS[1:]), ids=_id)
def test_links(guest: Guest, hotplug: Hotplug, modelled: Share) -> None:
    """Symbolic links, also dangling, looping and of the maximum length; hard links and their counts."""
    mount = mounted(guest, hotplug, modelled)
    expect_printed(guest, mount.mountpoint, LINKS)
    expect_nothing_left(modelled)


MODES: tuple[Row, ...] = (
    ("umask 027; echo > f && mkdir d && stat -c %a f d && rm f && rmdir d", "640\n750"),
    ("calls create made 6755 && stat -c '%F %a %u %g %s' made", "regular empty file 6755 0 0 0"),
    (
        "for m in 0 1 70 644 777 1777 2755 4755 6711 7777; do chmod $m made; stat -c %a made; done",
        "0\n1\n70\n644\n777\n1777\n2755\n4755\n6711\n7777",
    ),
    ("mkdir d && chmod 3770 d && mkdir d/sub && stat -c %a d d/sub", "3770\n2755"),
    (
        "touch -d '1999-12-31 23:59:59' made d && stat -c '%X %Y' made d",
        "946684799 946684799\n946684799 946684799",
    ),
    ("chown 1000:1001 made && stat -c '%u %g' made", "1000 1001"),
    ("chown 4000000000:4000000001 made && stat -c '%u %g' made", "4000000000 4000000001"),
    ("chown :5 made && chown 7 made && stat -c '%u %g' made", "7 5"),
    ("chmod 640 made && echo abc > made && truncate -s 1 made && stat -c '%s %a %u' made", "1 640 7"),
    ("chown 3:4 . && chmod 1777 . && stat -c '%u %g %a' .", "3 4 1777"),
    ("chmod 4750 d/sub && chown 8:9 d/sub && stat -c '%a %u %g' d/sub", "4750 8 9"),
    ("ln -s made link && chown -h 11:12 link && stat -c '%u %g' link made", "11 12\n7 5"),
    ("echo in > d/in && chmod 622 d/in", ""),
)
#: After the share was unplugged and plugged again.
MODES_LATER: tuple[Row, ...] = (
    ("rm made && echo > made && stat -c '%a %u %g' made", "644 0 0"),
    ("rmdir d/sub && mkdir -m 700 d/sub && stat -c '%a %u' d/sub", "700 0"),
    ("echo > new && chmod 604 new && chown 9:9 new && mv new made && stat -c '%a %u %g' made", "604 9 9"),
    ("mv made d/moved && stat -c '%a %u' d/moved && echo > made && stat -c '%a %u' made", "604 9\n644 0"),
    ("mv d e && stat -c '%a %u' e e/moved && mkdir d && stat -c '%a %u' d", "3770 0\n604 9\n755 0"),
    (
        "echo > e/sub/x && chmod 400 e/sub/x && rm -r e d && mkdir e && echo > e/moved && stat -c %a e e/*",
        "755\n644",
    ),
    # A file that the host has made has no metadata until the guest changes it.
    ("stat -c '%F %a' alien alien/f", "directory 750\nregular file 640"),
    ("rm alien/f2 && chmod 600 alien/f && stat -c %a alien/f", "600"),
    ("mv alien/f3 f3 && stat -c %a f3 && ln alien/f f4 && stat -c '%a %h' f4", "640\n600 2"),
    ("rm -r alien && rm f3 f4", ""),
    ("rm -r e && rm made link && ls -A", ""),
)


@pytest.mark.always
@pytest.mark.any_plug
@pytest.mark.parametrize("model", by_default("mapped-file", "passthrough", of=MODELS[1:]), ids=_id)
def test_modes_and_owners(guest: Guest, hotplug: Hotplug, modelled: Share, model: str) -> None:
    """The guest sees the modes and owners that it set, also after a replug or a rename, and of the root.

    A new file does not inherit them from a removed file of the same name. The host sees the same modes and
    owners; in a mapped share it sees only plain files of QEMU's user, none of them set-uid.
    """
    mount = mounted(guest, hotplug, modelled)
    expect_printed(guest, mount.mountpoint, MODES)
    stat_commands = [
        "stat -c '%n %F %a %u %g %s %h' made link d/*",
        "stat -c '%n %F %a %u %g' . d",
        "stat -c '%Y' made link",
    ]
    before = printed(guest, mount.mountpoint, stat_commands)
    seen = on_host(modelled)
    if model in MAPPED:
        expect_plain(seen)
    else:
        made = seen["made"]
        assert (made.st_mode, made.st_uid, made.st_gid) == (stat.S_IFREG | 0o640, 7, 5)
        assert seen["d/sub"].st_mode == stat.S_IFDIR | 0o4750
    mount.unmount()
    hotplug.unplug(modelled)

    make_host_files(modelled.path / "alien")
    hotplug.plug(modelled)
    mount = guest.mount(modelled)
    expect_printed(guest, mount.mountpoint, list(zip(stat_commands, before, strict=True)))
    expect_printed(guest, mount.mountpoint, MODES_LATER)
    expect_nothing_left(modelled)


def make_host_files(folder: Path) -> None:
    """Make files on the host, for which there is no metadata."""
    folder.mkdir()
    folder.chmod(0o750)
    for name in ("f", "f2", "f3"):
        (folder / name).write_text("made on the host")
        (folder / name).chmod(0o640)


USERS: tuple[Row, ...] = (
    ("mkdir -m 700 private && mkdir -m 777 public && echo 1 > mine && chmod 600 mine", ""),
    ("calls as 1000 1001 'touch no'", "EACCES"),
    ("calls as 1000 1001 'ls private'", "EACCES"),
    ("calls as 1000 1001 'cat mine'", "EACCES"),
    ("calls as 1000 1001 'chmod 644 mine'", "EPERM"),
    (
        "calls as 1000 1001 'cd public && echo > f && mkdir d && ln -s f l && stat -c \"%u %g %a\" f d l'",
        "{}",
    ),
    ("calls as 1000 1001 'cd public && chmod 600 f && chgrp 1001 f && stat -c %a f'", "600"),
    ("calls as 1000 1001 'chown 0 public/f'", "EPERM"),
    ("calls as 1002 1002 'cat public/f'", "EACCES"),
    ("calls as 1002 1002 'rm -f public/f && ls public'", "d\nl"),
    ("chmod 1777 public && calls as 1002 1002 'rm -f public/l'", "EPERM"),
    ("calls as 1000 1001 'rm public/l && rmdir public/d' && ls public", ""),
)


@pytest.mark.any_plug
@pytest.mark.parametrize("model", by_default("mapped-file", of=MODELS), ids=_id)
def test_users_of_a_share(guest: Guest, hotplug: Hotplug, modelled: Share) -> None:
    """With ``access=user`` each of the guest's users has its own rights and owns the files that it makes.

    9P2000.u sends no group: there, files get the group that the server gives them.
    """
    mount = mounted(guest, hotplug, modelled, "access=user")
    owned = "1000 1001 644\n1000 1001 755\n1000 1001 777"
    expect_printed(guest, mount.mountpoint, [(command, text.format(owned)) for command, text in USERS])


DOT_U: tuple[Row, ...] = (
    ("mkdir -p a/b/c && ls -A a/b && ls -A a && calls types a/b", "c\nb\nc:4"),
    ("echo 1 > a/b/f && echo 2 >> a/b/f && cat a/b/f && stat -c '%s %a %u %h' a/b/f", "1\n2\n4 644 0 1"),
    ('perl -e \'rename("a/b/f", "a/b/g") or die "$!\\n"\' && ls a/b && cat a/b/g', "c\ng\n1\n2"),
    ('perl -e \'rename("a/b/g", "a/g") or die "$!\\n"\'', "EXDEV"),
    ("chown 5:6 a/b/g && chmod 4751 a/b/g && stat -c '%a %u %g' a/b/g", "4751 5 6"),
    ("touch -d '2001-02-03 04:05:06' a/b/g && truncate -s 1 a/b/g && stat -c %s a/b/g", "1"),
    ("ln a/b/g a/b/h && stat -c %h a/b/g && rm a/b/g && stat -c '%h %u' a/b/h", "2\n1 5"),
    ("ln -s ../x a/b/l && readlink a/b/l && stat -c %F a/b/l", "../x\nsymbolic link"),
    ("cd a/b/c && mv ../c ../moved && touch x && ls ../moved", "x"),
    ("echo 1 > a/s && echo 2 > a/s2 && mkdir a/s3 && cd a/s3 && mv ../s ../t && touch x && ls ../s3", "x"),
    ("for i in $(seq 60); do echo > a/b/file-with-a-long-name-$i; done; ls a/b | wc -l", "63"),
    ("calls setxattr a/s2 user.x 1", "ENOTSUP"),
    ("mkdir -m 777 p && calls as 1000 1000 'touch p/f && mkdir p/d && stat -c %u p/f p/d'", "1000\n1000"),
    ("calls as 1001 1001 'chmod 600 p/f'", "EPERM"),
    ("rm -r a p && ls -A", ""),
)
#: For a mapped share, in which special files are plain files on the host.
DOT_U_SPECIAL: tuple[Row, ...] = (
    ("mkdir d && mkfifo -m 640 d/fifo && stat -c '%F %a' d/fifo", "fifo 640"),
    ("echo carried > d/fifo & cat d/fifo", "carried"),
    ("mknod d/c c 1 3 && mknod d/b b 8 1", ""),
    ("stat -c '%F %t %T' d/c d/b", "character special file 1 3\nblock special file 8 1"),
    ("calls socket d/sock && stat -c %F d/sock", "socket"),
    ("chmod 600 d/b && stat -c '%F %a' d/b", "block special file 600"),
    ('perl -e \'rename("d/fifo", "d/moved") or die "$!\\n"\' && stat -c %F d/moved', "fifo"),
    ("rm -r d && ls -A", ""),
)


@pytest.mark.any_plug
@pytest.mark.parametrize("model", by_default("none", of=["none", "mapped-file"]), ids=_id)
def test_9p2000u(guest: Guest, hotplug: Hotplug, modelled: Share, model: str) -> None:
    """The same operations with 9P2000.u: files are made, listed, changed, renamed and removed, by several
    users."""
    mount = mounted(guest, hotplug, modelled, "version=9p2000.u,access=user")
    expect_printed(guest, mount.mountpoint, DOT_U)
    if model in MAPPED:
        expect_printed(guest, mount.mountpoint, DOT_U_SPECIAL)
    expect_nothing_left(modelled)


@pytest.mark.thorough
@pytest.mark.any_plug
def test_9p2000u_changes_the_mode_of_a_device(
    guest: Guest, hotplug: Hotplug, shares: tuple[Share, ...]
) -> None:
    """chmod of a character device over 9P2000.u does not make it a block device."""
    mount = mounted(guest, hotplug, _of(shares, "mapped-file"), "version=9p2000.u")
    rows = (
        ("mknod c c 1 3 && stat -c '%F %t %T' c", "character special file 1 3"),
        ("chmod 600 c && stat -c '%F %a %t %T' c", "character special file 600 1 3"),
    )
    expect_printed(guest, mount.mountpoint, rows)


RENAMES: tuple[Row, ...] = (
    ("echo 1 > a && echo 2 > b && mv -f a b && cat b && ls", "1\nb"),
    ('mkdir -p x/y z && perl -e \'rename("x", "z") or die "$!\\n"\' && ls z && ls', "y\nb\nz"),
    ('mkdir full && touch full/f && perl -e \'rename("z", "full") or die "$!\\n"\'', "ENOTEMPTY"),
    ('perl -e \'rename("b", "full") or die "$!\\n"\'', "EISDIR"),
    ('perl -e \'rename("full", "b") or die "$!\\n"\'', "ENOTDIR"),
    ('perl -e \'rename("full", "full/in") or die "$!\\n"\'', "EINVAL"),
    ("mv none there", "ENOENT"),
    ("mv b no/such/folder", "ENOENT"),
    ("mv b z/y/deep && cat z/y/deep && mv z/y/deep b && ls z/y", "1"),
    ("exec 3>> b && mv b z/open && echo 2 >&3 && exec 3>&- && cat z/open", "1\n2"),
    ("cd z && mv ../z ../w && cat open && echo 3 > made && ls ../w && chmod 600 open", "1\n2\nmade\nopen\ny"),
    (
        "exec 3< w/open && cd w/y && mv ../../w ../../v && cat <&3 && echo 4 > in && cat ../../v/y/in",
        "1\n2\n4",
    ),
    (
        "mkdir foobar; echo 5 > foo; cd foobar && mv ../foo ../bar && touch in && ls ../foobar && cat ../bar",
        "in\n5",
    ),
    (
        "mkdir fo && mkdir fo/d && cd foobar && mv ../fo ../ba && touch in2 && ls ../ba ../foobar",
        "../ba:\nd\n\n../foobar:\nin\nin2",
    ),
    ("mv bar foo && mv foobar/in bar && stat -c '%F %h' bar foo", "regular empty file 1\nregular file 1"),
    ("rm -r foobar ba v full && rm foo bar && ls -A", ""),
)


@pytest.mark.thorough
@pytest.mark.any_plug
def test_renames(guest: Guest, hotplug: Hotplug, shares: tuple[Share, ...]) -> None:
    """Renames over a file, over an empty folder and into another folder; of open files and of folders in
    use."""
    for model in ("none", "mapped-file"):
        share = _of(shares, model)
        mount = mounted(guest, hotplug, share)
        expect_printed(guest, mount.mountpoint, RENAMES)
        expect_nothing_left(share)


#: 255 bytes, the longest name in a Linux file system.
_LONG = "$(printf '%255s' | tr ' ' n)"
NAMES: tuple[Row, ...] = (
    (f"echo 1 > {_LONG} && cat {_LONG} && ls | wc -c", "1\n256"),
    (
        f"mv {_LONG} x && ln x {_LONG} && ln -s {_LONG} l && cat l && readlink l | wc -c && rm x l {_LONG}",
        "1\n256",
    ),
    (f"mkdir {_LONG} && echo 2 > {_LONG}/{_LONG} && cat {_LONG}/* && rm -r {_LONG}", "2"),
    ("touch $(printf '%256s' | tr ' ' n)", "ENAMETOOLONG"),
    (
        "for n in ... ' ' -x %s \"$(printf 'a\\nb')\" \"$(printf '\\377\\376')\" '*' '\\' \"'\" '\"' ..a; do "
        'echo 1 > "./$n" && cat "./$n" || echo "$n"; done | uniq -c | tr -s \' \'; ls -A | wc -l',
        " 11 1\n11",
    ),
    ("mkdir d && mv -- ' ' d/ && mv -- \"$(printf '\\377\\376')\" d/", ""),
    (
        'perl -e \'opendir(D, "d"); print(unpack("H*", join(",", sort(grep(!/^[.]/, readdir(D))))))\'',
        "202cfffe",
    ),
    ('for n in .* * ; do rm -rf "./$n"; done 2>/dev/null; ls -A', ""),
)
#: A path of 5,000 bytes, which is longer than PATH_MAX: the program enters one folder after another.
_DEEP = """perl -e '
sub must { $_[0] or die "$_[1]: $!\\n" }
my ($name, $deep) = ("d" x 250, 20);
for (1 .. $deep) { must(mkdir($name), "mkdir"); must(chdir($name), "chdir"); }
must(open(F, ">", "f"), "open");
print F "content\\n";
must(close(F), "close");
must(rename("f", "g"), "rename");
must(link("g", "h"), "link");
must(symlink("g", "l"), "symlink");
must(chmod(0600, "g"), "chmod");
must(chown(5, 6, "g"), "chown");
must(truncate("g", 4), "truncate");
must(utime(7, 8, "g"), "utime");
must(open(F, "<", "h"), "open");
my $text = <F>;
my @seen = stat("l");
must(opendir(D, "."), "opendir");
my $count = grep { !/^[.]/ } readdir(D);
printf("%s %o %d %d %d %d", $text, $seen[2] & 07777, @seen[3, 4, 5], $seen[9]);
print(" $count ", readlink("l"), "\\n");
must(unlink("g", "h", "l") == 3, "unlink");
for (1 .. $deep) { must(chdir(".."), "chdir"); must(rmdir($name), "rmdir"); }
'"""
DEEP: tuple[Row, ...] = ((_DEEP, "cont 600 2 5 6 8 3 g"), ("ls -A", ""))


@pytest.mark.any_plug
def test_names_and_paths(guest: Guest, hotplug: Hotplug, shares: tuple[Share, ...]) -> None:
    """Names of 255 bytes and of unusual bytes work, and so does a path of 5,000 bytes below the export."""
    for model in ("none", "mapped-file"):
        share = _of(shares, model)
        mount = mounted(guest, hotplug, share)
        expect_printed(guest, mount.mountpoint, (*NAMES, *DEEP))
        expect_nothing_left(share)


#: Files with long names, of which about fifteen fit into one reply of the smallest msize.
_SMALL: tuple[Row, ...] = (
    ("for i in $(seq 100 139); do echo $i > $i$(printf '%252s' | tr ' ' n) || break; done; ls | wc -l", "40"),
    ("cat 13* | tr '\\n' ' '", "130 131 132 133 134 135 136 137 138 139 "),
    ("ln -s $(printf '%4000s' | tr ' ' l) link && readlink link | wc -c", "4001"),
    ("echo > f && calls fill f user.big 3900 && calls size f user.big", "3900"),
    ("dd if=/dev/zero of=f bs=10000 count=3 2>/dev/null && stat -c %s f && wc -c < f", "30000\n30000"),
)


@pytest.mark.thorough
@pytest.mark.any_plug
def test_the_smallest_msize(guest: Guest, hotplug: Hotplug, share: Share) -> None:
    """With the smallest msize, 4,096 bytes, many long names, a long link and a long attribute arrive
    whole."""
    _require_xattrs(share.path)
    mount = mounted(guest, hotplug, share, "msize=4096")
    rows = [*_SMALL, ("grep -o msize=4096 /proc/mounts", "msize=4096")]
    expect_printed(guest, mount.mountpoint, rows)


#: Mount tags up to the longest that QEMU accepts, 31 bytes (``hw/9pfs/9p.h``, ``MAX_TAG_LEN``).
TAGS = ("t", "sixteen-letters-", "seventeen-letters", "thirty-one-letters-of-mount-tag")


@pytest.mark.any_plug
def test_mount_tags(testbed: Testbed) -> None:
    """The guest reads mount tags of 1 to 31 characters in full."""
    shares = testbed.declare(
        *(replace(share, mount_tag=tag) for share, tag in zip(testbed.shares, TAGS, strict=True))
    )
    guest = testbed.boot()
    hotplug = Hotplug(guest)
    for share in shares:
        hotplug.plug(share)
    assert sorted(guest.mount_tags()) == sorted(TAGS)
    for share in shares:
        guest.mount(share).expect_usable()


XATTRS: tuple[Row, ...] = (
    ("mkdir d && echo 1 > d/f && calls setxattr d/f user.x 12 && calls getxattr d/f user.x", "12"),
    ("calls setxattr d/f user.x 34 create", "EEXIST"),
    ("calls setxattr d/f user.y 34 replace", "ENODATA"),
    ("calls setxattr d/f user.x 345 replace && calls getxattr d/f user.x", "345"),
    ("calls setxattr d/f user.y 6 create && calls listxattr d/f", "user.x user.y"),
    ("calls fill d/f user.big 3000 && calls size d/f user.big", "3000"),
    ("calls fill d/f user.big 65537", "E2BIG"),
    ("calls removexattr d/f user.x && calls listxattr d/f", "user.big user.y"),
    ("calls removexattr d/f user.x", "ENODATA"),
    ("calls getxattr d/f user.x", "ENODATA"),
    ("calls getxattr d/f user.none", "ENODATA"),
    ("calls getxattr d/f trusted.x", "ENOTSUP"),
    ("calls setxattr d/f trusted.x 1", "ENOTSUP"),
    ("calls removexattr d/f security.x", "ENOTSUP"),
    # There are no empty values in 9P: a Txattrcreate of size 0 removes the attribute (kernel:
    # fs/9p/xattr.c).
    ("calls setxattr d/f user.y '' && calls listxattr d/f", "user.big"),
    ("calls setxattr d/f user.$(printf '%250s' | tr ' ' n) 1 && calls listxattr d/f | wc -c", "265"),
    ("calls number d user. 20 && calls listxattr d | wc -w", "20"),
    ("calls getxattr d user.17", "17"),
    (
        "mv d/f g && calls size g user.big && ln g h && calls size h user.big; rm g && calls size h user.big",
        "3000\n3000\n3000",
    ),
    ("rm h && echo 2 > h && calls listxattr h", ""),
)
#: For mapped-xattr: the attributes in which QEMU keeps owners and modes are hidden from the guest.
XATTRS_HIDDEN: tuple[Row, ...] = (
    ("chown 5:6 h && chmod 600 h && calls listxattr h", ""),
    ("calls getxattr h user.virtfs.uid", "ENODATA"),
    ("calls setxattr h user.virtfs.uid 0", "EACCES"),
    ("calls removexattr h user.virtfs.mode", "EACCES"),
    ("calls setxattr h user.virtfsx 1 && calls listxattr h && stat -c '%a %u' h", "user.virtfsx\n600 5"),
)


@pytest.mark.any_plug
@pytest.mark.parametrize("model", by_default("mapped-xattr", of=MODELS), ids=_id)
def test_xattrs(guest: Guest, hotplug: Hotplug, modelled: Share, model: str) -> None:
    """Extended attributes can be set, listed, replaced and removed, also large ones and many; what is
    refused fails with the right errno."""
    _require_xattrs(modelled.path)
    mount = mounted(guest, hotplug, modelled)
    expect_printed(guest, mount.mountpoint, XATTRS)
    if model == "mapped-xattr":
        expect_printed(guest, mount.mountpoint, XATTRS_HIDDEN)


@pytest.mark.any_plug
def test_an_export_that_refuses_xattrs(
    guest: Guest, hotplug: Hotplug, shares: tuple[Share, ...], hold: Hold
) -> None:
    """The guest gets ENOTSUP when the host's file system refuses attributes. A ``mapped-xattr`` share
    needs them, so it makes no file then."""
    plain, mapped = _of(shares, "none"), _of(shares, "mapped-xattr")
    for share in (plain, mapped):
        mounted(guest, hotplug, share)
    with hold.failing(plain, errno.ENOTSUP, *SETXATTR) as rule:
        rows = [("echo 1 > f && calls setxattr f user.x 1", "ENOTSUP"), ("cat f", "1")]
        expect_printed(guest, f"/mnt/{plain.id}", rows)
        assert rule.hits, "QEMU did not try to set an attribute"
    with hold.failing(mapped, errno.ENOTSUP, *SETXATTR) as rule:
        commands = ("touch f", "mkdir d", "mkfifo p", "ln -s x l", "chmod 700 .")
        rows = [*((command, "ENOTSUP") for command in commands), ("ls -A", "")]
        expect_printed(guest, f"/mnt/{mapped.id}", rows)
        assert rule.hits, "QEMU did not try to set an attribute"
    expect_nothing_left(mapped)
    expect_printed(guest, f"/mnt/{mapped.id}", [("mkfifo p && stat -c %F p", "fifo")])


@contextmanager
def refused(*numbers: int) -> Iterator[None]:
    """Expect the request in this block to fail with one of these errnos.

    :raises Violation: when it fails with another, or succeeds.
    """
    names = [errno.errorcode[number] for number in numbers]
    try:
        yield
    except NineError as exc:
        if exc.errno not in numbers:
            raise Violation(f"{exc.message}, expected {' or '.join(names)}") from exc
    else:
        raise Violation(f"a request was answered, expected {' or '.join(names)}")


_ACCESS, _DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
#: user::rwx user:1000:rwx group::r-x mask::rwx other::r-x (kernel:
#: ``include/uapi/linux/posix_acl_xattr.h``).
_NOBODY = 0xFFFFFFFF
_ENTRIES = ((1, 7, _NOBODY), (2, 7, 1000), (4, 5, _NOBODY), (16, 7, _NOBODY), (32, 5, _NOBODY))
ACL = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in _ENTRIES)
#: The attribute in which a model keeps an ACL on the host; ``none`` refuses ACLs.
ACL_KEPT = {"passthrough": "{}", "mapped-xattr": "user.virtfs.{}", "mapped-file": "{}"}


class Attributes:
    """The extended attributes of one folder, through the raw client."""

    def __init__(self, raw_guest: RawGuest, share: Share) -> None:
        (share.path / "folder").mkdir()
        self.share, self.driver = share, attached(raw_guest, share)

    def set(self, name: str, value: bytes) -> None:
        """Txattrcreate, Twrite, Tclunk; an empty value removes the attribute."""
        self.driver.walk(1, 2, "folder")
        try:
            self.driver.call(T.XATTRCREATE, p9.xattrcreate(2, name, len(value)))
            if value:
                self.driver.write(2, 0, value)
        finally:
            self.driver.clunk(2)

    def get(self, name: str = "") -> bytes:
        """Txattrwalk, and Tread in two parts; without a name, the list of names."""
        self.driver.walk(1, 2, "folder")
        try:
            self.driver.xattrwalk(2, 3, name)
        finally:
            self.driver.clunk(2)
        value = self.driver.read(3, 0, 10) + self.driver.read(3, 10, 4000)
        self.driver.clunk(3)
        return value

    def on_host(self, name: str) -> bytes:
        """The value that the host has."""
        return os.getxattr(self.share.path / "folder", name)


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_acls(raw_guest: RawGuest, shares: tuple[Share, ...]) -> None:
    """POSIX ACLs can be set, listed and removed, also when there is none. The host has them where the model
    keeps them."""
    require_acls(shares[0].path)
    for model, kept in ACL_KEPT.items():
        attributes = Attributes(raw_guest, _of(shares, model))
        for name in (_ACCESS, _DEFAULT):
            attributes.set(name, ACL)
            assert attributes.get(name) == attributes.on_host(kept.format(name)) == ACL, model
        listed = sorted(name for name in attributes.get().split(b"\0") if name)
        assert listed == [_ACCESS.encode(), _DEFAULT.encode()], model
        for name in (_ACCESS, _DEFAULT):
            attributes.set(name, b"")
            attributes.set(name, b"")
            with refused(errno.ENODATA):
                attributes.get(name)
    attributes = Attributes(raw_guest, _of(shares, "none"))
    for name in (_ACCESS, _DEFAULT):
        for value in (ACL, b""):
            with refused(errno.ENOTSUP):
                attributes.set(name, value)
        with refused(errno.ENOTSUP):
            attributes.get(name)
    assert attributes.get() == b""


def require_acls(folder: Path) -> None:
    """:raises Unsupported: when the host's file system has no POSIX ACLs."""
    try:
        os.setxattr(folder, _ACCESS, ACL)
        os.removexattr(folder, _ACCESS)
    except OSError as exc:
        raise Unsupported(f"the file system of {folder} has no POSIX ACLs: {exc.strerror}") from exc


@pytest.mark.thorough
@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_acls_that_the_host_has_set(raw_guest: RawGuest, shares: tuple[Share, ...]) -> None:
    """A folder of a ``mapped-xattr`` export has ACLs and an attribute that the host has set: the guest's list
    of its attributes has whole names only, and the attribute."""
    require_acls(shares[0].path)
    share = _of(shares, "mapped-xattr")
    attributes = Attributes(raw_guest, share)
    for name, value in ((_ACCESS, ACL), (_DEFAULT, ACL), ("user.plain", b"plain")):
        os.setxattr(share.path / "folder", name, value)
    listed = [name.decode() for name in attributes.get().split(b"\0") if name]
    unknown = set(listed) - {_ACCESS, _DEFAULT, "user.plain"}
    if unknown:
        raise Violation(f"the list of attributes has names that no attribute has: {sorted(unknown)}")
    assert attributes.get("user.plain") == b"plain"
    assert "user.plain" in listed


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
@pytest.mark.parametrize("name", by_default(_DEFAULT, of=[_ACCESS, _DEFAULT]))
def test_one_acl_that_the_host_has_set(raw_guest: RawGuest, shares: tuple[Share, ...], name: str) -> None:
    """The guest's list of attributes has the ACL of the host under its own name, where it is the only one
    (with others the list is wrong: R64)."""
    require_acls(shares[0].path)
    attributes = Attributes(raw_guest, _of(shares, "mapped-xattr"))
    os.setxattr(attributes.share.path / "folder", name, ACL)
    assert attributes.get().rstrip(b"\0") == name.encode()


@pytest.mark.thorough
@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_attributes_of_the_host_alone(raw_guest: RawGuest, shares: tuple[Share, ...]) -> None:
    """With ``none`` the guest neither sees nor reads the host's ACLs, with ``mapped-xattr`` none of the
    host's trusted attributes."""
    require_acls(shares[0].path)
    for model, hidden, value in (("none", _ACCESS, ACL), ("mapped-xattr", "trusted.host", b"value")):
        _require_owners()
        attributes = Attributes(raw_guest, _of(shares, model))
        os.setxattr(attributes.share.path / "folder", hidden, value)
        os.setxattr(attributes.share.path / "folder", "user.plain", b"plain")
        assert attributes.get() == b"user.plain\0", model
        with refused(errno.EOPNOTSUPP):
            attributes.get(hidden)
        assert attributes.on_host(hidden) == value


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
@pytest.mark.parametrize("model", by_default("mapped-xattr", of=MODELS), ids=_id)
def test_the_attributes_of_an_open_file(raw_guest: RawGuest, modelled: Share) -> None:
    """Type, mode, owner and size are the same whether the fid is open or not, and an open file can be locked,
    also after it was unlinked."""
    driver = attached(raw_guest, modelled)
    driver.call(T.MKNOD, p9.mknod(1, "file"))
    driver.call(T.MKDIR, p9.mkdir(1, "folder"))
    for opened, closed, name in ((2, 3, "file"), (4, 5, "folder")):
        driver.walk(1, opened, name)
        driver.walk(1, closed, name)
        kind = stat.S_IFREG if name == "file" else stat.S_IFDIR
        body = p9.set_fields(closed, p9.MODE | p9.UID | p9.GID, mode=kind | 0o704, uid=3, gid=4)
        driver.call(T.SETATTR, body)
        driver.open(opened, os.O_RDWR if name == "file" else os.O_RDONLY)
        for seen in (of_open := attributes_of(driver, opened), attributes_of(driver, closed)):
            assert seen[:3] == (kind | 0o704, 3, 4), (modelled.security_model, name)
        assert of_open == attributes_of(driver, closed)
    for message, body in ((T.LOCK, p9.lock(2)), (T.GETLOCK, p9.getlock(2))):
        driver.call(message, body)
    driver.walk(1, 6)
    with refused(errno.EISDIR):
        driver.create(6, "folder")
    with refused(errno.EEXIST):
        driver.call(T.MKNOD, p9.mknod(1, "file"))
    driver.call(T.UNLINKAT, p9.unlinkat(1, "file"))
    driver.call(T.LOCK, p9.lock(2))


def attributes_of(driver: RawDriver, fid: int) -> tuple[int, ...]:
    """Mode, uid, gid and size in the answer to a Tgetattr (diod: ``protocol.md``, Rgetattr)."""
    answer = driver.call(T.GETATTR, p9.getattr_(fid))
    mode, uid, gid, _links, _device, bytes_ = struct.unpack_from("<IIIQQQ", answer, 8 + 13)
    return mode, uid, gid, bytes_


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
@pytest.mark.parametrize("model", by_default("none", of=["none", "mapped-xattr"]), ids=_id)
def test_a_folder_that_the_host_has_removed(raw_guest: RawGuest, modelled: Share) -> None:
    """The host removes a folder with two files: each message about one of them is answered with ENOENT."""
    driver = attached(raw_guest, modelled)
    driver.call(T.MKDIR, p9.mkdir(1, "folder"))
    driver.walk(1, 2, "folder")
    driver.call(T.SYMLINK, p9.symlink(2, "link", "target"))
    driver.walk(1, 3, "folder")
    driver.create(3, "file")
    driver.walk(2, 4, "file")
    driver.walk(2, 5, "link")
    for fid in (6, 7):
        driver.walk(2, fid, "file")
    shutil.rmtree(modelled.path / "folder")
    driver.call(T.XATTRCREATE, p9.xattrcreate(6, "user.name", 1))
    driver.write(6, 0, b"v")
    driver.call(T.XATTRCREATE, p9.xattrcreate(7, "user.name", 0))
    for kind, body in (
        (T.GETATTR, p9.getattr_(4)),
        (T.SETATTR, p9.set_fields(4, p9.MODE, mode=0o100600)),
        (T.SETATTR, p9.set_fields(4, p9.UID, uid=3)),
        (T.SETATTR, p9.set_fields(4, p9.MTIME)),
        (T.SETATTR, p9.set_fields(4, p9.SIZE)),
        (T.LOPEN, p9.open_(4)),
        (T.READLINK, p9.fid(5)),
        (T.XATTRWALK, p9.xattrwalk(4, 20, "user.name")),
        (T.XATTRWALK, p9.xattrwalk(4, 20, "")),
        (T.CLUNK, p9.fid(6)),
        (T.CLUNK, p9.fid(7)),
        (T.LINK, p9.link(1, 4, "linked")),
        (T.RENAME, p9.rename(4, 1, "renamed")),
        (T.REMOVE, p9.fid(4)),
    ):
        with error_context(f"{T(kind).name} about a file in a folder that is gone"), refused(errno.ENOENT):
            driver.call(kind, body)
    assert on_host(modelled) == {}


@dataclass(frozen=True)
class Damaged:
    """Metadata of a ``mapped-file`` export that the host has damaged.

    :ivar damage: does it, in the export's folder. :ivar requests: what QEMU has to refuse, each with its
        errno; nothing may be left of it. Fid 1 is the root, 2 a file in it, 3 a folder, 4 the folder's file.
    """

    damage: Callable[[Path], object]
    requests: tuple[tuple[int, bytes, int], ...]


def _replace_metadata(file: str = "") -> Callable[[Path], object]:
    """Makes a plain file of the folder of the metadata below ``file``."""

    def replaced(export: Path) -> None:
        folder = export / file / METADATA[0]
        shutil.rmtree(folder)
        folder.write_text("")

    return replaced


def _folder_for(name: str) -> Callable[[Path], object]:
    """Makes a folder of the metadata of a file."""

    def replaced(export: Path) -> None:
        (export / METADATA[0] / name).unlink(missing_ok=True)
        (export / METADATA[0] / name).mkdir()

    return replaced


_CHMOD = p9.set_fields(2, p9.MODE, mode=0o100600)
DAMAGED = {
    "the folder is a file": Damaged(
        _replace_metadata(),
        (
            (T.MKDIR, p9.mkdir(1, "made"), errno.ENOTDIR),
            (T.MKNOD, p9.mknod(1, "made"), errno.ENOTDIR),
            (T.SYMLINK, p9.symlink(1, "made", "target"), errno.ENOTDIR),
            (T.LCREATE, p9.create(9, "made"), errno.ENOTDIR),
            (T.LINK, p9.link(1, 2, "made"), errno.ENOTDIR),
            (T.RENAMEAT, p9.renameat(1, "file", "made"), errno.ENOTDIR),
            (T.SETATTR, _CHMOD, errno.ENOTDIR),
            (T.UNLINKAT, p9.unlinkat(1, "file"), errno.ENOTDIR),
            (T.UNLINKAT, p9.unlinkat(1, "file", p9.REMOVEDIR), errno.ENOTDIR),
        ),
    ),
    "another folder's is a file": Damaged(
        _replace_metadata("folder"),
        (
            (T.LINK, p9.link(3, 2, "made"), errno.ENOTDIR),
            (T.RENAMEAT, p9.renameat(1, "file", "made", 3), errno.ENOTDIR),
        ),
    ),
    "a file's is a folder": Damaged(
        _folder_for("file"),
        ((T.SETATTR, _CHMOD, errno.EISDIR), (T.UNLINKAT, p9.unlinkat(1, "file"), errno.EISDIR)),
    ),
    "a name that is free has some": Damaged(
        _folder_for("made"),
        (
            (T.LINK, p9.link(1, 2, "made"), errno.EEXIST),
            (T.RENAMEAT, p9.renameat(1, "file", "made"), errno.EISDIR),
        ),
    ),
    "a file's is a link": Damaged(
        lambda export: relink(export / METADATA[0] / "file"), ((T.SETATTR, _CHMOD, errno.ELOOP),)
    ),
    "the root's is a link": Damaged(
        lambda export: relink(export / METADATA[1]),
        ((T.SETATTR, p9.set_fields(1, p9.MODE, mode=0o40700), errno.ELOOP),),
    ),
    "nothing": Damaged(
        lambda _: None,
        (
            (T.MKNOD, p9.mknod(1, "file"), errno.EEXIST),
            (T.UNLINKAT, p9.unlinkat(1, "folder", p9.REMOVEDIR), errno.ENOTEMPTY),
        ),
    ),
}


def relink(path: Path) -> None:
    """Replace ``path``, which may be missing, by a symbolic link to itself."""
    path.unlink(missing_ok=True)
    path.symlink_to(path.name)


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
@pytest.mark.parametrize("what", by_default("a name that is free has some", of=DAMAGED))
def test_metadata_that_the_host_has_damaged(
    raw_guest: RawGuest, shares: tuple[Share, ...], what: str
) -> None:
    """QEMU answers with an error what it cannot do to the file and to its metadata, and undoes the half that
    it has done."""
    share, damaged = _of(shares, "mapped-file"), DAMAGED[what]
    driver = attached(raw_guest, share)
    driver.call(T.MKDIR, p9.mkdir(1, "folder"))
    for folder, name in ((1, "file"), (3, "inside")):
        driver.walk(1, 3, "folder")
        driver.walk(folder, 8)
        driver.create(8, name)
        driver.clunk(8)
        driver.clunk(3)
    for fid, names in ((2, ["file"]), (3, ["folder"]), (4, ["folder", "inside"])):
        driver.walk(1, fid, *names)
    damaged.damage(share.path)
    before = sorted(str(path) for path in share.path.rglob("*"))
    for kind, body, number in damaged.requests:
        driver.walk(1, 9)
        with error_context(f"{T(kind).name}, where {what}"), refused(number):
            driver.call(kind, body)
        driver.clunk(9)
        assert sorted(str(path) for path in share.path.rglob("*")) == before, T(kind).name


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_what_cannot_be_removed_is_not_reported_as_removed(
    raw_guest: RawGuest, shares: tuple[Share, ...]
) -> None:
    """The host has replaced the folder of the metadata by a file: neither a file, nor a folder with metadata
    of its own can be removed, and the guest gets the error."""
    share = _of(shares, "mapped-file")
    driver = attached(raw_guest, share)
    for name, message in (
        ("file", p9.unlinkat(1, "file")),
        ("folder", p9.unlinkat(1, "folder", p9.REMOVEDIR)),
    ):
        driver.call(*((T.MKDIR, p9.mkdir(1, name)) if name == "folder" else (T.MKNOD, p9.mknod(1, name))))
        if name == "folder":
            (share.path / name / METADATA[0]).mkdir()
        shutil.rmtree(share.path / METADATA[0])
        (share.path / METADATA[0]).write_text("")
        with error_context(f"Tunlinkat of the {name}"), refused(errno.ENOTDIR):
            driver.call(T.UNLINKAT, message)
        assert (share.path / name).exists()
        (share.path / METADATA[0]).unlink()
        driver.call(T.UNLINKAT, message)
        assert not (share.path / name).exists()
        (share.path / METADATA[0]).mkdir(exist_ok=True)


@pytest.mark.thorough
@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_metadata_for_which_there_is_no_room(
    hold: Hold, raw_guest: RawGuest, shares: tuple[Share, ...]
) -> None:
    """The host cannot make a folder for the metadata: the guest gets ENOSPC, and nothing has changed."""
    share = _of(shares, "mapped-file")
    (share.path / "file").write_text("of the host")
    driver = attached(raw_guest, share)
    driver.walk(1, 2, "file")
    with hold.failing(share, errno.ENOSPC, *MKDIR) as rule:
        for kind, body in (
            (T.SETATTR, _CHMOD),
            (T.LINK, p9.link(1, 2, "made")),
            (T.RENAMEAT, p9.renameat(1, "file", "made")),
        ):
            with refused(errno.ENOSPC):
                driver.call(kind, body)
        assert rule.hits == 3
    assert sorted(on_host(share)) == ["file"]
    driver.call(T.SETATTR, _CHMOD)


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_mapped_file_keeps_its_metadata_to_itself(raw_guest: RawGuest, shares: tuple[Share, ...]) -> None:
    """No request reads, makes, renames or removes ``.virtfs_metadata`` or what is in it."""
    share = _of(shares, "mapped-file")
    driver = attached(raw_guest, share)
    driver.walk(1, 2)
    driver.create(2, "file")
    metadata = share.path / METADATA[0] / "file"
    kept = metadata.read_bytes()
    driver.walk(1, 4, "file")
    for name in METADATA:
        for request in _requests_naming(driver, name):
            with refused(errno.EINVAL):
                request()
    assert b"virtfs" not in list_root(driver)
    start_session(driver, UNIX_VERSION)
    driver.walk(1, 4, "file")
    for name in METADATA:
        with refused(errno.EINVAL):
            driver.call(T.WSTAT, p9.wstat(4, name=name))
    assert metadata.read_bytes() == kept
    assert sorted(path.name for path in share.path.iterdir()) == [METADATA[0], "file"]


def _requests_naming(driver: RawDriver, name: str) -> Iterator[Callable[[], object]]:
    """Each kind of request that has a name; fid 1 is the root, fid 4 a file in it."""

    def call(kind: int, body: bytes) -> Callable[[], object]:
        return lambda: driver.call(kind, body)

    yield call(T.WALK, p9.walk(1, 3, name))
    yield call(T.WALK, p9.walk(1, 3, name, "file"))
    yield call(T.MKDIR, p9.mkdir(1, name))
    yield call(T.SYMLINK, p9.symlink(1, name, "x"))
    yield call(T.MKNOD, p9.mknod(1, name))
    yield call(T.LINK, p9.link(1, 4, name))
    yield call(T.UNLINKAT, p9.unlinkat(1, name))
    yield call(T.UNLINKAT, p9.unlinkat(1, name, p9.REMOVEDIR))
    yield call(T.RENAMEAT, p9.renameat(1, name, "other"))
    yield call(T.RENAMEAT, p9.renameat(1, "file", name))
    yield call(T.RENAME, p9.rename(4, 1, name))
    yield call(T.LCREATE, p9.create(1, name))


def list_root(driver: RawDriver) -> bytes:
    """The answer to a Treaddir of the export's root, undecoded."""
    driver.walk(1, 9)
    driver.open(9)
    listed = driver.readdir(9)
    driver.clunk(9)
    return listed


#: So many fids that some are before and some after the renamed one in QEMU's table.
_MANY = range(10, 60)


def nested(raw_guest: RawGuest, share: Share) -> RawDriver:
    """A session with fid 2 for the folder ``a`` and fid 3 for ``a/b``; there are also ``a/b/f`` and
    ``a/bc``."""
    driver = attached(raw_guest, share)
    driver.call(T.MKDIR, p9.mkdir(1, "a"))
    driver.walk(1, 2, "a")
    for name in ("b", "bc"):
        driver.call(T.MKDIR, p9.mkdir(2, name))
    driver.walk(1, 3, "a", "b")
    driver.walk(3, 4)
    driver.create(4, "f")
    driver.clunk(4)
    return driver


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_rename_and_remove_by_fid(raw_guest: RawGuest, shares: tuple[Share, ...]) -> None:
    """Trename and Tremove of a fid: the fid has the new path, and fids whose path begins with the same
    letters keep theirs."""
    for model in ("none", "mapped-file"):
        share = _of(shares, model)
        driver = nested(raw_guest, share)
        for fid in _MANY:
            driver.walk(1, fid, "a", "bc")
        driver.call(T.RENAME, p9.rename(3, 1, "moved"))
        assert sorted(on_host(share)) == ["a", "a/bc", "moved", "moved/f"]
        for fid in (2, 3, *_MANY):
            driver.call(T.SETATTR, p9.setattr_(fid, 0o700))
        driver.walk(3, 6, "f")
        for fid in (6, 3, _MANY[0]):
            driver.call(T.REMOVE, p9.fid(fid))
        assert sorted(on_host(share)) == ["a"]


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
@pytest.mark.parametrize("how", ["rename", "renameat"])
def test_what_lies_below_follows_a_renamed_folder(
    raw_guest: RawGuest, shares: tuple[Share, ...], how: str
) -> None:
    """The fids of files in a folder can be used after the folder was renamed."""
    driver = nested(raw_guest, _of(shares, "none"))
    for fid in _MANY:
        driver.walk(1, fid, "a", "b", "f")
    driver.clunk(3)
    driver.walk(1, renamed := _MANY[-1] + 1, "a", "b")
    if how == "rename":
        driver.call(T.RENAME, p9.rename(renamed, 1, "moved"))
    else:
        driver.call(T.RENAMEAT, p9.fid_and_name(2, "b") + p9.fid_and_name(1, "moved"))
    lost = [fid for fid in (*_MANY, renamed) if not _is_usable(driver, fid)]
    if lost:
        raise Violation(f"after a T{how} of their folder {len(lost)} of {len(_MANY) + 1} fids are of no file")


def _is_usable(driver: RawDriver, fid: int) -> bool:
    try:
        driver.call(T.SETATTR, p9.setattr_(fid, 0o700))
    except NineError:
        return False
    return True


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
@pytest.mark.parametrize("model", MODELS, ids=_id)
def test_files_of_the_host_are_renamed_and_linked(raw_guest: RawGuest, modelled: Share) -> None:
    """Files and folders that the host made, which have no metadata, can be linked and renamed."""
    make_host_files(modelled.path / "alien")
    make_host_files(modelled.path / "other")
    driver = attached(raw_guest, modelled)
    driver.walk(1, 2, "alien")
    driver.walk(1, 3, "other")
    driver.walk(1, 4, "alien", "f")
    requests = (
        (T.LINK, p9.link(3, 4, "linked")),
        (T.RENAMEAT, p9.fid_and_name(2, "f2") + p9.fid_and_name(3, "renamed")),
        (T.RENAMEAT, p9.renameat(2, "f3", "f4")),
        (T.RENAMEAT, p9.renameat(1, "alien", "moved")),
    )
    failed = [answer for kind, body in requests if (answer := _error(driver, kind, body))]
    if failed:
        raise Violation(f"files that the host made: {', '.join(failed)}")
    names = ["moved", "moved/f", "moved/f4", "other", "other/f", "other/f2", "other/f3"]
    assert sorted(on_host(modelled)) == [*names, "other/linked", "other/renamed"]


def _error(driver: RawDriver, kind: int, body: bytes) -> str | None:
    """The error that the request fails with; ``None`` when it succeeds."""
    try:
        driver.call(kind, body)
    except NineError as exc:
        return exc.message
    return None


def attached(raw_guest: RawGuest, share: Share) -> RawDriver:
    """Plug the device in, and start a session that has the export attached (fid 1)."""
    driver = raw_guest.plug(share)
    start_session(driver)
    return driver


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_a_walk_up_does_not_depend_on_where_it_came_from(raw_guest: RawGuest, share: Share) -> None:
    """A fid was walked into a folder and up again: its file stays in use when that folder is removed."""
    (share.path / "kept").write_text("content")
    (share.path / "way" / "below").mkdir(parents=True)
    driver = attached(raw_guest, share)
    driver.walk(1, 2, "way", "..", "kept")
    driver.walk(1, 3, "way", "below", "..", "..", "kept")
    driver.walk(1, 4, "way", "..")
    driver.walk(1, 5, "way")
    driver.walk(5, 5, "..", ".", "kept")
    shutil.rmtree(share.path / "way")
    for fid in (2, 3, 5):
        driver.open(fid)
        assert driver.read(fid, 0, 100) == b"content", fid
    driver.walk(4, 6, "kept")


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_a_link_longer_than_msize(raw_guest: RawGuest, share: Share) -> None:
    """A link target that does not fit into an answer of the session's msize is refused."""
    (share.path / "link").symlink_to("l" * 4095)
    driver = raw_guest.plug(share)
    driver.call(T.VERSION, p9.version(_SMALLEST_MSIZE))
    driver.attach(1)
    driver.walk(1, 2, "link")
    try:
        answer = driver.call(T.READLINK, p9.fid(2))
    except NineError:
        return
    if p9.HEADER + len(answer) > _SMALLEST_MSIZE:
        size = p9.HEADER + len(answer)
        raise Violation(f"Rreadlink has {size} bytes, and the session's msize is {_SMALLEST_MSIZE}")


#: QEMU: ``hw/9pfs/9p.h``, ``P9_MIN_MSIZE``.
_SMALLEST_MSIZE = 4096


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_statfs(raw_guest: RawGuest, share: Share) -> None:
    """Rstatfs has the host's numbers; QEMU may report larger blocks, and fewer of them
    (``v9fs_fill_statfs``)."""
    driver = attached(raw_guest, share)
    for msize in (MSIZE, _SMALLEST_MSIZE):
        driver.call(T.VERSION, p9.version(msize))
        driver.attach(1)
        kind, size, blocks, free, available, files, _, _, longest = struct.unpack(
            "<IIQQQQQQI", driver.call(T.STATFS, p9.fid(1))
        )
        host = os.statvfs(share.path)
        assert size % host.f_bsize == 0
        factor = size // host.f_bsize
        assert (blocks, files, longest) == (host.f_blocks // factor, host.f_files, host.f_namemax)
        assert available <= free <= blocks
        assert kind


@pytest.mark.any_plug
def test_a_file_system_without_a_block_size(guest: Guest, hotplug: Hotplug, share: Share, hold: Hold) -> None:
    """Files can be used on a host file system that reports a block size of 0, as a FUSE file system may."""
    (share.path / "f").write_text("content")
    with hold.without_block_size(share) as rule:
        mount = mounted(guest, hotplug, share)
        rows = (
            ("cat f", "content"),
            ("echo 1 > g && cat g && ls", "1\nf\ng"),
            ("mkdir d && rm g && rmdir d", ""),
        )
        expect_printed(guest, mount.mountpoint, rows)
        assert rule.hits, "QEMU did not ask for the block size"


@pytest.mark.thorough
@pytest.mark.any_plug
def test_statfs_of_a_file_system_without_a_block_size(
    guest: Guest, hotplug: Hotplug, share: Share, hold: Hold
) -> None:
    """QEMU answers a Tstatfs of such a file system; the numbers do not matter."""
    with hold.without_block_size(share) as rule:
        mount = mounted(guest, hotplug, share)
        guest.run(f"df {mount.mountpoint}")
        assert rule.hits, "QEMU did not ask for the block size"
    mount.expect_usable()


#: Folders of an export on which file systems are mounted. Their roots have the same inode number.
_FOLDERS = ("a", "b")
#: What ``multidevs`` of an export may be; ``warn`` is the default (``man 1 qemu-system-x86_64``, ``-fsdev``).
_MULTIDEVS = ("warn", "remap", "forbid")


@pytest.fixture
def file_systems(testbed: Testbed) -> FileSystems:
    """What mounts them; to be made before the machine."""
    return FileSystems(testbed)


@pytest.fixture
def several(testbed: Testbed, share: Share, multidevs: str) -> Share:
    """An export that has these folders."""
    for folder in _FOLDERS:
        (share.path / folder).mkdir()
    (declared,) = testbed.declare(replace(share, fsdev_options={"multidevs": multidevs}))
    return declared


def qids(driver: RawDriver, *names: str) -> list[tuple[int, int]]:
    """Type and path of each qid in the answer to a Twalk from the root."""
    answer = driver.call(T.WALK, p9.walk(1, 2, *names))
    driver.clunk(2)
    return [(kind, path) for kind, _, path in struct.iter_unpack("<BIQ", answer[2:])]


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
@pytest.mark.parametrize("multidevs", by_default("forbid", "remap", of=_MULTIDEVS))
def test_an_export_of_several_file_systems(
    file_systems: FileSystems, several: Share, raw_guest: RawGuest, multidevs: str
) -> None:
    """Two files that share an inode number are one for the guest (``warn``, as documented), are told apart
    (``remap``), or cannot be reached (``forbid``); the file system of the root can be used in any case."""
    paths = [several.path / folder for folder in _FOLDERS]
    for path in paths:
        file_systems.mount(raw_guest.machine, path)
    first, second = (file_systems.stat(raw_guest.machine, path) for path in paths)
    assert (first.st_ino, first.st_dev != second.st_dev) == (second.st_ino, True), "the host's own numbers"
    driver = attached(raw_guest, several)
    driver.call(T.MKDIR, p9.mkdir(1, "own"))
    (own,) = qids(driver, "own")
    if multidevs == "forbid":
        for folder in _FOLDERS:
            with refused(errno.ENODEV):
                qids(driver, folder)
        return
    found = [qids(driver, folder)[0] for folder in _FOLDERS]
    assert len({own, *found}) == (3 if multidevs == "remap" else 2)
    listed = list_root(driver)
    assert all(struct.pack("<Q", path) in listed for _, path in found) or multidevs == "warn"
    assert [qids(driver, folder)[0] for folder in _FOLDERS] == found, "they stay the same"


def _requests_about(protocol: str, fids: Iterator[int]) -> Iterator[tuple[int, bytes]]:
    """Each request whose answer has a qid, about a fid of its own each."""
    if protocol == UNIX_VERSION:
        yield T.STAT, p9.fid(next(fids))
        yield T.OPEN, p9.unix_open(next(fids), 0)
        yield T.CREATE, p9.unix_create(next(fids), "made")
        return
    yield T.GETATTR, p9.getattr_(next(fids))
    yield T.LOPEN, p9.open_(next(fids))
    yield T.WALK, p9.walk(next(fids), 99)
    yield T.MKDIR, p9.mkdir(next(fids), "folder")
    yield T.SYMLINK, p9.symlink(next(fids), "link", "target")
    yield T.MKNOD, p9.mknod(next(fids), "fifo")
    yield T.LCREATE, p9.create(next(fids), "file")


@pytest.mark.thorough
@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
@pytest.mark.parametrize("multidevs", ["forbid"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_file_system_that_is_mounted_later(
    file_systems: FileSystems, several: Share, raw_guest: RawGuest, protocol: str
) -> None:
    """With ``forbid``, no answer has the qid of a file system that the host mounts on a folder in use."""
    driver = raw_guest.plug(several)
    start_session(driver, protocol)
    for fid in range(10, 20):
        driver.walk(1, fid, "a")
    file_systems.mount(raw_guest.machine, several.path / "a")
    for kind, body in _requests_about(protocol, iter(range(10, 20))):
        with refused(errno.ENODEV):
            driver.call(kind, body)
    if protocol == UNIX_VERSION:
        driver.walk(1, 30)
        driver.call(T.OPEN, p9.unix_open(30, 0))
        with refused(errno.ENODEV):
            driver.call(T.READ, p9.read(30, 0, 4096))
    assert len(qids(driver, "b")) == 1, "the rest of the export serves on"


#: What Tcreate of 9P2000.u makes: the type, and its data.
_KINDS = {
    "file": (0, ""),
    "folder": (p9.DMDIR, ""),
    "link": (p9.DMSYMLINK, "target"),
    "pipe": (p9.DMNAMEDPIPE, ""),
    "socket": (p9.DMSOCKET, ""),
    "character": (p9.DMDEVICE, "c 1 3"),
    "block": (p9.DMDEVICE, "b 7 0"),
}
_TYPES = p9.DMDIR | p9.DMSYMLINK | p9.DMNAMEDPIPE | p9.DMSOCKET | p9.DMDEVICE


def unix_mode(driver: RawDriver, fid: int) -> int:
    """The mode in the answer to a Tstat."""
    (mode,) = struct.unpack_from("<I", driver.call(T.STAT, p9.fid(fid)), 23)
    assert isinstance(mode, int)
    return mode


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_types_and_modes_by_9p2000u(raw_guest: RawGuest, shares: tuple[Share, ...]) -> None:
    """Each type of file can be made once, and has its mode changed, but not its type."""
    driver = raw_guest.plug(_of(shares, "mapped-xattr"))
    start_session(driver, UNIX_VERSION)
    for fid, (name, (kind, data)) in enumerate(_KINDS.items(), start=10):
        for folder in (fid, 50 + fid):
            driver.walk(1, folder)
        driver.call(T.CREATE, p9.unix_create(fid, name, kind | 0o640, extension=data, mode=p9.OEXCL))
        with refused(errno.EEXIST):
            driver.call(T.CREATE, p9.unix_create(50 + fid, name, kind | 0o640, extension=data, mode=p9.OEXCL))
        driver.walk(1, 80 + fid, name)
        assert unix_mode(driver, 80 + fid) & _TYPES == kind
        special = 0 if kind == p9.DMSYMLINK else p9.DMSETUID | p9.DMSETGID | p9.DMSETVTX
        changed = kind | special | 0o604
        driver.call(T.WSTAT, p9.wstat(80 + fid, mode=changed, extension=data))
        assert unix_mode(driver, 80 + fid) == changed, name
        with refused(errno.EIO):
            driver.call(T.WSTAT, p9.wstat(80 + fid, mode=(p9.DMDIR if kind != p9.DMDIR else 0) | 0o604))
        assert unix_mode(driver, 80 + fid) == changed, name
    with refused(errno.EIO):
        driver.call(T.CREATE, p9.unix_create(60, "unknown", p9.DMDEVICE | 0o640, extension="x 1 2"))


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_attributes_that_are_set_apart(raw_guest: RawGuest, share: Share) -> None:
    """A Tsetattr of one time or of one owner leaves the other one; a time without a value is the present."""
    file = share.path / "file"
    file.touch()
    driver = attached(raw_guest, share)
    driver.walk(1, 2, "file")
    past, other = 1_000_000_000, 1_100_000_000
    driver.call(T.SETATTR, p9.set_fields(2, p9.ATIME | p9.ATIME_SET | p9.MTIME | p9.MTIME_SET, time_s=past))
    driver.call(T.SETATTR, p9.set_fields(2, p9.ATIME | p9.ATIME_SET, time_s=other))
    assert (file.stat().st_atime, file.stat().st_mtime) == (other, past)
    driver.call(T.SETATTR, p9.set_fields(2, p9.ATIME))
    assert file.stat().st_atime > other
    assert file.stat().st_mtime == past
    driver.call(T.SETATTR, p9.set_fields(2, p9.MTIME))
    assert file.stat().st_mtime > other
    before = file.stat()
    driver.call(T.SETATTR, p9.set_fields(2, p9.UID, uid=before.st_uid))
    driver.call(T.SETATTR, p9.set_fields(2, p9.GID, gid=before.st_gid))
    assert (file.stat().st_uid, file.stat().st_gid) == (before.st_uid, before.st_gid)
