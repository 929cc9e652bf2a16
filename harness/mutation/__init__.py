"""Do the scenarios find what is wrong? Faults that are put into QEMU, against scenarios and QEMU's own tests.

``runner`` starts pytest, ``verdicts`` judges a fault by what failed, ``peers`` runs QEMU's own tests beside
it, ``table`` keeps which scenario catches which fault, and ``cover`` computes the default set from it.
"""
