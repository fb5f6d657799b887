"""A stock Linux for tests: the image, what its kernel has counted, and a neighbour on its wire."""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from decisec.devkit import linux as linux_kit
from decisec.devkit.uv import DevkitError
from tests.support.hypervisors import Lab, cache_dir
from vm_agent import namespace
from vm_agent.drivers.abc import Nic, Probe
from vm_agent.images import ImageStore

ACCEL = "tcg"
"""Emulation: slower, and the same everywhere. KVM on some virtual hosts hangs in a stock kernel."""

MEMORY_MIB = 256
ARP_BYTES = 42
"""An Ethernet frame with an ARP message; a tap pads nothing."""

_ETH_P_ARP = 0x0806
_GUEST, _NEIGHBOUR = socket.inet_aton("192.0.2.2"), socket.inet_aton("192.0.2.1")
_NEIGHBOUR_MAC = bytes.fromhex("020000000001")
_ETHERNET_IPV4 = bytes.fromhex("000108000604")
_REQUEST, _REPLY = b"\0\1", b"\0\2"
_TOTALS = re.compile(
    r"^(?P<what>DISK|NET) "
    r"(?:read|received)=(?P<inwards>\d+) (?:written|sent)=(?P<outwards>\d+)\r?$",
    re.MULTILINE,
)


def linux_parts() -> Path:
    """The directory with kernel and initial RAM disk; skips, with the reason, without them."""
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("qemu: there is no qemu-system-x86_64 on PATH")
    directory = cache_dir() / "linux"
    try:
        linux_kit.build(directory)
    except DevkitError as error:
        pytest.skip(f"a Linux image cannot be built: {error}")
    return directory


@contextmanager
def open_linux_lab() -> Iterator[Lab]:
    """Linux for the driver of QEMU. Nothing is tried out before: a boot that fails is a failure."""
    parts = linux_parts()
    with tempfile.TemporaryDirectory(prefix="dsl-") as directory:
        image = linux_kit.add_to(ImageStore(Path(directory) / "images"), parts)
        works = Probe(works=True, version="", reason="")
        yield Lab(
            image,
            None,
            Path("/nothing"),
            {"qemu": works},
            qemu_accel=ACCEL,
            memory_mib=MEMORY_MIB,
            patience_s=60.0,
        )


@dataclass(frozen=True)
class GuestTotals:
    """Bytes that the guest's own kernel has counted, said on the console at its end."""

    disk_read: int
    disk_written: int
    net_received: int
    net_sent: int


def totals_in(console: str) -> GuestTotals:
    """What the guest has said."""
    found = {m["what"]: (int(m["inwards"]), int(m["outwards"])) for m in _TOTALS.finditer(console)}
    assert found.keys() == {"DISK", "NET"}, console
    return GuestTotals(*found["DISK"], *found["NET"])


class Neighbour:
    """192.0.2.1 on a VM's tap: asks the guest for its address, which only a live stack tells."""

    def __init__(self, nic: Nic, wire: socket.socket) -> None:
        self._wire = wire
        self._guest_mac = bytes.fromhex(nic.mac.replace(":", ""))

    @classmethod
    async def on(cls, nic: Nic) -> Neighbour:
        """Open the host's side of the tap."""

        def work() -> socket.socket:
            namespace.enter(nic.netns)
            wire = socket.socket(
                socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(_ETH_P_ARP)
            )
            wire.bind((nic.tap, _ETH_P_ARP))
            return wire

        return cls(nic, await namespace.in_own_thread(work))

    def ask(self) -> None:
        """Send a request."""
        self._wire.send(
            b"\xff" * 6 + _NEIGHBOUR_MAC + _ETH_P_ARP.to_bytes(2, "big")
            + _ETHERNET_IPV4 + _REQUEST + _NEIGHBOUR_MAC + _NEIGHBOUR + bytes(6) + _GUEST
        )  # fmt: skip

    async def hears_answer(self, within_s: float = 30.0) -> bool:
        """Whether the guest answers in time; fails if it answers wrongly."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(within_s):
                frame = await loop.sock_recv(self._wire, 2048)
        except TimeoutError:
            return False
        assert len(frame) == ARP_BYTES
        assert frame[20:32] == _REPLY + self._guest_mac + _GUEST
        return True

    def close(self) -> None:
        """Let go of the tap."""
        self._wire.close()
