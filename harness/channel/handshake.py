"""An SSH client whose handshake over a guestfwd socket can be replayed: it sends the same bytes each time.

This is the only module that uses private parts of paramiko; import it only where it is used. Before one of
them is used, :func:`missing_private_part` checks all of them. If paramiko has changed, there is no session
over the guestfwd socket: :class:`ChannelLost` names the missing part, and the caller uses a TCP connection
instead. The contract test is ``harness/tests/channel/test_handshake.py``; ``pyproject.toml`` has an upper
bound on paramiko's version.
"""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

import paramiko
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from harness.channel.guestfwd import GuestfwdSocket
from harness.errors import ChannelLost

_Exchange: Any
try:
    from paramiko.kex_curve25519 import KexCurve25519
except ImportError:  # missing_private_part reports it.
    _Exchange = object
else:
    _Exchange = KexCurve25519

#: The key exchange of RFC 8731, under the name that every paramiko and dropbear with this exchange knows.
_KEX = "curve25519-sha256@libssh.org"
_KEXINIT, _KEX_ECDH_INIT, _KEX_ECDH_REPLY = 20, 30, 31  # RFC 4253, RFC 5656
_COOKIE = slice(1, 17)


def missing_private_part(transport: type = paramiko.Transport, exchange: type = _Exchange) -> str | None:
    """The first private part of paramiko that is missing or has changed; ``None`` if all are as expected.

    :param transport: paramiko's class of transports.
    :param exchange: paramiko's class of Curve25519 key exchanges.
    """
    known = getattr(transport, "_kex_info", None)
    if not isinstance(known, dict) or known.get(_KEX) is not exchange:
        return f"Transport._kex_info does not map {_KEX} to paramiko.kex_curve25519.KexCurve25519"
    for owner, name, arguments in (
        (transport, "_send_message", 1),
        (transport, "_expect_packet", 1),
        (transport, "_send_kex_init", 0),
        (exchange, "start_kex", 0),
    ):
        if not _accepts(getattr(owner, name, None), arguments):
            return f"{owner.__name__} has no method {name} with {arguments} argument(s)"
    for owner, name, used in (
        (transport, "__init__", {"sock"}),
        (transport, "_send_kex_init", {"local_kex_init", "_latest_kex_init", "_send_message"}),
        (exchange, "__init__", {"transport", "key"}),
    ):
        if missing := used - set(getattr(owner, name).__code__.co_names):
            return f"{owner.__name__}.{name} does not use {', '.join(sorted(missing))}"
    return None


def _accepts(function: Any, arguments: int) -> bool:
    """Whether a part of paramiko is a method that can be called with this number of arguments."""
    try:
        inspect.signature(function).bind(None, *[None] * arguments)
    except TypeError:
        return False
    return True


class _Curve25519(_Exchange):  # type: ignore[misc]  # the base class is Any
    """The Curve25519 key exchange with the private key of the session instead of a new one."""

    def start_kex(self) -> None:
        transport: Any = self.transport
        self.key = X25519PrivateKey.from_private_bytes(transport.sock.session.key)
        message = paramiko.Message()
        message.add_byte(bytes([_KEX_ECDH_INIT]))
        message.add_string(self.key.public_key().public_bytes_raw())
        transport._send_message(message)
        transport._expect_packet(_KEX_ECDH_REPLY)


class GuestfwdTransport(paramiko.Transport):
    """A transport that takes all random values of its handshake from the guestfwd socket's session.

    :raises ChannelLost: when a private part of paramiko is missing; it names the part.
    """

    _kex_info: ClassVar[dict[str, Any]] = {_KEX: _Curve25519}

    def __init__(self, guestfwd: GuestfwdSocket) -> None:
        missing = missing_private_part()
        if missing is not None:
            raise ChannelLost(f"paramiko {paramiko.__version__} lacks a private part: {missing}")
        self._guestfwd = guestfwd
        super().__init__(guestfwd)  # type: ignore[arg-type]  # has the methods of a socket that paramiko uses
        self.get_security_options().kex = (_KEX,)

    def _send_message(self, data: Any) -> None:
        content = data.asbytes()
        if content[0] == _KEXINIT:
            replayed = bytearray(content)
            replayed[_COOKIE] = self._guestfwd.session.cookie
            self.local_kex_init = self._latest_kex_init = bytes(replayed)
            data = paramiko.Message(bytes(replayed))
        super()._send_message(data)  # type: ignore[misc]
