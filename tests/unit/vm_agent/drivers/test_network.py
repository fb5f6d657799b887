"""A VM's tap: alone in its namespace, counted from zero, gone without a trace."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.ids import new_id
from vm_agent import namespace
from vm_agent.drivers.abc import Nic
from vm_agent.network import taps

needs_taps = pytest.mark.skipif(
    taps.available() is not None, reason=taps.available() or "taps work"
)


@pytest.fixture
async def nic() -> AsyncIterator[Nic]:
    """A tap for one test."""
    made = await taps.create(taps.nic_of(new_id(), 1))
    try:
        yield made
    finally:
        await taps.destroy(made)


@given(st.uuids(), st.integers(0, 2**32 - 1))
def test_names_follow_from_the_ids_and_back(vm_id: UUID, incarnation: int) -> None:
    """A locally administered unicast MAC, a tap name that the kernel takes."""
    made = taps.nic_of(vm_id, incarnation)
    assert taps.owner_of(made) == (vm_id, incarnation)
    assert len(made.tap) <= 15
    assert int(made.mac[:2], 16) & 3 == 2


def test_a_foreign_namespace_has_no_owner() -> None:
    """Only names of ours are taken apart."""
    with pytest.raises(ValueError, match="no namespace of this agent"):
        taps.owner_of(replace(taps.nic_of(new_id(), 1), netns="decisec-x-1"))


@needs_taps
async def test_a_namespace_holds_a_tap_and_nothing_else(nic: Nic) -> None:
    """The tap is up; loopback is down; no addresses, no IPv6, no forwarding."""

    def look() -> tuple[set[str], str, str, str]:
        namespace.enter(nic.netns)
        routes = Path("/proc/thread-self/net/route").read_text().splitlines()[1:]
        return (
            {name for _, name in socket.if_nameindex()},
            Path("/proc/sys/net/ipv4/ip_forward").read_text().strip(),
            Path("/proc/thread-self/net/if_inet6").read_text(),
            "\n".join(routes),
        )

    names, forward, inet6, routes = await namespace.in_own_thread(look)
    assert names == {"lo", "tap0"}
    assert (forward, inet6, routes) == ("0", "", "")
    assert nic in taps.list_owned()
    assert "tap0" not in {name for _, name in socket.if_nameindex()}


@needs_taps
async def test_counters_have_the_guests_view(nic: Nic) -> None:
    """What a VMM writes to the tap is what the guest has sent."""
    counted = await taps.TapCounters.open(nic)
    assert counted.read() == (0, 0)

    def send() -> None:
        namespace.enter(nic.netns)
        tap = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        fcntl.ioctl(tap, 0x400454CA, struct.pack("16sH22x", b"tap0", 0x1002))
        for _ in range(5):
            os.write(tap, b"\xff" * 6 + b"\x06" * 6 + b"\x88\xb5" + bytes(86))
        os.close(tap)

    await namespace.in_own_thread(send)
    assert counted.read() == (0, 500)
    await taps.destroy(nic)
    with pytest.raises(taps.NetworkError):
        counted.read()
    for _ in range(2):
        counted.close()


@needs_taps
async def test_destroying_and_making_again_may_be_repeated() -> None:
    """A leftover of an interrupted attempt is replaced; nothing stays."""
    vm_id = new_id()
    first = await taps.create(taps.nic_of(vm_id, 7))
    assert await taps.create(taps.nic_of(vm_id, 7)) == first
    for _ in range(2):
        await taps.destroy(first)
    assert first not in taps.list_owned()
    with pytest.raises(taps.NetworkError, match="counters"):
        await taps.TapCounters.open(first)


@needs_taps
async def test_a_half_made_namespace_is_removed() -> None:
    """A name without a namespace, as a killed agent may leave it."""
    half = taps.nic_of(new_id(), 1)
    await asyncio.to_thread((namespace.NETNS_DIR / half.netns).touch)
    assert half in taps.list_owned()
    await taps.destroy(half)
    assert half not in taps.list_owned()


@needs_taps
async def test_a_cancelled_making_leaves_nothing() -> None:
    """Whatever the kernel had done already is undone."""
    vm_id = new_id()
    for after_s in (0.0, 0.0005, 0.002):
        try:
            async with asyncio.timeout(after_s):
                await taps.destroy(await taps.create(taps.nic_of(vm_id, 1)))
        except TimeoutError:
            await taps.destroy(taps.nic_of(vm_id, 1))
    assert taps.nic_of(vm_id, 1) not in taps.list_owned()


@needs_taps
async def test_the_agent_itself_stays_where_it_is(nic: Nic) -> None:
    """Namespaces are entered by threads that end with their work."""
    own, pooled, inside = await asyncio.to_thread(_namespaces, nic)
    assert pooled == own
    assert inside != own


def _namespaces(nic: Nic) -> tuple[int, int, int]:
    """Inode numbers: of the process's namespace, of this thread's, of the VM's."""
    paths = ("/proc/self/ns/net", "/proc/thread-self/ns/net", namespace.NETNS_DIR / nic.netns)
    own, pooled, inside = (Path(path).stat().st_ino for path in paths)
    return own, pooled, inside
