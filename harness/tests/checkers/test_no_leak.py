"""The leak checker on hand-written samples: leaks, no leaks, and samples that do not show it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from harness.checkers import Verdict, growth
from harness.checkers.no_leak import COUNTS, leaks, no_leak, slope
from harness.tests.checkers.record_writer import RecordWriter

WARM_UP, FULL = 5, 29
LENGTHS = [5, 13, 21, 29]
DEAR = ("private_kib", "qom_children", "memory_regions", "blockers", "vmstate_sections")
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
    record: RecordWriter,
    sample: Sample = lambda _: {},
    sites: list[dict[str, Any]] | None = None,
    *,
    count: int = FULL,
    guest: bool = False,
    control: Sample | None = None,
    not_profiled: str = "",
) -> tuple[Verdict, str, str]:
    record.launched()
    plan = {"warm_up": WARM_UP, "lengths": LENGTHS, "guest": guest, "control": control is not None}
    record.history.note("host", "leak:plan", plan)
    for cycle in range(count):
        record.history.note("full", "leak:sample", sampled(cycle, sample))
        if control is not None:
            record.history.note("control-full", "leak:control-sample", sampled(cycle, control))
    if sites is not None:
        (record.folder / "heap-sites.json").write_text(json.dumps({"lengths": LENGTHS, "growing": sites}))
        record.history.note("host", "leak:heap-sites", {"file": "heap-sites.json"})
    elif not_profiled:
        record.history.note("host", "leak:heap-sites", {"not_profiled": not_profiled})
    judgement = record.quit().closed().judged(no_leak)
    return judgement.verdict, judgement.summary, "\n".join(judgement.evidence)


def sampled(cycle: int, sample: Sample) -> dict[str, Any]:
    """One sample: what is dear to ask after every other cycle alone, and at the end of each part."""
    value = {"cycle": cycle, **HEALTHY, **sample(cycle)}
    value.setdefault("thread_ids", list(range(value["threads"])))
    if cycle % 2 and cycle + 1 not in LENGTHS:
        for name in DEAR:
            value.pop(name, None)
    return value


def site(*objects: int, size: int = 3, stack: tuple[str, ...] = ("malloc+0x1", "v9fs_x+0x2 (qemu)")) -> Any:
    return {"objects": list(objects), "bytes": [size * n for n in objects], "stack": list(stack)}


def test_a_record_without_a_hunt(record: RecordWriter) -> None:
    assert record.launched().quit().closed().judged(no_leak).verdict is Verdict.VALID


def test_a_healthy_hunt_states_its_limits(record: RecordWriter) -> None:
    verdict, summary, _ = hunted(record, sites=[])
    assert verdict is Verdict.VALID
    assert summary == (
        "nothing grew in cycles 5 to 29 (threads, fds, qom_children, memory_regions, blockers, "
        "vmstate_sections, heap objects of any one site); "
        "detection limits: what is lost once in 8 cycles, private_kib 128 a cycle"
    )


def test_without_a_heap_profile_counts_are_judged_and_the_verdict_says_why(record: RecordWriter) -> None:
    """Private memory is not judged: without jemalloc, the heap does not return free pages at once."""
    verdict, summary, _ = hunted(
        record, lambda n: {"private_kib": 1000 * n}, not_profiled="a script starts this QEMU"
    )
    assert verdict is Verdict.VALID
    assert summary.endswith("but the heap was not profiled: a script starts this QEMU")


def test_without_a_heap_profile_a_count_that_grows_is_a_leak(record: RecordWriter) -> None:
    verdict, summary, _ = hunted(record, lambda n: {"fds": 16 + n // 8}, not_profiled="no library")
    assert verdict is Verdict.INVALID
    assert summary.startswith("leak: fds: +0.1")


@pytest.mark.parametrize("offset", range(8))
@pytest.mark.parametrize("every", [1, 3, 8])
@pytest.mark.parametrize("name", COUNTS)
def test_a_count_that_grows(record: RecordWriter, name: str, every: int, offset: int) -> None:
    """In each cycle, or in one of eight, wherever in the hunt that begins."""
    verdict, summary, _ = hunted(record, lambda n: {name: HEALTHY.get(name, 7) + (n + offset) // every}, [])
    assert verdict is Verdict.INVALID
    assert summary.startswith(f"leak: {name}: +{'1.00' if every == 1 else '0.'}")


def test_a_thread_that_stays_is_seen_although_the_pool_shrinks(record: RecordWriter) -> None:
    """One is lost in every eighth cycle; meanwhile two that were idle for long end."""

    def sample(n: int) -> dict[str, Any]:
        pool = range(1, 7 - (n > 12) - (n > 20))
        lost = range(100, 100 + n // 8)
        return {"threads": len(pool) + len(lost), "thread_ids": [*pool, *lost]}

    verdict, summary, _ = hunted(record, sample, [])
    assert verdict is Verdict.INVALID
    assert summary.startswith("leak: threads")


def test_a_pool_that_replaces_its_threads_does_not_leak(record: RecordWriter) -> None:
    verdict, _, _ = hunted(record, lambda n: {"threads": 6, "thread_ids": [n // 6 + i for i in range(6)]}, [])
    assert verdict is Verdict.VALID


def test_the_summary_names_only_what_was_measured(
    record: RecordWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(HEALTHY, "vmstate_sections")
    verdict, summary, _ = hunted(record, sites=[])
    assert verdict is Verdict.VALID
    assert "blockers, heap" in summary
    assert "vmstate_sections" not in summary


@pytest.mark.parametrize("cycles", [range(20), range(20, FULL)])
def test_a_count_that_some_samples_lack_is_unknown(
    record: RecordWriter, monkeypatch: pytest.MonkeyPatch, cycles: range
) -> None:
    monkeypatch.delitem(HEALTHY, "vmstate_sections")
    verdict, _, _ = hunted(record, lambda n: {"vmstate_sections": 41} if n in cycles else {}, sites=[])
    assert verdict is Verdict.UNKNOWN


@pytest.mark.parametrize(("grows", "expected"), [(900, Verdict.VALID), (1200, Verdict.INVALID)])
def test_a_guest_may_use_more_of_its_own_memory(record: RecordWriter, grows: int, expected: Verdict) -> None:
    verdict, _, _ = hunted(record, lambda n: {"private_kib": 250_000 + n * grows}, [], guest=True)
    assert verdict is expected


@pytest.mark.parametrize("step", [-52_000, 52_000])
def test_memory_that_grows_beside_a_step(record: RecordWriter, step: int) -> None:
    """The one that is retained, or given back, when a heap profile is written."""
    grows: Sample = lambda n: {"private_kib": 250_000 + n * 150 + step * (n >= LENGTHS[2])}  # noqa: E731
    verdict, summary, _ = hunted(record, grows, [])
    assert verdict is Verdict.INVALID
    assert summary.startswith("leak: private_kib: +150.00 a cycle")


@pytest.mark.parametrize(
    ("grows", "expected"), [(0, Verdict.VALID), (31, Verdict.VALID), (33, Verdict.INVALID)]
)
def test_the_memory_of_a_daemon(record: RecordWriter, grows: int, expected: Verdict) -> None:
    """It is judged without a heap profile as well, which is QEMU's."""
    verdict, summary, _ = hunted(
        record, lambda n: {"daemon_kib": 900 + grows * n + n % 3}, not_profiled="no library"
    )
    assert verdict is expected
    line = f"leak: daemon_kib: +{grows}.00 a cycle ({901 + grows * 4} to {901 + grows * 28})"
    assert (summary == line) is (verdict is Verdict.INVALID), summary


