"""TCP ports on loopback for servers of tests."""

from __future__ import annotations

import secrets
import socket

_FIRST, _LAST = 12_000, 32_000
"""Below what Linux gives to outgoing connections: none of these takes a port before its server."""

_given: set[int] = set()


def free_port() -> int:
    """One that nobody listens at, and that this process was never given before.

    Taken by chance, so that tests that run side by side hardly ever try the same one; and by no
    chance that a test's seed decides on.
    """
    while True:
        port = _FIRST + secrets.randbelow(_LAST - _FIRST)
        if port not in _given and _is_free(port):
            _given.add(port)
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as sock:
        # As servers do: what is left of a former connection is no obstacle.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
