"""The pytest plugin: options and axes, fixtures, judging at the end of each test, reports.

The only part of the harness that imports pytest.
"""

pytest_plugins = [
    "harness.plugin.options",
    "harness.plugin.strict",
    "harness.plugin.thorough",
    "harness.plugin.schedule",
    "harness.plugin.sharding",
    "harness.plugin.folders",
    "harness.plugin.fixtures",
    "harness.plugin.known_bugs",
    "harness.plugin.judging",
    "harness.plugin.outcomes",
    "harness.plugin.fallbacks",
    "harness.plugin.reporting",
]
