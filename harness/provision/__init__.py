"""Makes guest images and QEMU releases from the recipes in ``images/``, and keeps them in a cache."""

from harness.provision.cache import Cache, default_cache_root
from harness.provision.provisioner import Provisioner

__all__ = ["Cache", "Provisioner", "default_cache_root"]
