"""The API requests that make one machine, before it starts."""

from __future__ import annotations

from typing import Any

from vm_agent.drivers.abc import MachinePlan
from vm_agent.drivers.firecracker_snapshot import request_to_load
from vm_agent.drivers.metrics_lines import metrics_path


def requests(plan: MachinePlan) -> list[tuple[str, dict[str, Any]]]:
    """Paths and bodies of the PUT requests, in order."""
    metrics: tuple[str, dict[str, Any]] = (
        "/metrics",
        {"metrics_path": str(metrics_path(plan.run_dir))},
    )
    if plan.snapshot is not None:
        # The machine is what the snapshot says; only this may be said before.
        return [metrics, ("/snapshot/load", request_to_load(plan))]
    boot: dict[str, Any] = {"kernel_image_path": str(plan.kernel), "boot_args": plan.kernel_args}
    if plan.initrd is not None:
        boot["initrd_path"] = str(plan.initrd)
    found: list[tuple[str, dict[str, Any]]] = [
        metrics,
        (
            "/machine-config",
            {
                "vcpu_count": plan.vcpus,
                "mem_size_mib": plan.memory_mib,
                "track_dirty_pages": plan.track_memory,
            },
        ),
        ("/boot-source", boot),
    ]
    if plan.disk is not None:
        drive = {
            "drive_id": "disk",
            "path_on_host": str(plan.disk),
            "is_root_device": False,
            "is_read_only": False,
        }
        found.append(("/drives/disk", drive))
    if plan.nic is not None:
        nic = {"iface_id": "eth0", "host_dev_name": plan.nic.tap, "guest_mac": plan.nic.mac}
        found.append(("/network-interfaces/eth0", nic))
    return found
