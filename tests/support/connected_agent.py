"""An agent that connects its VMs, with the world it connects them to in namespaces of the test."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from uuid import UUID

from runtime.bus import Bus
from schemas.codec import encode
from schemas.ids import new_id
from schemas.network_checks import CHECK_S, NetworkCheck, NetworkQuery, decode_network_reply
from schemas.subjects import vm_network
from tests.support.wires import PREFIX, WORLD, WORLD_IPV4, checksum, make_host, make_world
from vm_agent import namespace
from vm_agent.network import taps
from vm_agent.network.nft import NftMissingError, NftSession

Address = IPv6Address | IPv4Address


def lack() -> str | None:
    """Why no VM can be connected here; None if they can."""
    if reason := taps.available():
        return reason
    try:
        NftSession().close()
    except NftMissingError as error:
        return str(error)
    return None


@dataclass(frozen=True)
class Surroundings:
    """Where a fabric leads.

    Attributes:
        host: Namespace that the uplink leads to.
        world: One behind it, where `WORLD` is.
    """

    host: str
    world: str

    @property
    def settings(self) -> dict[str, str]:
        """What an agent is to be told."""
        return {"net_prefix": str(PREFIX), "net_outside": self.host}


@asynccontextmanager
async def surroundings() -> AsyncIterator[Surroundings]:
    """A host's side and a world, gone afterwards."""
    host, world = (f"dct-{new_id().hex[-8:]}-{what}" for what in ("host", "world"))
    try:
        await namespace.in_own_thread(lambda: make_host(host))
        await namespace.in_own_thread(lambda: make_world(world, host))
        yield Surroundings(host, world)
    finally:
        for name in (host, world):
            namespace.remove(name)


async def pings(netns: str, to: Address, source: Address | None = None) -> bool:
    """Whether an address answers a ping from a namespace within a second.

    Args:
        netns: Where the ping comes from.
        to: Who is to answer.
        source: The address that asks; the world's unless told otherwise.
    """
    six = isinstance(to, IPv6Address)
    request, reply, protocol = (128, 129, socket.IPPROTO_ICMPV6) if six else (8, 0, 1)
    own = source or (WORLD if six else WORLD_IPV4)
    number = os.getpid() & 0xFFFF
    said = struct.pack("!BBHHH", request, 0, 0, number, 1) + b"decisec"
    said = said[:2] + struct.pack("!H", checksum(said)) + said[4:]

    def ask() -> bool:
        namespace.enter(netns)
        family = socket.AF_INET6 if six else socket.AF_INET
        with socket.socket(family, socket.SOCK_RAW, protocol) as made:
            made.bind((str(own), 0))
            made.settimeout(1)
            made.sendto(said, (str(to), 0))
            try:
                while True:
                    answer, (address, *_) = made.recvfrom(2048)
                    # A socket of IPv4 shows the packet's header too.
                    kind = answer[0] if six else answer[20]
                    if kind == reply and ip_address(address.partition("%")[0]) == to:
                        return True
            except TimeoutError:
                return False

    return await namespace.in_own_thread(ask)


async def answers_ping(netns: str, to: Address, within_s: float = 20.0) -> bool:
    """The same, but a guest may take its time to come up."""
    try:
        async with asyncio.timeout(within_s):
            while not await pings(netns, to):
                pass
    except TimeoutError:
        return False
    return True


async def looked_at(bus: Bus, vm_id: UUID, customer: str = "acme") -> NetworkCheck:
    """What the host h1 finds of a VM's path."""
    asked = encode(NetworkQuery(customer_id=customer, vm_id=vm_id))
    answer = await bus.request(vm_network("h1", vm_id), asked, timeout_s=CHECK_S)
    found = decode_network_reply(answer.data).check
    assert found is not None, answer.data
    return found
