"""``harness provision``: fetches and builds what a run needs, in advance."""

from __future__ import annotations

import json
from pathlib import Path

import click

from harness.cli.common import progress
from harness.errors import UsageError
from harness.provision import Cache, Provisioner, default_cache_root
from harness.qemu import binary
from harness.qemu.architectures import ARCHITECTURES, X86_64, Architecture
from harness.qemu.machine_types import of_architectures


@click.command(epilog="Example: harness provision --arch s390x qemu:10.0 guest:6.1")
@click.argument("names", nargs=-1, metavar="[qemu:NAME|guest:NAME|heap:NAME|virtiofsd:NAME]...")
@click.option("--all", "everything", is_flag=True, help="Provision every recipe.")
@click.option(
    "--arch", "arch", default=X86_64.name, metavar="|".join(ARCHITECTURES), help="The guests' architecture."
)
@click.option("--refresh", is_flag=True, help="Ask the archive which package versions are current.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def provision(names: tuple[str, ...], everything: bool, arch: str, refresh: bool, as_json: bool) -> None:
    """Fetch and build guest images, QEMU releases, heap libraries and virtiofsd into the cache.

    Without names, the default guest image and the default QEMU are provisioned; where a QEMU is on PATH, a
    heap library for that one instead of a QEMU. A heap library profiles the heap of a QEMU that is installed
    or given by path. Entries that are in the cache are checked, and repaired when they are damaged.
    """
    provisioner = Provisioner(Cache(default_cache_root()), report=progress, refresh=refresh)
    of_architectures(arch)
    architecture = ARCHITECTURES[arch]
    wanted = _wanted(provisioner, names, everything, architecture)
    made = [_provide(provisioner, kind, name, architecture) for kind, name in wanted]
    if as_json:
        print(json.dumps(made, indent=2))
    else:
        for thing in made:
            print(f"{thing['kind']}:{thing['name']}  {thing['what']}  {thing['path']}")


def _wanted(
    provisioner: Provisioner, names: tuple[str, ...], everything: bool, architecture: Architecture
) -> list[tuple[str, str | None]]:
    heap = provisioner.heap_names()
    guests, qemus = provisioner.guest_names(architecture), provisioner.qemu_names(architecture)
    known = {"guest": guests, "qemu": qemus, "heap": heap, "virtiofsd": provisioner.virtiofsd_names()}
    if everything:
        return [(kind, name) for kind, found in known.items() for name in found]
    if not names:
        found = binary.on_path(architecture=architecture)
        if found is not None:
            progress(f"QEMU is on PATH: {found.binary}")
            return [("guest", None), *(("heap", name) for name in heap[:1])]
        return [("guest", None), ("qemu", None)]
    wanted: list[tuple[str, str | None]] = []
    for word in names:
        kind, _, name = word.partition(":")
        if kind not in known or name not in known[kind]:
            choices = " ".join(f"{kind}:{name}" for kind, found_ in known.items() for name in found_)
            raise UsageError(f"{word}: there is no recipe of that name; known: {choices}")
        wanted.append((kind, name))
    return wanted


def _provide(
    provisioner: Provisioner, kind: str, name: str | None, architecture: Architecture
) -> dict[str, str]:
    if kind == "guest":
        image = provisioner.guest_image(name, architecture)
        what, path = f"Linux {image.kernel_version}", image.kernel.parent
        return {"kind": kind, "name": image.name, "what": what, "path": str(path), "key": image.key}
    if kind == "heap" and name is not None:
        library = provisioner.heap_library(name)
        what, path = f"{library.name} for a QEMU with this host's libc", library.parent
        return {"kind": kind, "name": name, "what": what, "path": str(path), "key": path.name}
    if kind == "virtiofsd" and name is not None:
        program = Path(provisioner.virtiofsd(name)[-1])
        what, path = "the daemon of vhost-user-fs", program.parents[3]
        return {"kind": kind, "name": name, "what": what, "path": str(path), "key": path.name}
    install = provisioner.qemu_release(name, architecture)
    what, path = binary.probe(install).banner, install.binary
    return {"kind": kind, "name": install.name, "what": what, "path": str(path), "key": install.key}
