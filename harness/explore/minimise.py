"""Makes a failing program smaller, as long as it fails with the same signature and about as often.

The order is from what removes most to what removes least: cut after the failure; drop the steps about other
shares; delta debugging over the steps (A. Zeller, R. Hildebrandt, "Simplifying and Isolating Failure-Inducing
Input", 2002); simpler values and steps; fewer and plainer shares; the plainest cell.

A smaller program is taken after a few attempts. The result is validated with many; if its failure has become
rarer, the search goes back to where it was not, and goes on with as many attempts for each decision
(:mod:`harness.explore.statistics`). Another failure on the way never takes over: it is kept as another
finding.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from harness.deadline import Deadline
from harness.explore.alphabet import Alphabet
from harness.explore.attempt import Attempt, Failure
from harness.explore.generate import only_possible, states
from harness.explore.program import AlphabetName, Program, ProgramCell, ShareKind, Step, text
from harness.explore.replay import Attempts, Replay, discard, replay, shortest
from harness.explore.statistics import (
    MOST_VALIDATIONS,
    Decision,
    SequentialTest,
    for_search,
    for_validation,
)
from harness.report.reliability import Reliability

#: So many failures say how reliable the original is: without an attempt that passed, and with one.
_FAILURES_WANTED = (5, 12)
#: The most attempts at the original, and for one decision. What is undecided then is not taken.
_MOST_ATTEMPTS = 400
#: Attempts at the original without a failure, after which it counts as not reproduced.
_MOST_PASSES = 100
#: Up to this length pairs of steps are dropped as well, such as a step and the one that takes it back.
_PAIRS_UP_TO = 12
#: Steps that do much at once, for which a smaller one is looked for.
_LARGE_STEPS = frozenset(("system_reset", "reboot", "migrate", "loadvm", "savevm"))
#: The part of the budget that the validation has.
_FOR_VALIDATION = 0.25


@dataclass
class Minimised:
    """What came of a minimisation.

    :ivar failure: the program's failure; that of the original when it was not reproduced.
    :ivar original: how often the program failed with the signature that was given.
    :ivar reliability: how often the smallest program did when it was validated.
    :ivar attempts: all attempts that were made. :ivar decisions: the smaller programs that were tried.
    :ivar complete: whether nothing smaller was left to try when the time was up.
    :ivar others: the failures with another signature that were met, each with its program.
    :ivar example: the shortest failing attempt of the validation, with its artefacts.
    """

    program: Program
    signature: str
    failure: Failure | None = None
    original: Reliability = field(default_factory=Reliability)
    reliability: Reliability = field(default_factory=Reliability)
    attempts: int = 0
    decisions: int = 0
    seconds: float = 0.0
    complete: bool = False
    others: dict[str, tuple[Program, Attempt]] = field(default_factory=dict)
    example: Attempt | None = None

    @property
    def reproduced(self) -> bool:
        """Whether the failure came again when it was made smaller."""
        return self.reliability.failures > 0


class _Stop(Exception):
    """The time is up."""


def minimise(
    program: Program,
    signature: str,
    attempts: Attempts,
    alphabets: Mapping[AlphabetName, Alphabet],
    budget_s: float,
    *,
    step: int | None = None,
    on_best: Callable[[Program], None] = lambda _: None,
    report: Callable[[str], None] = lambda _: None,
) -> Minimised:
    """Make ``program`` smaller: find a small program that fails with ``signature`` like it.

    :param step: the step at which it was seen to fail: what comes behind is left out at once.
    :param budget_s: seconds after which the best program so far is validated and returned.
    :param on_best: is called with each smaller program as soon as it is taken.
    :param report: is called with a line of progress.
    :raises SetupError: when attempt after attempt ends with an error of the host or the harness.
    """
    search = _Search(program, signature, attempts, alphabets[program.alphabet], budget_s, on_best, report)
    return search.run(step)


class _Search:
    def __init__(
        self,
        program: Program,
        signature: str,
        attempts: Attempts,
        alphabet: Alphabet,
        budget_s: float,
        on_best: Callable[[Program], None],
        report: Callable[[str], None],
    ) -> None:
        self._attempts, self._alphabet, self._on_best, self._report = attempts, alphabet, on_best, report
        self._budget_s = budget_s
        self._clock = Deadline.after(budget_s)
        self._search_s = budget_s * (1 - _FOR_VALIDATION)
        #: Every program that was taken, the smallest last.
        self._taken = [program]
        self._decided: dict[str, bool] = {}
        self._last_step: int | None = None
        self._test: SequentialTest | None = None
        self._result = Minimised(program, signature)

    @property
    def _best(self) -> Program:
        return self._taken[-1]

    def run(self, step: int | None) -> Minimised:
        found = self._result
        whole = self._best
        if step is not None and step + 1 < len(whole.steps):
            self._taken = [whole.with_steps(whole.steps[: step + 1])]
        self._measure_original()
        if not found.original.failures and self._best != whole:
            self._taken = [whole]
            self._measure_original()
        if found.original.failures:
            for number in range(MOST_VALIDATIONS):
                self._search()
                if self._validate(last=number == MOST_VALIDATIONS - 1):
                    break
                # What was dropped wrongly was decided with too few attempts.
                self._test = for_validation(found.original)
                self._decided.clear()
        found.seconds = self._clock.elapsed_s
        return found

    def _search(self) -> None:
        self._result.complete = False
        with contextlib.suppress(_Stop):
            self._until_nothing_is_smaller()
            self._result.complete = True

    def _measure_original(self) -> None:
        signature, found = self._result.signature, self._result

        def enough(seen: Replay) -> bool:
            so_far = seen.reliability_of(signature)
            in_vain = not so_far.failures and (so_far.attempts >= _MOST_PASSES or self._clock.expired)
            always = so_far.failures == so_far.attempts
            clear = so_far.failures >= _FAILURES_WANTED[0 if always else 1]
            return clear or in_vain or self._time_is_up()

        seen = replay(self._best, self._attempts, _MOST_ATTEMPTS, enough=enough)
        self._note(seen)
        found.original = found.reliability = seen.reliability_of(signature)
        self._report(f"the program with {len(self._best.steps)} steps failed {found.original}")
        if found.original.failures:
            self._test = for_search(found.original)
        self._discard(seen)
        if found.original.failures and self._best != found.program:
            found.program = self._best
            self._on_best(self._best)

    def _time_is_up(self) -> bool:
        return self._clock.elapsed_s >= self._search_s

    def _note(self, seen: Replay) -> None:
        """Keep what attempts at a smaller program show.

        The failure and its last step, and failures of another kind.
        """
        self._result.attempts += len(seen.attempts)
        for signature, failed in seen.failures.items():
            if signature == self._result.signature:
                self._result.failure = failed[0].failure
                steps = [attempt.failure.step for attempt in failed if attempt.failure is not None]
                at_end = None in steps
                self._last_step = None if at_end else max(step for step in steps if step is not None)
            else:
                self._result.others.setdefault(signature, (seen.program, failed[0]))

    def _discard(self, seen: Replay) -> None:
        """Remove the records of attempts at smaller programs, except those that are a result."""
        kept = [attempt for _, attempt in self._result.others.values()]
        kept += [self._result.example] if self._result.example is not None else []
        discard(attempt for attempt in seen.attempts if attempt not in kept)

    def _fails(self, candidate: Program) -> bool:
        """Whether a smaller ``candidate`` fails like the original. If so, it is the best program from now on.

        :raises _Stop: when the time is up.
        """
        key = text(candidate.model_copy(update={"title": ""}))
        if candidate == self._best:
            return False
        if key not in self._decided:
            if self._time_is_up():
                raise _Stop
            self._decided[key] = self._decide(candidate)
        return self._decided[key]

    def _decide(self, candidate: Program) -> bool:
        try:
            states(self._alphabet, candidate)
        except ValueError:
            return False
        self._result.decisions += 1
        test, signature = self._test, self._result.signature
        assert test is not None

        def enough(seen: Replay) -> bool:
            decided = test.decide(seen.reliability_of(signature)) is not Decision.OPEN
            return decided or self._time_is_up()

        last_step = self._last_step
        seen = replay(candidate, self._attempts, _MOST_ATTEMPTS, enough=enough)
        self._note(seen)
        found = seen.reliability_of(signature)
        self._discard(seen)
        if test.decide(found) is not Decision.YES:
            self._last_step = last_step
            return False
        self._taken.append(candidate)
        self._on_best(candidate)
        self._report(f"{len(candidate.steps)} steps, failed {found}: {candidate}")
        return True

    def _until_nothing_is_smaller(self) -> None:
        self._cut()
        self._drop_other_shares()
        while True:
            before = self._best
            self._drop_steps()
            self._drop_pairs()
            self._take_shortcuts()
            self._simplify_steps()
            self._merge_shares()
            self._simplify_shares()
            self._simplify_cell()
            if self._best == before:
                return

    def _cut(self) -> None:
        """Make a program smaller: leave out what comes after the failure."""
        if self._last_step is not None and self._last_step + 1 < len(self._best.steps):
            self._fails(self._best.with_steps(self._best.steps[: self._last_step + 1]))

    def _without(self, dropped: set[int]) -> Program:
        """The smaller program without these steps, and without those that are not possible then."""
        kept = tuple(step for number, step in enumerate(self._best.steps) if number not in dropped)
        return only_possible(self._alphabet, self._best.with_steps(kept))

    def _drop_other_shares(self) -> None:
        """Make a program smaller: leave out the steps about shares that the last step is not about."""
        about = self._best.steps[-1].share if self._best.steps else None
        if about is not None:
            others = {n for n, step in enumerate(self._best.steps) if step.share not in (about, None)}
            self._fails(self._without(others))

    def _drop_steps(self) -> None:
        """Delta debugging: leave out one of ``parts`` parts; with as many parts as steps, one step."""
        parts = 2
        while self._best.steps:
            steps = len(self._best.steps)
            parts = min(parts, steps)
            # From the end: what comes last is needed least often for what comes before.
            chunks = [
                set(range(steps * part // parts, steps * (part + 1) // parts))
                for part in reversed(range(parts))
            ]
            if any(self._fails(self._without(chunk)) for chunk in chunks):
                self._cut()
                parts = max(parts - 1, 2)
            elif parts == steps:
                return
            else:
                parts *= 2

    def _drop_pairs(self) -> None:
        """Make a program smaller: leave out two steps at once, until no two can be left out."""
        while 2 < len(self._best.steps) <= _PAIRS_UP_TO:
            pairs = itertools.combinations(range(len(self._best.steps)), 2)
            if not any(self._fails(self._without(set(pair))) for pair in pairs):
                return

    def _take_shortcuts(self) -> None:
        """Make a program smaller: one step for several that lead to the same state of the model."""
        number = 0
        while number + 2 < len(self._best.steps):
            if not any(self._fails(shorter) for shorter in self._shortcuts(number)):
                number += 1

    def _shortcuts(self, number: int) -> list[Program]:
        """The smaller programs with one step in place of several from ``number`` on; the last step stays."""
        best, before = self._best, states(self._alphabet, self._best)
        found = []
        for end in range(len(best.steps) - 1, number + 1, -1):
            for step in before[number].possible():
                if before[number].after(step) == before[end]:
                    found.append(best.with_steps((*best.steps[:number], step, *best.steps[end:])))
        return found

    def _simplify_steps(self) -> None:
        """Make a program simpler: values that the model names first, and smaller steps."""
        for number in range(len(self._best.steps)):
            if number < len(self._best.steps):
                any(self._fails(self._with_step(number, step)) for step in self._simpler(number))

    def _with_step(self, number: int, step: Step) -> Program:
        steps = (*self._best.steps[:number], step, *self._best.steps[number + 1 :])
        return self._best.with_steps(steps)

    def _simpler(self, number: int) -> Iterator[Step]:
        step = self._best.steps[number]
        state = states(self._alphabet, self._best)[number]
        possible = list(state.possible())
        if step.value is not None:
            for other in possible:
                if other == step:
                    break
                if (other.do, other.share) == (step.do, step.share):
                    yield other
        if step.do in _LARGE_STEPS:
            used = {one.share for one in self._best.steps}
            yield from (
                other for other in possible if other.do not in _LARGE_STEPS and {other.share, None} & used
            )

    def _merge_shares(self) -> None:
        """Make a program smaller: one share does what two did; shares that no step is about go."""
        for gone in reversed(range(len(self._best.shares))):
            for instead in range(gone):
                if gone < len(self._best.shares) and self._fails(self._merged(gone, instead)):
                    break
        used = {step.share for step in self._best.steps}
        for number in reversed(range(len(self._best.shares))):
            if number not in used and len(self._best.shares) > 1:
                self._fails(_without_share(self._best, number))

    def _merged(self, gone: int, instead: int) -> Program:
        steps = tuple(
            step.model_copy(update={"share": instead}) if step.share == gone else step
            for step in self._best.steps
        )
        return _without_share(only_possible(self._alphabet, self._best.with_steps(steps)), gone)

    def _simplify_shares(self) -> None:
        for number in range(len(self._best.shares)):
            for kind in _simpler_kinds(self._best.shares[number]):
                shares = (*self._best.shares[:number], kind, *self._best.shares[number + 1 :])
                if self._fails(self._best.model_copy(update={"shares": shares})):
                    break

    def _simplify_cell(self) -> None:
        plainest = ProgramCell(qemu=self._best.cell.qemu)
        for change in ({"machine": plainest.machine}, {"kernel": plainest.kernel}):
            cell = self._best.cell.model_copy(update=change)
            self._fails(self._best.model_copy(update={"cell": cell}))

    def _validate(self, *, last: bool) -> bool:
        """Measure the smallest program anew; return whether it fails like the original, or nothing is left.

        If it does not, the middle of the programs that were taken before is the smallest one from now on.

        :param last: no other validation follows, so go back to the original.
        """
        found = self._result
        test = for_validation(found.original)
        clock = Deadline.after(self._budget_s * _FOR_VALIDATION)

        def enough(seen: Replay) -> bool:
            so_far = seen.reliability_of(found.signature)
            rejected = test.decide(so_far) is Decision.NO
            return so_far.is_clear or rejected or clock.expired

        # A program that fails in one of ten attempts is run until its failure can be expected.
        times = max(20, round(3 / test.wanted))
        seen = replay(self._best, self._attempts, times, enough=enough)
        self._note(seen)
        found.program, found.reliability = self._best, seen.reliability_of(found.signature)
        rejected = test.decide(found.reliability) is Decision.NO
        failed = seen.failures.get(found.signature, [])
        found.example = shortest(failed) if failed else None
        if rejected and len(self._taken) > 1:
            found.example = None
        self._discard(seen)
        if not rejected or len(self._taken) == 1:
            return True
        self._report(f"the smallest program failed {found.reliability} only: going back")
        self._taken = self._taken[: 1 if last or self._time_is_up() else (len(self._taken) + 1) // 2]
        self._last_step = None
        if last or self._time_is_up():
            found.program, found.reliability, found.complete = self._best, found.original, False
        return last or self._time_is_up()


def _without_share(program: Program, gone: int) -> Program:
    """The smaller program without one of its shares; those behind it move up.

    A program with a step about that share, or a share that uses its fsdev, is returned as it is.
    """
    named = {step.share for step in program.steps} | {kind.fsdev_of for kind in program.shares}
    if gone in named:
        return program

    def moved(number: int | None) -> int | None:
        return number - 1 if number is not None and number > gone else number

    kinds = [kind for number, kind in enumerate(program.shares) if number != gone]
    return program.model_copy(
        update={
            "shares": tuple(kind.model_copy(update={"fsdev_of": moved(kind.fsdev_of)}) for kind in kinds),
            "steps": tuple(step.model_copy(update={"share": moved(step.share)}) for step in program.steps),
        }
    )


def _simpler_kinds(kind: ShareKind) -> Iterator[ShareKind]:
    """The plainer kinds of share to try: the plainest, then those that differ in one thing less."""
    plain = ShareKind()
    for change in (plain.model_dump(), *({name: value} for name, value in plain.model_dump().items())):
        simpler = kind.model_copy(update=change)
        if simpler != kind:
            yield simpler
