"""What every run of pytest reads, read once: the process imports it from which runs are forked."""

from __future__ import annotations

from harness.report import ledger

ledger.load()
