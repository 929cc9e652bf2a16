"""Crosses the axes of a run (QEMU, kernel, machine type, kind of share) with the tests that use them.

From names alone, so that every worker of pytest-xdist collects the same tests.
"""

from __future__ import annotations

import pytest

from harness.plugin.marks import AXES, VARIANT, asks_for_guest
from harness.plugin.options import option


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Cross the axes with a test that asks for a guest: parametrise it."""
    if asks_for_guest(metafunc.fixturenames):
        _cross(metafunc)


def _cross(metafunc: pytest.Metafunc) -> None:
    # Not at the top: both import the rest of the harness, which a run without guests does not need.
    from harness.guest.variant import PLAIN, VARIANTS
    from harness.plugin.provisioning import selection_of

    selection = selection_of(metafunc.config)
    axes: dict[str, tuple[str, ...]] = {fixture: getattr(selection, axis) for fixture, axis in AXES.items()}
    axes[VARIANT] = tuple(VARIANTS) if option(metafunc.config, "full") else (PLAIN,)
    _pair(metafunc, axes)
    for fixture, names in axes.items():
        if fixture in metafunc.fixturenames:
            pin = _pin(metafunc, fixture)
            pinned = [name for name in names if pin is None or name in pin]
            if not pinned:
                metafunc.parametrize(fixture, [_left_out(fixture, pin or (), names[0])], scope="session")
                continue
            if fixture == "machine_name" and _is_run_once(metafunc):
                pinned = _distinct(pinned) if option(metafunc.config, "machine") else _first_of_each(pinned)
            if fixture == "kernel_name" and _boots_no_guest(metafunc):
                pinned = pinned[:1]
            metafunc.parametrize(fixture, pinned, scope="session")


def _pin(metafunc: pytest.Metafunc, fixture: str) -> tuple[str, ...] | None:
    """The names that a test is pinned to on one axis; ``None`` where it is not pinned.

    :raises pytest.UsageError: when the mark has no names, or one that is no machine type or kind of share.
    """
    from harness.guest.variant import VARIANTS
    from harness.qemu.machine_types import MACHINE_TYPES

    axis = fixture.removesuffix("_name")
    mark = metafunc.definition.get_closest_marker(f"pin_{axis}")
    if mark is None:
        return None
    known = MACHINE_TYPES if axis == "machine" else VARIANTS
    if not mark.args or not set(mark.args) <= set(known):
        wrong = ", ".join(repr(name) for name in mark.args if name not in known) or "nothing"
        raise pytest.UsageError(
            f"{metafunc.definition.nodeid}: pin_{axis} names {wrong}; write one of {', '.join(known)}"
        )
    return mark.args


def _left_out(fixture: str, pin: tuple[str, ...], name: str) -> object:
    """One parameter, skipped: with none, pytest's own reason ("got empty parameter set") names no cause."""
    what = "machine type" if fixture == "machine_name" else "kind of share"
    reason = f"it runs with {what} {' or '.join(pin)} only"
    return pytest.param(name, marks=pytest.mark.skip(reason=reason))


def _is_run_once(metafunc: pytest.Metafunc) -> bool:
    any_plug = metafunc.definition.get_closest_marker("any_plug") is not None
    return any_plug and not option(metafunc.config, "full")


def _boots_no_guest(metafunc: pytest.Metafunc) -> bool:
    marked = metafunc.definition.get_closest_marker("no_guest_kernel") is not None
    if marked and "guest" in metafunc.fixturenames:
        raise pytest.UsageError(
            f"{metafunc.definition.nodeid} is marked no_guest_kernel, and asks for a guest"
        )
    return marked


def _first_of_each(machines: list[str]) -> list[str]:
    """The axis of machine types by default: the first machine type of each architecture."""
    from harness.qemu.machine_types import MACHINE_TYPES

    first = {MACHINE_TYPES[name].architecture.name: name for name in reversed(machines)}
    return [name for name in machines if name in first.values()]


def _distinct(machines: list[str]) -> list[str]:
    """The first of the machine types that differ only in how they hotplug.

    QEMU has one machine type for them.
    """
    from harness.qemu.machine_types import MACHINE_TYPES

    kinds = {MACHINE_TYPES[name].qemu: name for name in reversed(machines)}
    return [name for name in machines if name in kinds.values()]


def _pair(metafunc: pytest.Metafunc, axes: dict[str, tuple[str, ...]]) -> None:
    """The axis of two QEMUs at once.

    Every ordered pair of them (``peer``), or each with all the others (``peers``).
    """
    qemus = axes["qemu_name"]
    others = {name: tuple(other for other in qemus if other != name) for name in qemus}
    if "peer_name" in metafunc.fixturenames:
        second, pairs = "peer_name", [(name, other) for name in qemus for other in others[name]]
        alone: object = "alone"
    elif "peer_names" in metafunc.fixturenames:
        oldest = [name for name in qemus if len(others[name]) > 1][:1]
        second, pairs = "peer_names", [(name, others[name]) for name in oldest]  # type: ignore[misc]
        alone = ()
    else:
        return
    del axes["qemu_name"]
    few = pytest.mark.skip(reason="it takes more than one --qemu")
    values = [pytest.param(*pair, id=_pair_id(*pair)) for pair in pairs]
    values = values or [pytest.param(qemus[0], alone, id=qemus[0], marks=few)]
    metafunc.parametrize(("qemu_name", second), values, scope="session")


def _pair_id(name: str, others: str | tuple[str, ...]) -> str:
    return f"{name}-to-{others}" if isinstance(others, str) else f"{name}-and-{len(others)}-more"
