"""A VM: what its owner asked for, the states it passes, and what is known of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated

import msgspec

from schemas.codec import decoder
from schemas.devices import BalloonMib, Discreet, Metadata, RateLimits, check_devices
from schemas.errors import ErrorInfo
from schemas.ids import CustomerId, HostId, ImageName, PoolId, PricePlanId, RegionId, VmId
from schemas.networking import Networking
from schemas.units import Counter
from schemas.wishes import LabelName, LabelValue, PlacementWishes

Timestamp = Annotated[datetime, msgspec.Meta(tz=True)]

KernelArgName = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_]{0,31}$(?!\n)")]
KernelArgValue = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._:-]{0,64}$(?!\n)")]


class VmState(StrEnum):
    """Where a VM stands. `TRANSITIONS` says what may follow."""

    PENDING = "pending"
    CREATING = "creating"
    CREATED = "created"
    BOOTING = "booting"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    STOPPED = "stopped"
    DELETING = "deleting"
    DELETED = "deleted"
    FAILED = "failed"


STATE_NUMBERS: Mapping[VmState, int] = {state: number for number, state in enumerate(VmState)}
"""The byte that stands for a state in a metric frame: append-only."""

_S = VmState
TRANSITIONS: Mapping[VmState, frozenset[VmState]] = {
    _S.PENDING: frozenset({_S.CREATING, _S.DELETING, _S.FAILED}),
    _S.CREATING: frozenset({_S.CREATED, _S.DELETING, _S.FAILED}),
    _S.CREATED: frozenset({_S.BOOTING, _S.DELETING, _S.FAILED}),
    _S.BOOTING: frozenset({_S.RUNNING, _S.STOPPING, _S.STOPPED, _S.FAILED}),
    _S.RUNNING: frozenset({_S.PAUSED, _S.STOPPING, _S.STOPPED, _S.FAILED}),
    _S.PAUSED: frozenset({_S.RUNNING, _S.STOPPING, _S.STOPPED, _S.FAILED}),
    _S.STOPPING: frozenset({_S.STOPPED, _S.FAILED}),
    _S.STOPPED: frozenset({_S.BOOTING, _S.DELETING, _S.FAILED}),
    _S.DELETING: frozenset({_S.DELETED, _S.FAILED}),
    _S.DELETED: frozenset(),
    _S.FAILED: frozenset({_S.STOPPING, _S.DELETING}),
}

METERED_STATES = frozenset({_S.BOOTING, _S.RUNNING, _S.PAUSED, _S.STOPPING})
"""States in which a VMM process exists and is sampled."""


class RestartPolicy(StrEnum):
    """What happens to a VM whose VMM ends without anybody having asked for it.

    Attributes:
        NEVER: It stays stopped.
        ON_FAILURE: It is booted again after a while, unless its guest stopped in order.
    """

    NEVER = "never"
    ON_FAILURE = "on-failure"


class SnapshotKind(StrEnum):
    """What of the guest's memory is written: all of it, or what changed since the last time."""

    FULL = "full"
    DIFF = "diff"


class VmSpec(Discreet, frozen=True, kw_only=True):
    """What a customer asks for. Names an image; never a path, a tap or a socket.

    Attributes:
        image: Name in the host's image store.
        vcpus: Virtual CPUs.
        memory_mib: Guest memory in MiB.
        disk_mib: Size of the VM's own writable disk in MiB; 0 means as large as the image's root
            file system, and no disk where the image has none.
        network: Whether the VM gets a network interface.
        track_memory: Remember which memory the guest changes, so that diff snapshots are
            possible; costs the guest some speed.
        restart: What happens when its VMM ends by itself, or its host goes down.
        kernel_args: Arguments for the guest's kernel; the image says which ones it allows.
        labels: The customer's own names for things.
        metadata: What the guest can read at 169.254.169.254; may hold secrets. Needs `network`.
        balloon_mib: What the guest's balloon is to take at start, less than `memory_mib`; 0 means
            that there is no balloon.
        limits: The most that disk and network may move.
        placement: What it asks of its host.
        networking: How its interface is connected.
    """

    image: ImageName
    vcpus: Annotated[int, msgspec.Meta(ge=1, le=32)] = 1
    memory_mib: Annotated[int, msgspec.Meta(ge=16, le=1_048_576)] = 128
    disk_mib: Annotated[int, msgspec.Meta(ge=0, le=1_048_576)] = 0
    network: bool = True
    restart: RestartPolicy = RestartPolicy.NEVER
    track_memory: bool = False
    kernel_args: Annotated[dict[KernelArgName, KernelArgValue], msgspec.Meta(max_length=16)] = (
        msgspec.field(default_factory=dict)
    )
    labels: Annotated[dict[LabelName, LabelValue], msgspec.Meta(max_length=32)] = msgspec.field(
        default_factory=dict
    )
    metadata: Metadata = msgspec.field(default_factory=dict)
    balloon_mib: BalloonMib = 0
    limits: RateLimits = RateLimits()
    placement: PlacementWishes = msgspec.field(default_factory=PlacementWishes)
    networking: Networking = msgspec.field(default_factory=Networking)

    def __post_init__(self) -> None:
        check_devices(
            memory_mib=self.memory_mib,
            network=self.network,
            metadata=self.metadata,
            balloon_mib=self.balloon_mib,
            limits=self.limits,
            networking=self.networking,
        )

    @property
    def kind(self) -> tuple[str, str] | None:
        """Label and value that it shares with VMs that it is to be apart from, if any."""
        name = self.placement.apart_by
        value = self.labels.get(name) if name else None
        return None if value is None else (name, value)

    def without_secrets(self) -> VmSpec:
        """The same, with nothing in the metadata but its names."""
        return msgspec.structs.replace(self, metadata=dict.fromkeys(self.metadata, ""))


