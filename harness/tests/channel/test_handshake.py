"""The contract test for the private parts of paramiko that ``channel/handshake.py`` uses."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import paramiko
import pytest
from paramiko.kex_curve25519 import KexCurve25519

from harness.channel.handshake import missing_private_part


def test_the_installed_paramiko() -> None:
    """The message names the missing part. Without it, no template's session can be resumed."""
    missing = missing_private_part()
    assert missing is None, f"paramiko {paramiko.__version__}: {missing}; adapt harness/channel/handshake.py"


def _another(base: type, **changed: Any) -> type:
    return type(base.__name__, (base,), changed)


def _no_arguments(self: object) -> None: ...


def _two_arguments(self: object, one: int, two: int) -> None: ...


def _uses_nothing(self: object) -> None: ...


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"_kex_info": {}}, "Transport._kex_info does not map curve25519-sha256@libssh.org"),
        ({"_kex_info": None}, "Transport._kex_info does not map curve25519-sha256@libssh.org"),
        ({"_send_message": None}, "Transport has no method _send_message with 1 argument"),
        ({"_send_message": _no_arguments}, "Transport has no method _send_message with 1 argument"),
        ({"_expect_packet": _two_arguments}, "Transport has no method _expect_packet with 1 argument"),
        (
            {"_send_kex_init": _uses_nothing},
            "_send_kex_init does not use _latest_kex_init, _send_message, local",
        ),
        ({"__init__": _uses_nothing}, "Transport.__init__ does not use sock"),
    ],
)
def test_a_changed_transport(changed: dict[str, Any], words: str) -> None:
    found = missing_private_part(_another(paramiko.Transport, **changed))
    assert found is not None
    assert words in found


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"start_kex": None}, "KexCurve25519 has no method start_kex"),
        ({"__init__": _uses_nothing}, "KexCurve25519.__init__ does not use key, transport"),
    ],
)
def test_a_changed_key_exchange(changed: dict[str, Any], words: str) -> None:
    exchange = _another(KexCurve25519, **changed)
    transport = _another(paramiko.Transport, _kex_info={"curve25519-sha256@libssh.org": exchange})
    found = missing_private_part(transport, exchange)
    assert found is not None
    assert words in found


def test_a_missing_key_exchange() -> None:
    assert missing_private_part(exchange=object) is not None


def test_it_is_imported_only_when_it_is_used() -> None:
    """A paramiko that has changed must not break an import of the modules that can do without."""
    program = "import harness.testbed, sys; sys.exit('harness.channel.handshake' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
