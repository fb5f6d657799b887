"""The API requests that make one machine, before it starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vm_agent.drivers.abc import MachinePlan
from vm_agent.drivers.firecracker_snapshot import request_to_load
from vm_agent.drivers.metrics_lines import metrics_path

METADATA = "/mmds"
"""Path of the one request whose body may hold secrets."""

REFILL_MS = 1000
"""Time in which an empty token bucket fills, so that its size is the limit per second.

Firecracker looks at an empty bucket after 100 ms. One of 100 ms is full by then, and what did not
fit into it is lost; and a request that is larger than the bucket passes, with a line in the log
and half of its price. Requests of 64 KiB got 0.64 MB/s of 1 MB/s from buckets of 100 ms, and
1.0 MB/s of 0.5 MB/s; from buckets of 1000 ms, 0.99 and 0.50 MB/s (version 1.12.1). The price is a
burst: after a second's rest, what a second allows may pass at once.
"""

_NIC = "eth0"
_Request = tuple[str, dict[str, Any]]


def requests(plan: MachinePlan) -> list[_Request]:
    """Paths and bodies of the PUT requests, in order."""
    metrics: _Request = ("/metrics", {"metrics_path": str(metrics_path(plan.run_dir))})
    if plan.snapshot is not None:
        # The machine is what the snapshot says; only this may be said before. Its metadata service
        # comes back empty.
        return [metrics, ("/snapshot/load", request_to_load(plan)), *_content(plan)]
    boot: dict[str, Any] = {"kernel_image_path": str(plan.kernel), "boot_args": plan.kernel_args}
    if plan.initrd is not None:
        boot["initrd_path"] = str(plan.initrd)
    machine = {
        "vcpu_count": plan.vcpus,
        "mem_size_mib": plan.memory_mib,
        "track_dirty_pages": plan.track_memory,
    }
    return [
        metrics,
        ("/machine-config", machine),
        ("/boot-source", boot),
        *_balloon(plan),
        *_drive(plan),
        *_interface(plan),
        *_content(plan),
    ]


def metadata_content(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What the metadata service serves: `GET /latest/meta-data/NAME` as in the vendor's guide."""
    return {"latest": {"meta-data": dict(metadata)}}


def _balloon(plan: MachinePlan) -> list[_Request]:
    if not plan.balloon_mib:
        return []
    return [("/balloon", {"amount_mib": plan.balloon_mib, "deflate_on_oom": True})]


def _drive(plan: MachinePlan) -> list[_Request]:
    if plan.disk is None:
        return []
    drive = {
        "drive_id": "disk",
        "path_on_host": str(plan.disk),
        "is_root_device": False,
        "is_read_only": False,
    }
    limits = plan.limits
    limiter = _limiter(bandwidth=limits.disk_bytes_per_s, ops=limits.disk_ops_per_s)
    return [("/drives/disk", drive | _named("rate_limiter", limiter))]


def _interface(plan: MachinePlan) -> list[_Request]:
    if plan.nic is None:
        return []
    nic = {"iface_id": _NIC, "host_dev_name": plan.nic.tap, "guest_mac": plan.nic.mac}
    nic |= _named("rx_rate_limiter", _limiter(bandwidth=plan.limits.net_rx_bytes_per_s))
    nic |= _named("tx_rate_limiter", _limiter(bandwidth=plan.limits.net_tx_bytes_per_s))
    found: list[_Request] = [(f"/network-interfaces/{_NIC}", nic)]
    if plan.metadata:
        # Version 2 only: a guest's program that can be made to fetch an address cannot be made
        # to fetch this.
        found.append(("/mmds/config", {"version": "V2", "network_interfaces": [_NIC]}))
    return found


def _content(plan: MachinePlan) -> list[_Request]:
    return [(METADATA, metadata_content(plan.metadata))] if plan.metadata else []


def _limiter(**limits: int) -> dict[str, Any]:
    """Token buckets for what is limited, by kind of token."""
    return {
        kind: {"size": limit, "refill_time": REFILL_MS} for kind, limit in limits.items() if limit
    }


def _named(name: str, limiter: dict[str, Any]) -> dict[str, Any]:
    return {name: limiter} if limiter else {}
