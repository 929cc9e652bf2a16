"""Recipes in ``images/`` to files in a cache: guest images and QEMU releases."""

from harness.provision.cache import Cache, default_cache_root
from harness.provision.provisioner import Provisioner

__all__ = ["Cache", "Provisioner", "default_cache_root"]
