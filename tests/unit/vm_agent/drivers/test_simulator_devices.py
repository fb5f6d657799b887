"""What a pretended guest moves under limits: its own load, and never more than they allow."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from vm_agent.simulator.devices import OP_BYTES, Devices
from vm_agent.simulator.load import Load

MOST = st.none() | st.integers(0, 10_000)


def limited(**limiters: Any) -> Devices:
    """A disk and an interface with these limiters."""
    devices = Devices()
    disk = {"drive_id": "disk", "path_on_host": "/dev/null"}
    nic: dict[str, Any] = {"iface_id": "eth0", "host_dev_name": "tap0"}
    for name, limiter in limiters.items():
        (disk if name == "rate_limiter" else nic)[name] = limiter
    devices.put_drive("disk", json.dumps(disk).encode())
    devices.put_interface("eth0", json.dumps(nic).encode())
    return devices


@given(st.text(max_size=20), MOST, MOST, MOST, st.integers(0, 10**6), st.integers(0, 10**6))
def test_no_load_passes_its_limits(
    identity: str, disk: int | None, rx: int | None, tx: int | None, one: int, other: int
) -> None:
    """Between any two moments; and what is below them stays as it was."""
    first, last = sorted((one, other))
    elapsed_ms = last - first
    load = Load(identity, vcpus=1, disk=True, nic=True, disk_most=disk, rx_most=rx, tx_most=tx)
    free = Load(identity, vcpus=1, disk=True, nic=True)
    used, unheld = (
        [later - earlier for later, earlier in zip(each.at(last), each.at(first), strict=True)]
        for each in (load, free)
    )
    assert used[0] == unheld[0]
    for moved, most in ((used[1] + used[2], disk), (used[3], rx), (used[4], tx)):
        assert most is None or moved <= most * elapsed_ms
    for held, much in zip(used, unheld, strict=True):
        assert 0 <= held <= much
    wide = Load(identity, vcpus=1, disk=True, nic=True, disk_most=10**9, rx_most=10**9)
    assert wide.at(last) == free.at(last)


def test_reading_and_writing_share_the_disks_limit() -> None:
    """Each keeps its share."""
    free = Load("vm", vcpus=1, disk=True, nic=True).at(10**6)
    held = Load("vm", vcpus=1, disk=True, nic=True, disk_most=100).at(10**6)
    assert 0.9 * 100 * 10**6 < held[1] + held[2] <= 100 * 10**6
    assert abs(held[1] / held[2] - free[1] / free[2]) < 0.3


def test_limits_are_taken_per_millisecond_and_rounded_down() -> None:
    """The tightest counts; operations count as so many bytes."""
    assert limited().disk_bytes_per_ms() is None
    assert limited().net_bytes_per_ms("rx_rate_limiter") is None
    bandwidth = {"size": 1_999_999, "refill_time": 1000}
    devices = limited(
        rate_limiter={"bandwidth": bandwidth},
        rx_rate_limiter={"bandwidth": {"size": 999, "refill_time": 1000}},
        tx_rate_limiter={"bandwidth": {"size": 1000, "refill_time": 100}, "ops": None},
    )
    assert devices.disk_bytes_per_ms() == 1999
    assert devices.net_bytes_per_ms("rx_rate_limiter") == 0
    assert devices.net_bytes_per_ms("tx_rate_limiter") == 10
    ops = {"size": 100, "refill_time": 1000}
    assert limited(rate_limiter={"bandwidth": bandwidth, "ops": ops}).disk_bytes_per_ms() == (
        100 * OP_BYTES // 1000
    )
    none = {"bandwidth": {"size": 0, "refill_time": 1000}, "ops": {"size": 5, "refill_time": 0}}
    assert limited(rate_limiter=none).disk_bytes_per_ms() is None
