"""The folder of a finding: its program, a test, a text about it, and the record of its shortest failure."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from harness.errors import UsageError
from harness.explore import program as programs
from harness.explore.attempt import Attempt, Failure
from harness.explore.minimise import Minimised
from harness.explore.program import Program
from harness.report.reliability import Reliability

PROGRAM, ORIGINAL, DATA, README, TEST = (
    "program.json",
    "original.json",
    "finding.json",
    "README.txt",
    "test_repro.py",
)
RECORD, QTEST, SCRIPT = "artifacts", "repro.qtest", "repro.sh"


@dataclass(frozen=True)
class Finding:
    """A failure that was found, and what is known of it.

    :ivar program: the smallest one so far. :ivar original: the one that showed it first.
    :ivar qemu: the version of QEMU, for people. :ivar bug: the ledger's id when it is a known bug.
    :ivar reliability: of ``program``, as it was validated; 0 attempts when it was not.
    :ivar complete: nothing smaller was left to try.
    :ivar qtest: the program as a text that QEMU reads (:mod:`.qtest_repro`); empty when it cannot be written.
    :ivar script: a shell script that runs that; empty when there is none.
    :ivar about_qtest: how to run that, or why there is none, in lines.
    """

    program: Program
    original: Program
    failure: Failure
    qemu: str = ""
    bug: str = ""
    reliability: Reliability = field(default_factory=Reliability)
    complete: bool = False
    qtest: str = field(default="", compare=False)
    script: str = field(default="", compare=False)
    about_qtest: tuple[str, ...] = field(default=(), compare=False)

    @property
    def signature(self) -> str:
        """What failures with the finding's cause have in common."""
        return self.failure.signature

    @property
    def name(self) -> str:
        """A name for the finding's folder: alphabet, checker, and a hash of the signature."""
        digest = hashlib.sha256(self.signature.encode()).hexdigest()[:8]
        checker = re.sub(r"[^A-Za-z0-9_]+", "-", self.failure.checker)
        return f"{self.original.alphabet.value}-{checker}-{digest}"

    def minimised(self, found: Minimised) -> Finding:
        """The finding after a minimisation."""
        if not found.reproduced:
            return replace(self, reliability=found.original)
        return replace(
            self,
            program=found.program,
            failure=found.failure or self.failure,
            reliability=found.reliability,
            complete=found.complete,
        )


class _Data(BaseModel):
    """The content of ``finding.json``."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    signature: str
    checker: str
    message: str
    guarantee: str
    frames: tuple[str, ...]
    step: int | None
    qemu: str
    bug: str
    failures: int
    attempts: int
    complete: bool


def write(folder: Path, finding: Finding, example: Attempt | None = None) -> None:
    """Write the finding. A folder of that name is complete: it gets its name at the end.

    :param example: a failing attempt of its program, whose record becomes the finding's.
    :raises OSError: when the disk is full, or the folder cannot be written. An earlier state is kept then.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for name, text in _texts(finding).items():
        (partial / name).write_text(text)
    record = example.artifacts if example is not None else folder / RECORD
    if record is not None and record.is_dir():
        shutil.copytree(record, partial / RECORD, symlinks=True)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def write_program(folder: Path, program: Program) -> None:
    """Replace the finding's program at once by a smaller one."""
    partial = folder / f".{PROGRAM}"
    partial.write_text(programs.text(program))
    partial.replace(folder / PROGRAM)


def read(folder: Path) -> Finding:
    """Read a finding from its folder.

    :raises UsageError: when the folder is not one of a finding, or half written; one line.
    """
    if not (folder / DATA).is_file():
        raise UsageError(f"{folder}: not the folder of a finding, or half written: it has no {DATA}")
    try:
        data = _Data.model_validate_json((folder / DATA).read_text())
    except (OSError, ValueError, ValidationError) as exc:
        first = str(exc).splitlines()[0]
        raise UsageError(f"{folder / DATA}: half written, or of another version: {first}") from None
    failure = Failure(data.checker, data.message, data.guarantee, data.frames, data.step)
    return Finding(
        programs.read(folder / PROGRAM),
        programs.read(folder / ORIGINAL),
        failure,
        data.qemu,
        data.bug,
        Reliability(data.failures, data.attempts),
        data.complete,
    )


