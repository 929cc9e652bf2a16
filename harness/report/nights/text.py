"""The report as text for a terminal or a mail. No line is wrapped or cut, so that commands can be pasted."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePath

from harness.report.change_points import Shape
from harness.report.nights import commands, rows
from harness.report.nights.causes import Cause, causes
from harness.report.nights.changes import Difference
from harness.report.nights.flaky import Flaky, differed
from harness.report.nights.history import Entry, History, Place
from harness.report.nights.missing import Missing
from harness.report.nights.regressions import Fix, Regression
from harness.report.nights.report import Report
from harness.report.nights.trends import SECONDS, Trend, Trends
from harness.report.summary import Outcome

#: So many tests, trends and flaky tests are named; ``--json`` has all of them.
_TESTS, _MOST = 4, 10
_LABEL = 12
#: The most characters of a message.
_CAUSE = 160
_NOTHING_CHANGED = "nothing that the history records"


def lines(of: Report) -> Iterator[str]:
    """The whole report of nights, as lines of text."""
    yield from _head(of)
    new, standing = causes(of.failures.new), causes(of.failures.standing)
    yield from _section("new failures", _causes(new), "none", _new(new))
    if standing:
        yield from _section("failures that began earlier", _causes(standing), "", map(_standing, standing))
    gone = [*of.failures.fixed, *of.failures.ended]
    yield from _section("fixed", _tests(gone), "nothing", _fixes(gone))
    if of.failures.met:
        met = (line for one in of.failures.met for line in _met(one))
        yield from _section("known bugs that a test did not meet before", _tests(of.failures.met), "", met)
    shown = (line for one in of.flaky[:_MOST] for line in _flaky(one))
    yield from _section("flaky", _some(len(of.flaky), "test"), "no test", [*shown, *_more(len(of.flaky))])
    yield from _section(
        "trends", _some(len(of.trends.found), "change"), _no_trend(of.trends), _trends(of.trends)
    )
    lost = list(_missing(of.missing))
    yield from _section("did not run", "" if lost else None, "nothing that ran before", lost)


def _head(of: Report) -> Iterator[str]:
    history = of.history
    runs = [run for run in history.runs if history.is_recent(run)]
    nights, number = len(set(history.nights.values())), len(history.runs)
    of_runs = f" of {number} runs" if number > nights else ""
    yield f"{_count(nights, 'night')}{of_runs}, {_when(history.runs[0])} to {_when(history.runs[-1])}"
    for run in runs:
        yield f"newest: {_run(history, run)}"
    if of.nothing_judged:
        yield "no test of the newest night passed or failed: it says nothing"
    if of.since is not None:
        yield f"new is what began since {of.since:%Y-%m-%d %H:%M}"


def _run(history: History, run: rows.Run) -> str:
    entries = history.by_run.get(run.id, ())
    qemus = dict.fromkeys(_qemu(entry.qemu) for entry in entries if entry.qemu is not None)
    expected = f" of {run.expected}" if run.expected is not None else ""
    seen = Counter(entry.outcome for entry in entries)
    counts = ", ".join(outcome.counted(seen[outcome]) for outcome in Outcome if outcome in seen)
    shard = f", shard {run.shard}" if run.shard else ""
    ended = "" if run.complete else ", not ended"
    on = f" on QEMU {', '.join(qemus)}" if qemus else ""
    return f"{_when(run)}, {len(entries)}{expected} tests ({counts}){on}, host {run.host}{shard}{ended}"


def _section(title: str, number: str | None, none: str, body: Iterable[str]) -> Iterator[str]:
    """A section of the report's text with its title; one line when there is nothing."""
    yield ""
    if number is None:
        yield f"{title.upper()}: {none}"
        return
    yield f"{title.upper()}: {number}" if number else title.upper()
    yield from body


def _some(number: int, what: str) -> str | None:
    return _count(number, what) if number else None


def _tests(found: Iterable[Regression] | Iterable[Fix]) -> str | None:
    return _some(len({entry.place for one in found for entry in one.entries}), "test")


