"""The configuration that makes one machine, new or from a snapshot."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

import msgspec

from schemas.devices import RateLimits
from schemas.units import MIB
from vm_agent.drivers.abc import DriverError, MachinePlan
from vm_agent.drivers.cloud_hypervisor_api import (
    DISK_ID,
    NIC_ID,
    ConsoleConfig,
    ConsoleMode,
    CpusConfig,
    DiskConfig,
    ImageType,
    LandlockConfig,
    MemoryConfig,
    NetConfig,
    PayloadConfig,
    RateLimiterConfig,
    SerialConfig,
    TokenBucket,
    VmConfig,
)
from vm_agent.drivers.firecracker_machine import REFILL_MS

SNAPSHOT_DIR = "snapshot"
"""In the VMM's directory: the only place where the VMM may write files of its own."""

# landlock(7): landlock_create_ruleset with this flag tells the version.
_CREATE_RULESET = 444
_TELL_VERSION = 1
_LANDLOCK_VERSION = 3
"""Which v53 asks of the kernel; with less it refuses to make the machine."""


def vm_config(plan: MachinePlan, *, landlock: bool) -> VmConfig:
    """The body of `vm.create`.

    The serial port is the process's own standard output. A file that the VMM opens itself would
    be cut at each reset of the guest, and not written in append mode, as `ConsoleLog` needs it.

    Args:
        plan: The machine.
        landlock: Whether the kernel can confine the VMM to its own files. To those in the
            configuration the VMM adds itself.
    """
    disks = [
        DiskConfig(
            path=str(plan.disk),
            id=DISK_ID,
            image_type=ImageType.RAW,
            rate_limiter_config=_limiter(plan.limits),
        )
    ]
    return VmConfig(
        cpus=CpusConfig(boot_vcpus=plan.vcpus, max_vcpus=plan.vcpus),
        memory=MemoryConfig(size=plan.memory_mib * MIB),
        payload=PayloadConfig(
            kernel=str(plan.kernel),
            cmdline=plan.kernel_args,
            initramfs=str(plan.initrd) if plan.initrd else None,
        ),
        serial=SerialConfig(mode=ConsoleMode.TTY),
        console=ConsoleConfig(mode=ConsoleMode.OFF),
        disks=disks if plan.disk else None,
        net=[NetConfig(tap=plan.nic.tap, mac=plan.nic.mac, id=NIC_ID)] if plan.nic else None,
        pvpanic=True,
        landlock_enable=landlock,
        landlock_rules=_rules(plan) if landlock else None,
    )


def restored_config(saved: bytes, plan: MachinePlan, *, landlock: bool) -> bytes:
    """A snapshot's `config.json` with this plan's files and names instead of the former ones.

    Everything else stays as the VMM wrote it, for its state depends on it. The kernel is named
    anew because a reset of the guest boots it.

    Raises:
        DriverError: The snapshot is of another kind of machine.
    """
    wanted = msgspec.to_builtins(vm_config(plan, landlock=landlock))
    try:
        config: dict[str, Any] = msgspec.json.decode(saved, type=dict[str, Any])
        for kind in ("disks", "net"):
            former = {device["id"]: device for device in config.get(kind) or ()}
            now = {device["id"]: device for device in wanted.get(kind, ())}
            if former.keys() != now.keys():
                raise DriverError(f"the snapshot has other {kind} than the plan")
            for name, device in former.items():
                device.update(now[name])
        if not config["cpus"]["boot_vcpus"] == config["cpus"]["max_vcpus"] == plan.vcpus:
            raise DriverError("the snapshot has another number of CPUs than the plan")
        if config["memory"]["size"] != plan.memory_mib * MIB:
            raise DriverError("the snapshot has more or less memory than the plan")
        config["payload"].update(wanted["payload"])
        for name in ("serial", "console"):
            config[name].update(wanted[name])
    except (msgspec.MsgspecError, LookupError, TypeError, AttributeError) as error:
        raise DriverError(f"the snapshot's configuration is damaged: {error}") from error
    config["landlock_enable"] = landlock
    config["landlock_rules"] = wanted.get("landlock_rules")
    return msgspec.json.encode(config)


def require_files(plan: MachinePlan) -> None:
    """Check that the plan's files are there: the VMM itself would miss them only at boot.

    Raises:
        DriverError: One is missing.
    """
    files = {"kernel": plan.kernel, "initrd": plan.initrd, "disk": plan.disk}
    for what, path in files.items():
        if path is not None and not path.exists():
            raise DriverError(f"cannot open the {what} {path}: No such file or directory")


def has_landlock() -> bool:
    """Whether this kernel offers what the VMM asks of it."""
    libc = ctypes.CDLL(None, use_errno=True)
    version: int = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _TELL_VERSION)
    return version >= _LANDLOCK_VERSION


def _limiter(limits: RateLimits) -> RateLimiterConfig | None:
    """The disk's token buckets: a second's worth, as Firecracker's, whose code they are from.

    An interface has one setting for both directions, so the host holds the VM to those limits.
    """
    if not limits.of_disk:
        return None
    return RateLimiterConfig(
        bandwidth=_bucket(limits.disk_bytes_per_s), ops=_bucket(limits.disk_ops_per_s)
    )


def _bucket(limit: int) -> TokenBucket | None:
    return TokenBucket(size=limit, refill_time=REFILL_MS) if limit else None


def _rules(plan: MachinePlan) -> list[LandlockConfig]:
    """What the VMM needs besides the files of its configuration."""
    rules = [LandlockConfig(path=str(plan.run_dir / SNAPSHOT_DIR), access="rw")]
    if plan.nic is not None:
        # It reads the flags of a tap that it sees here; in a namespace it usually sees none.
        tap = Path("/sys/class/net") / plan.nic.tap
        if tap.exists():
            rules.append(LandlockConfig(path=os.fspath(tap), access="r"))
    return rules
