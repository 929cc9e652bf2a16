"""The runs of a bisection, kept in a file as they are made, so that a bisection that was interrupted goes on.

The file has one JSON object a line: first what is bisected, then each run::

    {"version": 1, "subject": {"what": "…", "find": "bug", "good": "v7.1.0", "bad": "v7.2.0"}}
    {"candidate": "…", "answer": "bad", "why": "qemu_alive | …"}
"""

from __future__ import annotations

import json
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from harness.errors import SetupError, UsageError

_VERSION = 1


class Answer(StrEnum):
    """What one run says about a candidate."""

    #: It passed.
    GOOD = "good"
    #: It failed, and QEMU is at fault.
    BAD = "bad"
    #: The candidate cannot be tested: it does not build, or has no 9p.
    SKIP = "skip"
    #: The host or the harness is at fault: the run says nothing about the candidate.
    ERROR = "error"


@dataclass(frozen=True)
class Observation:
    """One run. ``why`` is the signature of a failure, or the reason of a skip or an error."""

    answer: Answer
    why: str = ""


class Observations:
    """The runs of one bisection.

    :param path: the file; with ``None`` nothing is kept. An existing one is read: its runs are given out
        before new ones are made. Runs that were errors are not: they are tried again.
    :param subject: what is bisected. A file about another subject is refused.
    :raises UsageError: when the file is not such a log, or is about another subject.
    :raises SetupError: when it cannot be written.
    """

    def __init__(self, path: Path | None = None, subject: Mapping[str, str] | None = None) -> None:
        self._path = path
        self._earlier: dict[str, deque[Observation]] = defaultdict(deque)
        head = {"version": _VERSION, "subject": dict(subject or {})}
        if path is None:
            return
        if path.exists() and (text := _read(path)):
            self._load(path, text, head)
        else:
            self._write(head)

    @property
    def resumed(self) -> int:
        """The number of runs of an interrupted bisection that were read and not yet given out."""
        return sum(map(len, self._earlier.values()))

    def next(self, candidate: str) -> Observation | None:
        """The next run of ``candidate`` that the bisection made before; ``None`` when there is no other."""
        earlier = self._earlier[candidate]
        return earlier.popleft() if earlier else None

    def add(self, candidate: str, seen: Observation) -> Observation:
        """Keep a run of a bisection in its file, and return it.

        :raises SetupError: when the file cannot be written.
        """
        self._write({"candidate": candidate, "answer": seen.answer.value, "why": seen.why})
        return seen

    def _load(self, path: Path, text: str, head: Mapping[str, Any]) -> None:
        lines = text.splitlines()
        if not text.endswith("\n"):  # It was killed while it wrote.
            lines.pop()
            path.write_text("".join(f"{line}\n" for line in lines))
        if not lines:
            self._write(head)
            return
        found = _parsed(path, 1, lines[0])
        if found.get("version") != _VERSION:
            raise UsageError(f"{path}: not the log of a bisection; give --log another file")
        for name, value in head["subject"].items():
            was = found.get("subject", {}).get(name)
            if was != value:
                raise UsageError(
                    f"{path}: the log of another bisection: {name} is {was}, not {value}; "
                    "give --log another file"
                )
        for number, line in enumerate(lines[1:], start=2):
            run = _parsed(path, number, line)
            try:
                seen = Observation(Answer(run["answer"]), str(run["why"]))
                candidate = run["candidate"]
            except (KeyError, ValueError):
                raise UsageError(f"{path}:{number}: not a run of a bisection") from None
            if seen.answer is not Answer.ERROR:
                self._earlier[candidate].append(seen)

    def _write(self, line: Mapping[str, Any]) -> None:
        if self._path is None:
            return
        try:
            with self._path.open("a") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        except OSError as exc:
            raise SetupError(f"{self._path}: {exc.strerror}; the runs before this one are kept") from None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"{path}: cannot be read: {getattr(exc, 'strerror', None) or exc}") from None


def _parsed(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UsageError(f"{path}:{number}: not the log of a bisection; give --log another file")
    return found