def _causes(found: Sequence[Cause]) -> str | None:
    """The report's line on how many tests fail, and of how many causes.

    The causes are what may be, so it says "probably".
    """
    tests = len({entry.place for one in found for entry in one.entries})
    if tests < 2:
        return _some(tests, "test")
    return f"{_count(tests, 'test')}, probably {_count(len(found), 'cause')}"


def _new(found: Sequence[Cause]) -> Iterator[str]:
    for number, one in enumerate(found, 1):
        yield from _new_cause(number, one)


def _new_cause(number: int, one: Cause) -> Iterator[str]:
    """The report's block of lines for all tests that probably fail for one cause."""
    main, evidence = one.main, one.evidence
    yield ""
    yield f"{number:4}. {_cause(main.cause)}"
    if main.is_of_the_host:
        yield _field("at fault", "the host or the harness, not QEMU")
    if one.guarantees:
        yield _field("guarantee", ", ".join(one.guarantees))
    yield _field("certainty", _certainty(one))
    yield from _began(one.longest)
    yield _field("on", _on(*one.entries))
    yield from _named("tests", [entry.place for entry in one.entries])
    yield from _otherwise(one)
    if main.before:
        yield _field("before", f"failed otherwise: {_cause(main.before)}")
    yield _field("artefacts", _artefacts(evidence))
    if commands.artefacts(evidence) is not None:
        yield _field("timeline", commands.timeline(evidence))
    yield _field("replay", commands.replay(evidence))
    yield from _bisect(evidence, one.longest.last_good)


def _began(one: Regression) -> Iterator[str]:
    """The report's line on the nights between which a failure began, and what changed."""
    good = one.last_good
    yield _field("first bad", f"{_when(one.first_bad.run)}{_nights_since(one)}")
    if good is None:
        yield _field("last good", "none: it never passed in this history")
        return
    nights = _count(one.good_nights, "night")
    not_run = f"; skipped in {_count(one.not_run, 'night')} between" if one.not_run else ""
    yield _field("last good", f"{_when(good.run)} ({nights} in a row without it{not_run})")
    yield from _changed(one.changed)


def _otherwise(one: Cause) -> Iterator[str]:
    """The report's lines with the other messages, each with the number of its tests."""
    others = [f"{_cause(way.cause)}  ({_count(len(way.entries), 'test')})" for way in one.ways[1:]]
    more = [f"and {_count(len(others) - _TESTS, 'other message')}"] if len(others) > _TESTS + 1 else []
    for number, line in enumerate([*others[:_TESTS], *more] if more else others):
        yield _field("" if number else "otherwise", line)


def _bisect(bad: Entry, good: Entry | None) -> Iterator[str]:
    same = commands.one_release(bad, good)
    note = f"   (both nights have builds of {same}: other releases may say nothing)" if same else ""
    yield _field("bisect", f"{commands.bisect(bad, good)}{note}")
    elsewhere = commands.bisect_elsewhere(bad, good)
    if elsewhere:
        yield _field("", f"{elsewhere}   (DIR: a git tree of QEMU)")


def _cause(text: str) -> str:
    """The beginning of a message in the report's text, since it can have thousands of characters.

    ``--json`` has all of it.
    """
    short = text.removeprefix("harness.errors.")
    return short if len(short) <= _CAUSE else f"{short[: _CAUSE - 1]}…"


def _certainty(one: Cause) -> str:
    if one.is_confirmed is None:
        return "it was not run again (pytest --confirm N)"
    seen = one.reliability
    again = f"failed {seen.failures} of {seen.attempts} times in this night"
    return again if one.is_confirmed else f"{again}: FLAKY, {_percent(seen.interval)} of runs fail"


def _nights_since(one: Regression) -> str:
    return f", and in each of the {one.bad_nights} nights since" if one.bad_nights > 1 else ""


def _artefacts(entry: Entry) -> str:
    found = commands.artefacts(entry)
    if found is not None:
        return str(found)
    recorded = entry.result.artefacts
    return f"{recorded} (on {entry.run.host}; not here any more)" if recorded else "not kept"


