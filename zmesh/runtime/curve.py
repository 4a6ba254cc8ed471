"""Who may connect: CURVE key pairs of a mesh key, and the gate that answers ZAP for the sockets of one context.

A client key that is not accepted is denied, and so is everything the gate cannot read. libzmq lets everybody in when
nobody answers ZAP, so each frame that comes in must carry the User-Id that our answer gave (0.35 us).

Sources: RFC 27 (ZAP), RFC 26 (CurveZMQ); "fails open": curve_server.cpp of libzmq 4.3.5.
"""

from dataclasses import dataclass
from typing import Any

import zmq
from zmq.utils import z85

from zmesh.exceptions import ConfigError

_DOMAIN = b"zmesh"
_ZAP = "inproc://zeromq.zap.01"
_DONTWAIT = int(zmq.DONTWAIT)
_IN = int(zmq.POLLIN)
_readable = zmq.backend.zmq_poll


@dataclass(frozen=True, slots=True)
class CurveKeys:
    """Two key pairs of Z85 text, from one secret; see runtime/keyring.py."""

    id: str
    server_public: bytes
    server_secret: bytes
    client_public: bytes
    client_secret: bytes

    @property
    def client_raw(self) -> bytes:
        """The 32 bytes of the public client key, as ZAP shows it."""
        raw: bytes = z85.decode(self.client_public)
        return raw

    def __repr__(self) -> str:
        return f"<CurveKeys {self.id}>"


def curve_keys(key_id: str, server_secret: bytes, client_secret: bytes) -> CurveKeys:
    """Return the key pairs of two 32-byte secrets."""
    server, client = (z85.encode(secret) for secret in (server_secret, client_secret))
    return CurveKeys(key_id, zmq.curve_public(server), server, zmq.curve_public(client), client)


def check_library() -> None:
    """Refuse a libzmq that could not keep strangers out.

    Raises:
        ConfigError: it has no CURVE, or is older than 4.3.5.
    """
    if not zmq.has("curve") or zmq.zmq_version_info() < (4, 3, 5):
        raise ConfigError(
            f"libzmq {zmq.zmq_version()} {'has' if zmq.has('curve') else 'lacks'} CURVE; a mesh needs 4.3.5 or later "
            "with it: pip install --upgrade pyzmq"
        )


class Gate:
    """Answers who may connect: those whose client key is accepted. All else is denied, also what it cannot read."""

    def __init__(self, context: Any) -> None:
        self.accepted: dict[bytes, str] = {}  # {client key, 32 bytes: id of the mesh key}
        self.denied = 0
        self._socket = context.socket(zmq.REP)
        self._socket.linger = 0
        self._socket.bind(_ZAP)

    def fileno(self) -> int:
        """Return the descriptor to sleep on."""
        descriptor: int = self._socket.getsockopt(zmq.FD)
        return descriptor

    def serve(self) -> bool:
        """Answer every request there is; returns that there are no more."""
        item = [(self._socket, _IN)]
        while _readable(item, 0):
            request = self._socket.recv_multipart(_DONTWAIT)
            status, text, user = b"400", b"denied", b""
            number = request[1] if len(request) > 1 else b""
            if len(request) == 7 and request[0] == b"1.0" and request[2] == _DOMAIN and request[5] == b"CURVE":
                key_id = self.accepted.get(request[6])
                if key_id is not None:
                    status, text, user = b"200", b"OK", key_id.encode()
            if not user:
                self.denied += 1
            self._socket.send_multipart([b"1.0", number, status, text, user, b""], _DONTWAIT)
        return False

    def admits(self, frame: Any) -> bool:
        """Whether a frame came from somebody we let in, by a key that is still accepted."""
        try:
            return frame.get("User-Id") in self.accepted.values()
        except zmq.ZMQError:  # nobody answered ZAP for it
            return False

    def close(self) -> None:
        """Close at once."""
        self._socket.close()


def secure_server(socket: Any, keys: CurveKeys) -> None:
    """Have a socket that is going to be bound know us by the server key, and ask who may come in."""
    socket.curve_server = True
    socket.curve_secretkey = keys.server_secret
    socket.zap_domain = _DOMAIN


def secure_client(socket: Any, keys: CurveKeys) -> None:
    """Have a socket that is going to dial know whom it expects, and show the client key."""
    socket.curve_serverkey = keys.server_public
    socket.curve_publickey = keys.client_public
    socket.curve_secretkey = keys.client_secret
