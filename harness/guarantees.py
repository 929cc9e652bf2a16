"""What the scenarios assert, and which file of them asserts it.

The first seven are the guarantees of the patch series "virtio-9p: hotplug and migration support" (2015); the
rest is what has to hold for any of them to mean something.
"""

from __future__ import annotations

#: Each guarantee, by the file of scenarios that is its specification.
BY_FILE = {
    "test_leak.py": "no leak",
    "test_crash.py": "no crash in vmstate change",
    "test_blocker.py": "blocked while mounted",
    "test_migration.py": "migrates when unmounted",
    "test_cross_version.py": "migrates when unmounted",
    "test_device_state.py": "migrates when unmounted",
    "test_failed_migration.py": "migrates when unmounted",
    "test_unplug_busy.py": "unplug is refused while busy",
    "test_hostile_guest.py": "a hostile guest cannot hurt QEMU",
    "test_shared_parts.py": "shared parts are counted",
    "test_messages.py": "a hostile guest cannot hurt QEMU",
    "test_data.py": "plain use",
    "test_metadata.py": "plain use",
    "test_lifecycle.py": "lifecycle",
    "test_neighbours.py": "lifecycle",
    "test_refusal.py": "refusal",
}
GUARANTEES = tuple(dict.fromkeys(BY_FILE.values()))


def of_test(test: str) -> str | None:
    """The guarantee that a test (pytest's id of it) asserts; nothing for one that is no scenario."""
    return BY_FILE.get(test.partition("::")[0].rpartition("/")[2])
