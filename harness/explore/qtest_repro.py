"""Writes a program of the raw client as a text of qtest commands, and of QMP commands between them.

A shell loop gives the text to QEMU: qtest commands to its standard input (``-qtest stdio``), lines that begin
with ``{`` to its QMP monitor, a pair of FIFOs. A program that needs QMP only to plug devices in at its start
is written without QMP: its devices are on the command line.

The commands are those that the client sent when it ran the program. It waits for answers by reading memory,
which a text cannot. Instead the loop sleeps after each line with :data:`_PAUSE`, a command that changes
nothing. QEMU has read what came before, and is idle: its worker threads answer the request, and its RCU
thread, which needs the main loop's lock, finishes an unplug. (Commands that take long were not enough: on a
busy machine query-migrate was answered before DEVICE_DELETED came.)

What needs more than that is refused: held requests, migrations, snapshots, more than one machine.
"""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.artifacts import Artifacts
from harness.errors import HarnessError, Unsupported
from harness.explore import finding as finding_files
from harness.explore.attempt import Failure
from harness.explore.failures import DIED
from harness.explore.finding import Finding
from harness.explore.program import AlphabetName, Program, Step
from harness.explore.raw_machine import ORIGINAL, RawMachine
from harness.explore.raw_steps import PERFORM
from harness.explore.run import states
from harness.qemu.binary import QemuInstall
from harness.reaper import RunFolder
from harness.testbed import Cell, Testbed

REPRO, SCRIPT, FIRMWARE = finding_files.QTEST, finding_files.SCRIPT, "halt.rom"
#: Where the reset vector is in a firmware of 64 KiB, and ``cli; hlt`` and a jump back to it.
_CODE_AT, _CODE = 65520, b"\xfa\xf4\xeb\xfd"
#: The steps that can be written.
_HOST = frozenset(("plug", "device_del", "cont", "stop", "system_reset"))
_MIGRATIONS = ("migrate", "migrate_begin", "migrate_stall", "migrate_pause", "migrate_cancel")
_REFUSED = frozenset(
    (
        "hold",
        "release",
        "fail",
        "short_write",
        "statfs_of_nothing",
        "savevm",
        "savevm_again",
        "loadvm",
        *_MIGRATIONS,
    )
)
#: QEMU's commands of a program that change something.
_COMMANDS = frozenset((*_HOST, "device_add"))
#: A checker whose failure the answer to ``query-migrate`` shows.
_BLOCKERS = "blocked_reasons"
#: It reads memory that no driver uses, behind that of the last one (:mod:`harness.ninep.client`).
_PAUSE = "readb 0x7000000"
#: Seconds of a pause.
_PAUSE_S = 0.5
_NOTIFY = "outw"
#: The FIFOs of the monitor (QEMU: ``chardev/char-pipe.c``).
_MONITOR = "qmp"
#: What a finding says whose program needs more than qtest and QMP.
_NEEDS_A_GUEST = (
    f"There is no {SCRIPT}: its steps need a Linux guest that answers commands.",
    f"{finding_files.RECORD}/argv.sh starts its QEMU, qmp.ndjson there has the QMP commands, and",
    "history.ndjson those of the guest.",
)
#: What a shell adds to the number of the signal that killed a command.
_BY_SIGNAL = 128
#: Seconds in which QEMU has to read a text, without its pauses. It goes on at the end of its input.
_LIMIT_S = 30.0
#: QEMU's list of reasons, when it has one (QEMU: ``qapi/migration.json``, ``MigrationInfo``).
_ANSWER = re.compile(r'\{"(return|error)"')
_BLOCKED = re.compile(r'"blocked-reasons": \[[^\]]')


