"""Bodies of the HTTP API, version 1, as gateway and SDK both see them."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from schemas.devices import BalloonMib, Discreet, Metadata, RateLimits, check_devices
from schemas.errors import ErrorInfo
from schemas.hosts import OperationStatus
from schemas.ids import CommandId, CustomerId, HostId, ImageName, VmId
from schemas.networking import Networking
from schemas.vms import (
    Counters,
    ExitReason,
    KernelArgName,
    KernelArgValue,
    RestartPolicy,
    SnapshotKind,
    Timestamp,
    VmSpec,
    VmState,
)
from schemas.wishes import LabelName, LabelValue, PlacementWishes

VmName = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$(?!\n)|^$(?!\n)")]
"""What a customer calls a VM; may be empty, and several VMs may have one name."""


LabelPatch = Annotated[dict[LabelName, LabelValue | None], msgspec.Meta(max_length=64)]
"""Labels to set, and with null those to remove."""


class RateLimitsRequest(RateLimits, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`RateLimits` in a request: a name that is none of them is a mistake."""


class NetworkingRequest(Networking, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`Networking` in a request: a name that is none of its fields is a mistake."""


class PlacementRequest(PlacementWishes, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`PlacementWishes` in a request: a driver or an architecture that is none is a mistake."""

    driver: Literal["", "firecracker", "cloud-hypervisor", "qemu", "simulator"] = ""
    arch: Literal["", "x86_64", "aarch64"] = ""


class CreateVmRequest(Discreet, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /v1/vms`. See `VmSpec` for the fields."""

    image: ImageName
    name: VmName = ""
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
    limits: RateLimitsRequest = RateLimitsRequest()
    placement: PlacementRequest = msgspec.field(default_factory=PlacementRequest)
    networking: NetworkingRequest = msgspec.field(default_factory=NetworkingRequest)
    boot: bool = False

    def __post_init__(self) -> None:
        check_devices(
            memory_mib=self.memory_mib,
            network=self.network,
            metadata=self.metadata,
            balloon_mib=self.balloon_mib,
            limits=self.limits,
            networking=self.networking,
        )
        if self.placement.apart_by and self.placement.apart_by not in self.labels:
            raise ValueError(
                f"placement.apart_by: the VM has no label {self.placement.apart_by!r} itself"
            )

    def to_spec(self) -> VmSpec:
        """The spec that is asked for."""
        given = {name: getattr(self, name) for name in VmSpec.__struct_fields__}
        limits = RateLimits(**msgspec.structs.asdict(self.limits))
        placement = PlacementWishes(**msgspec.structs.asdict(self.placement))
        networking = Networking(**msgspec.structs.asdict(self.networking))
        return VmSpec(
            **given | {"limits": limits, "placement": placement, "networking": networking}
        )


class ShutdownRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Optional body of `POST /v1/vms/{vm_id}/shutdown` and `/reboot`."""

    grace_s: Annotated[float, msgspec.Meta(ge=0, le=300)] = 10.0


class SnapshotRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Optional body of `POST /v1/vms/{vm_id}/snapshot`."""

    kind: SnapshotKind = SnapshotKind.FULL


class RestoreRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /v1/vms/{vm_id}/restore`."""

    snapshot_id: VmId


class VmPatch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `PATCH /v1/vms/{vm_id}`: a JSON merge patch (RFC 7396) of what was asked for.

    What is not named stays as it is; `null` removes a label, all labels, or the name.
    """

    name: VmName | msgspec.UnsetType | None = msgspec.UNSET
    labels: LabelPatch | msgspec.UnsetType | None = msgspec.UNSET


class VmView(msgspec.Struct, frozen=True, kw_only=True):
    """A VM as its owner sees it.

    Attributes:
        host_id: Tells which of your VMs share a host, and nothing else; operators see its name.
        generation: Grows by one with each change of name or labels; over HTTP the `ETag`.
        addresses: Its IPv6 address or network, and its IPv4 address; none where its host connects
            no VMs, or has not heard of it yet.
        dropped: Packets from and to it that its host has dropped, by reason; up to date within a
            minute.
        quarantined: The operator has cut it off from the network; it runs on.
    """

    vm_id: VmId
    customer_id: CustomerId
    name: str
    state: VmState
    spec: VmSpec
    host_id: HostId
    incarnation: int = 0
    driver: str = ""
    simulated: bool = False
    created_at: Timestamp
    started_at: Timestamp | None = None
    final_counters: Counters | None = None
    exit_reason: ExitReason | None = None
    last_error: ErrorInfo | None = None
    failures: int = 0
    restart_at: Timestamp | None = None
    generation: int = 1
    addresses: tuple[str, ...] = ()
    dropped: dict[str, int] = msgspec.field(default_factory=dict)
    quarantined: bool = False


class VmList(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to `GET /v1/vms`; `next_cursor` is empty on the last page.

    A page can be shorter than asked for, even empty, and not the last: the search for what a
    filter wants is cut into pieces.
    """

    vms: tuple[VmView, ...]
    next_cursor: str = ""


class OperationView(msgspec.Struct, frozen=True, kw_only=True):
    """A command and how far it has come."""

    operation_id: CommandId
    vm_id: VmId
    verb: str
    status: OperationStatus
    state: VmState | None = None
    error: ErrorInfo | None = None
    created_at: Timestamp
    deadline: Timestamp
    finished_at: Timestamp | None = None
    snapshot_id: VmId | None = None


class OperationList(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to `GET /v1/operations`, newest first; `next_cursor` is empty on the last page."""

    operations: tuple[OperationView, ...]
    next_cursor: str = ""


class SnapshotView(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot that is there to be restored. See `SnapshotInfo`."""

    snapshot_id: VmId
    vm_id: VmId
    kind: SnapshotKind
    image: ImageName
    vcpus: int
    memory_mib: int
    disk_mib: int
    created_at: Timestamp


class SnapshotList(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to `GET /v1/snapshots`, oldest first; `next_cursor` is empty on the last page."""

    snapshots: tuple[SnapshotView, ...]
    next_cursor: str = ""


class ImageView(msgspec.Struct, frozen=True, kw_only=True):
    """An image that VMs can be made from."""

    name: ImageName


class ImageList(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to `GET /v1/images`, by name."""

    images: tuple[ImageView, ...]


class VmAndOperation(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to every mutation of a VM."""

    vm: VmView
    operation: OperationView


class FieldProblem(msgspec.Struct, frozen=True, kw_only=True):
    """One field that is wrong: a JSON path such as `$.vcpus`, and why."""

    field: str
    message: str


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """RFC 9457 problem details; `code` is one of `ErrorCode` and stable."""

    type: str
    title: str
    status: int
    code: str
    detail: str = ""
    instance: str = ""
    trace_id: str = ""
    errors: tuple[FieldProblem, ...] = ()