def test_memory_that_falls_back_at_each_profile(record: RecordWriter) -> None:
    """The heap keeps freed memory until it writes a profile."""

    def kept(cycle: int) -> dict[str, Any]:
        return {"private_kib": 250_000 + 150 * (cycle - max((n for n in LENGTHS if n <= cycle), default=0))}

    verdict, summary, _ = hunted(record, kept, [])
    assert verdict is Verdict.VALID, summary


@pytest.mark.parametrize(("own", "expected"), [(0, Verdict.VALID), (1, Verdict.INVALID)])
def test_growth_of_the_control_is_subtracted(record: RecordWriter, own: int, expected: Verdict) -> None:
    grows: Sample = lambda n: {"fds": 16 + n * (2 + own)}  # noqa: E731
    verdict, summary, _ = hunted(record, grows, [], control=lambda n: {"fds": 16 + n * 2})
    assert verdict is expected
    assert own == 0 or summary.startswith("leak: fds: +1.00 a cycle")


def test_fds_that_grow_are_named(record: RecordWriter) -> None:
    grown: Sample = lambda n: {"fds": 16 + n, "fd_targets": {"socket": 4, "/share": n}}  # noqa: E731
    verdict, _, evidence = hunted(record, grown, [])
    assert verdict is Verdict.INVALID
    assert "    /share: +24" in evidence


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("threads", lambda n: 6 + (n > 12)),  # The pool grows once.
        ("threads", lambda n: 6 + n % 2),  # It comes and goes.
        ("threads", lambda n: 30 - n),
        ("fds", lambda n: 16 + 3 * (n == 9)),
        (
            "fds",
            lambda n: 16 + (n > 9) + (n == FULL - 1),
        ),  # Opened once; whether the last stays is not known.
        ("memory_regions", lambda n: 191 + (n > 9)),
        ("private_kib", lambda n: 250_000 + 8000 * (n > 8)),  # Retained once.
        ("private_kib", lambda n: 250_000 + 52_000 * (n >= LENGTHS[2])),  # By a heap profile.
        ("private_kib", lambda n: 250_000 + n * 100),
        ("threads", lambda n: 6 + (n if n < WARM_UP else WARM_UP)),  # Before the warm-up is over.
    ],
)
def test_counts_that_vary_and_do_not_grow(
    record: RecordWriter, name: str, change: Callable[[int], int]
) -> None:
    verdict, summary, _ = hunted(record, lambda n: {name: change(n)}, [])
    assert verdict is Verdict.VALID, summary


