"""Options, the axes they open, and one usage error instead of forty failures.

The process that the user started resolves and provisions everything before a worker exists, with its
progress on the terminal; workers then find it in the cache.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from harness import reaper
from harness.errors import HarnessError
from harness.guest.variant import PLAIN, VARIANTS
from harness.matrix import ACCELS, Matrix, Selection
from harness.qemu.machine_types import MACHINE_TYPES
from harness.testbed import Cell

MATRIX = pytest.StashKey[Matrix]()
CELLS = pytest.StashKey[list[Cell]]()
_VARIANT = "variant_name"
_AXES = {"qemu_name": "qemus", "kernel_name": "kernels", "machine_name": "machines"}


def pytest_addoption(parser: pytest.Parser) -> None:
    """The command-line contract."""
    group = parser.getgroup("harness", "virtio-9p harness")
    add = group.addoption
    defaults = Selection()
    add(
        "--qemu",
        action="append",
        metavar="NAME|PATH",
        help="a provisioned QEMU (7.2, …) or a binary; repeatable",
    )
    add("--qemu-data", metavar="DIR", type=Path, help="the firmware of a --qemu PATH, if it is not beside it")
    machines = "|".join(defaults.machines)
    add("--machine", action="append", metavar=machines, help="machine type; repeatable (default: all)")
    add("--kernel", action="append", metavar="NAME", help="a provisioned guest kernel (6.1, …); repeatable")
    add(
        "--accel",
        default="auto",
        metavar="|".join(ACCELS),
        help="auto boots a guest before it believes in KVM",
    )
    add("--artifacts", metavar="DIR", help="where each test leaves its folder (default: artifacts/RUN/)")
    add("--keep-artifacts", action="store_true", help="keep the folders of passed tests too")
    add("--full", action="store_true", help="--thorough, on every machine type, with every kind of share")
    add("--cold", action="store_true", help="boot every guest instead of restoring it")


def selection_of(config: pytest.Config) -> Selection:
    """The selection that the options make; names only."""
    given = {
        "qemus": tuple(config.getoption("qemu") or ()),
        "machines": tuple(config.getoption("machine") or ()),
        "kernels": tuple(config.getoption("kernel") or ()),
    }
    accel, cold = config.getoption("accel"), config.getoption("cold")
    data = config.getoption("qemu_data")
    return Selection(accel=accel, cold=cold, qemu_data=data, **{k: v for k, v in given.items() if v})


def pytest_configure(config: pytest.Config) -> None:
    """Check what can be checked without touching anything."""
    config.addinivalue_line("markers", "pin_machine(*names): this scenario is about these types alone")
    config.addinivalue_line("markers", "pin_variant(*names): … about these kinds of shares alone")
    config.addinivalue_line("markers", "any_plug: how devices are plugged matters no more than elsewhere")
    config.addinivalue_line("markers", "no_guest_kernel: no guest boots in this scenario")
    config.addinivalue_line("markers", "cold: the guest of this scenario is booted, never restored")
    config.stash[MATRIX] = Matrix(selection_of(config), report=_report)
    with _usage():
        config.stash[MATRIX].selection.check()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Provision and probe, once, where the user can see it."""
    config = session.config
    if hasattr(config, "workerinput") or config.option.collectonly or not wants_guests(config):
        return
    reaper.sweep()
    with _usage():
        config.stash[CELLS] = config.stash[MATRIX].prepare()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Cross the axes: from names alone, so that every xdist worker collects the same tests."""
    selection = selection_of(metafunc.config)
    axes = {fixture: getattr(selection, axis) for fixture, axis in _AXES.items()}
    axes[_VARIANT] = tuple(VARIANTS) if metafunc.config.getoption("full") else (PLAIN,)
    _pair(metafunc, axes)
    for fixture, names in axes.items():
        if fixture in metafunc.fixturenames:
            pin = metafunc.definition.get_closest_marker(f"pin_{fixture.removesuffix('_name')}")
            pinned = [name for name in names if pin is None or name in pin.args]
            if fixture == "machine_name" and _is_run_once(metafunc):
                pinned = _distinct(pinned) if metafunc.config.getoption("machine") else pinned[:1]
            if fixture == "kernel_name" and _boots_no_guest(metafunc):
                pinned = pinned[:1]
            metafunc.parametrize(fixture, pinned, scope="session")


def _is_run_once(metafunc: pytest.Metafunc) -> bool:
    any_plug = metafunc.definition.get_closest_marker("any_plug") is not None
    return any_plug and not metafunc.config.getoption("full")


def _boots_no_guest(metafunc: pytest.Metafunc) -> bool:
    marked = metafunc.definition.get_closest_marker("no_guest_kernel") is not None
    if marked and "guest" in metafunc.fixturenames:
        raise pytest.UsageError(
            f"{metafunc.definition.nodeid} is marked no_guest_kernel, and asks for a guest"
        )
    return marked


def _distinct(machines: list[str]) -> list[str]:
    """The first of those that differ in the way of their hotplug alone: they are one machine of QEMU's."""
    kinds = {MACHINE_TYPES[name].qemu: name for name in reversed(machines)}
    return [name for name in machines if name in kinds.values()]


def _pair(metafunc: pytest.Metafunc, axes: dict[str, tuple[str, ...]]) -> None:
    """Two QEMUs at once: every ordered pair of them (``peer``), or each with all the others (``peers``)."""
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


def wants_guests(config: pytest.Config) -> bool:
    """Whether any path of this run lies outside the harness's own tests, which need no guest."""
    own = Path(__file__).parents[1] / "tests"
    paths = [Path(config.invocation_params.dir, arg.split("::")[0]).resolve() for arg in config.args]
    return any(not path.is_relative_to(own) for path in paths)


def _report(line: str) -> None:
    # pytest's capture is not active yet when this runs; stderr keeps stdout for pytest's own report.
    print(f"harness: {line}", file=sys.stderr, flush=True)


class _usage:  # noqa: N801 - reads as a word: "with _usage():"
    """Turns a harness error into pytest's one-line usage error."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, exc: BaseException | None, trace: object) -> None:
        if isinstance(exc, HarnessError):
            raise pytest.UsageError(str(exc)) from None
