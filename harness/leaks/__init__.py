"""Leak hunts: what a QEMU process holds, measured while a cycle is repeated."""