Incarnation = Annotated[int, msgspec.Meta(ge=1, le=2**32 - 1)]
MAX_FORMER_HOSTS = 16


class FormerHost(msgspec.Struct, frozen=True, kw_only=True):
    """A host that a VM has left, and which of its incarnations are that host's to tell of.

    Attributes:
        first_incarnation: The first one that ran there.
        last_incarnation: The last one that can have run there. Later ones are another host's.
        left_at: When nothing of the VM ran there any more; None while nobody can tell, because
            the host was lost. Usage answers wait for what the host may hold from before.
    """

    host_id: HostId
    first_incarnation: Incarnation = 1
    last_incarnation: Incarnation
    left_at: Timestamp | None = None


class VmRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Value of bucket `vm_specs`, written by the gateway: what was asked for, and where it went.

    A deleted VM's record stays as a tombstone (`deleted_at` set) at least as long as raw
    metrics can be replayed, so that a late sample still finds its owner.

    Attributes:
        former_hosts: Where it was before, oldest first. Spans of incarnations do not overlap; what
            comes after the last one's is the present host's.
        generation: Grows by one with each change that its owner makes to name or spec.
    """

    vm_id: VmId
    customer_id: CustomerId
    host_id: HostId
    spec: VmSpec
    name: Annotated[str, msgspec.Meta(max_length=63)] = ""
    pool: PoolId = "default"
    region: RegionId = "local"
    price_plan: PricePlanId = "default"
    created_at: Timestamp
    deleted_at: Timestamp | None = None
    former_hosts: Annotated[tuple[FormerHost, ...], msgspec.Meta(max_length=MAX_FORMER_HOSTS)] = ()
    generation: Annotated[int, msgspec.Meta(ge=1)] = 1

    def __post_init__(self) -> None:
        told = 0
        for former in self.former_hosts:
            if not told < former.first_incarnation <= former.last_incarnation:
                raise ValueError("incarnations of former hosts overlap or go back")
            told = former.last_incarnation

    @property
    def hosts(self) -> frozenset[str]:
        """Every host that may have something to tell of the VM."""
        return frozenset({self.host_id, *(former.host_id for former in self.former_hosts)})

    def ran_on(self, host_id: str, incarnation: int) -> bool:
        """Whether an incarnation is a host's to tell of."""
        for former in self.former_hosts:
            if incarnation <= former.last_incarnation:
                return host_id == former.host_id and incarnation >= former.first_incarnation
        return host_id == self.host_id

    def is_open(self, incarnation: int) -> bool:
        """Whether a later record can say that an incarnation is another host's than this says."""
        return not self.former_hosts or incarnation > self.former_hosts[-1].last_incarnation

    def moved(self, host_id: str, *, last_incarnation: int, left_at: datetime | None) -> VmRecord:
        """The record of the VM on another host, to be written before anything runs there.

        The oldest former host goes when there are too many; what comes from it after that is
        set aside as a foreign VM's, and billed to nobody.

        Args:
            host_id: In the same region and pool.
            last_incarnation: The last one that can have run where it was. If none has, that host
                is not remembered.
            left_at: See `FormerHost`.

        Raises:
            ValueError: An earlier host had later incarnations.
        """
        formers = self.former_hosts
        told = formers[-1].last_incarnation if formers else 0
        if last_incarnation < told:
            raise ValueError(f"incarnation {told} ran on an earlier host")
        if last_incarnation > told:
            left = FormerHost(
                host_id=self.host_id,
                first_incarnation=told + 1,
                last_incarnation=last_incarnation,
                left_at=left_at,
            )
            formers = (*formers, left)[-MAX_FORMER_HOSTS:]
        return msgspec.structs.replace(self, host_id=host_id, former_hosts=formers)


