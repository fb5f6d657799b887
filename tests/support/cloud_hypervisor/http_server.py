"""The API socket of the stand-in: one thread, no work while nobody asks.

Cloud Hypervisor and Firecracker share the HTTP server that this one is like, so requests are read
by the simulator's code.
"""

from __future__ import annotations

import json
import selectors
import socket
from dataclasses import dataclass, field

from tests.support.cloud_hypervisor.served import Reply, Served
from vm_agent.simulator.server import MAX_CONNECTIONS, BadRequestError, take_request


@dataclass(slots=True)
class _Connection:
    peer: socket.socket
    buffer: bytearray = field(default_factory=bytearray)


class Server:
    """Serves one VMM until it ends.

    Args:
        listener: A listening Unix socket; the server closes it.
        served: Who answers.
    """

    def __init__(self, listener: socket.socket, served: Served) -> None:
        self._listener = listener
        self._served = served
        self._selector = selectors.DefaultSelector()
        self._connections: set[int] = set()

    def serve(self) -> None:
        """Answer requests until the VMM wants to exit."""
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        try:
            while not self._served.exit_requested:
                for key, _ in self._selector.select(self._served.advance()):
                    if isinstance(key.data, _Connection):
                        self._receive(key.data)
                    else:
                        self._accept()
        finally:
            for key in list(self._selector.get_map().values()):
                if isinstance(key.fileobj, socket.socket):
                    key.fileobj.close()
            self._selector.close()

    def _accept(self) -> None:
        try:
            peer, _ = self._listener.accept()
        except OSError:
            return  # the peer has gone again
        if len(self._connections) >= MAX_CONNECTIONS:
            peer.close()
            return
        peer.settimeout(1.0)
        self._connections.add(peer.fileno())
        self._selector.register(peer, selectors.EVENT_READ, _Connection(peer))

    def _close(self, connection: _Connection) -> None:
        self._selector.unregister(connection.peer)
        self._connections.discard(connection.peer.fileno())
        connection.peer.close()

    def _receive(self, connection: _Connection) -> None:
        try:
            data = connection.peer.recv(65_536)
            if not data:
                self._close(connection)
                return
            connection.buffer += data
            while (request := take_request(connection.buffer)) is not None:
                self._send(connection, self._served.handle(*request))
        except BadRequestError as error:
            self._refuse(connection, str(error))
        except OSError:
            self._close(connection)

    def _send(self, connection: _Connection, reply: Reply) -> None:
        connection.peer.sendall(_render(reply, self._served.server_name))

    def _refuse(self, connection: _Connection, message: str) -> None:
        try:
            self._send(connection, self._served.refuse(message))
        except OSError:
            pass  # whoever sent garbage need not hear of it
        finally:
            self._close(connection)


def _render(reply: Reply, server_name: str) -> bytes:
    head = f"HTTP/1.1 {reply.status} \r\nServer: {server_name}\r\nConnection: keep-alive\r\n"
    if reply.body is None:
        return f"{head}\r\n".encode()
    body = json.dumps(reply.body, separators=(",", ":")).encode()
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body
