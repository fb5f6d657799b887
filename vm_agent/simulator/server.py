"""The API socket of a pretended machine: one thread, no work while nobody asks.

Here its faults strike, too: they are due by the clock, or meet the request that comes after it.
"""

from __future__ import annotations

import os
import select

from vm_agent.simulator.cpython import accept, render
from vm_agent.simulator.machine import Machine, Reply

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable

    from vm_agent.simulator.faults import Fault

MAX_CONNECTIONS = 10
"""Firecracker's own limit."""

_READ_BYTES = 16 * 1024
_MAX_HEAD_BYTES = 16 * 1024
_MAX_BODY_BYTES = 51_200
_REFUSAL = Reply(500, {"fault_message": "The microVM refuses every request."})


class BadRequestError(Exception):
    """No HTTP request of the kind that Firecracker takes."""


class Server:
    """Serves one machine until it ends.

    Args:
        path: Where the listener is bound.
        listener: A listening Unix socket that does not block.
        machine: Who answers.
        now_ns: The machine's clock.
    """

    def __init__(
        self, path: str, listener: _socket.socket, machine: Machine, now_ns: Callable[[], int]
    ) -> None:
        self._path = path
        self._listener = listener
        self._machine = machine
        self._now_ns = now_ns
        self._poll = select.poll()
        self._received: dict[int, bytearray] = {}
        self._refusing = False

    def serve(self) -> int:
        """Answer requests until the machine ends, and return its exit code."""
        listener = self._listener.fileno()
        self._poll.register(listener, select.POLLIN)
        while self._machine.exit_code is None:
            for descriptor, _ in self._poll.poll(self._wait_ms()):
                if descriptor in self._received:
                    self._receive(descriptor)
                elif descriptor == listener:
                    self._accept()
            self._pass_time()
        return self._machine.exit_code

    def _wait_ms(self) -> int | None:
        fault = self._machine.fault
        return None if fault is None else fault.wait_ms(self._now_ns())

    def _accept(self) -> None:
        try:
            peer = accept(self._listener)
        except OSError:
            return  # the peer has gone again
        if len(self._received) >= MAX_CONNECTIONS:
            os.close(peer)
            return
        os.set_blocking(peer, False)
        self._received[peer] = bytearray()
        self._poll.register(peer, select.POLLIN)

    def _close(self, peer: int) -> None:
        if self._received.pop(peer, None) is not None:
            self._poll.unregister(peer)
            os.close(peer)

    def _receive(self, peer: int) -> None:
        received = self._received[peer]
        try:
            data = os.read(peer, _READ_BYTES)
            received += data
            while (request := take_request(received)) is not None:
                reply = self._answer(*request)
                if peer not in self._received:
                    return
                _send(peer, reply)
        except BadRequestError as error:
            _refuse(peer, str(error))
            self._close(peer)
        except OSError:
            self._close(peer)
        else:
            if not data:
                self._close(peer)

    def _answer(self, method: str, path: str, body: bytes) -> Reply:
        self._pass_time()
        if not self._refusing:
            reply = self._machine.handle(method, path, body)
            self._pass_time()
        return _REFUSAL if self._refusing else reply

    def _pass_time(self) -> None:
        """Let the fault come or go, if it is time."""
        fault = self._machine.fault
        if fault is None:
            return
        if fault.comes(self._now_ns()):
            self._strike(fault)
        if fault.goes(self._now_ns()):
            self._heal(fault)

    def _strike(self, fault: Fault) -> None:
        match fault.kind:
            case "crash":
                import signal  # it costs more than the rest of this module, and few crash

                os.kill(os.getpid(), signal.SIGSEGV)
            case "exit":
                self._machine.fail()
            case "fill_disk":
                self._machine.disk.fill()
            case "hang":
                select.poll().poll(fault.wait_ms(self._now_ns()))
            case "lose_socket":
                self._lose_socket()
            case "refuse":
                self._refusing = True
            case "reset":
                self._machine.end_guest(resets=1)
            case "triple":
                self._machine.end_guest(resets=0)

    def _heal(self, fault: Fault) -> None:
        match fault.kind:
            case "fill_disk":
                self._machine.disk.free()
            case "refuse":
                self._refusing = False
            case _:
                pass  # a hang was over when it ended

    def _lose_socket(self) -> None:
        os.unlink(self._path)  # noqa: PTH108 - pathlib is not worth its import
        self._poll.unregister(self._listener.fileno())
        self._listener.close()
        for peer in list(self._received):
            self._close(peer)


def _send(peer: int, reply: Reply) -> None:
    data = _head_and_body(reply)
    # A peer that has asked for more than fits into its socket, and reads nothing, is let go.
    if os.write(peer, data) < len(data):
        raise BlockingIOError


def _refuse(peer: int, message: str) -> None:
    try:
        _send(peer, Reply(400, {"fault_message": message}))
    except OSError:
        return  # whoever sent garbage need not hear of it


def take_request(buffer: bytearray) -> tuple[str, str, bytes] | None:
    """Take one complete request off the front: method, path and body; None while it is incomplete.

    Raises:
        BadRequestError: It is none, or too long.
    """
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        if len(buffer) > _MAX_HEAD_BYTES:
            raise BadRequestError("The request's head is too long.")
        return None
    first, *lines = bytes(buffer[:end]).split(b"\r\n")
    words = first.split(b" ")
    if len(words) != 3 or words[2] not in {b"HTTP/1.1", b"HTTP/1.0"}:
        raise BadRequestError("Invalid HTTP Request Line.")
    length = 0
    for line in lines:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            digits = value.strip()
            if not digits.isdigit() or len(digits) > 9:
                raise BadRequestError("Invalid Content-Length.")
            length = int(digits)
    if length > _MAX_BODY_BYTES:
        raise BadRequestError(
            f"Request payload with size {length} is larger than the limit of {_MAX_BODY_BYTES} "
            "allowed by server."
        )
    if len(buffer) < end + 4 + length:
        return None
    body = bytes(buffer[end + 4 : end + 4 + length])
    del buffer[: end + 4 + length]
    return words[0].decode("latin-1"), words[1].decode("latin-1"), body


def _head_and_body(reply: Reply) -> bytes:
    head = f"HTTP/1.1 {reply.status} \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n"
    if reply.status == 204:
        return f"{head}\r\n".encode()
    body = render(reply.body).encode()
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body
