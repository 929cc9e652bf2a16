"""Names the plugin; everything that pytest needs to know lives in ``harness/plugin``."""

pytest_plugins = ["harness.plugin"]
