"""What an incarnation has used: cumulative, exact integers, never decreasing.

Seven numbers in the order of `schemas.vms.METERS`, as a plain tuple: the sampler makes one per
VM and tick.
"""

from __future__ import annotations

from schemas.units import KIB, NS_PER_MS
from schemas.vms import METERS, Counters
from vm_agent.drivers.abc import DeviceCounters

Values = tuple[int, int, int, int, int, int, int]

ZERO: Values = (0, 0, 0, 0, 0, 0, 0)


def reading(
    *,
    uptime_ns: int,
    memory_mib: int,
    cpu_ns: int,
    net: tuple[int, int],
    device: DeviceCounters,
) -> Values:
    """The counters that these sources make.

    Args:
        uptime_ns: Since VMM start.
        memory_mib: Guest memory that is allocated all that time.
        cpu_ns: CPU clock of the VMM's process.
        net: Bytes that the guest received and sent, by the tap.
        device: What the VMM counted; its CPU and network numbers win where it has them.
    """
    uptime_ms = max(0, uptime_ns) // NS_PER_MS
    return (
        uptime_ms,
        cpu_ns if device.cpu_ns is None else device.cpu_ns,
        memory_mib * KIB * uptime_ms,
        device.disk_read_bytes,
        device.disk_write_bytes,
        net[0] if device.net_rx_bytes is None else device.net_rx_bytes,
        net[1] if device.net_tx_bytes is None else device.net_tx_bytes,
    )


def climb(last: Values, read: Values) -> tuple[Values, int]:
    """The counters after `last`, and how many of the readings had gone back and were held."""
    # Without a loop: it costs a tenth, and this is done for every VM each tick.
    a, b, c, d, e, f, g = last
    h, i, j, k, m, n, o = read
    if h >= a and i >= b and j >= c and k >= d and m >= e and n >= f and o >= g:
        return read, 0
    held = sum(map(int.__gt__, last, read))
    a, b, c, d, e, f, g = map(max, last, read)
    return (a, b, c, d, e, f, g), held


def to_counters(values: Values) -> Counters:
    """The message form."""
    return Counters(**dict(zip(METERS, values, strict=True)))


def to_values(counters: Counters) -> Values:
    """The tuple form."""
    return (
        counters.uptime_ms,
        counters.cpu_ns,
        counters.mem_kib_ms,
        counters.disk_read_bytes,
        counters.disk_write_bytes,
        counters.net_rx_bytes,
        counters.net_tx_bytes,
    )
