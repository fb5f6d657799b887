"""A VM whose guest is this machine's own network stack, in a namespace: real TCP through a tap."""

from __future__ import annotations

import asyncio
import fcntl
import os
import select
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv6Address

from pyroute2 import IPRoute

from schemas.ids import new_id
from tests.support.wires import Guest
from vm_agent import namespace
from vm_agent.network.attachment import GATEWAY_LINK_LOCAL, GATEWAY_MAC

_PORT = 5000
_PIECE = bytes(1 << 16)
_TUNSETIFF, _TUNSETOFFLOAD = 0x400454CA, 0x400454D0
_TAP_WITH_HEADER = 0x5002
_OFFLOADS = 0x01 | 0x02 | 0x04
"""Checksums and segmentation of TCP, as Firecracker and QEMU ask for."""


@dataclass(frozen=True, slots=True)
class Moved:
    """What a connection has brought, and in which time."""

    payload_bytes: int
    took_s: float


@asynccontextmanager
async def wired(guest: Guest) -> AsyncIterator[str]:
    """The namespace that is the guest; all that its tap gets goes there, and back."""
    netns = f"dct-{new_id().hex[-8:]}-guest"
    try:
        inner = await namespace.in_own_thread(lambda: _make(netns, guest))
        stop, told = os.pipe()
        fcntl.ioctl(guest.tap, _TUNSETOFFLOAD, _OFFLOADS)
        relay = threading.Thread(target=_relay, args=(guest.tap, inner, stop), name="relay")
        relay.start()
        try:
            yield netns
        finally:
            os.close(told)
            await asyncio.to_thread(relay.join)
            os.close(inner)
            os.close(stop)
    finally:
        namespace.remove(netns)


async def moved(
    sender: str, receiver: str, to: IPv6Address, for_s: float, port: int = _PORT
) -> Moved:
    """What TCP brings from one namespace to an address in another, as fast as it goes.

    Args:
        sender: Namespace.
        receiver: Namespace.
        to: The receiver's address.
        for_s: How long it is sent, from the connection on.
        port: Where; for several at once.
    """
    server = await namespace.in_own_thread(lambda: _listen(receiver, to, port))
    client = await namespace.in_own_thread(lambda: _socket(sender))
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(for_s + 10):
            connecting = asyncio.ensure_future(loop.sock_connect(client, (str(to), port)))
            accepted, _ = await loop.sock_accept(server)
            await connecting
        with accepted:
            began = time.monotonic()
            sending = asyncio.ensure_future(_send(client))
            got = 0
            try:
                async with asyncio.timeout(for_s):
                    while True:
                        got += len(await loop.sock_recv(accepted, 1 << 20))
            except TimeoutError:
                return Moved(got, time.monotonic() - began)
            finally:
                sending.cancel()
                await asyncio.wait([sending])
    finally:
        client.close()
        server.close()


async def _send(client: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while True:
        await loop.sock_sendall(client, _PIECE)


def _make(netns: str, guest: Guest) -> int:
    namespace.make(netns)
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", b"eth0", _TAP_WITH_HEADER))
    fcntl.ioctl(tap, _TUNSETOFFLOAD, _OFFLOADS)
    with IPRoute() as route:
        index = socket.if_nametoindex("eth0")
        route.link("set", index=index, address=guest.vm.mac, mtu=guest.vm.mtu, state="up")
        address = str(guest.vm.addresses[0].network_address)
        route.addr("add", index=index, address=address, prefixlen=128, flags=2)
        gateway = str(GATEWAY_LINK_LOCAL)
        route.neigh("add", ifindex=index, dst=gateway, lladdr=GATEWAY_MAC, state="permanent")
        route.route("add", dst="::/0", gateway=gateway, oif=index)
    return tap


def _relay(one: int, other: int, stop: int) -> None:
    poll = select.poll()
    for descriptor in (one, other, stop):
        poll.register(descriptor, select.POLLIN)
    across = {one: other, other: one}
    while True:
        for descriptor, _ in poll.poll():
            if descriptor == stop:
                return
            try:
                os.write(across[descriptor], os.read(descriptor, 1 << 17))
            except BlockingIOError:
                continue


def _listen(netns: str, address: IPv6Address, port: int) -> socket.socket:
    made = _socket(netns)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((str(address), port))
    made.listen(1)
    return made


def _socket(netns: str) -> socket.socket:
    namespace.enter(netns)
    return socket.socket(socket.AF_INET6, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
