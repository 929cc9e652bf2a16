"""Failures whose cause is the host or the harness and not QEMU, by their first line."""

from __future__ import annotations

import re

_FIRST_WORDS = re.compile(r"(harness\.errors\.)?(SetupError|HarnessError|UsageError)\b|inconclusive:")


def is_of_the_host(cause: str) -> bool:
    """Whether ``cause``, the first line of a failure, is an error of the host or the harness."""
    return _FIRST_WORDS.match(cause) is not None
