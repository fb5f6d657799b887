"""Commands to an agent: imperative, idempotent by `command_id`, ordered per VM.

The W3C trace context travels in the NATS headers, not in the message.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Annotated, Final

import msgspec

from schemas.codec import decoder
from schemas.ids import CommandId, CustomerId, HostId, VmId
from schemas.units import KIB
from schemas.vms import SnapshotKind, Timestamp, VmSpec
from schemas.wishes import PlacedWord

MAX_COMMAND_BYTES: Final = 256 * KIB
"""The largest that can be made of a spec has less than half of it."""

MAX_COMMAND_LIFE_S: Final = 86_400
"""The longest from issue to deadline: far less than results are kept for, so that a command which
comes again finds its result or is too late."""


_Place = Annotated[str, msgspec.Meta(pattern=r"^([a-z0-9][a-z0-9-]{0,62})?$(?!\n)")]


class _Command(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """What every command carries.

    Attributes:
        deadline: After this instant the agent answers `deadline_exceeded` and does nothing.
        requested_by: Subject of the token or the service that asked.
    """

    command_id: CommandId
    customer_id: CustomerId
    vm_id: VmId
    host_id: HostId
    issued_at: Timestamp
    deadline: Timestamp
    requested_by: Annotated[str, msgspec.Meta(max_length=255)] = ""

    @property
    def verb(self) -> str:
        """The word that stands for this command in subjects and operations."""
        return VERB_OF[type(self)]


class CreateVm(_Command, frozen=True, kw_only=True, tag="CreateVm"):
    """Reserve resources and prepare disks; nothing runs yet.

    Attributes:
        placed: Why it was placed here, for the operation.
        pool: The pool that the host must be in; empty from gateways that do not say.
        region: The same of the region.
    """

    spec: VmSpec
    placed: PlacedWord = ""
    pool: _Place = ""
    region: _Place = ""


class BootVm(_Command, frozen=True, kw_only=True, tag="BootVm"):
    """Start the VMM and the guest: a new incarnation."""


class ShutdownVm(_Command, frozen=True, kw_only=True, tag="ShutdownVm"):
    """Ask the guest to stop; end the VMM after `grace_s` seconds if it did not."""

    grace_s: Annotated[float, msgspec.Meta(ge=0, le=300)] = 10.0


class DeleteVm(_Command, frozen=True, kw_only=True, tag="DeleteVm"):
    """Free everything the VM holds; a running VMM is ended first."""


class PauseVm(_Command, frozen=True, kw_only=True, tag="PauseVm"):
    """Stop the vCPUs; memory stays allocated and billed."""


class ResumeVm(_Command, frozen=True, kw_only=True, tag="ResumeVm"):
    """Let the vCPUs of a paused VM go on."""


class RebootVm(_Command, frozen=True, kw_only=True, tag="RebootVm"):
    """Shut down and boot again: a new incarnation."""

    grace_s: Annotated[float, msgspec.Meta(ge=0, le=300)] = 10.0


class SnapshotVm(_Command, frozen=True, kw_only=True, tag="SnapshotVm"):
    """Keep the state of a VM and its disk under a snapshot id; the guest stands still meanwhile.

    A diff is as good as a full one to restore from; it is quicker, and needs `track_memory`.
    """

    snapshot_id: VmId
    kind: SnapshotKind = SnapshotKind.FULL


class RestoreVm(_Command, frozen=True, kw_only=True, tag="RestoreVm"):
    """Start a stopped VM from a snapshot of its own, or of another VM of its owner on this host."""

    snapshot_id: VmId


class DiscardSnapshot(_Command, frozen=True, kw_only=True, tag="DiscardSnapshot"):
    """Throw a snapshot of this VM away."""

    snapshot_id: VmId


Command = (
    CreateVm
    | BootVm
    | ShutdownVm
    | DeleteVm
    | PauseVm
    | ResumeVm
    | RebootVm
    | SnapshotVm
    | RestoreVm
    | DiscardSnapshot
)

VERB_OF: dict[type, str] = {
    CreateVm: "create",
    BootVm: "boot",
    ShutdownVm: "shutdown",
    DeleteVm: "delete",
    PauseVm: "pause",
    ResumeVm: "resume",
    RebootVm: "reboot",
    SnapshotVm: "snapshot",
    RestoreVm: "restore",
    DiscardSnapshot: "discard",
}
COMMAND_OF: dict[str, type] = {verb: kind for kind, verb in VERB_OF.items()}

decode_command: Callable[[bytes], Command] = decoder(Command)


def digest_of(command: Command) -> str:
    """What a command is to do, in 32 characters: equal for all deliveries of one command.

    Times, who asked and why a host was chosen are no part of it, nor are labels: a gateway that
    sends a command again makes it anew, of what stands about the VM by then.
    """
    effect = msgspec.to_builtins(command)
    for name in ("issued_at", "deadline", "requested_by", "placed", "pool", "region"):
        effect.pop(name, None)
    if isinstance(command, CreateVm):
        effect["spec"].pop("labels", None)
    return hashlib.sha256(_canonical.encode(effect)).hexdigest()[:32]


_canonical = msgspec.json.Encoder(order="sorted")
