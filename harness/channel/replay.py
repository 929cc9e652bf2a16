"""An SSH client that says the same in every handshake over a line's session."""

from __future__ import annotations

from typing import Any, ClassVar

import paramiko
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from paramiko.kex_curve25519 import KexCurve25519

from harness.channel.line import Line

#: RFC 8731's name has no suffix; this one is in every paramiko and dropbear that knows the exchange.
_KEX = "curve25519-sha256@libssh.org"
#: Who a session's client is: another one says something else in the handshake.
CLIENT = f"paramiko {paramiko.__version__}"
_KEXINIT, _KEX_ECDH_INIT, _KEX_ECDH_REPLY = 20, 30, 31  # RFC 4253, RFC 5656
_COOKIE = slice(1, 17)


class _Curve25519(KexCurve25519):
    """The key exchange with the line's secret, instead of one made for the occasion."""

    def start_kex(self) -> None:
        transport: Any = self.transport
        self.key = X25519PrivateKey.from_private_bytes(transport.sock.secrets.key)
        message = paramiko.Message()
        message.add_byte(bytes([_KEX_ECDH_INIT]))
        message.add_string(self.key.public_key().public_bytes_raw())
        transport._send_message(message)
        transport._expect_packet(_KEX_ECDH_REPLY)


class LineTransport(paramiko.Transport):
    """Says the same in every handshake over a line's session: what is random comes from the line.

    It reaches into paramiko's own names; where they change, no session is resumed, and :attr:`Ssh.resumed`
    says why.
    """

    _kex_info: ClassVar[dict[str, Any]] = {_KEX: _Curve25519}

    def __init__(self, line: Line) -> None:
        self._line = line
        super().__init__(line)  # type: ignore[arg-type]  # all of a socket that it uses
        self.get_security_options().kex = (_KEX,)

    def _send_message(self, data: Any) -> None:
        content = data.asbytes()
        if content[0] == _KEXINIT:
            said = bytearray(content)
            said[_COOKIE] = self._line.secrets.cookie
            self.local_kex_init = self._latest_kex_init = bytes(said)
            data = paramiko.Message(bytes(said))
        super()._send_message(data)  # type: ignore[misc]
