"""Mutation testing: faults are put into QEMU one at a time, and the scenarios have to fail.

``catalogue`` reads the faults, ``runner`` starts pytest, ``verdicts`` judges a fault by the scenarios that
failed, and ``qtests`` runs QEMU's own tests against the same fault. ``table`` keeps which scenario catches
which fault, ``measurement`` fills that table, ``cover`` computes the default set from it, and ``figures``
counts.
"""
