"""A guest whose stack is this kernel's, in a namespace of its own, behind a tap like a VMM's.

What its VMM would do is done here: frames are carried between its interface and the VM's tap. So it
takes its address from the host's advertisement, answers, and can be told anything.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pyroute2 import IPRoute

from schemas.ids import new_id
from tests.support.wires import Guest, run_in
from vm_agent import namespace

_LINK = "eth0"
_FRAME_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class LiveGuest:
    """One of them.

    Attributes:
        guest: What it is on the fabric.
        netns: Where its stack is.
    """

    guest: Guest
    netns: str

    async def run(self, *command: str) -> str:
        """What a command prints that runs in it."""
        return await run_in(self.netns, *command)

    async def has_address(self) -> None:
        """Return once it has taken the address that the host offers."""
        async with asyncio.timeout(10):
            while not await self.addresses():
                await asyncio.sleep(0.02)

    async def addresses(self) -> list[str]:
        """Its global addresses that are not tried out any more, with their lengths."""
        words = await self.run("ip", "-6", "-o", "addr", "show", "dev", _LINK, "scope", "global")
        return [line.split()[3] for line in words.splitlines() if "tentative" not in line]


@asynccontextmanager
async def live_guest(guest: Guest) -> AsyncIterator[LiveGuest]:
    """A stack behind a guest's tap, gone afterwards."""
    netns = f"dct-{new_id().hex[-8:]}-guest"
    own = await namespace.in_own_thread(lambda: _make(netns, guest.vm.mac))
    loop = asyncio.get_running_loop()
    try:
        loop.add_reader(own, _carry, own, guest.tap)
        loop.add_reader(guest.tap, _carry, guest.tap, own)
        yield LiveGuest(guest, netns)
    finally:
        loop.remove_reader(own)
        loop.remove_reader(guest.tap)
        os.close(own)
        namespace.remove(netns)


def _carry(source: int, to: int) -> None:
    # A tap that is closed takes nothing, and one whose namespace goes gives nothing.
    with suppress(OSError):
        os.write(to, os.read(source, _FRAME_BYTES))


def _make(netns: str, mac: str) -> int:
    namespace.make(netns)
    # EUI-64, and no wait before it asks for a router and takes what it is offered.
    for name in ("addr_gen_mode", "dad_transmits", "router_solicitation_delay"):
        Path("/proc/sys/net/ipv6/conf/default", name).write_text("0")
    own = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    fcntl.ioctl(own, 0x400454CA, struct.pack("16sH22x", _LINK.encode(), 0x5002))
    with IPRoute() as route:
        (index,) = route.link_lookup(ifname=_LINK)
        route.link("set", index=index, address=mac, state="up")
        route.link("set", index=route.link_lookup(ifname="lo")[0], state="up")
    return own
