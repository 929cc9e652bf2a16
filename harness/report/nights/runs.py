"""Which runs are one night, by one rule for all reports; and which runs are alike."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import groupby
from operator import attrgetter

from harness.report.nights import rows

#: The kinds of runs whose results are compared over nights.
NIGHTS = ("scenarios", "merge")
#: What ran within so long before the last run of a night belongs to it.
A_NIGHT = timedelta(hours=20)
#: Options that change where results go, or what is printed, and nothing that is run.
_RESULTS = ("--artifacts", "--summary", "--junit", "--record", "--durations-from", "--color", "-v", "-q")


def time(text: str) -> datetime:
    """A time of a run, in the form of the history file."""
    found = datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def conditions(run: rows.Run) -> frozenset[str]:
    """The options by which runs are alike: each with its value, without those that only say where results go.

    Runs with other conditions are of other tests, or of the same ones under another load.
    """
    return _conditions(run.options)


def by_night(runs: Iterable[rows.Run]) -> dict[int, str]:
    """The name of the night of each run, by the run's id.

    A night is a run, and before it, within :data:`A_NIGHT`, the last run with each other set of options, and
    of each other part of a split run. So a run that is repeated with the same options is another night. Runs
    of :data:`NIGHTS` are nights together, and those of each other kind by themselves.

    A night is called by the day, in UTC, on which its last run began; another one of that day by the time as
    well. Names are in the order of time.
    """
    ordered = sorted(runs, key=lambda run: (_family(run), run.begun, run.id))
    names: dict[int, str] = {}
    for _, family in groupby(ordered, key=_family):
        nights = sorted(_nights(list(family)), key=lambda night: night[0].begun)
        for _, of_day in groupby(nights, key=lambda night: night[0].begun[:10]):
            for number, night in enumerate(of_day):
                begun = night[0].begun
                name = begun[:19].replace("T", " ") if number else begun[:10]
                names |= dict.fromkeys(map(attrgetter("id"), night), name)
    return names


def _family(run: rows.Run) -> str:
    return NIGHTS[0] if run.kind in NIGHTS else run.kind


def _nights(runs: Sequence[rows.Run]) -> Iterator[list[rows.Run]]:
    """The nights of runs in the order of time, the newest night first; of each night, its last run first."""
    left = list(runs)
    while left:
        earliest = time(left[-1].begun) - A_NIGHT
        places: dict[Hashable, int] = {}
        for place in range(len(left) - 1, -1, -1):
            run = left[place]
            if time(run.begun) <= earliest:
                break
            places.setdefault((run.kind, run.shard, conditions(run)), place)
        # From the end, so that the other places stay what they are.
        yield [left.pop(place) for place in places.values()]


@lru_cache
def _conditions(options: tuple[str, ...]) -> frozenset[str]:
    found: list[str] = []
    for word in options:
        if found and not word.startswith("-") and found[-1].startswith("-") and " " not in found[-1]:
            found[-1] += f" {word}"
        else:
            found.append(word)
    return frozenset(one for one in found if not one.startswith(_RESULTS))
