"""The stages of a restored guest's start, from the call to the first answer, read from the test's history."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from harness.errors import SetupError
from harness.history import Entry, Kind

#: The first row: the sum of the others.
TOTAL = "from the call to the first answer"


def stages(entries: Sequence[Entry]) -> dict[str, float]:
    """Seconds by stage, :data:`TOTAL` first.

    :raises SetupError: when the history has no restored guest that answered.
    """

    def at(what: str, wanted: Callable[[Entry], bool]) -> Entry:
        found = next((entry for entry in entries if wanted(entry)), None)
        if found is None:
            raise SetupError(f"the history of this start has no {what}; only a restored guest has it")
        return found

    asked = at("guest:started", lambda entry: entry.f == "guest:started" and entry.value == "restored").t_s
    launched = at("machine:launch", lambda entry: entry.f == "machine:launch").t_s
    greeted = at("QMP command", lambda entry: entry.kind is Kind.INVOKE and entry.f.startswith("qmp:")).t_s
    resumed = at("RESUME", lambda entry: entry.f == "event:RESUME").t_s
    connected = at("ssh:connected", lambda entry: entry.f == "ssh:connected").t_s
    answered = at("answer", lambda entry: entry.kind is Kind.OK and entry.f == "guest:restore").t_s
    return {
        TOTAL: answered - asked,
        "folders, disk, argv": launched - asked,
        "QEMU's start, to its QMP greeting": greeted - launched,
        "the template's stream": resumed - greeted,
        "from RESUME to a resumed SSH session": connected - resumed,
        "the first command": answered - connected,
    }
