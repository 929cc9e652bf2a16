"""An SSH client that says the same in every handshake over a line's session.

The only module that uses private parts of paramiko. Which they are is in :func:`changed_inside`, which is
asked first: where paramiko has changed, there is no session over a line, and :class:`ChannelLost` says why.
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
except ImportError:  # changed_inside says it.
    _Exchange = object
else:
    _Exchange = KexCurve25519

#: RFC 8731's name has no suffix; this one is in every paramiko and dropbear that knows the exchange.
_KEX = "curve25519-sha256@libssh.org"
#: Who a session's client is: another one says something else in the handshake.
CLIENT = f"paramiko {paramiko.__version__}"
_KEXINIT, _KEX_ECDH_INIT, _KEX_ECDH_REPLY = 20, 30, 31  # RFC 4253, RFC 5656
_COOKIE = slice(1, 17)


def changed_inside(transport: type = paramiko.Transport, exchange: type = _Exchange) -> str | None:
    """What of paramiko's private parts is not as it is used here; ``None`` when all are.

    :param transport: the class of its transports. :param exchange: the class of its Curve25519 exchange.
    """
    known = getattr(transport, "_kex_info", None)
    if not isinstance(known, dict) or known.get(_KEX) is not exchange:
        return f"Transport._kex_info has no {_KEX} by paramiko.kex_curve25519"
    for owner, name, arguments in (
        (transport, "_send_message", 1),
        (transport, "_expect_packet", 1),
        (transport, "_send_kex_init", 0),
        (exchange, "start_kex", 0),
    ):
        if not _takes(getattr(owner, name, None), arguments):
            return f"{owner.__name__} has no {name} with {arguments} argument(s)"
    for owner, name, used in (
        (transport, "__init__", {"sock"}),
        (transport, "_send_kex_init", {"local_kex_init", "_latest_kex_init", "_send_message"}),
        (exchange, "__init__", {"transport", "key"}),
    ):
        if missing := used - set(getattr(owner, name).__code__.co_names):
            return f"{owner.__name__}.{name} does not use {', '.join(sorted(missing))}"
    return None


def _takes(function: Any, arguments: int) -> bool:
    """Whether it is a method that can be called with so many arguments."""
    try:
        inspect.signature(function).bind(None, *[None] * arguments)
    except TypeError:
        return False
    return True


class _Curve25519(_Exchange):  # type: ignore[misc]  # Any: mypy knows the one that is installed
    """The key exchange with the line's secret, instead of one made for the occasion."""

    def start_kex(self) -> None:
        transport: Any = self.transport
        self.key = X25519PrivateKey.from_private_bytes(transport.sock.secrets.key)
        message = paramiko.Message()
        message.add_byte(bytes([_KEX_ECDH_INIT]))
        message.add_string(self.key.public_key().public_bytes_raw())
        transport._send_message(message)
        transport._expect_packet(_KEX_ECDH_REPLY)


class GuestfwdTransport(paramiko.Transport):
    """Says the same in every handshake over a line's session: what is random comes from the line.

    :raises ChannelLost: when paramiko has changed inside.
    """

    _kex_info: ClassVar[dict[str, Any]] = {_KEX: _Curve25519}

    def __init__(self, guestfwd: GuestfwdSocket) -> None:
        changed = changed_inside()
        if changed is not None:
            raise ChannelLost(f"paramiko {paramiko.__version__} has changed inside: {changed}")
        self._guestfwd = guestfwd
        super().__init__(guestfwd)  # type: ignore[arg-type]  # all of a socket that it uses
        self.get_security_options().kex = (_KEX,)

    def _send_message(self, data: Any) -> None:
        content = data.asbytes()
        if content[0] == _KEXINIT:
            said = bytearray(content)
            said[_COOKIE] = self._guestfwd.secrets.cookie
            self.local_kex_init = self._latest_kex_init = bytes(said)
            data = paramiko.Message(bytes(said))
        super()._send_message(data)  # type: ignore[misc]
