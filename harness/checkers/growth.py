"""Recognises growth that recurs and stays, as a leak's does, and a pool's or a cache's does not.

Counts are exact and have no noise, so no limit is needed. The *floor* of a series is the lowest value from
each position to the end. Where the floor rises, something was added that was never removed.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

#: The floor has to rise this many times for growth to recur.
_RECURS = 2


def floor(values: Sequence[float]) -> list[float]:
    """The floor of a series of counts: the lowest value from each position to the end."""
    lowest: list[float] = []
    for value in reversed(values):
        lowest.append(min(value, lowest[-1]) if lowest else value)
    return lowest[::-1]


def recurs(values: Sequence[float]) -> bool:
    """Whether the floor rises at two positions or more.

    The last position is not counted: the series does not show whether that growth stays.
    """
    low = floor(values)
    return sum(later > earlier for earlier, later in pairwise(low[:-1])) >= _RECURS


def throughout(values: Sequence[float]) -> bool:
    """Whether growth goes on throughout: the floor of a series rises from each position to the next."""
    return all(later > earlier for earlier, later in pairwise(floor(values)))


def lasting(members: Sequence[frozenset[int]], parts: Sequence[int]) -> bool:
    """Whether growth lasts: each part added a member that stays, and there are more at the end.

    A pool replaces its members, and their number varies by one or two. A leak is not found if a pool loses as
    many members at the same time.

    :param members: the members at each position, such as the ids of all threads.
    :param parts: the last position of each part, beginning with the last position before the first part.
    """
    last = members[-1]
    if len(last) <= len(members[0]):
        return False
    added = [
        last & (members[end] - frozenset[int]().union(*members[: start + 1]))
        for start, end in pairwise(parts)
    ]
    return all(added)
