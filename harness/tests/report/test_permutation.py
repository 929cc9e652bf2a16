from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import combinations, product

import pytest

from harness.report.permutation import midranks, pairs, rank_sum, runs_needed, two_samples


def test_equal_values_share_their_ranks() -> None:
    assert midranks([3.0, 1.0, 3.0, 2.0]) == [3.5, 1.0, 3.5, 2.0]
    assert midranks([]) == []


@pytest.mark.parametrize(("size", "all_"), [(1, 6), (3, 6), (2, 7), (4, 9), (6, 9)])
def test_the_p_value_is_the_share_of_choices_that_are_as_far_from_the_middle(size: int, all_: int) -> None:
    choices = [sum(one) for one in combinations(range(1, all_ + 1), size)]
    middle = size * (all_ + 1) / 2
    for total in set(choices):
        as_far = sum(abs(other - middle) >= abs(total - middle) for other in choices)
        assert rank_sum(total, size, all_) == pytest.approx(as_far / len(choices))


def test_many_figures_use_the_normal_distribution_which_names_fewer_differences() -> None:
    """50 of 100 ranks are the most that are counted; 51 of 101 are not."""
    for above in (150, 350, 600, 900):
        counted = rank_sum(50 * 101 / 2 + above, 50, 100)
        assert counted < rank_sum(51 * 102 / 2 + above, 51, 101) < 4 * counted + 1e-6


def test_two_samples_that_do_not_overlap_differ() -> None:
    assert two_samples([1.0, 2, 3, 4], [5.0, 6, 7, 8]) == pytest.approx(2 / 70)
    assert two_samples([5.0, 6, 7, 8], [1.0, 2, 3, 4]) == pytest.approx(2 / 70)
    assert two_samples([1.0, 1, 1], [1.0, 1, 1]) == 1.0


def test_a_sample_of_the_same_distribution_seldom_differs() -> None:
    rng = random.Random(1)
    found = [
        two_samples([rng.random() for _ in range(8)], [rng.random() for _ in range(8)]) for _ in range(900)
    ]
    assert sum(p <= 0.05 for p in found) <= 0.07 * len(found)


@pytest.mark.parametrize("differences", [[1.0, 2, 3, 4, 5], [1.0, -2, 3, 4, -5], [-1.0, -2, 3, -0.5]])
def test_the_p_value_of_pairs_is_the_share_of_signs(differences: Sequence[float]) -> None:
    ranks = midranks([abs(value) for value in differences])
    sums = [
        sum(s * r for s, r in zip(signs, ranks, strict=True)) for signs in product((1, -1), repeat=len(ranks))
    ]
    seen = abs(sum(r if value > 0 else -r for value, r in zip(differences, ranks, strict=True)))
    assert pairs(differences) == pytest.approx(sum(abs(total) >= seen for total in sums) / len(sums))


def test_pairs_without_a_difference_say_nothing() -> None:
    assert pairs([]) == 1.0
    assert pairs([0.0, 0.0]) == 1.0


def test_more_tests_need_more_runs() -> None:
    assert runs_needed(1) == 4
    assert runs_needed(100) > runs_needed(10) > runs_needed(1)
    runs = runs_needed(10)
    assert two_samples(list(range(runs)), list(range(100, 100 + runs))) <= 0.05 / 10
