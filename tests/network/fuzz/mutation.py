"""Frames that nobody thought of, made of those that somebody did; the same ones for a seed."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator

from tests.network.cases import CASES
from tests.network.cases.base import ALL_NODES, ALL_ROUTERS, HERE, HERE_V4, LINK, ROUTER, VMS
from tests.support.fabric import GATEWAY, GATEWAY_MAC, OUTSIDE, VNET_HEADER_BYTES, WAN_MAC

SENDER = "alice 1"

_IP6 = 14
_KNOWN = [vm for vm in VMS.values() if not vm.tx_bytes_per_s]
"""Whose addresses are tried: a limit makes nobody another. A seed's run is as it was without."""
_ADDRESSES = [
    *(vm.addresses[0].network_address.packed for vm in _KNOWN),
    *(vm.link_local.packed for vm in _KNOWN),
    *(one.packed for one in (HERE, LINK, ROUTER, GATEWAY, OUTSIDE, ALL_NODES, ALL_ROUTERS)),
]
_ADDRESSES_V4 = [vm.ipv4.packed for vm in _KNOWN if vm.ipv4 is not None]
_MACS = [*(vm.mac for vm in _KNOWN), GATEWAY_MAC, WAN_MAC, "33:33:00:00:00:01"]
_HEADERS = (0, 4, 6, 17, 41, 43, 44, 47, 50, 51, 58, 59, 60, 132, 135, 139, 140, 253, 255)
_SHORTS = (0, 1, 53, 67, 68, 546, 547, 0x0800, 0x0806, 0x86DD, 0x8100, 0x88A8, 0xFFFF)
_MOST_CHANGES = 5
_MOST_BYTES = 9000

Change = Callable[["Mutation", bytearray], None]


class Mutation:
    """An endless run of frames, each with what virtio says of it.

    Args:
        seed: The same seed makes the same run.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - no secret
        self._frames = [step.frame for case in CASES for step in case.steps if step.at == SENDER]

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        """Header and frame."""
        chance = self._random
        while True:
            frame = bytearray(chance.choice(self._frames))
            for _ in range(chance.randint(0, _MOST_CHANGES)):
                chance.choice(_CHANGES)(self, frame)
            if chance.random() < 0.5 and len(frame) > _IP6 + 40:
                struct.pack_into(">H", frame, _IP6 + 4, min(len(frame) - _IP6 - 40, 0xFFFF))
            if chance.random() < 0.7:
                frame[6:12] = bytes.fromhex(VMS[SENDER].mac.replace(":", ""))
            yield self._header(len(frame)), bytes(frame[:_MOST_BYTES])

    def _header(self, length: int) -> bytes:
        chance = self._random
        if chance.random() < 0.6:
            return bytes(VNET_HEADER_BYTES)
        start = chance.choice((20, 34, 54, chance.randrange(length + 20)))
        offset = chance.choice((2, 6, 16, chance.randrange(60)))
        kind, size = 0, 0
        if chance.random() < 0.4:
            kind = chance.choice((1, 3, 4, 5, 0x81, 0x84, chance.randrange(256)))
            size = chance.choice((0, 1, 8, 512, 1200, 1440, 65535))
        header = chance.choice((0, 42, 54, 62, 74, chance.randrange(200)))
        flags = chance.choice((0, 1, 1, 1, 2, 3, chance.randrange(256)))
        return struct.pack("<BBHHHHH", flags, kind, header, size, start, offset, 0)

    def _at(self, frame: bytearray, size: int = 1) -> int:
        """Somewhere, the first headers more often than what follows."""
        most = max(len(frame) - size, 0)
        return self._random.randint(0, min(most, 80) if self._random.random() < 0.8 else most)

    def flip(self, frame: bytearray) -> None:
        """A bit."""
        if frame:
            frame[self._at(frame)] ^= 1 << self._random.randrange(8)

    def octet(self, frame: bytearray) -> None:
        """An octet, that may say which header comes."""
        if frame:
            frame[self._at(frame)] = self._random.choice((*_HEADERS, self._random.randrange(256)))

    def short(self, frame: bytearray) -> None:
        """Two octets, that may be a type or a port."""
        if len(frame) > 1:
            struct.pack_into(">H", frame, self._at(frame, 2), self._random.choice(_SHORTS))

    def address(self, frame: bytearray) -> None:
        """An IPv6 address, mostly where one belongs."""
        at = self._random.choice((_IP6 + 8, _IP6 + 24, _IP6 + 24, _IP6 + 48, self._at(frame, 16)))
        frame[at : at + 16] = self._random.choice(_ADDRESSES)

    def address_v4(self, frame: bytearray) -> None:
        """An IPv4 address."""
        at = self._random.choice((_IP6 + 12, _IP6 + 16, _IP6 + 14, _IP6 + 24))
        frame[at : at + 4] = self._random.choice([*_ADDRESSES_V4, HERE_V4.packed])

    def mac(self, frame: bytearray) -> None:
        """A MAC address."""
        at = self._random.choice((0, 0, 6))
        frame[at : at + 6] = bytes.fromhex(self._random.choice(_MACS).replace(":", ""))

    def cut(self, frame: bytearray) -> None:
        """The end is missing."""
        del frame[self._random.randint(14, max(len(frame), 14)) :]

    def grow(self, frame: bytearray) -> None:
        """More at the end."""
        frame += self._random.randbytes(self._random.choice((1, 7, 8, 64, 1400, 4000)))

    def drop(self, frame: bytearray) -> None:
        """A piece is missing."""
        at = self._at(frame)
        del frame[at : at + self._random.choice((1, 2, 4, 8, 16, 40))]

    def repeat(self, frame: bytearray) -> None:
        """A piece comes twice."""
        at = self._at(frame)
        frame[at:at] = frame[at : at + self._random.choice((2, 4, 8, 16, 40))]

    def cross(self, frame: bytearray) -> None:
        """The end of another frame."""
        other = self._random.choice(self._frames)
        at = self._at(frame)
        frame[at:] = other[min(at, len(other)) :]

    def nest(self, frame: bytearray) -> None:
        """Another packet inside of this one's header."""
        if len(frame) > _IP6 + 40:
            frame[_IP6 + 40 :] = self._random.choice(self._frames)[14:]

    def header(self, frame: bytearray) -> None:
        """One more extension header behind IPv6's own."""
        if len(frame) > _IP6 + 40:
            number = self._random.choice((0, 43, 44, 60, 60, 44, 135))
            words = 0 if number == 44 else self._random.choice((0, 0, 1, 2))
            body = bytearray(self._random.randbytes(8 + 8 * words))
            body[0], body[1] = frame[_IP6 + 6], words
            if number == 43:
                body[2:4] = bytes([self._random.choice((0, 2, 2, 4)), self._random.choice((0, 1))])
            frame[_IP6 + 6] = number
            frame[_IP6 + 40 : _IP6 + 40] = body

    def tag(self, frame: bytearray) -> None:
        """A VLAN tag."""
        frame[12:12] = struct.pack(
            ">HH", self._random.choice((0x8100, 0x88A8)), self._random.choice((0, 1, 5, 0xE000))
        )


_CHANGES: tuple[Change, ...] = (
    Mutation.flip,
    Mutation.flip,
    Mutation.octet,
    Mutation.octet,
    Mutation.short,
    Mutation.address,
    Mutation.address,
    Mutation.address_v4,
    Mutation.mac,
    Mutation.cut,
    Mutation.grow,
    Mutation.drop,
    Mutation.repeat,
    Mutation.cross,
    Mutation.nest,
    Mutation.header,
    Mutation.header,
    Mutation.tag,
)