@dataclass
class _Part:
    """What one step sent."""

    step: Step
    qmp: list[dict[str, Any]] = field(default_factory=list)
    qtest: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Repro:
    """A text that QEMU reads, and how to start QEMU.

    :ivar arguments: QEMU's arguments. :ivar folders: that it exports, relative to where it is started.
    :ivar with_qmp: there are QMP commands between those of qtest.
    :ivar shows: what shows the failure.
    """

    text: str
    arguments: tuple[str, ...]
    folders: tuple[str, ...]
    with_qmp: bool
    shows: str

    def lines(self, binary: str = "qemu-system-x86_64") -> list[str]:
        """Shell commands that run the program as a text of qtest commands."""
        return [
            f"mkdir -p {' '.join(self.folders)}",
            f"for d in {' '.join(self.folders)}; do",
            f"  printf '{ORIGINAL[:8].decode()}%.0s' $(seq {len(ORIGINAL) // 8}) > $d/file",
            "done",
            f"(head -c {_CODE_AT} /dev/zero; printf '\\372\\364\\353\\375'; head -c 12 /dev/zero) "
            f"> {FIRMWARE}",
            *self._loop(f"{binary} {shlex.join(self.arguments)}"),
        ]

    def _loop(self, qemu: str) -> list[str]:
        """Shell commands that give the text to QEMU, line by line."""
        pause = f"  case $line in '{_PAUSE}') sleep ${{PAUSE:-{_PAUSE_S:g}}};; esac"
        if not self.with_qmp:
            say = "  printf '%s\\n' \"$line\""
            return ["while IFS= read -r line; do", say, pause, f"done < {REPRO} | {qemu}"]
        return [
            f"mkfifo {_MONITOR}.in {_MONITOR}.out",
            f"cat {_MONITOR}.out &",
            "while IFS= read -r line; do",
            "  case $line in '{'*) to=3;; *) to=1;; esac",
            "  printf '%s\\n' \"$line\" >&$to",
            pause,
            f"done < {REPRO} 3<> {_MONITOR}.in | {qemu}",
            "status=$?",
            f": <> {_MONITOR}.out  # cat ends, also where QEMU never opened it.",
            "wait",
            "(exit $status)",
        ]

    def script(self) -> str:
        """A shell script that runs the text in a folder, and ends with QEMU's exit status.

        It reads :data:`REPRO` beside it. ``QEMU`` in the environment names the binary, ``PAUSE`` the seconds
        that QEMU gets for each request.
        """
        head = (
            "#!/bin/sh",
            f"# Shows the failure without the harness: {self.shows}.",
            'here=$(cd "$(dirname "$0")" && pwd)',
            'run=$(mktemp -d "${TMPDIR:-/tmp}/repro-XXXXXX")',
            "trap 'rm -rf \"$run\"' EXIT",
            'cp "$here"/' + REPRO + ' "$run" && cd "$run" || exit 2',
        )
        # A QEMU that has read its input goes on.
        limit_s = _LIMIT_S + 2 * _PAUSE_S * self.text.count(_PAUSE)
        command = f'timeout -k 1 {limit_s:g} "${{QEMU:-qemu-system-x86_64}}"'
        return "\n".join((*head, *self.lines(command))) + "\n"


def write(program: Program, failure: Failure, cell: Cell, folder: Path) -> Repro:
    """Run a program once on ``cell``, and write what it sent as a text that QEMU reads.

    :param folder: for the record of the run.
    :raises Unsupported: when it cannot be written, or its failure would not show.
    """
    _require(program, failure)
    run = RunFolder()
    try:
        testbed = Testbed(cell, run, Artifacts.create(folder.parent, folder.name))
        try:
            parts, machine = _record(program, failure, testbed)
        finally:
            testbed.close()
    finally:
        run.close()
    with_qmp = failure.checker == _BLOCKERS or not _only_plugs_first(parts)
    text = _with_qmp(parts) if with_qmp else _plain(parts)
    arguments, folders = _arguments(machine, parts, with_qmp=with_qmp)
    shows = (
        "QEMU dies"
        if failure.checker == DIED
        else f"the answer to the last query-migrate is wrong: {failure.message}"
    )
    return Repro(text, arguments, folders, with_qmp, shows)


