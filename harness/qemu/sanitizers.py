"""QEMUs built with sanitizers (QEMU: ``configure --enable-sanitizers``), and their reports.

AddressSanitizer reports memory errors such as a use after free, and ends QEMU. LeakSanitizer, a part of it,
reports unreachable memory when QEMU quits. Both write to QEMU's log.
"""

from __future__ import annotations

import mmap
import os
import re
from functools import cache
from pathlib import Path

from harness.qemu import symbols

#: A symbol of every program that is built with AddressSanitizer (compiler-rt: ``asan_init_version.h``).
_RUNTIME = b"__asan_init"
#: Leaks outside of 9p, one ``leak:FUNCTION`` in each line (LeakSanitizer's "Suppressions").
_SUPPRESSIONS = Path(__file__).parent / "leaks.supp"
_REPORT = re.compile(r"^.*(?:ERROR: \w+Sanitizer|runtime error:)", re.MULTILINE)
_LEAKS = "ERROR: LeakSanitizer"
_FRAME = re.compile(r"^( +#\d+ 0x[0-9a-f]+) +(?:in .+ )?\((.+)\+0x([0-9a-f]+)\).*$", re.MULTILINE)


def is_sanitized(binary: Path) -> bool:
    """Whether the program ``binary`` was built with AddressSanitizer."""
    with binary.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return False
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as content:
            return content.find(_RUNTIME) >= 0


def environment() -> dict[str, str]:
    """The environment of a QEMU with a sanitizer. The user's own options come last and take precedence.

    Stacks are unwound completely (GLib has no frame pointers), and QEMU's coroutines switch stacks. A failed
    assertion is not reported by a sanitizer; its backtrace comes from a core file, as with any QEMU. Leaks do
    not change QEMU's exit status: :func:`collect` decides which of them count.
    """
    options = {
        "ASAN_OPTIONS": "detect_stack_use_after_return=0:fast_unwind_on_malloc=0:disable_coredump=0",
        "LSAN_OPTIONS": "exitcode=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    return {name: ":".join(filter(None, (text, os.environ.get(name)))) for name, text in options.items()}


def silent() -> dict[str, str]:
    """The environment for a sanitizer's QEMU that is only probed: leaks are not reported."""
    return {"ASAN_OPTIONS": "detect_leaks=0"}


def collect(log: Path, binary: Path, program: str, to: Path, *, quit_cleanly: bool = True) -> None:
    """Write the relevant sanitizer reports in QEMU's ``log`` to ``to``; no file is written without a report.

    Function names are added to the stack frames. A log that cannot be read is ignored.

    :param binary: the QEMU binary. :param program: the program that was executed. For an unpacked release it
        is the dynamic loader, which the sanitizers take for the file with QEMU's code.
    :param quit_cleanly: whether QEMU quit in the regular way. A QEMU that exits in the middle of an
        operation, such as loading a stream that does not match, frees nothing, so its leaks do not count.
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
    program = os.path.realpath(program)  # As the sanitizers see it (``/proc/self/exe``).

    def name(match: re.Match[str]) -> str:
        if match[2] != program:
            return match[0]
        return f"{match[1]} in {symbols.at_address(str(binary), int(match[3], 16))}"

    return _FRAME.sub(name, report)


def _counting(leaks: str) -> tuple[str, str]:
    """The direct leaks in a sanitizer's report that are not suppressed, and a line about those that are.

    Indirect leaks are ignored, as they depend on direct ones.
    """
    blocks = [block for block in leaks.split("\n\n") if "Direct leak of" in block]
    counting, left_out = [], []
    for block in blocks:
        reason = next((function for function in _suppressions() if f" in {function}" in block), None)
        if reason is None:
            counting.append(block.strip())
        else:
            left_out.append(reason)
    note = f"\n(not of 9p: {len(left_out)} leaks in {', '.join(sorted(set(left_out)))})" if left_out else ""
    return ("\n\n" + "\n\n".join(counting) if counting else ""), note


@cache
def _suppressions() -> tuple[str, ...]:
    lines = _SUPPRESSIONS.read_text().splitlines()
    return tuple(line.removeprefix("leak:") for line in lines if line.startswith("leak:"))
