"""What Firecracker is asked for: each wish in its request, and nothing that nobody wished for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from schemas.devices import RateLimits
from schemas.ids import new_id
from vm_agent.drivers.abc import MachinePlan, Nic
from vm_agent.drivers.firecracker_machine import requests

PLAN = MachinePlan(
    vm_id=new_id(),
    incarnation=1,
    vcpus=2,
    memory_mib=64,
    kernel=Path("kernel"),
    kernel_args="quiet",
    disk=Path("disk.img"),
    nic=Nic(netns="ns", tap="tap0", mac="06:00:00:00:00:01"),
    run_dir=Path("run"),
)
SECRET = "hunter2"


def bodies(plan: MachinePlan) -> dict[str, dict[str, Any]]:
    """Bodies by path, in order."""
    found = requests(plan)
    assert len(dict(found)) == len(found)
    return dict(found)


def bucket(size: int) -> dict[str, int]:
    """A token bucket that one second fills."""
    return {"size": size, "refill_time": 1000}


def test_a_plain_machine_has_no_more_than_before() -> None:
    """No balloon, no metadata service, no limiter."""
    found = bodies(PLAN)
    assert list(found) == [
        "/metrics", "/machine-config", "/boot-source", "/drives/disk", "/network-interfaces/eth0",
    ]  # fmt: skip
    assert not [name for body in found.values() for name in body if "limiter" in name]


def test_each_limit_is_a_bucket_of_its_own() -> None:
    """Those that are 0 are none, not a bucket of 0."""
    found = bodies(replace(PLAN, limits=RateLimits(disk_ops_per_s=5, net_tx_bytes_per_s=6)))
    assert found["/drives/disk"]["rate_limiter"] == {"ops": bucket(5)}
    assert found["/network-interfaces/eth0"]["tx_rate_limiter"] == {"bandwidth": bucket(6)}
    assert "rx_rate_limiter" not in found["/network-interfaces/eth0"]
    found = bodies(
        replace(PLAN, limits=RateLimits(disk_bytes_per_s=7, disk_ops_per_s=8, net_rx_bytes_per_s=9))
    )
    assert found["/drives/disk"]["rate_limiter"] == {"bandwidth": bucket(7), "ops": bucket(8)}
    assert found["/network-interfaces/eth0"]["rx_rate_limiter"] == {"bandwidth": bucket(9)}
    assert "tx_rate_limiter" not in found["/network-interfaces/eth0"]


def test_a_balloon_gives_way_before_the_guest_starves() -> None:
    """It is asked for once the memory's size is known, which it is checked against."""
    found = bodies(replace(PLAN, balloon_mib=16))
    assert found["/balloon"] == {"amount_mib": 16, "deflate_on_oom": True}
    assert list(found).index("/machine-config") < list(found).index("/balloon")


def test_metadata_needs_a_session_and_an_interface() -> None:
    """Version 2, over the interface that is there by then."""
    found = bodies(replace(PLAN, metadata={"name": SECRET}))
    assert list(found)[-3:] == ["/network-interfaces/eth0", "/mmds/config", "/mmds"]
    assert found["/mmds/config"] == {"version": "V2", "network_interfaces": ["eth0"]}
    assert found["/mmds"] == {"latest": {"meta-data": {"name": SECRET}}}


def test_a_snapshot_brings_all_but_the_content_of_the_metadata() -> None:
    """Nothing may be configured before a snapshot is loaded, and the content comes after it."""
    whole = replace(
        PLAN,
        snapshot=Path("snapshot"),
        balloon_mib=16,
        limits=RateLimits(disk_ops_per_s=5),
        metadata={"name": SECRET},
    )
    found = bodies(whole)
    assert list(found) == ["/metrics", "/snapshot/load", "/mmds"]
    assert found["/mmds"] == {"latest": {"meta-data": {"name": SECRET}}}
    assert list(bodies(replace(whole, metadata={}))) == ["/metrics", "/snapshot/load"]


def test_a_printed_plan_tells_no_metadata() -> None:
    """Not even the names."""
    assert SECRET not in repr(replace(PLAN, metadata={"name": SECRET}))
