"""paramiko's private parts: those that are used are there, and one that is not is told by name."""

from __future__ import annotations

from typing import Any

import paramiko
import pytest
from paramiko.kex_curve25519 import KexCurve25519

from harness.channel.handshake import changed_inside


def test_the_installed_paramiko_is_as_it_is_used() -> None:
    """Fails when paramiko has changed: no template's session is resumed (``channel/handshake.py``)."""
    assert changed_inside() is None


def _another(base: type, **changed: Any) -> type:
    return type(base.__name__, (base,), changed)


def _no_arguments(self: object) -> None: ...


def _two_arguments(self: object, one: int, two: int) -> None: ...


def _uses_nothing(self: object) -> None: ...


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"_kex_info": {}}, "Transport._kex_info has no curve25519-sha256@libssh.org"),
        ({"_kex_info": None}, "Transport._kex_info has no curve25519-sha256@libssh.org"),
        ({"_send_message": None}, "Transport has no _send_message with 1 argument"),
        ({"_send_message": _no_arguments}, "Transport has no _send_message with 1 argument"),
        ({"_expect_packet": _two_arguments}, "Transport has no _expect_packet with 1 argument"),
        (
            {"_send_kex_init": _uses_nothing},
            "_send_kex_init does not use _latest_kex_init, _send_message, local",
        ),
        ({"__init__": _uses_nothing}, "Transport.__init__ does not use sock"),
    ],
)
def test_a_transport_that_has_changed(changed: dict[str, Any], words: str) -> None:
    found = changed_inside(_another(paramiko.Transport, **changed))
    assert found is not None
    assert words in found


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"start_kex": None}, "KexCurve25519 has no start_kex"),
        ({"__init__": _uses_nothing}, "KexCurve25519.__init__ does not use key, transport"),
    ],
)
def test_an_exchange_that_has_changed(changed: dict[str, Any], words: str) -> None:
    exchange = _another(KexCurve25519, **changed)
    transport = _another(paramiko.Transport, _kex_info={"curve25519-sha256@libssh.org": exchange})
    found = changed_inside(transport, exchange)
    assert found is not None
    assert words in found


def test_an_exchange_that_is_gone() -> None:
    assert changed_inside(exchange=object) is not None
