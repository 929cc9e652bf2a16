"""The kernel among the packages of a guest's recipe: which package has it, and where it is unpacked."""

from __future__ import annotations

import re
from pathlib import Path

from harness.errors import SetupError
from harness.provision.apt import Package


def kernels_in(root: Path) -> dict[str, Path]:
    """The kernels in ``root``, by version: in ``/boot``, or (Linux 7.2) beside their modules."""
    named = {path.name.removeprefix("vmlinuz-"): path for path in root.glob("boot/vmlinuz-*")}
    return named | {path.parent.name: path for path in root.glob("usr/lib/modules/*/vmlinuz")}


def only_kernel(found: list[Package], requested: list[str]) -> list[Package]:
    """Of all dependencies of a kernel's metapackage, only the kernel itself.

    Newer kernels (7.2) come in parts, on which ``linux-image-VERSION`` depends.
    """
    kernels = [package for package in found if re.match(r"linux-image-\d", package.name)]
    if len(kernels) != 1:
        names = ", ".join(package.name for package in kernels) or "none"
        raise SetupError(
            f"{requested[0]} must depend on one kernel package (linux-image-VERSION), found: {names}"
        )
    version = kernels[0].name.removeprefix("linux-image-")
    parts = {f"linux-{part}-{version}" for part in ("base", "binary", "modules")}
    return kernels + [package for package in found if package.name in parts]
