"""The pytest plugin: options and axes, fixtures, judging at the end of each test, reports.

The only part of the harness that imports pytest. Installing the project registers it (entry point
``pytest11``), so every run of pytest loads it, also one that has nothing to do with guests. It has two parts:

- The modules below are always loaded. They import nothing but pytest and the standard library.
- ``harness.plugin.activation`` loads the rest when a test asks for a guest, or an option of ours is given.

The entry point has the name of this package, so that a ``conftest.py`` that names it in ``pytest_plugins``,
or ``-p harness.plugin``, does not load it a second time.
"""

pytest_plugins = [
    "harness.plugin.options",
    "harness.plugin.marks",
    "harness.plugin.activation",
    "harness.plugin.axes",
    "harness.plugin.folders",
    "harness.plugin.fixtures",
]
