"""QEMU built with a sanitizer (QEMU: ``configure --enable-sanitizers``), and what it reports.

AddressSanitizer reports what is used after it was freed, and ends QEMU; LeakSanitizer, a part of it, reports
when QEMU quits what nothing points at any more. Both write into QEMU's log.
"""

from __future__ import annotations

import mmap
import os
import re
from functools import cache
from pathlib import Path

from harness.qemu import symbols

#: Every program that is built with AddressSanitizer calls it first (compiler-rt: ``asan_init_version.h``).
_RUNTIME = b"__asan_init"
#: Losses that are none of 9p's, one ``leak:FUNCTION`` a line (LeakSanitizer's "Suppressions").
_SUPPRESSIONS = Path(__file__).parent / "leaks.supp"
_REPORT = re.compile(r"^.*(?:ERROR: \w+Sanitizer|runtime error:)", re.MULTILINE)
_LEAKS = "ERROR: LeakSanitizer"
_FRAME = re.compile(r"^( +#\d+ 0x[0-9a-f]+) +(?:in .+ )?\((.+)\+0x([0-9a-f]+)\).*$", re.MULTILINE)


def is_sanitized(binary: Path) -> bool:
    """Whether AddressSanitizer was built into the program ``binary``."""
    with binary.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return False
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as content:
            return content.find(_RUNTIME) >= 0


def environment() -> dict[str, str]:
    """What such a QEMU is started with; a user's own options come after ours, and win.

    Every frame of a stack is wanted (GLib keeps no frame pointers), and QEMU's coroutines switch stacks. An
    assertion that fails is no report of theirs: its backtrace comes from a core file, as in any QEMU. A
    leak does not change what QEMU exits with: which of them count is decided by :func:`collect`.
    """
    ours = {
        "ASAN_OPTIONS": "detect_stack_use_after_return=0:fast_unwind_on_malloc=0:disable_coredump=0",
        "LSAN_OPTIONS": "exitcode=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    return {name: ":".join(filter(None, (text, os.environ.get(name)))) for name, text in ours.items()}


def silent() -> dict[str, str]:
    """For a program that only says what it is: nobody cares what it forgets to free."""
    return {"ASAN_OPTIONS": "detect_leaks=0"}


def collect(log: Path, binary: Path, program: str, to: Path, *, quit_cleanly: bool = True) -> None:
    """Write to ``to`` what the sanitizers reported in QEMU's ``log`` and counts; nothing without a report.

    Frames get the names of functions. Never raises for a log that cannot be read.

    :param binary: QEMU. :param program: what was executed: for an unpacked release its loader, which the
        sanitizers take for the file that QEMU's code is in.
    :param quit_cleanly: QEMU ended as it does when it is asked to. One that exits out of the middle of
        something, such as a stream that does not match, has let go of nothing.
    """
    try:
        text = log.read_text(errors="replace")
    except OSError:
        return
    begins = _REPORT.search(text)
    if begins is None:
        return
    report = _named(text[begins.start() :], binary, program)
    before, found, leaks = report.partition(_LEAKS)
    if found:
        counting, left_out = (
            _counting(leaks) if quit_cleanly else ("", "\n(leaks of a QEMU that did not quit)")
        )
        before = before.rpartition("\n")[0]
        report = "\n".join(filter(None, (before.strip("= \n"), _LEAKS + counting if counting else "")))
        report += left_out
    to.write_text(report.strip() + "\n")


def _named(report: str, binary: Path, program: str) -> str:
    program = os.path.realpath(program)  # As the kernel tells the sanitizers (``/proc/self/exe``).

    def name(match: re.Match[str]) -> str:
        if match[2] != program:
            return match[0]
        return f"{match[1]} in {symbols.at_address(str(binary), int(match[3], 16))}"

    return _FRAME.sub(name, report)


def _counting(leaks: str) -> tuple[str, str]:
    """The leaks that are not suppressed, and a line for those that are.

    Only what is lost directly is looked at: the rest hangs on it.
    """
    blocks = [block for block in leaks.split("\n\n") if "Direct leak of" in block]
    counting, left_out = [], []
    for block in blocks:
        reason = next((function for function in _suppressions() if f" in {function}" in block), None)
        if reason is None:
            counting.append(block.strip())
        else:
            left_out.append(reason)
    told = f"\n(not of 9p: {len(left_out)} leaks in {', '.join(sorted(set(left_out)))})" if left_out else ""
    return ("\n\n" + "\n\n".join(counting) if counting else ""), told


@cache
def _suppressions() -> tuple[str, ...]:
    lines = _SUPPRESSIONS.read_text().splitlines()
    return tuple(line.removeprefix("leak:") for line in lines if line.startswith("leak:"))
