"""``python -m harness.provision``: fill the default cache, and print what was provided as JSON."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from harness.errors import HarnessError
from harness.provision import Cache, Provisioner, default_cache_root


def main() -> int:
    """Provide the default guest image and QEMU release; progress goes to stderr."""
    provisioner = Provisioner(
        Cache(default_cache_root()), report=lambda line: print(line, file=sys.stderr, flush=True)
    )
    try:
        made = {"guest": asdict(provisioner.guest_image()), "qemu": asdict(provisioner.qemu_release())}
    except HarnessError as exc:
        print(exc, file=sys.stderr)
        return 1
    print(json.dumps(made, indent=2, default=str))
    return 0


if __name__ == "__main__":
    sys.exit(main())
