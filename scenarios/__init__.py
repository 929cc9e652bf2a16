"""The scenarios: what QEMU guarantees. From a wheel: ``pytest --pyargs harness_scenarios``."""