class Counters(msgspec.Struct, frozen=True, kw_only=True):
    """Everything billable: cumulative since the incarnation's VMM started, never decreasing.

    Attributes:
        uptime_ms: Time since VMM start, pauses included.
        cpu_ns: CPU time of the whole VMM process.
        mem_kib_ms: Allocated guest memory integrated over time, KiB times ms.
        disk_read_bytes: Bytes the guest read from its disks.
        disk_write_bytes: Bytes the guest wrote to its disks.
        net_rx_bytes: Bytes the guest received, Ethernet headers included.
        net_tx_bytes: Bytes the guest sent, Ethernet headers included.
    """

    uptime_ms: Counter = 0
    cpu_ns: Counter = 0
    mem_kib_ms: Counter = 0
    disk_read_bytes: Counter = 0
    disk_write_bytes: Counter = 0
    net_rx_bytes: Counter = 0
    net_tx_bytes: Counter = 0


METERS: tuple[str, ...] = Counters.__struct_fields__
"""Names of the billable counters, in the order in which frames, tables and reports hold them."""


class ExitReason(StrEnum):
    """Why a VMM process ended.

    Attributes:
        REQUESTED: Its owner asked for it.
        GUEST_SHUTDOWN: The guest stopped in order by itself.
        TRIPLE_FAULT: The guest's CPU gave up: its kernel crashed.
        OOM_KILLED: The host's kernel killed it: it had used up its memory limit.
        KILLED: Somebody sent it SIGKILL.
        CRASHED: The VMM itself failed.
        INTERNAL_ERROR: The hypervisor could not go on with this guest.
        HUNG: It did not answer any more and was ended for that.
        HOST_REBOOTED: The host went down under it.
        UNKNOWN: It ended while nobody looked.
    """

    REQUESTED = "requested"
    GUEST_SHUTDOWN = "guest_shutdown"
    TRIPLE_FAULT = "triple_fault"
    OOM_KILLED = "oom_killed"
    KILLED = "killed"
    CRASHED = "crashed"
    INTERNAL_ERROR = "internal_error"
    HUNG = "hung"
    HOST_REBOOTED = "host_rebooted"
    UNKNOWN = "unknown"


FAILURES = frozenset(ExitReason) - {ExitReason.REQUESTED, ExitReason.GUEST_SHUTDOWN}
"""Reasons after which `RestartPolicy.ON_FAILURE` starts a VM again."""


class SnapshotInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot that is there to be restored, as its VM's status tells of it.

    Attributes:
        snapshot_id: Made by whoever asked for it, so ids sort in the order of asking.
        kind: How it was taken; any one is whole.
        image: Image of the VM that it is of; with `vcpus`, `memory_mib` and `disk_mib` the shape
            that a VM must have to be restored from it, as far as it is told here.
        created_at: The host's time at which it was begun.
    """

    snapshot_id: VmId
    kind: SnapshotKind
    image: ImageName
    vcpus: Annotated[int, msgspec.Meta(ge=1)]
    memory_mib: Annotated[int, msgspec.Meta(ge=1)]
    disk_mib: Annotated[int, msgspec.Meta(ge=0)]
    created_at: Timestamp


class VmStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Value of bucket `vm_status`, written by the VM's agent only.

    Attributes:
        incarnation: Grows by one at each VMM start; 0 before the first.
        simulated: The numbers come from the simulator, not from a hypervisor.
        final_counters: The last incarnation's counters, once its VMM has ended.
        failures: How often the VM has failed in a row.
        restart_at: When it is started again by itself, while it waits for that.
        snapshots: Its snapshots, oldest first; gone with the VM.
        addresses: Its IPv6 address or network, and its IPv4 address, as its host gave them.
        dropped: Packets from and to it that its host has dropped, by reason, of late.
        quarantined: The operator has cut it off from the network.
    """

    vm_id: VmId
    customer_id: CustomerId
    host_id: HostId
    state: VmState
    incarnation: Annotated[int, msgspec.Meta(ge=0)] = 0
    driver: str = ""
    simulated: bool = False
    started_at: Timestamp | None = None
    final_counters: Counters | None = None
    exit_reason: ExitReason | None = None
    last_error: ErrorInfo | None = None
    failures: Annotated[int, msgspec.Meta(ge=0)] = 0
    restart_at: Timestamp | None = None
    snapshots: tuple[SnapshotInfo, ...] = ()
    updated_at: Timestamp
    addresses: tuple[str, ...] = ()
    dropped: dict[str, Counter] = msgspec.field(default_factory=dict)
    quarantined: bool = False


decode_vm_record: Callable[[bytes], VmRecord] = decoder(VmRecord)
decode_vm_status: Callable[[bytes], VmStatus] = decoder(VmStatus)
