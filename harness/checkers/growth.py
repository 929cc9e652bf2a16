"""Whether something grows again and again, and stays: what a leak does, and a pool or a cache does not.

Exact counts have no noise, so no limit is needed: the *floor* of a series is the lowest value from each
moment to the end. Where it rises, something came that never went.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

#: So often has growth to be seen, before it is said to recur.
_RECURS = 2


def floor(values: Sequence[float]) -> list[float]:
    """The lowest value from each position to the end."""
    lowest: list[float] = []
    for value in reversed(values):
        lowest.append(min(value, lowest[-1]) if lowest else value)
    return lowest[::-1]


def recurs(values: Sequence[float]) -> bool:
    """Whether the floor rises at two positions or more.

    The last position is not counted: nobody saw whether that stays.
    """
    low = floor(values)
    return sum(later > earlier for earlier, later in pairwise(low[:-1])) >= _RECURS


def throughout(values: Sequence[float]) -> bool:
    """Whether the floor rises from each position to the next: it does not level off."""
    return all(later > earlier for earlier, later in pairwise(floor(values)))


def lasting(members: Sequence[frozenset[int]], parts: Sequence[int]) -> bool:
    """Whether in each part something began that is there to the end, and there is more of it than before.

    A pool replaces its members, and may have one or two more or less of them. What is lost while a pool
    shrinks by as many is not seen.

    :param members: who was there, at each position.
    :param parts: the position of the last look of each part; the first belongs to what was before.
    """
    last = members[-1]
    if len(last) <= len(members[0]):
        return False
    begun = [
        last & (members[end] - frozenset[int]().union(*members[: start + 1]))
        for start, end in pairwise(parts)
    ]
    return all(begun)
