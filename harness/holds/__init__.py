"""Holds: keep a 9p request in flight for as long as a scenario needs it.

There are two kinds, because they exercise different code in QEMU. :class:`harness.holds.hold.Hold` stops the
worker thread in its system call. A share made by :func:`harness.holds.throttle.throttled` keeps the request
in the throttle's coroutine timer.
"""
