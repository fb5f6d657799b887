"""What an operator can say to an agent: `DECISEC_AGENT_*` variables or the table `[agent]`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from schemas.hosts import Resources
from schemas.ids import HostId, ImageName, PoolId, RegionId
from schemas.units import MIB
from vm_agent.network.settings import NetworkSettings

_BLOCK_BYTES = 512
"""Unit of `st_blocks`, see inode(7)."""

_LABELS = r"^([a-z][a-z0-9_-]{0,62}=[A-Za-z0-9._-]{0,63}(,(?!$)|$))*$(?!\n)"

_Amount = Annotated[int, msgspec.Meta(ge=0, le=2**31)]


class AgentSettings(NetworkSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the agent, besides those of the network. An amount of 0: as the machine has it.

    Attributes:
        host_id: This host's name in subjects; stays the same over restarts.
        labels: What VMs can ask for in a host: `disk=nvme,rack=7`.
        data_dir: Durable state, disks, run directories and the frame spool.
        image_dir: Image store; empty for `<data_dir>/images`.
        driver: `auto` takes the best one that boots the probe image.
        firecracker: Path of the binary; empty for the one on PATH.
        jailed: Run each Firecracker in a jail of its own; only root can. Without it a VMM has the
            agent's own rights: for development.
        jailer: Path of Firecracker's jailer; empty for the one beside it, or on PATH.
        uid_base: First of `slots` + 1 user ids that are given to VMMs, one each. No other user
            of the host may have them; those here are left free by systemd's allocation too.
        metrics: How a new Firecracker tells its metrics: by a `file`, which loses nothing while no
            agent runs, or by a `fifo`, which takes no disk space. One that runs keeps what it has.
        qemu_accel: QEMU's accelerators, best first. `tcg` where KVM starts VMs but stock kernels
            die or hang in it, as on some virtual hosts.
        probe_image: Image that the driver probe boots.
        vcpus: Virtual CPUs to give out, overcommit included.
        cpu_overcommit: Virtual CPUs per CPU, where `vcpus` is 0.
        memory_mib: Guest memory to give out; 0 leaves an eighth of the machine's to the host.
        disk_mib: Space for VM disks and snapshots; 0 takes what is free at the start, besides what
            they have already.
        slots: VMs.
        watchdog_s: Silence of a VMM after which it is ended as hung; 0 lets it be.
        draining: Refuse new VMs; those that are here stay. Counts for a host without orders:
            what `decisec host drain` and `undrain` say wins.
        spool_max_mib: Disk space for frames that NATS has not taken yet.
        spool_fsync: `always` waits for the disk with each file of such frames, about one in two
            seconds: they outlive the host. `never` leaves that to the kernel: they outlive the
            agent.
        realtime: Run the agent ahead of everything else on the host that is no real-time process
            (SCHED_RR), so that ticks come in time however busy it is; only root can. VMMs and other
            children are not.
    """

    host_id: HostId
    pool: PoolId = "default"
    region: RegionId = "local"
    labels: Annotated[str, msgspec.Meta(pattern=_LABELS)] = ""
    data_dir: Annotated[str, msgspec.Meta(min_length=1)] = "/var/lib/decisec/agent"
    image_dir: str = ""
    driver: Literal["auto", "firecracker", "cloud-hypervisor", "qemu", "simulator"] = "auto"
    firecracker: str = ""
    jailed: bool = True
    jailer: str = ""
    uid_base: Annotated[int, msgspec.Meta(ge=1000, le=2**31)] = 1_900_000_000
    metrics: Literal["file", "fifo"] = "file"
    qemu_accel: Literal["kvm:tcg", "kvm", "tcg"] = "kvm:tcg"
    probe_image: ImageName = "tiny"
    vcpus: _Amount = 0
    cpu_overcommit: Annotated[int, msgspec.Meta(ge=1, le=64)] = 8
    memory_mib: _Amount = 0
    disk_mib: _Amount = 0
    slots: Annotated[int, msgspec.Meta(ge=1, le=6000)] = 1000
    watchdog_s: Annotated[int, msgspec.Meta(ge=0, le=3600)] = 15
    draining: bool = False
    spool_max_mib: Annotated[int, msgspec.Meta(ge=1, le=1_048_576)] = 1024
    spool_fsync: Literal["always", "never"] = "always"
    realtime: bool = True

    @property
    def host_labels(self) -> dict[str, str]:
        """The labels by name."""
        pairs = (pair.partition("=") for pair in self.labels.split(",") if pair)
        return {name: value for name, _, value in pairs}

    @property
    def images(self) -> Path:
        """The image store's directory."""
        return Path(self.image_dir) if self.image_dir else Path(self.data_dir) / "images"

    def capacity(self) -> Resources:
        """What this host gives out, with the machine's own amounts where none are set."""
        page_bytes = os.sysconf("SC_PAGE_SIZE")
        total_mib = os.sysconf("SC_PHYS_PAGES") * page_bytes // MIB
        return Resources(
            vcpus=self.vcpus or (os.cpu_count() or 1) * self.cpu_overcommit,
            memory_mib=self.memory_mib or total_mib * 7 // 8,
            disk_mib=self.disk_mib or _room_bytes(Path(self.data_dir)) // MIB,
            slots=self.slots,
        )


def _room_bytes(data_dir: Path) -> int:
    """What is free on the disk, and what VMs of this host have taken of it already."""
    taken = sum(
        path.stat().st_blocks * _BLOCK_BYTES
        for pattern in ("disks/*", "snapshots/*/*/*")
        for path in data_dir.glob(pattern)
    )
    return shutil.disk_usage(data_dir).free + taken
