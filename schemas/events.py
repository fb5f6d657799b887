"""Events: facts in the past tense.

On `vm.evt.<customer>.<vm>.<type>` and `host.evt.<host>.<type>`.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Annotated

import msgspec

from schemas.codec import decoder
from schemas.errors import ErrorInfo
from schemas.ids import CommandId, CustomerId, EventId, HostId, RunId, VmId
from schemas.vms import Counters, ExitReason, SnapshotKind, Timestamp

Count = Annotated[int, msgspec.Meta(ge=0)]


class _VmEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """What every event of a VM carries; `command_id` where a command caused it."""

    event_id: EventId
    at: Timestamp
    customer_id: CustomerId
    vm_id: VmId
    host_id: HostId
    incarnation: Count = 0
    command_id: CommandId | None = None


class VmCreated(_VmEvent, frozen=True, kw_only=True, tag="vm_created"):
    """Resources are reserved, disks exist."""


class VmStarted(_VmEvent, frozen=True, kw_only=True, tag="vm_started"):
    """A new incarnation runs; `snapshot_id` where it goes on from a snapshot."""

    driver: str
    simulated: bool = False
    snapshot_id: VmId | None = None


class VmPaused(_VmEvent, frozen=True, kw_only=True, tag="vm_paused"):
    """The vCPUs stand still."""


class VmResumed(_VmEvent, frozen=True, kw_only=True, tag="vm_resumed"):
    """The vCPUs go on."""


class VmSnapshotted(_VmEvent, frozen=True, kw_only=True, tag="vm_snapshotted"):
    """A snapshot is there to be restored."""

    snapshot_id: VmId
    kind: SnapshotKind


class VmStopped(_VmEvent, frozen=True, kw_only=True, tag="vm_stopped"):
    """The incarnation's VMM is gone; these are its last counters."""

    reason: ExitReason
    final_counters: Counters


class VmDeleted(_VmEvent, frozen=True, kw_only=True, tag="vm_deleted"):
    """Nothing of the VM is left on the host."""


class VmFailed(_VmEvent, frozen=True, kw_only=True, tag="vm_failed"):
    """The VM cannot go on without help."""

    error: ErrorInfo


class NetworkAbuseSuspected(_VmEvent, frozen=True, kw_only=True, tag="network_abuse_suspected"):
    """The host has dropped more of what the VM sent than a guest in order ever sends.

    Attributes:
        reason: For which most were dropped.
        dropped: Packets by reason, in the time that is looked at.
        window_s: That time, up to the event.
    """

    reason: str
    dropped: dict[str, Count]
    window_s: Count


class _HostEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    event_id: EventId
    at: Timestamp
    host_id: HostId


class GapOpened(_HostEvent, frozen=True, kw_only=True, tag="gap_opened"):
    """Frames `seq_first..seq_last` of a run did not arrive in order; they may still come."""

    run_id: RunId
    seq_first: Count
    seq_last: Count


class GapClosed(_HostEvent, frozen=True, kw_only=True, tag="gap_closed"):
    """The missing frames of a gap have all arrived."""

    run_id: RunId
    seq_first: Count
    seq_last: Count


class HostSuspected(_HostEvent, frozen=True, kw_only=True, tag="host_suspected"):
    """No frame for one second."""


class HostSilent(_HostEvent, frozen=True, kw_only=True, tag="host_silent"):
    """No frame for ten seconds."""


class HostHeard(_HostEvent, frozen=True, kw_only=True, tag="host_heard"):
    """Frames come again after a silence."""

    silent_ms: Count


class HostLost(_HostEvent, frozen=True, kw_only=True, tag="host_lost"):
    """A host is declared lost: usage answers do not wait for it.

    Attributes:
        reason: Why, for people.
        requested_by: Who says to have declared it.
        automatic: A collector did, after the configured time.
    """

    reason: str
    requested_by: str
    automatic: bool = False


class HostFound(_HostEvent, frozen=True, kw_only=True, tag="host_found"):
    """A host is lost no longer: usage answers wait for it again."""


class AdjustmentCause(StrEnum):
    """How rows came to count that usage answers did not wait for.

    Attributes:
        LATE: A host that was declared lost has sent them after all.
        RETRY: An operator has put them back; they had been refused.
        REPLAY: An operator has sent them once more.
    """

    LATE = "late"
    RETRY = "retry"
    REPLAY = "replay"


class MeteringAdjusted(_HostEvent, frozen=True, kw_only=True, tag="metering_adjusted"):
    """Rows of a host count that usage answers did not wait for: complete ones have changed.

    Attributes:
        lost_at: When the host was declared lost. Of a retry or a replay, when it was told.
        first_tick: The oldest frame's time.
        last_tick: The newest one's.
        frames: How many there were. One that was delivered twice may be told of twice.
        rows: Samples in them that were passed on, or sent.
        cause: A value of `AdjustmentCause`, or a word of a newer version.
        replay_id: Of the retry or replay, as in the audit.
        reason: Why it was made.
        uncertain: Nobody knows whether any row is new: they may have been stored before, or be
            refused again. Answers have changed only by those that are.
    """

    lost_at: Timestamp
    first_tick: Timestamp
    last_tick: Timestamp
    frames: Count
    rows: Count
    cause: str = AdjustmentCause.LATE
    replay_id: str = ""
    reason: str = ""
    uncertain: bool = False


class HostDrained(_HostEvent, frozen=True, kw_only=True, tag="host_drained"):
    """A draining host has no VM left; once per order.

    Attributes:
        reason: Why it drains, for people.
        ordered_at: Which order this answers; None for a host that drains by its settings.
    """

    reason: str = ""
    ordered_at: Timestamp | None = None


VmEvent = (
    VmCreated
    | VmStarted
    | VmPaused
    | VmResumed
    | VmSnapshotted
    | VmStopped
    | VmDeleted
    | VmFailed
    | NetworkAbuseSuspected
)
HostEvent = (
    GapOpened
    | GapClosed
    | HostSuspected
    | HostSilent
    | HostHeard
    | HostDrained
    | HostLost
    | HostFound
    | MeteringAdjusted
)

decode_vm_event: Callable[[bytes], VmEvent] = decoder(VmEvent)
decode_host_event: Callable[[bytes], HostEvent] = decoder(HostEvent)


def event_type(event: VmEvent | HostEvent) -> str:
    """The event's tag: last token of its subject."""
    return str(event.__struct_config__.tag)
