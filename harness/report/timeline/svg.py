"""Draws a timeline as one SVG image.

Horizontal places are percentages of the width, so whoever embeds the image makes it wider to look closer, and
no label is distorted. Every span and instant has a ``title``, which browsers show under the pointer.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from importlib import resources
from itertools import zip_longest
from math import floor, log10

from harness.report.timeline.model import Counter, Instant, Lane, Outcome, Span, Timeline

#: The width at which the image is opened by itself, in pixels.
WIDTH = 1200
_HEAD, _AXIS, _TITLE, _ROW, _MARKS, _GAP = 42, 20, 17, 18, 15, 8
#: The height of a counter, and of one that does not change.
_PLOT, _FLAT = 34, 10
#: Percent of the width left of the beginning, and right of the end.
_LEFT, _RIGHT = 0.6, 2.4
#: A span that is shorter than this part of the whole gets no label, however wide the image is made.
_LABELLED = 1 / 2000
#: Ticks between two that are always shown; for an image that was made wider.
_FINER = 10
#: Beyond this many spans, a lane's short ones that follow each other closely are drawn as one.
_MANY = 1500
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def svg(timeline: Timeline) -> str:
    """The image of a timeline, as the text of an SVG document without an XML declaration."""
    return ET.tostring(_Drawing(timeline).root, encoding="unicode") + "\n"


def clean(text: str) -> str:
    """``text`` of the image with every character that XML cannot have replaced."""
    return _NOT_XML.sub("�", text)


@dataclass(frozen=True)
class _Run:
    """Spans that follow each other closely, drawn as one."""

    spans: tuple[Span, ...]

    @property
    def shown(self) -> Span:
        first = self.spans[0]
        if len(self.spans) == 1:
            return first
        names = ", ".join(dict.fromkeys(span.name for span in self.spans))
        label = f"{len(self.spans)} × {names}"[:120]
        return Span(first.key, label, first.begin_s, self.spans[-1].end_s, Outcome.OK, "")


class _Drawing:
    """The image while it is drawn, from the top down."""

    def __init__(self, timeline: Timeline) -> None:
        self.timeline = timeline
        self.duration_s = max(timeline.duration_s, 1e-6)
        self.root = ET.Element(
            "svg", {"xmlns": "http://www.w3.org/2000/svg", "class": "timeline", "role": "img"}
        )
        _text_child(self.root, "title", f"Timeline of {timeline.test}")
        ET.SubElement(self.root, "style").text = _style()
        self._top = float(_HEAD)
        #: Where the middle of each span and instant is, from the top.
        self._middle: dict[int, float] = {}
        self._background = ET.SubElement(self.root, "g")
        self._head()
        for number, lane in enumerate(timeline.lanes):
            self._lane(lane, band=number % 2 == 0)
        for counter in timeline.counters:
            self._counter(counter)
        self._axis()
        self._arrows()
        self._failure()
        self.root.set("width", str(WIDTH))
        self.root.set("height", f"{self._top:g}")

    def _x(self, t_s: float) -> float:
        return _LEFT + (100 - _LEFT - _RIGHT) * min(max(t_s, 0.0), self.duration_s) / self.duration_s

    def _head(self) -> None:
        head = ET.SubElement(self.root, "g", {"class": "stay"})
        _label(head, 6, 16, self.timeline.test, "head")
        about = f"{self.timeline.about}  {self.timeline.begun[:19].replace('T', ' ')} UTC".strip()
        _label(head, 6, 33, about, "soft")

    def _axis(self) -> None:
        axis = ET.SubElement(self._background, "g")
        step_s = _nice(self.duration_s / 10)
        digits = max(0, -floor(log10(step_s)))
        for number in range(floor(self.duration_s / step_s * _FINER) + 1):
            fine = number % _FINER != 0
            t_s = number * step_s / _FINER
            place = _percent(self._x(t_s))
            tick = ET.SubElement(axis, "g", {"class": "tick fine" if fine else "tick"})
            line = {"x1": place, "x2": place, "y1": f"{_HEAD + 14}", "y2": f"{self._top:g}"}
            ET.SubElement(tick, "line", line)
            _label(tick, place, _HEAD + 10, f"{t_s:.{digits + fine}f} s", "soft")

    def _lane(self, lane: Lane, *, band: bool) -> None:
        if self._top == _HEAD:
            self._top += _AXIS
        rows = lane.rows()
        marks = _MARKS if lane.instants else 0
        height = _TITLE + marks + _ROW * len(rows) + _GAP
        group = ET.SubElement(self.root, "g", {"class": f"lane {lane.kind.value.lower()}"})
        if band:
            box = {"class": "band", "x": "0", "width": "100%", "y": f"{self._top:g}", "height": f"{height}"}
            ET.SubElement(self._background, "rect", box)
        top = self._top + _TITLE
        for instant, following in zip_longest(lane.instants, lane.instants[1:]):
            until_s = self.duration_s if following is None else following.t_s
            self._instant(group, instant, top + _MARKS / 2, until_s)
        for number, row in enumerate(rows):
            for run in _runs(row, self.duration_s):
                self._span(group, run, top + marks + _ROW * number)
        _label(ET.SubElement(group, "g", {"class": "stay"}), 6, self._top + 12, lane.title, "title")
        self._top += height

    def _span(self, group: ET.Element, run: _Run, top: float) -> None:
        span = run.shown
        for one in run.spans:
            self._middle[one.key] = top + _ROW / 2 - 1
        left, right = self._x(span.begin_s), self._x(span.end_s)
        made = ET.SubElement(group, "g", {"class": f"span {span.outcome}"})
        _text_child(made, "title", _words(span))
        box = {"x": _percent(left), "width": _percent(right - left), "y": f"{top:g}", "height": f"{_ROW - 3}"}
        ET.SubElement(made, "rect", {**box, "rx": "2"})
        if span.end_s - span.begin_s >= self.duration_s * _LABELLED:
            # A nested image clips its label, so as much is seen as the width has room for.
            _label(ET.SubElement(made, "svg", box), 4, 11, span.name, "")

    def _instant(self, group: ET.Element, instant: Instant, middle: float, until_s: float) -> None:
        """A mark for an instant in the image, and a label that ends at the next mark."""
        self._middle[instant.key] = middle
        made = ET.SubElement(group, "g", {"class": f"instant {'event' if instant.event else 'note'}"})
        _text_child(made, "title", f"{instant.name} at {instant.t_s:.3f} s\n{instant.detail}".strip())
        place = {"cx": _percent(self._x(instant.t_s)), "cy": f"{middle:g}"}
        ET.SubElement(made, "circle", {**place, "r": "4.5" if instant.event else "3", "class": "mark"})
        if until_s - instant.t_s >= self.duration_s * _LABELLED:
            left, right = self._x(instant.t_s), self._x(until_s) if until_s < self.duration_s else 100.0
            box = {
                "x": _percent(left),
                "width": _percent(right - left),
                "y": f"{middle - 8:g}",
                "height": "16",
            }
            _label(ET.SubElement(made, "svg", box), 7, 12, instant.name, "soft")

    def _counter(self, counter: Counter) -> None:
        if self._top == _HEAD:
            self._top += _AXIS
        group = ET.SubElement(self.root, "g", {"class": "lane counter"})
        numbers = [number for _, number in counter.samples]
        low, high = min(numbers), max(numbers)
        height = _PLOT if high > low else _FLAT
        top = self._top + _TITLE
        for (t_s, number), until_s in zip(counter.samples, _until(counter), strict=True):
            y = f"{top + (height - 8) * (high - number) / ((high - low) or 1):.1f}"
            made = ET.SubElement(group, "g", {"class": "instant"})
            _text_child(made, "title", f"{counter.title}: {number:g} at {t_s:.3f} s")
            x = _percent(self._x(t_s))
            ET.SubElement(made, "line", {"x1": x, "y1": y, "x2": _percent(self._x(until_s)), "y2": y})
            ET.SubElement(made, "circle", {"cx": x, "cy": y, "r": "2.2", "class": "mark"})
        values = f"{low:g} to {high:g}" if high > low else f"{high:g}"
        stay = ET.SubElement(group, "g", {"class": "stay"})
        _label(stay, 6, self._top + 12, f"{counter.title} ({values})", "title")
        self._top += _TITLE + height

    def _arrows(self) -> None:
        places = {item.key: item for _, item in self.timeline.items()}
        for arrow in self.timeline.arrows:
            cause, effect = places.get(arrow.cause), places.get(arrow.effect)
            if not isinstance(cause, Span) or not isinstance(effect, Instant):
                continue
            from_x, to_x = _percent(self._x(cause.begin_s)), _percent(self._x(effect.t_s))
            from_y, to_y = self._middle[cause.key], self._middle[effect.key]
            made = ET.SubElement(self.root, "g", {"class": "cause"})
            _text_child(made, "title", f"{cause.name} → {effect.name}: {effect.t_s - cause.begin_s:.3f} s")
            place = {"x1": from_x, "y1": f"{from_y:g}", "x2": to_x, "y2": f"{to_y:g}"}
            ET.SubElement(made, "line", {**place, "class": "arrow"})
            ET.SubElement(made, "circle", {"cx": to_x, "cy": f"{to_y:g}", "r": "2.5", "class": "tip"})

    def _failure(self) -> None:
        failed = self.timeline.failed
        if failed is None:
            return
        place = _percent(self._x(failed.t_s))
        made = ET.SubElement(self.root, "g", {"class": "failure"})
        _text_child(made, "title", f"failed at {failed.t_s:.3f} s: {failed.name}")
        line = {"x1": place, "x2": place, "y1": f"{_HEAD + 14}", "y2": f"{self._top:g}"}
        ET.SubElement(made, "line", line)
        stay = ET.SubElement(made, "g", {"class": "stay"})
        _label(stay, 6, self._top + 14, f"failed at {failed.t_s:.3f} s: {failed.name}"[:300], "")
        self._top += 22


def _runs(row: list[Span], duration_s: float) -> list[_Run]:
    """The spans of a row in the image.

    Where there are very many, short neighbours that ended well are one.
    """
    if len(row) <= _MANY:
        return [_Run((span,)) for span in row]
    near_s = duration_s / _MANY
    runs: list[list[Span]] = []
    for span in row:
        last = runs[-1][-1] if runs else None
        short = span.end_s - span.begin_s < near_s and span.outcome is Outcome.OK
        if (
            last is not None
            and short
            and last.outcome is Outcome.OK
            and last.end_s - last.begin_s < near_s
            and span.begin_s - last.end_s < near_s
            and span.end_s - runs[-1][0].begin_s < near_s * 4
        ):
            runs[-1].append(span)
        else:
            runs.append([span])
    return [_Run(tuple(spans)) for spans in runs]


def _until(counter: Counter) -> list[float]:
    """How long a counter's value is drawn: until the next observation; the last one is a moment."""
    times = [t_s for t_s, _ in counter.samples]
    return [*times[1:], times[-1]]


def _words(span: Span) -> str:
    took = f"{span.begin_s:.3f} s, for {(span.end_s - span.begin_s) * 1000:.1f} ms: {span.outcome}"
    return f"{span.name}\nat {took}\n{span.detail}".strip()


def _nice(at_least: float) -> float:
    """The next number for the image's axis of 1, 2 or 5 times a power of ten."""
    power: float = 10.0 ** floor(log10(at_least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= at_least * 0.999)


def _percent(number: float) -> str:
    return f"{number:.4f}".rstrip("0").rstrip(".") + "%"


def _label(parent: ET.Element, x: float | str, y: float, text: str, kind: str) -> ET.Element:
    made = ET.SubElement(parent, "text", {"x": f"{x}", "y": f"{y:g}", **({"class": kind} if kind else {})})
    made.text = clean(text)
    return made


def _text_child(parent: ET.Element, tag: str, text: str) -> None:
    ET.SubElement(parent, tag).text = clean(text)


def _style() -> str:
    return resources.files(__package__).joinpath("timeline.css").read_text(encoding="utf-8")
