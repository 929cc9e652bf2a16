"""The command-line options: a contract, because other people's scripts use them.

They are added after all other plugins and the ``conftest.py`` files have added theirs. A name that is taken
by then stays with its owner: in that run the option is ``--harness-NAME``, and the header lists it.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness.plugin import pytest_internals

#: The options that another plugin has, by name: ``--kernel``.
TAKEN = pytest.StashKey[Sequence[str]]()


@dataclass(frozen=True)
class Option:
    """One option. Its value is read with :func:`option`, never by pytest's ``dest``, which may be another's.

    :ivar name: such as ``kernel``, for ``--kernel``. :ivar value: what it takes; a flag takes nothing.
    """

    name: str
    help: str
    value: str = ""
    repeatable: bool = False
    default: str | None = None

    @property
    def dest(self) -> str:
        """The attribute of ``config.option`` that an option of ours has."""
        return f"harness_{self.name.replace('-', '_')}"

    @property
    def unset(self) -> object:
        """The value of an option of ours where it was not given."""
        return self.default if self.value else False


OPTIONS = (
    Option("qemu", "a provisioned QEMU (7.2, ...) or a binary; repeatable", "NAME|PATH", repeatable=True),
    Option("qemu-data", "the firmware of a --qemu PATH, if it is not beside it", "DIR"),
    Option("arch", "the guest's architecture; repeatable (default: x86_64)", "NAME", repeatable=True),
    Option("machine", "machine type; repeatable (default: by scenario)", "NAME", repeatable=True),
    Option("kernel", "a provisioned guest kernel (6.1, ...); repeatable", "NAME", repeatable=True),
    Option("accel", "auto uses KVM only if a test guest boots under it", "auto|kvm|tcg", default="auto"),
    Option("timeout-scale", "multiplies the timeouts, for slow hosts (default: 1)", "FACTOR"),
    Option("recipes", "recipes of guests and QEMUs, beside the harness's own; repeatable", "DIR", True),
    Option("known-bugs", "known bugs, beside the harness's own; repeatable", "FILE", repeatable=True),
    Option("artifacts", "where each test leaves its folder (default: artifacts/RUN/)", "DIR"),
    Option("keep-artifacts", "keep the folders of passed tests too"),
    Option("thorough", "run every scenario; the default is a subset"),
    Option("full", "--thorough, on every machine type, with every kind of share"),
    Option("cold", "boot every guest instead of restoring it"),
    Option("stay-on-failure", "keep the guests of a failed test up until Enter is pressed (not with -n)"),
    Option("record", "add this run to the history in this SQLite file (see harness nights)", "FILE"),
    Option(
        "confirm",
        "run a test that failed, and is no known bug, N more times at the end of the run "
        "(default: 3 with --record, else 0)",
        "N",
    ),
    Option("summary", "write the summary there: matrix.json, matrix.html, summary.md", "DIR"),
    Option(
        "shard",
        "run part I of N, split by recorded durations (see harness merge); auto: as the variables of GitLab, "
        "Slurm, Kubernetes or GitHub say",
        "I/N|auto|auto/N",
    ),
    Option("runners", "that many machines take the N shards in their order: the first are longer", "R"),
    Option("durations-from", "a --summary folder; its durations instead of the cache's", "DIR"),
)
_BY_NAME = {option.name: option for option in OPTIONS}


def option(config: pytest.Config, name: str) -> Any:
    """The value of an option: a string, a list of strings (repeatable), or a bool (a flag)."""
    return config.getoption(_BY_NAME[name].dest, _BY_NAME[name].unset)


def paths(config: pytest.Config, name: str) -> tuple[Path, ...]:
    """The values of a repeatable option as paths: below the current folder, or else below the root folder.

    An option in a configuration file (``addopts``) is written for the root folder, where the file is.
    """
    given = [
        (config.invocation_params.dir / path, config.rootpath / path) for path in option(config, name) or ()
    ]
    return tuple(here if here.exists() or not at_root.exists() else at_root for here, at_root in given)


def any_given(config: pytest.Config) -> bool:
    """Whether the user gave any option of ours."""
    return any(option(config, one.name) != one.unset for one in OPTIONS)


def is_worker(config: pytest.Config) -> bool:
    """Whether this process is a worker of pytest-xdist."""
    return hasattr(config, "workerinput")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_load_initial_conftests(
    early_config: pytest.Config, parser: pytest.Parser, args: list[str]
) -> Generator[None, object, object]:
    """Add the options once every plugin and ``conftest.py`` has added its own."""
    with_values = {f"--{one.name}" for one in OPTIONS if one.value}
    # The options are not declared yet: pytest would take their values for files to run.
    pytest_internals.set_files_to_run(early_config, parser, without(args, with_values))
    result = yield
    early_config.stash[TAKEN] = taken(parser)
    _add(parser, early_config.stash[TAKEN])
    return result


def without(args: Sequence[str], options: set[str]) -> list[str]:
    """The arguments without these options and their values."""
    kept: list[str] = []
    rest = iter(args)
    for arg in rest:
        if arg == "--":
            return [*kept, arg, *rest]
        if arg in options:
            next(rest, None)
        else:
            kept.append(arg)
    return kept


def taken(parser: pytest.Parser) -> tuple[str, ...]:
    """The names of our options that the parser knows already."""
    names = [f"--{one.name}" for one in OPTIONS]
    # One question for all of them: nearly always none is known, and each question costs a parse.
    if not _knows_any(parser, names):
        return ()
    return tuple(name for name in names if _knows_any(parser, [name]))


def _knows_any(parser: pytest.Parser, names: Sequence[str]) -> bool:
    words = [f"{name}=1" for name in names]
    try:
        return parser.parse_known_and_unknown_args(words)[1] != words
    except pytest.UsageError:  # It is known, and takes no such value.
        return True


def _add(parser: pytest.Parser, owned_by_others: Sequence[str]) -> None:
    group = parser.getgroup("harness", "virtio-9p harness")
    for one in OPTIONS:
        name = f"--{one.name}"
        name = f"--harness-{one.name}" if name in owned_by_others else name
        if not one.value:
            group.addoption(name, dest=one.dest, action="store_true", help=one.help)
            continue
        action = "append" if one.repeatable else "store"
        group.addoption(
            name, dest=one.dest, action=action, metavar=one.value, default=one.default, help=one.help
        )


def about_taken(config: pytest.Config) -> list[str]:
    """For the header: our options that have another name in this run, because the name is taken."""
    return [
        f"harness: {name} is another plugin's option; the harness's is --harness-{name.removeprefix('--')}"
        for name in config.stash.get(TAKEN, ())
    ]