def _texts(finding: Finding) -> dict[str, str]:
    return {
        **({QTEST: finding.qtest, SCRIPT: finding.script} if finding.qtest else {}),
        PROGRAM: programs.text(finding.program),
        ORIGINAL: programs.text(finding.original),
        DATA: json.dumps(_as_data(finding), indent=1, ensure_ascii=False) + "\n",
        README: _readme(finding),
        TEST: _test(finding),
    }


def _as_data(finding: Finding) -> dict[str, Any]:
    failure = finding.failure
    return _Data(
        signature=failure.signature,
        checker=failure.checker,
        message=failure.message,
        guarantee=failure.guarantee,
        frames=failure.frames,
        step=failure.step,
        qemu=finding.qemu,
        bug=finding.bug,
        failures=finding.reliability.failures,
        attempts=finding.reliability.attempts,
        complete=finding.complete,
    ).model_dump(mode="json")


def _readme(finding: Finding) -> str:
    program, failure = finding.program, finding.failure
    at = "at the end" if failure.step is None else f"at step {failure.step}"
    lines = [
        f"{failure.checker}: {failure.message}",
        "",
        f"Seen {at} of a program with {len(program.steps)} steps (the first program that showed it had "
        f"{len(finding.original.steps)}):",
        "",
        *(f"  {number}  {step}" for number, step in enumerate(program.steps)),
        "",
        *_shares(program),
        f"Reliability: {_reliability(finding)}",
        f"Guarantee:   {failure.guarantee or 'not known'}",
        f"Known bug:   {finding.bug or 'none that the ledger has'}",
        f"Cell:        QEMU {program.cell.qemu}{f' ({finding.qemu})' if finding.qemu else ''}, "
        f"machine type {program.cell.machine}, kernel {program.cell.kernel}",
        f"Signature:   {failure.signature}",
        *([f"In:          {' < '.join(failure.frames)}"] if failure.frames else []),
        "",
        "Run it again, from this folder:",
        "",
        f"  harness replay {PROGRAM} --times 20",
        f"  harness minimise {PROGRAM}",
        f"  pytest {TEST} --qemu {program.cell.qemu} --machine {program.cell.machine}",
        "",
        *([*finding.about_qtest, ""] if finding.about_qtest else []),
        f"{ORIGINAL} is the program before it was minimised"
        + ("." if finding.complete else "; there was not enough time to try everything smaller.")
        + f" {RECORD}/ is the record of the shortest failing attempt; {RECORD}/argv.sh starts its QEMU.",
    ]
    return "\n".join(lines) + "\n"


def _shares(program: Program) -> Sequence[str]:
    plain = programs.ShareKind()
    odd = {number: kind for number, kind in enumerate(program.shares) if kind != plain}
    found = [f"Share {number}: {kind.model_dump(exclude_defaults=True)}" for number, kind in odd.items()]
    return [*found, ""] if found else []


def _reliability(finding: Finding) -> str:
    seen = finding.reliability
    if not seen.attempts:
        return "not measured"
    if not seen.failures:
        return f"it did not come again: failed {seen}"
    return f"failed {seen}"


def _test(finding: Finding) -> str:
    """The test in a finding's folder: a scenario that runs the program."""
    guarantee = finding.failure.guarantee
    mark = f"@pytest.mark.guarantee({json.dumps(guarantee)})\n" if guarantee else ""
    first = finding.failure.message.replace("\\", "\\\\").replace('"', "'")
    return (
        f'"""{first[:100]}"""\n\nfrom pathlib import Path\n\n'
        + ("import pytest\n\n" if mark else "")
        + "from harness.explore import program, run\nfrom harness.testbed import Testbed\n\n\n"
        + mark
        + "def test_repro(testbed: Testbed) -> None:\n"
        + f'    run.perform(program.read(Path(__file__).with_name("{PROGRAM}")), testbed)\n'
    )


def remove_partial(folder: Path) -> None:
    """Remove what writers of findings that were killed have left in the folder of findings."""
    for path in folder.glob(".*.partial"):
        shutil.rmtree(path, ignore_errors=True)


def free_bytes(folder: Path) -> int:
    """The space for findings: free bytes of the file system of ``folder`` (``man 3 statvfs``)."""
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize
