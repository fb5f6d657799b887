"""Bodies of `/v1/admin/hosts`: hosts as their operator sees them."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated
from uuid import UUID

import msgspec

from schemas.hosts import MAX_REASON, HostLoss, HostOrders, Resources
from schemas.ids import CustomerId, HostId, ImageName, PoolId, RegionId, RunId
from schemas.vms import Timestamp, VmState
from schemas.wishes import Arch, LabelName, LabelValue

LINE_CHARACTER = r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]"
"""Pattern of what may stand in a line that people read."""

Line = Annotated[str, msgspec.Meta(max_length=MAX_REASON, pattern=rf"^{LINE_CHARACTER}*$(?!\n)")]
"""One line for people; may be empty."""

Reason = Annotated[
    str,
    msgspec.Meta(min_length=1, max_length=MAX_REASON, pattern=rf"^[!-~]{LINE_CHARACTER}*$(?!\n)"),
]
"""One line for people, which says something."""


class HostState(StrEnum):
    """What can be expected of a host.

    Attributes:
        UP: It takes VMs.
        DRAINING: It takes no new VM.
        EMPTY: It takes no new VM, and has none left.
        SILENT: Its heartbeat is older than 5 s.
        NOT_HEARD: There is no heartbeat: the last one was more than 30 s ago.
    """

    UP = "up"
    DRAINING = "draining"
    EMPTY = "empty"
    SILENT = "silent"
    NOT_HEARD = "not_heard"


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True):
    """What a host's agent last said.

    Attributes:
        run_id: New at every start of the agent.
        driver_reason: Why this driver was chosen, for people.
        simulated: The driver's numbers are made up.
        no_network: Why VMs get no network interface there; empty where they do.
        draining: The host takes no new VM: ordered, or by its agent's settings.
        free: Capacity less what VMs and reservations hold.
        reserved: What VMs and reservations hold; null from agents that do not say.
        vms: VMs that are there, stopped and failed ones included.
    """

    at: Timestamp
    run_id: RunId
    boot_id: str
    started_at: Timestamp | None = None
    version: str
    pool: PoolId
    region: RegionId
    labels: dict[LabelName, LabelValue]
    arch: Arch
    driver: str
    driver_version: str
    driver_reason: str
    simulated: bool
    no_network: str
    images: tuple[ImageName, ...]
    draining: bool
    drain_reason: str
    capacity: Resources
    free: Resources
    reserved: Resources | None = None
    vms: int


class HostView(msgspec.Struct, frozen=True, kw_only=True):
    """A host.

    Attributes:
        age_s: Of the heartbeat.
        vms: VMs whose records name this host, also where it is not heard of.
        placing: What was placed there and is not in the heartbeat yet.
        order: What an operator has ordered; null for nothing.
        loss: Set while the host is declared lost: usage answers do not wait for it.
        heartbeat: Null once it has expired.
    """

    host_id: HostId
    state: HostState
    age_s: float | None = None
    vms: int
    placing: Resources
    order: HostOrders | None = None
    loss: HostLoss | None = None
    heartbeat: Heartbeat | None = None


class HostList(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to `GET /v1/admin/hosts`, by name; `next_cursor` is empty on the last page."""

    hosts: tuple[HostView, ...]
    next_cursor: str = ""


class HostVm(msgspec.Struct, frozen=True, kw_only=True):
    """A VM on a host."""

    vm_id: UUID
    customer_id: CustomerId
    name: str
    state: VmState
    vcpus: int
    memory_mib: int
    disk_mib: int
    created_at: Timestamp


class HostVmList(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to `GET /v1/admin/hosts/{host_id}/vms`; `next_cursor` is empty on the last page."""

    vms: tuple[HostVm, ...]
    next_cursor: str = ""


class DrainRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Optional body of `POST /v1/admin/hosts/{host_id}/drain` and `/undrain`.

    Attributes:
        reason: Why, for those who look at the host.
        force: Order it for a host that is not heard of: its agent is down, or still to come.
    """

    reason: Line = ""
    force: bool = False


class LossRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /v1/admin/hosts/{host_id}/lost`.

    Attributes:
        reason: Why, for the audit and those who look at the bills.
        force: Even if its agent is heard, or frames of it are not stored yet.
    """

    reason: Reason
    force: bool = False


class FoundRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Optional body of `POST /v1/admin/hosts/{host_id}/found`."""

    reason: Reason = "found again"
