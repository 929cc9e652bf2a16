"""Searches for failures: makes programs, runs them, and keeps each failure that is new as a finding.

Programs are run in rounds. What a round shows steers the programs of the next one, so the same seed gives the
same programs with any number of processes.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness.deadline import Deadline
from harness.errors import SetupError, UsageError
from harness.explore import finding as findings
from harness.explore.alphabet import Alphabet, State
from harness.explore.attempt import Attempt, Ending, Failure
from harness.explore.coverage import Coverage
from harness.explore.finding import Finding
from harness.explore.generate import RANDOM, Space, count, schedule
from harness.explore.minimise import Minimised, minimise
from harness.explore.program import AlphabetName, Program, Step
from harness.explore.replay import Attempts, discard
from harness.explore.steering import Steering

#: Programs of one round. Those of a guest take some eight times as long.
ROUND = {AlphabetName.RAW: 40, AlphabetName.GUEST: 8}
#: Seconds for making a program smaller that only has to be steered around, or has the steps of a finding.
KNOWN_S = 30.0
#: After so many attempts in a row that ended with an error, the host or the harness is at fault.
ERRORS_IN_A_ROW = 25
#: The search stops when the disk has less than this.
FREE_BYTES = 64 << 20
LOG, SETTINGS, FINDINGS = "programs.ndjson", "explore.json", "findings"
_REPORT_S = 5.0
#: One failure may come by several ways; each costs some time, so there are not more.
MOST_VARIANTS = 6
#: Of so many programs one makes a step that is known to fail, if it was never made in that state; one random
#: program is run as it is. What is known may not be all that fails there.
CURIOUS, UNSTEERED = 3, 10


class KnownBugs(StrEnum):
    """What to do with failures that the ledger explains."""

    #: They are counted, and later programs are steered around them.
    AVOID = "avoid"
    #: They are the findings; other failures are only counted.
    ONLY = "only"
    #: They are findings like others.
    IGNORE = "ignore"


@dataclass(frozen=True)
class Settings:
    """What a search is of. With ``--resume`` it is read from the folder.

    :ivar steps: the length up to which every program is made. :ivar longest: of random programs.
    """

    seed: int = 1
    steps: int = 3
    longest: int = 15
    known_bugs: str = KnownBugs.AVOID
    alphabets: tuple[str, ...] = (AlphabetName.RAW,)
    qemu: str = "default"
    machine: str = "pc"
    kernel: str = "default"


@dataclass
class Seen:
    """A failure with one signature.

    :ivar times: how often it came. :ivar folder: of the finding; ``None`` when it is only counted.
    :ivar variants: the number of other programs that show it without the steps of the first.
    """

    finding: Finding
    times: int = 0
    variants: int = 0
    folder: Path | None = None


@dataclass
class Tally:
    """The attempts of one alphabet in this run of the command."""

    programs: int = 0
    errors: int = 0
    seconds: float = 0.0

    @property
    def a_minute(self) -> float:
        """Programs a minute of an exploration, without the time for making findings smaller."""
        return 60 * self.programs / self.seconds if self.seconds else 0.0


class Explorer:
    """One search.

    :param into: its folder.
    :param bug_of: the ledger's id of a program's failure; the empty string for a new one.
    :param qemu: the version of QEMU, for people.
    :param minimise_s: seconds for making one finding smaller; 0: findings stay as they were found.
    :param finish: adds to a finding what is known when its program is small.
    :param report: is called with lines of progress.
    """

    def __init__(
        self,
        spaces: Mapping[AlphabetName, Space],
        settings: Settings,
        attempts: Attempts,
        into: Path,
        *,
        bug_of: Callable[[Program, Failure], str] = lambda _program, _failure: "",
        qemu: str = "",
        minimise_s: float = 60.0,
        finish: Callable[[Finding], Finding] = lambda found: found,
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._finish = finish
        self.spaces, self.settings, self.into = spaces, settings, into
        self._attempts, self._bug_of, self._qemu = attempts, bug_of, qemu
        self._minimise_s, self._report = minimise_s, report
        alphabets: dict[AlphabetName, Alphabet] = {name: space.alphabet for name, space in spaces.items()}
        self._alphabets = alphabets
        self.coverage = Coverage(alphabets)
        #: By alphabet and signature: each alphabet's program of a bug is worth having.
        #: By alphabet, signature, and the known bug: a death by a signal alone may have several causes.
        self.seen: dict[tuple[AlphabetName, str, str], Seen] = {}
        self.tallies = {name: Tally() for name in spaces}
        self.errors: Counter[str] = Counter()
        self._steering = {name: Steering(space.alphabet) for name, space in spaces.items()}
        self._schedules = {
            name: schedule(space, seed=settings.seed, steps=settings.steps, longest=settings.longest)
            for name, space in spaces.items()
        }
        #: The number of programs that were taken from each schedule.
        self._taken: Counter[AlphabetName] = Counter()
        #: The failures whose programs are to be made smaller.
        self._pending: list[Seen] = []
        #: Other programs of known failures, to be made smaller as well.
        self._variants: list[tuple[Seen, Finding]] = []
        self._errors_in_a_row = 0
        self._next_report = Deadline.after(_REPORT_S)

    @property
    def new(self) -> list[Seen]:
        """The findings of this exploration, without known bugs that are only counted."""
        return [seen for seen in self.seen.values() if seen.folder is not None]

    def plan(self) -> Iterator[str]:
        """What the exploration is about to do, a line for each alphabet."""
        for name, space in self.spaces.items():
            numbers = [count(space, length) for length in range(1, self.settings.steps + 1)]
            yield (
                f"{name}: {sum(numbers)} programs of up to {self.settings.steps} steps, and random ones of "
                f"up to {self.settings.longest} steps, seed {self.settings.seed}"
            )

    def run(
        self, seconds: float, programs: int | None = None, enough: Callable[[], bool] = lambda: False
    ) -> None:
        """Explore for ``seconds``, until ``programs`` programs were run, or until ``enough`` returns true.

        A round that has begun is finished, and its findings are made smaller.

        :raises SetupError: when the disk is full, when attempt after attempt ends with an error, or when
            there is neither a result of this run nor a finding. What was found is kept.
        """
        clock = Deadline.after(seconds)
        for name in itertools.cycle(self.spaces):
            done = sum(tally.programs for tally in self.tallies.values())
            left = None if programs is None else programs - done
            if clock.expired or left == 0 or enough():
                break
            try:
                self._make_all_smaller()  # Of a search that is resumed.
                self._round(name, clock, left)
            except OSError as exc:
                raise SetupError(f"{self.into}: {exc.strerror or exc}; what was found is kept") from None
        if not self.results and not self.new:
            why = next((f": {error}" for error, _ in self.errors.most_common(1)), "")
            raise SetupError(f"none of {done} programs had a result, so nothing is known of this QEMU{why}")

    @property
    def results(self) -> int:
        """The number of programs of this run of the command that passed or failed."""
        return sum(tally.programs - tally.errors for tally in self.tallies.values())

    def _round(self, name: AlphabetName, clock: Deadline, most: int | None) -> None:
        if findings.free_bytes(self.into) < FREE_BYTES:
            raise SetupError(f"{self.into}: the disk is full; what was found is kept")
        batch = list(itertools.islice(self._take(name), min(ROUND[name], most or ROUND[name])))
        begun, tally = Deadline.after(0), self.tallies[name]
        before_s = tally.seconds
        programs = itertools.takewhile(lambda _: not clock.expired, (one for _, one in batch))
        with (self.into / LOG).open("a") as log:
            for (number, _), (program, attempt) in zip(batch, self._attempts(programs), strict=False):
                log.write(_line(number, program, attempt))
                tally.programs, tally.seconds = tally.programs + 1, before_s + begun.elapsed_s
                self._count(program, attempt)
                if self._next_report.expired:
                    log.flush()
                    self._progress()
        tally.seconds = before_s + begun.elapsed_s
        self._make_all_smaller()

    def _take(self, name: AlphabetName) -> Iterator[tuple[int, Program]]:
        """The programs that the exploration runs now, steered around what is known.

        Each with its number in the schedule.
        """

        def is_new(state: State, step: Step) -> bool:
            return not self.coverage.has(name, state, step)

        steering = self._steering[name]
        for where, program in self._schedules[name]:
            number = self._taken[name]
            self._taken[name] += 1
            curious = number % CURIOUS == 0
            around = steering.around(program, is_new) if curious else steering.around(program)
            if where == RANDOM and number % UNSTEERED == 0:
                yield number, program
            elif around == program or (where == RANDOM and around.steps):
                yield number, around

    def _count(self, program: Program, attempt: Attempt) -> None:
        self.coverage.add(program, attempt)
        if attempt.ending is Ending.ERROR:
            self.tallies[program.alphabet].errors += 1
            self.errors[attempt.error] += 1
            self._errors_in_a_row += 1
            if self._errors_in_a_row == ERRORS_IN_A_ROW:
                raise SetupError(f"{ERRORS_IN_A_ROW} attempts in a row ended with an error: {attempt.error}")
            return
        self._errors_in_a_row = 0
        if attempt.failure is not None:
            self._note(program, attempt, attempt.failure)

    def _note(self, program: Program, attempt: Attempt, failure: Failure) -> None:
        """Count a failure that the exploration met.

        One that is new is kept at once, with the shortest program that shows it.
        """
        bug = self._bug_of(program, failure)
        seen = self.seen.get((program.alphabet, self._signature(program.alphabet, failure, bug), bug))
        if seen is None:
            seen = self._new(program, failure, bug)
            self._pending.append(seen)
            self._write(seen, attempt)
        elif seen in self._pending and _length(program, failure) < _length(seen.finding.program, failure):
            seen.finding = replace(seen.finding, program=program, original=program, failure=failure)
            self._write(seen, attempt)
        elif seen not in self._pending and seen.variants < MOST_VARIANTS:
            self._note_variant(seen, program, failure)
        seen.times += 1
        discard([attempt])

    def _note_variant(self, seen: Seen, program: Program, failure: Failure) -> None:
        """Remember in the exploration a program that shows a known failure without a known one's steps."""
        found = replace(seen.finding, program=program, failure=failure)
        if not self._has_another(found):
            self._variants.append((seen, found))

    def _has_another(self, found: Finding) -> bool:
        """Whether a finding of this exploration has the steps of a known failure in its program."""
        until = _until_failure(found)
        return self._steering[until.alphabet].around(until) != until

    def _signature(self, name: AlphabetName, failure: Failure, bug: str) -> str:
        """The signature that an exploration counts a failure under.

        It is that of a known failure which differs in the frames alone, where this one has none.

        A backtrace is not always had: gdb does not find the frames of every core, and has a time limit.
        """
        if not failure.frames and (name, failure.signature, bug) not in self.seen:
            begin = f"{failure.signature} | "
            of_bug = (one for of, one, its in self.seen if (of, its) == (name, bug))
            return next((one for one in of_bug if one.startswith(begin)), failure.signature)
        return failure.signature

    def _new(self, program: Program, failure: Failure, bug: str) -> Seen:
        mode = self.settings.known_bugs
        found = Finding(program, program, failure, self._qemu, bug)
        seen = self.seen[program.alphabet, failure.signature, bug] = Seen(found)
        if mode == KnownBugs.IGNORE or bool(bug) == (mode == KnownBugs.ONLY):
            seen.folder = self.into / FINDINGS / found.name
        what = "finding" if seen.folder else f"known bug {bug}" if bug else "not a known bug"
        self._report(f"{what}: {failure.signature}")
        return seen

    def _write(self, seen: Seen, attempt: Attempt | None) -> None:
        if seen.folder is not None:
            findings.write(seen.folder, seen.finding, attempt)

    def _make_all_smaller(self) -> None:
        """Make the programs of the exploration's new failures smaller.

        What is met on the way is treated in the same way.
        """
        while self._pending or self._variants:
            if self._pending:
                self._make_smaller(self._pending[0])
                self._pending.pop(0)
            else:
                self._make_variant_smaller(*self._variants.pop())

    def _make_smaller(self, seen: Seen) -> None:
        found = seen.finding
        budget = self._minimise_s
        if seen.folder is None or self._has_another(found):
            budget = min(KNOWN_S, budget)
        if not budget:
            self.avoid(_until_failure(found))
            return
        made = self._minimise(found, budget, lambda best: self._keep(seen, best))
        seen.finding = found.minimised(made)
        if seen.folder is not None and made.reproduced:
            self._write(seen, made.example)
            seen.finding = self._finish(seen.finding)
        self._write(seen, made.example)
        self._report(
            f"  {seen.finding.name}: {len(seen.finding.program.steps)} steps, "
            f"failed {seen.finding.reliability}: {seen.finding.program}"
        )
        self._conclude(made)

    def _make_variant_smaller(self, seen: Seen, found: Finding) -> None:
        """Let the exploration find another program of a known failure, to steer around it as well."""
        budget = min(KNOWN_S, self._minimise_s)
        if not budget or self._has_another(found) or seen.variants == MOST_VARIANTS:
            return
        seen.variants += 1
        made = self._minimise(found, budget, lambda _: None)
        if made.reproduced:
            self._report(f"  also by {made.program}")
            if len(made.program.steps) < len(seen.finding.program.steps):
                seen.finding = self._finish(seen.finding.minimised(made))
                self._write(seen, made.example)
        self._conclude(made)

    def _minimise(self, found: Finding, budget_s: float, on_best: Callable[[Program], None]) -> Minimised:
        return minimise(
            found.program,
            found.signature,
            self._attempts,
            self._alphabets,
            budget_s,
            step=found.failure.step,
            on_best=on_best,
            report=lambda line: self._report(f"  {line}"),
        )

    def _conclude(self, made: Minimised) -> None:
        """Conclude a minimisation during the exploration.

        Steer around the smallest program, and note the other failures that were met.
        """
        if made.reproduced and made.failure is not None:
            step = made.failure.step
            steps = made.program.steps if step is None else made.program.steps[: step + 1]
            self.avoid(made.program.with_steps(steps))
        if made.example is not None:
            discard([made.example])
        for program, attempt in made.others.values():
            if attempt.failure is not None:
                self._note(program, attempt, attempt.failure)

    def avoid(self, program: Program) -> bool:
        """Steer around a known bug's program; return whether programs of its alphabet are made at all."""
        if program.alphabet in self._steering:
            self._steering[program.alphabet].avoid(program)
        return program.alphabet in self._steering

    def _keep(self, seen: Seen, best: Program) -> None:
        if seen.folder is not None:
            findings.write_program(seen.folder, best)

    def _progress(self) -> None:
        self._next_report = Deadline.after(_REPORT_S)
        for name, tally in self.tallies.items():
            if tally.programs:
                self._report(
                    f"{name}: {tally.programs} programs, {tally.a_minute:.0f} a minute; "
                    f"{self.coverage.counts(name)}; {self.in_short()}"
                )

    def in_short(self) -> str:
        """What an exploration has found: the number of findings, and how often each known bug was seen."""
        known = Counter[str]()
        for seen in self.seen.values():
            if seen.folder is None:
                known[seen.finding.bug or "others"] += seen.times
        parts = [f"{len(self.new)} findings", *(f"{bug} seen {times} times" for bug, times in known.items())]
        errors = sum(self.errors.values())
        return ", ".join([*parts, *([f"{errors} errors"] if errors else [])])

    def begin(self) -> None:
        """Make the folder of a new exploration.

        :raises UsageError: when it has the results of another search.
        """
        if (self.into / SETTINGS).exists():
            raise UsageError(
                f"--into {self.into}: it has the results of another search; --resume goes on with it"
            )
        self.into.mkdir(parents=True, exist_ok=True)
        (self.into / SETTINGS).write_text(json.dumps(asdict(self.settings), indent=1) + "\n")

    def resume(self) -> None:
        """Go on where the exploration in the folder has stopped (``--resume``).

        :raises UsageError: when the folder's files cannot be read.
        """
        findings.remove_partial(self.into / FINDINGS)
        for folder in sorted((self.into / FINDINGS).glob("*")):
            found = findings.read(folder)
            seen = self.seen[found.program.alphabet, found.signature, found.bug] = Seen(found, folder=folder)
            if found.reliability.failures:
                self.avoid(_until_failure(found))
            elif not found.reliability.attempts:
                self._pending.append(seen)
        for number, program, attempt in _read_log(self.into / LOG):
            self._taken[program.alphabet] = number + 1
            self.coverage.add(program, attempt)
            if attempt.failure is not None:
                bug = self._bug_of(program, attempt.failure)
                key = program.alphabet, attempt.failure.signature, bug
                if key in self.seen:
                    self.seen[key].times += 1
        for name, taken in self._taken.items():
            next(itertools.islice(self._schedules[name], taken, taken), None)


