"""Cloud Hypervisor's own log, asked for the one thing that nothing else tells."""

from __future__ import annotations

from pathlib import Path

from vm_agent.drivers.vmm_log import read_log

LOG = "cloud-hypervisor.log"

_VCPU_FAILED = b"VCPU generated error"
"""What v53 logs before it ends, with exit code 0, because KVM could not go on."""


def vcpu_failed(home: Path) -> bool:
    """Whether the last thing of note was a virtual CPU that failed."""
    return _VCPU_FAILED in read_log(home / LOG)
