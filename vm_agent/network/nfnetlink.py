"""Messages to nf_tables by netlink, where libnftables has no words, or takes too long.

The library reads all chains of the kernel before each transaction: 2 ms where there are a thousand
taps. What a VM adds by default needs nothing of that. See linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

FAMILIES = {"inet": 1, "ip": 2, "netdev": 5, "ip6": 10}
NEW_CHAIN, DELETE_CHAIN, NEW_RULE, NEW_ELEMENTS, DELETE_ELEMENTS = 3, 5, 6, 12, 14
CREATE, APPEND = 0x400, 0x800

_NETLINK_NETFILTER = 12
_SUBSYSTEM = 10
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_REQUEST, _ACK = 0x1, 0x4
_ERROR = 2
_NESTED = 0x8000


class NftError(Exception):
    """A set of commands was refused, and nothing of it is in force.

    Attributes:
        reason: What the library says, without the commands it quotes.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"nftables refused a transaction, so nothing changed: {reason}")
        self.reason = reason


class Message(NamedTuple):
    """One change.

    Attributes:
        kind: `NEW_CHAIN` and so on.
        family: By name.
        what: For people, should it be refused.
        attributes: As `attribute` makes them, one after the other.
        flags: `CREATE`, `APPEND`.
    """

    kind: int
    family: str
    what: str
    attributes: bytes
    flags: int = 0


def attribute(kind: int, value: bytes) -> bytes:
    """An attribute with a plain value."""
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def nested(kind: int, *inner: bytes) -> bytes:
    """An attribute that holds others."""
    return attribute(kind | _NESTED, b"".join(inner))


def text(kind: int, value: str) -> bytes:
    """An attribute with a name."""
    return attribute(kind, value.encode() + b"\0")


def number(kind: int, value: int) -> bytes:
    """An attribute with a number of 32 bits, in the order of the network."""
    return attribute(kind, struct.pack(">i", value))


class KernelSocket:
    """A conversation with nf_tables, in the namespace of the thread that opened it.

    To be kept: where one is closed, the kernel waits until all that was deleted is freed (10 ms).
    """

    def __init__(self) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
        self._socket = socket.socket(socket.AF_NETLINK, kind, _NETLINK_NETFILTER)
        self._socket.bind((0, 0))

    def transact(self, messages: Sequence[Message]) -> None:
        """Put all changes in force, or none. Takes some 100 µs.

        Raises:
            NftError: The kernel refuses one; nothing has changed.
        """
        batch = _packed(_BATCH_BEGIN, _REQUEST, 0, 0, _SUBSYSTEM)
        for place, message in enumerate(messages, 1):
            kind = _SUBSYSTEM << 8 | message.kind
            flags = _REQUEST | _ACK | message.flags
            batch += _packed(kind, flags, place, FAMILIES[message.family], 0, message.attributes)
        batch += _packed(_BATCH_END, _REQUEST, len(messages) + 1, 0, _SUBSYSTEM)
        self._socket.send(batch)  # the kernel is done on return, and its answers wait
        answers = self._answers()
        for place, error in answers:
            if error:
                what = messages[place - 1].what if 0 < place <= len(messages) else "the batch"
                raise NftError(f"{what}: {os.strerror(error)}")
        if len(answers) < len(messages):
            raise NftError("the kernel did not say what became of it")

    def _answers(self) -> list[tuple[int, int]]:
        """Number of a message, and what went wrong with it (0 if nothing did)."""
        found: list[tuple[int, int]] = []
        with suppress(BlockingIOError):
            while True:
                answer = self._socket.recv(1 << 16, socket.MSG_DONTWAIT)
                while answer:
                    length, kind, _, place, _, error = struct.unpack_from("=IHHIIi", answer)
                    if kind == _ERROR:
                        found.append((place, -error))
                    answer = answer[(length + 3) & ~3 :]
        return found

    def close(self) -> None:
        """Let go of it; may be called twice."""
        self._socket.close()


def _packed(
    kind: int, flags: int, place: int, family: int, resource: int, attributes: bytes = b""
) -> bytes:
    body = struct.pack("=BB", family, 0) + struct.pack(">H", resource) + attributes
    return struct.pack("=IHHII", 16 + len(body), kind, flags, place, 0) + body
