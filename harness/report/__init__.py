"""Results of runs as data and as tables: summary, comparison of two runs, known-bug ledger."""