def _require(program: Program, failure: Failure) -> None:
    """:raises Unsupported: when the program cannot be written as a text that QEMU reads."""
    refused = sorted({step.do for step in program.steps} & _REFUSED)
    if refused:
        raise Unsupported(f"a text cannot do: {', '.join(refused)}")
    if failure.checker not in (DIED, _BLOCKERS):
        raise Unsupported(f"a failure of {failure.checker} does not show in QEMU's output")
    if failure.step is None:
        raise Unsupported("a failure at the end of a program does not show in QEMU's output")


def _record(program: Program, failure: Failure, testbed: Testbed) -> tuple[list[_Part], RawMachine]:
    """Run the program up to its failure, and record what it sends to qtest and QMP."""
    assert failure.step is not None
    model = states(program)
    on = RawMachine(testbed, program.shares, holding=False)
    sent: list[str] = []
    on.guest.qtest.transcript = sent
    log, parts = on.machine.artifacts.qmp, list[_Part]()
    for number, step in enumerate(program.steps[: failure.step + 1]):
        before, said = len(sent), len(_said(log))
        try:
            PERFORM[step.do](on, step, model[number])
        except HarnessError:
            if number < failure.step:
                raise Unsupported(
                    f"it failed at step {number} this time, and not at {failure.step}"
                ) from None
        parts.append(_Part(step, _said(log)[said:], sent[before:]))
    return parts, on


def _said(log: Path) -> list[dict[str, Any]]:
    """The QMP commands so far that change something: those go into the text that QEMU reads."""
    found = []
    for line in log.read_text().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # The last line is being written.
        message = entry["message"]
        if entry["dir"] == "out" and message.get("execute") in _COMMANDS:
            found.append({key: message[key] for key in ("execute", "arguments") if key in message})
    return found


def _only_plugs_first(parts: Sequence[_Part]) -> bool:
    """Whether the text needs QMP only to plug devices in that were never plugged, as the first thing."""
    names = [part.step.do for part in parts]
    first_other = next((n for n, do in enumerate(names) if do != "plug"), len(names))
    return not any(do in _HOST or do == "plug_refused" for do in names[first_other:])


def _commands(part: _Part) -> list[str]:
    """A step as qtest commands in the text that QEMU reads.

    Writes, and the reads that change something; pauses behind requests.
    """
    found = []
    for line in part.qtest:
        if line.startswith("read"):
            continue
        found.append(line)
        if line.startswith(_NOTIFY):
            found.append(_PAUSE)
    return found


def _plain(parts: Sequence[_Part]) -> str:
    return "".join(f"{line}\n" for part in parts for line in _commands(part))


def _with_qmp(parts: Sequence[_Part]) -> str:
    """The text with QMP commands between those of qtest."""
    lines = [_qmp("qmp_capabilities"), _PAUSE]
    for part in parts:
        for command in part.qmp:
            lines += [json.dumps(command), _PAUSE]
        lines += _commands(part)
    lines += [_PAUSE, _qmp("query-migrate"), _PAUSE, _qmp("quit")]
    return "".join(f"{line}\n" for line in lines)


def _qmp(command: str) -> str:
    return json.dumps({"execute": command})


