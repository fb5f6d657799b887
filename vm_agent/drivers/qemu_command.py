"""The command line that makes one microvm machine."""

from __future__ import annotations

import json
from pathlib import Path

from schemas.devices import RateLimits
from vm_agent.drivers.abc import MachinePlan
from vm_agent.drivers.paths import CONSOLE, QMP_SOCKET

# One IO-APIC: QEMU (7.2) moves pin 0 of each to pin 2, as is right for the timer on the first. On a
# second one it is the first virtio device's, whose interrupts then never reach a guest.
_MACHINE = "microvm,x-option-roms=off,pit=on,pic=on,rtc=on,isa-serial=on,acpi=on,ioapic2=off"
# The bit is taken away because some virtual hosts list it and then refuse its MSR.
_CPU = "max,arch-capabilities=off"
_SANDBOX = "on,obsolete=deny,spawn=deny,resourcecontrol=deny"
_STAY = ",elevateprivileges=deny"
"""Not for one that gives its privileges away itself: that filter would kill it for it."""


def command(binary: Path, plan: MachinePlan, accel: str) -> list[str]:
    """The arguments for QEMU in its run directory, its own path first.

    Args:
        binary: The executable.
        plan: The machine.
        accel: Accelerators in order of preference, with colons between them.
    """
    argv = [
        str(binary),
        *("-name", str(plan.vm_id)),
        *("-M", _MACHINE),
        *(word for name in accel.split(":") for word in ("-accel", name)),
        *("-cpu", _CPU),
        *("-smp", str(plan.vcpus)),
        *("-m", f"{plan.memory_mib}M"),
        *("-nodefaults", "-no-user-config", "-display", "none"),
        *("-action", "reboot=shutdown,shutdown=pause"),
        *("-global", "virtio-mmio.force-legacy=false"),
        *_confinement(plan),
        "-S",
        *("-kernel", str(plan.kernel)),
        *("-append", plan.kernel_args),
        # Append mode, so that the agent may cut the file.
        *("-chardev", f"file,id=console,path={_escape(plan.run_dir / CONSOLE)},append=on"),
        *("-serial", "chardev:console"),
        *("-chardev", f"socket,id=qmp,path={QMP_SOCKET},server=on,wait=off"),
        *("-mon", "chardev=qmp,mode=control"),
    ]
    if plan.initrd is not None:
        argv += ["-initrd", str(plan.initrd)]
    if plan.disk is not None:
        argv += _disk(plan.disk, plan.limits)
    if plan.nic is not None:
        argv += ["-netdev", f"tap,id=nic,ifname={plan.nic.tap},script=no,downscript=no"]
        argv += [
            "-device",
            f"virtio-net-device,netdev=nic,mac={plan.nic.mac},bus=virtio-mmio-bus.1",
        ]
    return argv


def _disk(path: Path, limits: RateLimits) -> list[str]:
    """The disk, behind a leaky bucket if it has a limit.

    A request passes as long as the bucket is not over its mark, and all of it has to leak before
    the next one does (QEMU's util/throttle.c). The mark is what a tenth of a second allows: with
    `-max` it is a second's worth at least, and one request on top is more than is promised.
    QEMU merges requests that are next to each other before it counts them, unless told not to.
    """
    file = {"driver": "file", "filename": str(path)}
    raw: dict[str, object] = {"driver": "raw", "file": file}
    device = "virtio-blk-device,drive=disk,bus=virtio-mmio-bus.0"
    if not limits.of_disk:
        return ["-blockdev", json.dumps({"node-name": "disk"} | raw), "-device", device]
    buckets = {"bps-total": limits.disk_bytes_per_s, "iops-total": limits.disk_ops_per_s}
    group = {
        "qom-type": "throttle-group",
        "id": "limits",
        "limits": {name: limit for name, limit in buckets.items() if limit},
    }
    node = {"node-name": "disk", "driver": "throttle", "throttle-group": "limits", "file": raw}
    if limits.disk_ops_per_s:
        device += ",request-merging=off"
    return [
        *("-object", json.dumps(group)),
        *("-blockdev", json.dumps(node)),
        *("-device", device),
    ]


def _confinement(plan: MachinePlan) -> list[str]:
    """A user without any privilege and a root of its own, once everything is open.

    KVM, tap, disk, kernel, console and socket are opened before; then its run directory, in which
    it may change nothing, is all that it sees.
    """
    if plan.uid is None:
        return ["-sandbox", _SANDBOX + _STAY]
    user = ["-runas", f"{plan.uid}:{plan.uid}", "-chroot", str(plan.run_dir)]
    return [*user, "-sandbox", _SANDBOX]


def _escape(path: Path) -> str:
    """QEMU's option syntax doubles commas."""
    return str(path).replace(",", ",,")
