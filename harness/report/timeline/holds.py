"""The lane of holds: each call that was kept, from the moment it was caught until it was released."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import PurePath

from harness.history import Entry, as_mapping
from harness.report.timeline.model import Instant, Lane, LaneKind, Outcome, Span


def spans(entries: Sequence[Entry], end_s: float) -> Iterator[Lane]:
    """The timeline's lane of holds, or none where the test held nothing."""
    held: list[Span] = []
    instants: list[Instant] = []
    for index, entry in enumerate(entries):
        if entry.f == "hold:held":
            held.append(_span(entry, entries[index + 1 :], end_s))
        elif entry.f.startswith("hold:"):
            detail = json.dumps(entry.value, ensure_ascii=False)
            instants.append(
                Instant(entry.seq, f"{entry.f.removeprefix('hold:')}{_of(entry)}", entry.t_s, detail)
            )
    if held or instants:
        yield Lane(LaneKind.HOLDS, "", tuple(held), tuple(instants))


def _span(caught: Entry, later: Sequence[Entry], end_s: float) -> Span:
    value = as_mapping(caught.value)
    path = PurePath(str(value.get("path", "")))
    released = next((e for e in later if e.f == "hold:released" and _concerns(e, path)), None)
    name = f"{value.get('call', '?')} {path.name}".strip()
    detail = f"{caught.actor}: {json.dumps(caught.value, ensure_ascii=False)}"
    outcome = Outcome.OPEN if released is None else Outcome.OK
    return Span(caught.seq, name, caught.t_s, end_s if released is None else released.t_s, outcome, detail)


def _concerns(released: Entry, path: PurePath) -> bool:
    """Whether the released share is the one of ``path``: the folder of a share has its id."""
    share = as_mapping(released.value).get("id")
    return share in path.parts


def _of(entry: Entry) -> str:
    share = as_mapping(entry.value).get("id")
    return f" {share}" if share else ""
