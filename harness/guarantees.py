"""The guarantees that the scenarios assert, and the file of scenarios that asserts each of them.

The first seven are the guarantees of the patch series "virtio-9p: hotplug and migration support" (2015). The
others are their preconditions.
"""

from __future__ import annotations

from collections.abc import Iterable

#: The guarantee that each file of scenarios specifies.
BY_FILE = {
    "test_leak.py": "no leak",
    "test_crash.py": "no crash in vmstate change",
    "test_blocker.py": "blocked while mounted",
    "test_migration.py": "migrates when unmounted",
    "test_cross_version.py": "migrates when unmounted",
    "test_device_state.py": "migrates when unmounted",
    "test_failed_migration.py": "migrates when unmounted",
    "test_live_update.py": "migrates when unmounted",
    "test_unplug_busy.py": "unplug is refused while busy",
    "test_hostile_guest.py": "a hostile guest cannot hurt QEMU",
    "test_surprise_removal.py": "a hostile guest cannot hurt QEMU",
    "test_shared_parts.py": "shared parts are counted",
    "test_messages.py": "a hostile guest cannot hurt QEMU",
    "test_message_limits.py": "a hostile guest cannot hurt QEMU",
    "test_requests_in_flight.py": "a hostile guest cannot hurt QEMU",
    "test_virtqueue.py": "a hostile guest cannot hurt QEMU",
    "test_read_only_export.py": "a hostile guest cannot hurt QEMU",
    "test_data.py": "plain use",
    "test_metadata.py": "plain use",
    "test_lifecycle.py": "lifecycle",
    "test_neighbours.py": "lifecycle",
    "test_refusal.py": "refusal",
}
#: In the summary: the row of tests that used a guest and name no guarantee.
UNNAMED = "(no guarantee named)"
GUARANTEES = tuple(dict.fromkeys(BY_FILE.values()))


def in_order(names: Iterable[str]) -> list[str]:
    """Each of these guarantees once: the project's own first, then others as they come."""
    others = list(dict.fromkeys(name for name in names if name not in GUARANTEES))
    return [*GUARANTEES, *others]


def of_test(test: str) -> str | None:
    """The guarantee that a test (given by its pytest id) asserts; ``None`` if it is not a scenario."""
    return BY_FILE.get(test.partition("::")[0].rpartition("/")[2])
