"""Hosts, orders, customers and operations: the values of the remaining KV buckets."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from enum import StrEnum
from typing import Annotated

import msgspec

from schemas.codec import decoder
from schemas.errors import ErrorInfo
from schemas.ids import (
    CommandId,
    CustomerId,
    HostId,
    ImageName,
    PoolId,
    PricePlanId,
    RegionId,
    RunId,
    VmId,
)
from schemas.limits import ApiRates
from schemas.vms import Timestamp, VmState
from schemas.wishes import Arch, LabelName, LabelValue, PlacedWord

HEARTBEAT_FRESH = timedelta(seconds=5)
"""A heartbeat that is older is not believed: its host is silent."""

MAX_REASON = 200
"""Characters of the reason that an operator gives."""

MAX_ADMITTED = 512
"""VMs that a heartbeat names at most: 20 KiB of ids."""

Amount = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class Resources(msgspec.Struct, frozen=True, kw_only=True):
    """An amount of what VMs take from a host.

    Attributes:
        vcpus: Virtual CPUs, overcommit already applied.
        memory_mib: Guest memory.
        disk_mib: Space for VM disks.
        slots: VMs.
    """

    vcpus: Amount = 0
    memory_mib: Amount = 0
    disk_mib: Amount = 0
    slots: Amount = 0


class HostInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Value of bucket `hosts`: a host's heartbeat, written by its agent every second.

    Attributes:
        run_id: New at every agent start.
        driver: The hypervisor driver that VMs on this host get.
        driver_reason: Why this driver was chosen, for people.
        simulated: The driver's numbers are made up.
        no_network: Why VMs get no network interface here; empty where they do.
        images: Names in the host's image store.
        draining: The host takes no new VM: ordered, or by its agent's settings.
        free: Capacity less what VMs and reservations hold.
        vms: VMs that are here, stopped and failed ones included.
        drain_reason: Why the host takes no new VM, for people.
        reserved: What VMs and reservations hold: more than the capacity once that was lowered.
            None from agents that do not say.
        started_at: When this run of the agent began.
        arch: The host's architecture; empty from agents that do not say.
        admitted: VMs that this run has taken in lately, `MAX_ADMITTED` at most: `free` is less
            what they hold.
        networks: What VMs' addresses are from; empty where interfaces lead nowhere.
    """

    host_id: HostId
    run_id: RunId
    boot_id: str
    pool: PoolId = "default"
    region: RegionId = "local"
    labels: dict[LabelName, LabelValue] = msgspec.field(default_factory=dict)
    version: str
    driver: str
    driver_version: str = ""
    driver_reason: str = ""
    simulated: bool = False
    no_network: str = ""
    images: tuple[ImageName, ...] = ()
    draining: bool = False
    capacity: Resources
    free: Resources
    vms: Amount = 0
    heartbeat_at: Timestamp
    drain_reason: str = ""
    reserved: Resources | None = None
    started_at: Timestamp | None = None
    arch: Arch = ""
    admitted: Annotated[tuple[VmId, ...], msgspec.Meta(max_length=MAX_ADMITTED)] = ()
    networks: tuple[str, ...] = ()

    @property
    def drained(self) -> bool:
        """Whether the host takes no new VM and has none left."""
        return self.draining and self.vms == 0


class HostOrders(msgspec.Struct, frozen=True, kw_only=True):
    """Value of bucket `host_orders`: what a host is to do, written by the operator.

    It stands until the operator writes another one, whether the host's agent runs or not.

    Attributes:
        draining: Take no new VM.
        reason: Why, for people.
        requested_by: Who says to have ordered it.
        quarantined: VMs that are to be cut off from the network, and run on.
    """

    host_id: HostId
    draining: bool
    reason: Annotated[str, msgspec.Meta(max_length=MAX_REASON)] = ""
    requested_by: Annotated[str, msgspec.Meta(max_length=255)]
    ordered_at: Timestamp
    quarantined: tuple[VmId, ...] = ()


class HostLoss(msgspec.Struct, frozen=True, kw_only=True):
    """Value of bucket `lost_hosts`: nothing more is expected of a host.

    Usage answers no longer wait for what it may still hold, and say so. What comes all the same is
    booked.

    Attributes:
        reason: Why, for people.
        requested_by: Who says to have declared it.
        automatic: A collector declared it, after the configured time, and takes it back once the
            host has caught up. What an operator declares only an operator takes back.
    """

    host_id: HostId
    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_REASON)]
    requested_by: Annotated[str, msgspec.Meta(max_length=255)]
    declared_at: Timestamp
    automatic: bool = False


class CustomerStatus(StrEnum):
    """What a customer may do.

    Attributes:
        SUSPENDED: Look, stop and delete; nothing is made or started.
        CLOSED: The same. The operator has closed the account: the entry stays, so that
            bills can be answered and the name is nobody else's.
    """

    ACTIVE = "active"
    SUSPENDED = "suspended"
    CLOSED = "closed"


class Customer(msgspec.Struct, frozen=True, kw_only=True):
    """Value of bucket `customers`, written by the operator.

    Attributes:
        quota: What all VMs may take together; `slots` is their number.
        max_snapshots: How many snapshots may be kept.
        rates: How fast the API may be used, where not as fast as everybody.
        generation: Grows by one with each change.
    """

    customer_id: CustomerId
    status: CustomerStatus = CustomerStatus.ACTIVE
    pool: PoolId = "default"
    price_plan: PricePlanId = "default"
    quota: Resources = Resources(vcpus=64, memory_mib=131_072, disk_mib=1_048_576, slots=100)
    max_snapshots: Amount = 100
    rates: ApiRates = ApiRates()
    created_at: Timestamp
    generation: Annotated[int, msgspec.Meta(ge=1)] = 1


class OperationStatus(StrEnum):
    """How far a command has come."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """Value of bucket `operations`: one command and its result.

    The gateway creates it as pending before it publishes the command; from then on only the
    agent writes it.

    Attributes:
        placed: Why a VM that is made got this host, in a word for operators.
        snapshot_id: The snapshot that the command is about, if it is about one.
        digest: `digest_of` the command that was answered; empty from those who do not say.
    """

    operation_id: CommandId
    customer_id: CustomerId
    vm_id: VmId
    host_id: HostId
    verb: str
    status: OperationStatus
    state: VmState | None = None
    error: ErrorInfo | None = None
    requested_by: str = ""
    created_at: Timestamp
    deadline: Timestamp
    finished_at: Timestamp | None = None
    placed: PlacedWord = ""
    snapshot_id: VmId | None = None
    digest: str = ""

    @property
    def finished(self) -> bool:
        """Whether a result stands."""
        return self.status in (OperationStatus.SUCCEEDED, OperationStatus.FAILED)


decode_host_info: Callable[[bytes], HostInfo] = decoder(HostInfo)
decode_host_loss: Callable[[bytes], HostLoss] = decoder(HostLoss)
decode_host_orders: Callable[[bytes], HostOrders] = decoder(HostOrders)
decode_customer: Callable[[bytes], Customer] = decoder(Customer)
decode_operation: Callable[[bytes], Operation] = decoder(Operation)
