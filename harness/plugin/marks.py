"""The marks of tests, and what follows from them and from a test's fixtures alone."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from harness.guarantees import UNNAMED, of_test

_MARKS = (
    "guarantee(text): what this test asserts of QEMU; its row in the summary",
    "pin_machine(*names): this test runs on these machine types alone",
    "pin_variant(*names): this test runs with these kinds of shares alone",
    "unplug(kind): device_del has to do this: 'asks' the guest, or 'takes' the device from it, or is "
    "'refused' as device_add is; on other machine types the test is skipped",
    "any_plug: how devices are plugged makes no difference here: one machine type is enough",
    "no_guest_kernel: no guest boots in this test",
    "cold: the guest of this test is booted, never restored",
    "thorough(*machines): left out of a default run; with machine types, on those alone",
    "always: in every default run, whatever 'harness faults cover' computes: it shows a clause of its "
    "guarantee, or a way of hotplug",
)
#: The fixture of each axis of a run, and the selection's attribute with its names.
AXES = {"qemu_name": "qemus", "kernel_name": "kernels", "machine_name": "machines"}
VARIANT = "variant_name"
#: A test asks for a guest when it uses one of these fixtures, through others as a rule.
_GUEST_FIXTURES = frozenset((*AXES, VARIANT, "cell"))


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marks."""
    for mark in _MARKS:
        config.addinivalue_line("markers", mark)


def asks_for_guest(fixtures: Collection[str]) -> bool:
    """By its fixtures, whether a test may start a guest."""
    return not _GUEST_FIXTURES.isdisjoint(fixtures)


def item_asks_for_guest(item: pytest.Item) -> bool:
    """By its marks and fixtures, whether a collected test may start a guest."""
    return asks_for_guest(getattr(item, "fixturenames", ()))


def guarantee_of(item: pytest.Item) -> str | None:
    """The guarantee that a test asserts: its mark's, or its file's for the project's own scenarios.

    :returns: ``None`` for a test that has neither guarantee nor guest.
    :raises pytest.UsageError: when the mark does not have one text.
    """
    mark = item.get_closest_marker("guarantee")
    if mark is None:
        return of_test(item.nodeid) or (UNNAMED if item_asks_for_guest(item) else None)
    if len(mark.args) != 1 or mark.kwargs or not isinstance(mark.args[0], str) or not mark.args[0].strip():
        raise pytest.UsageError(f'{item.nodeid}: write @pytest.mark.guarantee("..."), with one text')
    return mark.args[0].strip()