def test_one_small_object_a_cycle_is_found_and_its_site_named(record: RecordWriter) -> None:
    verdict, summary, evidence = hunted(record, sites=[site(7, 15, 23, 31)])
    assert verdict is Verdict.INVALID
    assert summary == "leak: heap: +1.00 objects of 3 bytes a cycle, allocated by v9fs_x+0x2 (qemu)"
    assert "v9fs_x+0x2 (qemu)" in evidence


@pytest.mark.parametrize(
    "stack", [("v9fs_x+0x2 (qemu)",), ("qemu+0x1234",), ("qemu_coroutine_new+0x3b (qemu)",)]
)
def test_an_object_in_each_part_is_a_leak_whatever_its_site_is_called(
    record: RecordWriter, stack: tuple[str, ...]
) -> None:
    verdict, summary, _ = hunted(record, sites=[site(7, 8, 9, 10, stack=("malloc+0x1", *stack))])
    assert verdict is Verdict.INVALID
    assert summary.startswith("leak: heap: +0.12 objects")


@pytest.mark.parametrize(
    "objects",
    [
        (10, 18, 20, 20),  # A cache that fills up,
        (10, 11, 11, 21),  # one that doubled late,
        (10, 18, 26, 26),  # and a pool that is full.
        (10, 18, 12, 26),  # What comes and goes.
    ],
)
def test_sites_that_do_not_keep_growing(record: RecordWriter, objects: tuple[int, ...]) -> None:
    verdict, _, _ = hunted(record, sites=[site(*objects)])
    assert verdict is Verdict.VALID


def test_too_few_samples_are_unknown(record: RecordWriter) -> None:
    verdict, _, _ = hunted(record, sites=[], count=WARM_UP + 9)
    assert verdict is Verdict.UNKNOWN


def test_no_heap_profile_is_unknown(record: RecordWriter) -> None:
    verdict, _, _ = hunted(record)
    assert verdict is Verdict.UNKNOWN


@pytest.mark.parametrize("seed", range(50))
def test_noise_is_silent_and_a_leak_in_it_is_found(record: RecordWriter, seed: int) -> None:
    """Threads of a pool begin (one or two) and end, fds come and go: never an alarm; with a leak, always."""
    noise = random.Random(seed)
    begin = [noise.randrange(FULL) for _ in range(2)]
    pool = list(range(1, 5))
    samples: list[dict[str, Any]] = []
    for n in range(FULL):
        if n in begin:
            pool.append(10 + n)
        if noise.random() < 0.1 and len(pool) > 2:
            pool.remove(noise.choice(pool))
        came = noise.random() < 0.2
        samples.append({"threads": len(pool), "thread_ids": list(pool), "fds": 16 + came})
    verdict, summary, _ = hunted(record, lambda n: samples[n], [])
    assert verdict is Verdict.VALID, summary
    with_leak = [{*sample["thread_ids"], *range(100, 100 + n)} for n, sample in enumerate(samples)]
    assert growth.lasting([frozenset(ids) for ids in with_leak[WARM_UP - 1 :]], [0, 8, 16, 24])
    assert growth.recurs([sample["fds"] + n // 8 for n, sample in enumerate(samples)])


def test_the_slopes_of_a_hunt(record: RecordWriter) -> None:
    hunted(record, lambda n: {"fds": 16 + 2 * n, "private_kib": 250_000 + 5 * n}, [])
    found = leaks(record.folder)
    assert found["fds"] == 2
    assert found["private_kib"] == 5
    assert found["threads"] == 0


def test_the_slope_of_a_series_with_steps() -> None:
    assert slope([1, 2, 3]) == 1
    assert slope([1, 2, 13, 14], [0, 2, 4, 6], steps=[4]) == 0.5


def test_slopes_of_parts_with_one_sample_of_memory_each(record: RecordWriter) -> None:
    """Memory may jump between parts, so nothing can be compared; the checker cannot decide then."""
    record.launched()
    plan: dict[str, Any] = {"warm_up": 2, "lengths": [2, 6, 10, 14], "guest": False, "control": False}
    record.history.note("host", "leak:plan", plan)
    for cycle in range(14):
        value = {"cycle": cycle, **HEALTHY, "thread_ids": list(range(HEALTHY["threads"]))}
        if cycle + 1 not in plan["lengths"]:
            value = {name: count for name, count in value.items() if name not in DEAR}
        record.history.note("full", "leak:sample", value)
    found = leaks(record.folder)
    assert "private_kib" not in found
    assert found["fds"] == 0


def test_the_summary_names_every_9p_function_that_leaks(record: RecordWriter) -> None:
    grows: Sample = lambda n: {"fds": 16 + n}  # noqa: E731
    _, summary, _ = hunted(record, grows, [site(7, 15, 23, 31)])
    assert summary.startswith("leak: fds: +1.00 a cycle")
    assert summary.endswith("; also leaks of v9fs_x")
