"""gdb's backtrace of a QEMU that crashed, from the core file that it left in its folder."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from harness.qemu.binary import QemuInstall

_TIMEOUT_S = 120


def collect(install: QemuInstall, folder: Path, to: Path) -> bool:
    """Write the backtrace of every thread to ``to`` and remove the core file.

    Without a core file (``kernel.core_pattern`` sends it elsewhere) or without gdb, ``to`` says so.
    Never raises.

    :returns: whether there is a backtrace.
    """
    gdb = shutil.which("gdb")
    cores = sorted(folder.glob("core*"))
    if gdb is None or not cores:
        missing = "no gdb on PATH" if gdb is None else f"no core file in {folder} (see kernel.core_pattern)"
        to.write_text(f"no backtrace: {missing}\n")
        return False
    # The program that the kernel executed is the first word: for an unpacked release its own loader.
    program = install.command[0]
    commands = ("set pagination off", "info threads", "thread apply all backtrace 40")
    argv = [gdb, "-nx", "-batch", *(word for c in commands for word in ("-ex", c)), program, str(cores[-1])]
    try:
        with to.open("w") as out:
            subprocess.run(argv, stdout=out, stderr=subprocess.STDOUT, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.SubprocessError) as exc:
        to.write_text(f"no backtrace: {exc}\n")
        return False
    finally:
        for core in cores:
            core.unlink(missing_ok=True)
    return True
