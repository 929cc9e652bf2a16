"""Holds: keep a 9p request in flight, deterministically, and let it go on command.

Two kinds, because they exercise different code in QEMU: :class:`harness.holds.hold.Hold` stops the worker
thread's system call; a share that :func:`harness.holds.throttle.throttled` made keeps the request in the
throttle's coroutine timer.
"""
