"""The leak checker on hand-written samples: what must be found, what must not, and what cannot be told."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from harness.checkers import Verdict
from harness.checkers.no_leak import LIMITS, OBJECTS_LIMIT, POOLS, no_leak, slope
from harness.tests.checkers.story import Story

WARM_UP, FULL = 5, 25
HEALTHY: dict[str, Any] = {
    "threads": 6,
    "fds": 16,
    "fd_targets": {"socket": 4, "/dev/null": 2},
    "private_kib": 250_000,
    "qom_children": 73,
    "memory_regions": 191,
    "blockers": 0,
    "vmstate_sections": 41,
}
Sample = Callable[[int], dict[str, Any]]


def hunted(
    story: Story,
    sample: Sample = lambda _: {},
    sites: list[dict[str, Any]] | None = None,
    *,
    count: int = FULL,
    guest: bool = False,
    control: Sample | None = None,
) -> tuple[Verdict, str, str]:
    lengths = [WARM_UP, WARM_UP + 10, FULL]
    story.launched()
    story.history.note("host", "leak:plan", {"warm_up": WARM_UP, "lengths": lengths, "guest": guest})
    for cycle in range(count):
        story.history.note("full", "leak:sample", {"cycle": cycle, **HEALTHY, **sample(cycle)})
        if control is not None:
            value = {"cycle": cycle, **HEALTHY, **control(cycle)}
            story.history.note("control-full", "leak:control-sample", value)
    if sites is not None:
        (story.folder / "heap-sites.json").write_text(json.dumps({"lengths": lengths, "growing": sites}))
        story.history.note("host", "leak:heap-sites", {"file": "heap-sites.json"})
    judgement = story.quit().closed().judged(no_leak)
    return judgement.verdict, judgement.summary, "\n".join(judgement.evidence)


def site(*objects: int, size: int = 3, stack: tuple[str, ...] = ("malloc+0x1", "v9fs_x+0x2 (qemu)")) -> Any:
    return {"objects": list(objects), "bytes": [size * n for n in objects], "stack": list(stack)}


def test_a_record_without_a_hunt(story: Story) -> None:
    assert story.launched().quit().closed().judged(no_leak).verdict is Verdict.VALID


def test_a_healthy_hunt_states_its_limits(story: Story) -> None:
    verdict, summary, _ = hunted(story, sites=[])
    assert verdict is Verdict.VALID
    assert summary.startswith("nothing grew in cycles 5 to 25; detection limits per cycle: 0.5 heap objects")


@pytest.mark.parametrize("name", LIMITS)
def test_a_count_that_grows(story: Story, name: str) -> None:
    step = max(1, round(LIMITS[name] * 2))
    verdict, summary, _ = hunted(story, lambda n: {name: HEALTHY[name] + n * step}, [])
    assert verdict is Verdict.INVALID
    assert summary.startswith(f"leak: {name}: +{step}.00 a cycle")


def test_what_was_not_measured_is_not_in_the_stated_limits(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(HEALTHY, "vmstate_sections")
    verdict, summary, _ = hunted(story, sites=[])
    assert verdict is Verdict.VALID
    assert "blockers 0.1" in summary
    assert "vmstate_sections" not in summary


@pytest.mark.parametrize("cycles", [range(20), range(20, FULL)])
def test_a_count_that_is_there_now_and_then_is_unknown(
    story: Story, monkeypatch: pytest.MonkeyPatch, cycles: range
) -> None:
    monkeypatch.delitem(HEALTHY, "vmstate_sections")
    verdict, _, _ = hunted(story, lambda n: {"vmstate_sections": 41} if n in cycles else {}, sites=[])
    assert verdict is Verdict.UNKNOWN


@pytest.mark.parametrize(("grows", "expected"), [(900, Verdict.VALID), (1200, Verdict.INVALID)])
def test_a_guest_may_use_more_of_its_own_memory(story: Story, grows: int, expected: Verdict) -> None:
    verdict, _, _ = hunted(story, lambda n: {"private_kib": 250_000 + n * grows}, [], guest=True)
    assert verdict is expected


@pytest.mark.parametrize("step", [-52_000, 52_000])
def test_memory_that_grows_beside_a_step(story: Story, step: int) -> None:
    """The one that is retained, or given back, when a heap profile is written."""
    grows: Sample = lambda n: {"private_kib": 250_000 + n * 150 + step * (n >= WARM_UP + 10)}  # noqa: E731
    verdict, summary, _ = hunted(story, grows, [])
    assert verdict is Verdict.INVALID
    assert summary.startswith("leak: private_kib: +150.00 a cycle")


@pytest.mark.parametrize(("own", "expected"), [(0, Verdict.VALID), (1, Verdict.INVALID)])
def test_what_the_control_grows_by_as_well_is_not_the_devices(
    story: Story, own: int, expected: Verdict
) -> None:
    grows: Sample = lambda n: {"fds": 16 + n * (2 + own)}  # noqa: E731
    verdict, summary, _ = hunted(story, grows, [], control=lambda n: {"fds": 16 + n * 2})
    assert verdict is expected
    assert own == 0 or summary.startswith("leak: fds: +1.00 a cycle")


def test_one_thread_in_every_third_cycle(story: Story) -> None:
    verdict, _, _ = hunted(story, lambda n: {"threads": 6 + n // 3}, [])
    assert verdict is Verdict.INVALID


def test_fds_that_grow_are_named(story: Story) -> None:
    grown: Sample = lambda n: {"fds": 16 + n, "fd_targets": {"socket": 4, "/share": n}}  # noqa: E731
    verdict, _, evidence = hunted(story, grown, [])
    assert verdict is Verdict.INVALID
    assert "    /share: +19" in evidence


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("threads", lambda n: 6 + (n > 12)),  # The pool grows once.
        ("threads", lambda n: 6 + n % 2),  # It comes and goes.
        ("threads", lambda n: 30 - n),
        ("fds", lambda n: 16 + 3 * (n == 9)),
        ("private_kib", lambda n: 250_000 + 8000 * (n > 8)),  # Retained once.
        ("private_kib", lambda n: 250_000 + 52_000 * (n >= WARM_UP + 10)),  # By the profile half-way.
        ("private_kib", lambda n: 250_000 + n * 100),
        ("threads", lambda n: 6 + (n if n < WARM_UP else WARM_UP)),  # Before the warm-up is over.
    ],
)
def test_what_moves_and_does_not_grow(story: Story, name: str, change: Callable[[int], int]) -> None:
    verdict, summary, _ = hunted(story, lambda n: {name: change(n)}, [])
    assert verdict is Verdict.VALID, summary


def test_one_small_object_a_cycle_is_found_and_its_site_named(story: Story) -> None:
    verdict, summary, evidence = hunted(story, sites=[site(7, 17, 27)])
    assert verdict is Verdict.INVALID
    assert summary == "leak: heap: +1.00 objects of 3 bytes a cycle, allocated by v9fs_x+0x2 (qemu)"
    assert "v9fs_x+0x2 (qemu)" in evidence


@pytest.mark.parametrize(
    "objects",
    [
        (10, 20, 22),  # A cache that fills up,
        (10, 11, 21),  # one that doubled late,
        (10, 14, 18),  # and a site below the limit.
    ],
)
def test_sites_that_do_not_keep_growing(story: Story, objects: tuple[int, int, int]) -> None:
    verdict, _, _ = hunted(story, sites=[site(*objects)])
    assert verdict is Verdict.VALID


@pytest.mark.parametrize("pool", POOLS)
def test_a_pool_is_no_leak(story: Story, pool: str) -> None:
    verdict, _, _ = hunted(story, sites=[site(7, 17, 27, stack=("calloc+0x1", f"{pool}+0x3b (qemu)"))])
    assert verdict is Verdict.VALID


def test_a_name_that_begins_like_a_pool_is_none(story: Story) -> None:
    verdict, _, _ = hunted(story, sites=[site(7, 17, 27, stack=("qht_insert_more+0x1 (qemu)",))])
    assert verdict is Verdict.INVALID


def test_too_few_samples_are_unknown(story: Story) -> None:
    verdict, _, _ = hunted(story, sites=[], count=WARM_UP + 9)
    assert verdict is Verdict.UNKNOWN


def test_no_heap_profile_is_unknown(story: Story) -> None:
    verdict, _, _ = hunted(story)
    assert verdict is Verdict.UNKNOWN


@pytest.mark.parametrize("seed", range(50))
def test_noise_is_silent_and_a_leak_in_it_is_found(seed: int) -> None:
    """A pool that moves by one or two threads, at any time: never an alarm; with a leak, always."""
    noise = random.Random(seed)
    moves = {noise.randrange(1, 20): noise.choice([-2, -1, 1, 2]) for _ in range(2)}
    values = [6.0 + sum(by for at, by in moves.items() if cycle >= at) for cycle in range(20)]
    assert slope(values) <= LIMITS["threads"]
    assert slope([value + cycle for cycle, value in enumerate(values)]) > LIMITS["threads"]


def test_the_limit_for_objects_lets_one_a_cycle_be_seen() -> None:
    assert OBJECTS_LIMIT < 1


def test_what_9p_allocated_is_said_whatever_grew_first(story: Story) -> None:
    grows: Sample = lambda n: {"fds": 16 + n}  # noqa: E731
    _, summary, _ = hunted(story, grows, [site(7, 17, 27)])
    assert summary.startswith("leak: fds: +1.00 a cycle")
    assert summary.endswith("; also leaks of v9fs_x")