def read_settings(folder: Path) -> Settings:
    """The settings of the exploration in ``folder``.

    :raises UsageError: when there is none.
    """
    try:
        content = json.loads((folder / SETTINGS).read_text())
        settings = Settings(**{**content, "alphabets": tuple(content["alphabets"])})
    except OSError as exc:
        raise UsageError(f"--resume {folder}: no search was begun there: {exc.strerror}") from None
    except (ValueError, TypeError, KeyError):
        raise UsageError(f"--resume {folder}: {SETTINGS} is half written, or of another version") from None
    return settings


def _until_failure(found: Finding) -> Program:
    step = found.failure.step
    return found.program if step is None else found.program.with_steps(found.program.steps[: step + 1])


def _length(program: Program, failure: Failure) -> int:
    return len(program.steps) if failure.step is None else failure.step + 1


def _line(number: int, program: Program, attempt: Attempt) -> str:
    """One line of an exploration's log, ``programs.ndjson``."""
    entry: dict[str, Any] = {
        "number": number,
        "program": program.model_dump(mode="json", exclude_defaults=True),
        "ending": attempt.ending.value,
        "seconds": round(attempt.seconds, 3),
    }
    if attempt.failure is not None:
        entry["failure"] = asdict(attempt.failure)
    if attempt.error:
        entry["error"] = attempt.error
    return json.dumps(entry, ensure_ascii=False) + "\n"


def _read_log(path: Path) -> Iterator[tuple[int, Program, Attempt]]:
    """The attempts of an exploration's log.

    A half-written last line is left out, and removed from the file.

    :raises UsageError: when another line cannot be read.
    """
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
        path.write_text("".join(lines))
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            failure = Failure(**entry["failure"]) if "failure" in entry else None
            yield (
                int(entry["number"]),
                Program.model_validate(entry["program"]),
                Attempt(Ending(entry["ending"]), failure, entry.get("error", "")),
            )
        except (ValueError, KeyError, TypeError, ValidationError):
            raise UsageError(f"{path}:{number}: not an entry of this log") from None