def _arguments(
    on: RawMachine, parts: Sequence[_Part], *, with_qmp: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """QEMU's arguments for the text, and the folders that it exports."""
    kind = on.machine.spec.machine_type
    # Packaged QEMUs have no accelerator "qtest". The firmware halts the CPU when the machine runs.
    found = [
        "-machine",
        f"{kind.qemu},accel=tcg",
        "-bios",
        FIRMWARE,
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
    ]
    found += ["-m", str(on.machine.spec.memory_mib), "-S"]
    folders = []
    for share in on.shares:
        if share.fsdev_of is None:
            folders.append(share.id)
            options = {"path": share.id, "security_model": share.security_model, **share.fsdev_options}
            given = ",".join(f"{name}={value}" for name, value in options.items())
            found += ["-fsdev", f"local,id={share.fsdev},{given}"]
    found += ["-qtest", "stdio", "-qtest-log", "none"]
    if not with_qmp:
        plugged = [part.step.share for part in parts if part.step.do == "plug"]
        for number in plugged:
            assert number is not None
            properties = dict(on.shares[number].device(kind))
            driver = properties.pop("driver")
            given = "".join(f",{name}={value}" for name, value in properties.items())
            found += ["-device", f"{driver}{given}"]
    else:
        found += ["-chardev", f"pipe,id=qmp,path={_MONITOR}", "-mon", "chardev=qmp,mode=control"]
    return tuple(found), tuple(folders)


def with_text(finding: Finding, cell: Cell) -> Finding:
    """The finding with its program as a text, if that shows the failure; it is tried on the cell's QEMU."""
    if finding.program.alphabet is not AlphabetName.RAW:
        return replace(finding, about_qtest=_NEEDS_A_GUEST)
    run = RunFolder()
    try:
        record = Path(tempfile.mkdtemp(dir=run.path)) / "record"
        made = write(finding.program, finding.failure, cell, record)
        said = seen(made, finding.failure, finding.program, cell.qemu, run)
    except HarnessError as exc:
        return replace(finding, about_qtest=(f"There is no {REPRO} and no {SCRIPT}: {exc.message}",))
    finally:
        run.close()
    if not said:
        return replace(
            finding,
            about_qtest=(f"There is no {REPRO} and no {SCRIPT}: as a text it does not show the failure.",),
        )
    about = [
        f"{REPRO} shows it without the harness: {made.shows}.",
        f"{SCRIPT} runs it; QEMU=PATH in its environment names another binary. It was tried once on QEMU "
        f"{finding.qemu}: {said}. The same by hand, in an empty folder with {REPRO}:",
        "",
        *(f"  {line}" for line in made.lines()),
    ]
    if made.with_qmp:
        about += ["", "Its lines that begin with '{' are QMP commands; the others are qtest commands."]
    return replace(finding, qtest=made.text, script=made.script(), about_qtest=tuple(about))


def seen(repro: Repro, failure: Failure, program: Program, install: QemuInstall, run: RunFolder) -> str:
    """Give the text to a QEMU that nothing of the harness talks to; return what shows the failure.

    :param run: closing it ends the QEMU and removes its folders.
    :returns: one line; the empty string when the failure did not show.
    """
    assert failure.step is not None
    folder = Path(tempfile.mkdtemp(dir=run.path))
    (folder / REPRO).write_text(repro.text)
    (folder / SCRIPT).write_text(repro.script())
    starts = folder / "qemu"
    starts.write_text(f'#!/bin/sh\nexec {shlex.join(install.argv())} "$@"\n')
    starts.chmod(0o700)
    environment = {**run.environment(), **install.environment, "QEMU": str(starts), "TMPDIR": str(folder)}
    done = subprocess.run(
        ["sh", str(folder / SCRIPT)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    printed = done.stdout
    if failure.checker == DIED:
        # The shell adds 128 to the number of the signal; "timeout" ends with 124, or kills with 9.
        died = done.returncode > _BY_SIGNAL and done.returncode != _BY_SIGNAL + signal.SIGKILL
        return f"QEMU was killed by {signal.Signals(done.returncode - _BY_SIGNAL).name}" if died else ""
    answers = [line for line in printed.splitlines() if _ANSWER.match(line)]
    asked = repro.text.splitlines().index(_qmp("query-migrate"))
    number = sum(line.startswith("{") for line in repro.text.splitlines()[:asked])
    if number >= len(answers):
        return ""
    expected = bool(getattr(states(program)[failure.step + 1], "blocked", False))
    listed = _BLOCKED.search(answers[number]) is not None
    return f"blocked-reasons {'is listed' if listed else 'is not listed'}" if listed != expected else ""