def _standing(one: Cause) -> str:
    number = len(one.entries)
    tests = _short(one.entries[0].place) + (f" and {number - 1} more" if number > 1 else "")
    return f"  since {_when(one.main.first_bad.run)}: {_cause(one.main.cause)}  ({tests})"


def _fixes(found: Sequence[Fix]) -> Iterator[str]:
    """The report's lines on what is gone, what went in the same night with the same change together."""
    together: dict[tuple[object, ...], list[Fix]] = defaultdict(list)
    for one in found:
        last = one.last_bad.night if one.last_bad is not None else ""
        together[one.entries[0].place.qemu, one.entries[0].night, last, one.changed].append(one)
    for group in together.values():
        first, last_bad = group[0].entries[0], group[0].last_bad
        yield ""
        yield _field("on", _on(*(entry for one in group for entry in one.entries)))
        yield _field("since", _when(first.run))
        if last_bad is not None:
            yield _field("last seen", _when(last_bad.run))
            yield from _changed(group[0].changed)
        for one in group:
            yield f"   -  known bug {one.bug}" if one.bug else f"   -  {_cause(one.cause)}"
            if len(one.signatures) > 1:
                yield _field("otherwise", _count(len(one.signatures) - 1, "other message"))
            yield from _named("tests", [entry.place for entry in one.entries])


def _met(one: Fix) -> Iterator[str]:
    yield f"  {one.bug}: since {_when(one.entries[0].run)} with {_on(one.entries[0])}"
    yield from _named("tests", [entry.place for entry in one.entries])
    yield from _changed(one.changed)


def _flaky(one: Flaky) -> Iterator[str]:
    again = (
        f"; run again {one.again.attempts} times, failed {one.again.failures}" if one.again.attempts else ""
    )
    yield f"  {_short(one.place)} on {one.place.qemu}, {one.place.machine_type}"
    yield _field("rate", f"failed in {one.rate} of nights, {one.switches} switches{again}")
    yield _field(
        "last", f"{_when(one.last_failure.run)}: {one.last_failure.result.cause or one.signatures[0][0]}"
    )
    if one.onset is not None:
        before, after = one.onset.before, one.onset.after
        yield _field("since", f"{_when(one.onset.first.run)}: {before} of nights before, {after} since")
        yield from _changed(one.onset.changed)
    if one.load is not None and one.load.differs:
        yield _field("load", f"{one.load.first:.1f} when it failed, {one.load.second:.1f} when it passed")
    if timeline := differed(one):
        yield _field("timeline", timeline)
    yield _field("replay", commands.replay(one.last_failure))


def _no_trend(of: Trends) -> str:
    if of.nights < of.needed:
        return (
            f"not known yet: {of.series} series of up to {_count(of.nights, 'night')}; "
            f"a change can be shown from {of.needed} nights on"
        )
    return f"none in {of.series} series of up to {_count(of.nights, 'night')}"


def _trends(of: Trends) -> Iterator[str]:
    for one in of.found[:_MOST]:
        yield from _trend(one)
    yield from _more(len(of.found))


def _trend(one: Trend) -> Iterator[str]:
    first = one.moved[0]
    name = "duration" if one.name == SECONDS else one.name
    how = "rose" if one.up else "fell"
    if one.factor is not None:
        how += f" to {one.factor:.2f} times"
    begun = "from" if one.shape is Shape.DRIFT else "on"
    machines = {moved.series.place.machine_type for moved in one.moved}
    all_on = f" (all on {machines.pop()})" if len(machines) == 1 and len(one.moved) > 1 else ""
    many = f"in {len(one.moved)} of {one.of} tests{all_on}"
    yield f"  {one.shape}: {name} {how} {begun} {_when(one.first.run)} {many} on QEMU {one.qemu}"
    for moved in one.moved[:_TESTS]:
        before, after = moved.change.before, moved.change.after
        yield _field("", f"{before:.3g} → {after:.3g} {one.unit}  {_short(moved.series.place)}")
    if one.shape is Shape.DRIFT:
        nights = first.change.end - first.change.index
        slope = (first.change.after - first.change.before) / max(1, nights - 1)
        yield _field("slope", f"{slope:+.2g} {one.unit} a night over {nights} nights")
    else:
        yield from _changed(one.changed)
    if one.load is not None and one.load.differs:
        yield _field("load", f"of the host {one.load.first:.1f} before, {one.load.second:.1f} since")


def _missing(of: Missing) -> Iterator[str]:
    for incomplete in of.incomplete:
        run = incomplete.run
        state = f"ended with {run.exit_code}" if run.complete else "killed, or not ended yet"
        expected = f" of {run.expected}" if run.expected is not None else ""
        yield f"  run of {_when(run)} on {run.host}: {state}, after {incomplete.results}{expected} tests"
        for running in incomplete.running:
            yield _field("running", f"{running.nodeid} since {running.begun[11:19]}")
    for cell in of.gone_cells:
        on = f"QEMU {cell.qemu}, Linux {cell.kernel}, {cell.machine_type}"
        yield f"  nothing on {on}: last on {_when(cell.last.run)}, in {cell.nights} of the nights before"
    for gone in of.gone:
        tests = _count(len(gone.places), "test")
        yield f"  {tests} of {_when(gone.before)} not in the run of {_when(gone.now)}"
        yield from _named("tests", gone.places)
    for skips in of.skips:
        yield f"  {_count(len(skips.places), 'test')} skipped now: {skips.reason}"
        yield _field("last run", _when(skips.last_run.run))
        yield from _named("tests", skips.places)
    for one in of.not_asserted:
        last = f"; last asserted {_when(one.asserted.run)}" if one.asserted else "; never in this history"
        yield f"  not asserted: {one.guarantee} on {one.qemu} (why: {one.why}{last})"


def _more(number: int) -> list[str]:
    return [f"  … and {number - _MOST} more (--json)"] if number > _MOST else []


def _changed(changed: Iterable[Difference]) -> Iterator[str]:
    found = [str(one) for one in changed] or [_NOTHING_CHANGED]
    for number, text in enumerate(found):
        yield _field("" if number else "changed", text)


def _named(label: str, places: Sequence[Place]) -> Iterator[str]:
    names = list(dict.fromkeys(_short(place) for place in places))
    shown = names if len(names) <= _TESTS + 1 else [*names[:_TESTS], f"and {len(names) - _TESTS} more"]
    for number, text in enumerate(shown):
        yield _field("" if number else label, text)


def _field(label: str, text: str) -> str:
    return f"     {label:{_LABEL}}{text}"


def _short(place: Place) -> str:
    """A test in the report's text, without its folder."""
    path, colons, test = place.test.partition("::")
    return f"{PurePath(path).name}{colons}{test}"


def _on(*entries: Entry) -> str:
    """The report's line on what some results of one QEMU ran on."""
    cells = [entry.cell for entry in entries if entry.cell is not None]
    parts = [
        [f"QEMU {_qemu(entries[0].qemu)}" if entries[0].qemu else "no QEMU"],
        [f"Linux {cell.kernel_version or cell.kernel}" for cell in cells],
        [cell.machine_type for cell in cells],
        [cell.accelerator for cell in cells if cell.accelerator],
    ]
    return ", ".join(" and ".join(dict.fromkeys(part)) for part in parts if part)


def _qemu(qemu: rows.Qemu | None) -> str:
    if qemu is None:
        return ""
    known = [qemu.package_version or qemu.git_describe or qemu.version or ""]
    known += [f"build-id {qemu.build_id[:12]}"] if qemu.build_id else []
    about = ", ".join(part for part in known if part)
    return f"{qemu.name} ({about})" if about else qemu.name


def _when(run: rows.Run) -> str:
    return run.begun[:16].replace("T", " ")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _percent(interval: tuple[float, float]) -> str:
    low, high = (round(100 * bound) for bound in interval)
    return f"{low} to {high} %"
