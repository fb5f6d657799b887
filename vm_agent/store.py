"""What the agent knows of its VMs, on disk: one JSON file per VM.

A file per VM rather than a database: records change a few times in a VM's life, writes of one
VM never wait for those of another, and any record can be read with `cat`. A write goes to a
temporary file, is synced and renamed, so a reader finds the old record or the new one, and a
crash at any instant loses nothing that was acknowledged.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated
from uuid import UUID

import msgspec

from runtime.errors import FatalError
from schemas.codec import decoder, encode
from schemas.errors import ErrorInfo, MalformedMessageError
from schemas.events import VmEvent
from schemas.ids import CommandId, CustomerId, VmId
from schemas.vms import Counters, ExitReason, SnapshotInfo, Timestamp, VmSpec, VmState
from vm_agent.drivers.abc import Nic, Vmm
from vm_agent.network.lease import Lease

DONE_KEPT = 16
"""Results kept per VM: more than one VM's commands that can be waiting for an ack."""


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """When an incarnation's VMM started.

    Attributes:
        boottime_ns: CLOCK_BOOTTIME: goes on over agent restarts and host suspends.
        boot_id: The host's boot; in another one the VMM cannot live any more.
        cpu_base_ns: CPU time in the VM's control group that is not the VMM's: its jailer's.
        at: Wall clock, for people.
    """

    boottime_ns: int
    boot_id: str
    at: Timestamp
    cpu_base_ns: int = 0


class Current(msgspec.Struct, frozen=True, kw_only=True):
    """The command that is being executed; found after a crash, it is half done.

    Attributes:
        incarnation: The VM's when the command began.
        digest: `digest_of` the command; empty from agents that did not note it.
    """

    command_id: CommandId
    verb: str
    incarnation: int
    digest: str = ""

    def is_of(self, command_id: UUID, digest: str) -> bool:
        """Whether it is this command, and not another one under its id."""
        same = not self.digest or not digest or self.digest == digest
        return self.command_id == command_id and same


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a command; `digest` as in `Current`."""

    command_id: CommandId
    verb: str
    state: VmState | None = None
    error: ErrorInfo | None = None
    finished_at: Timestamp
    digest: str = ""


class Settlement(msgspec.Struct, frozen=True, kw_only=True):
    """An ended incarnation whose final sample NATS has not acknowledged yet."""

    incarnation: int
    counters: Counters
    simulated: bool = False


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that has to outlive the agent about one VM.

    Attributes:
        spec: As it was asked for, with the size of the disk that the VM really has.
        vmm: The running VMM's handle; None when there is none.
        uid: User that the VM's VMMs run as, as long as the VM is here.
        lease: Slot and addresses, as long as the VM is here; None where VMs are not connected.
        quarantined: The operator wants it cut off from the network.
        nic: The running incarnation's interface; removed idempotently if found without VMM.
        snapshots: What is told of the VM's snapshots, oldest first.
        snapshot_base: Snapshot that a diff snapshot of the running incarnation would be a diff to.
        failures: How often the VM has failed in a row.
        restart_at: When it is to be started again by itself.
        current: The command being executed.
        done: Results of the last commands, newest last.
        outbox: Events that are not published yet, oldest first.
        unsettled: Final samples that are not acknowledged yet.
        answered: The command that deleted the VM is acknowledged, so it will not come again.
    """

    vm_id: VmId
    customer_id: CustomerId
    spec: VmSpec
    state: VmState
    created_at: Timestamp
    incarnation: Annotated[int, msgspec.Meta(ge=0)] = 0
    driver: str = ""
    simulated: bool = False
    uid: int | None = None
    vmm: Vmm | None = None
    lease: Lease | None = None
    quarantined: bool = False
    nic: Nic | None = None
    start: Start | None = None
    final_counters: Counters | None = None
    exit_reason: ExitReason | None = None
    last_error: ErrorInfo | None = None
    snapshots: tuple[SnapshotInfo, ...] = ()
    snapshot_base: VmId | None = None
    failures: int = 0
    restart_at: Timestamp | None = None
    current: Current | None = None
    done: tuple[Done, ...] = ()
    outbox: tuple[VmEvent, ...] = ()
    unsettled: tuple[Settlement, ...] = ()
    answered: bool = False

    @property
    def spent(self) -> bool:
        """Whether nothing of a deleted VM is left to tell anybody."""
        told = self.answered and not self.outbox and not self.unsettled
        return self.state is VmState.DELETED and told

    def result_of(self, command_id: UUID) -> Done | None:
        """The result of a command, if it is among the last ones."""
        return next((done for done in self.done if done.command_id == command_id), None)


decode_record: Callable[[bytes], Record] = decoder(Record)


class RecordStore:
    """The records of all VMs below one directory.

    Every call does blocking I/O of a few milliseconds: call it in a thread.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def load(self) -> list[Record]:
        """All records.

        Raises:
            FatalError: A record is damaged; going on would lose sight of a VM.
        """
        records = []
        for path in sorted(self._folder.glob("*.json")):
            try:
                records.append(decode_record(path.read_bytes()))
            except MalformedMessageError as error:
                raise FatalError(f"{path}: {error}; repair it or move it away") from error
        return records

    def clear_leftovers(self) -> None:
        """Remove what a crash has left half written. Only for the directory's one writer."""
        for leftover in self._folder.glob("*.tmp"):
            leftover.unlink()

    def put(self, record: Record) -> None:
        """Write a record; it is durable when this returns."""
        write_durably(self._path(record.vm_id), encode(record))

    def delete(self, vm_id: UUID) -> None:
        """Remove a record; nothing happens if there is none."""
        self._path(vm_id).unlink(missing_ok=True)
        sync_folder(self._folder)

    def _path(self, vm_id: UUID) -> Path:
        return self._folder / f"{vm_id}.json"


def write_durably(path: Path, data: bytes) -> None:
    """Replace a file's content as a whole; it is on disk when this returns. Blocks.

    Only the agent's own user can read it: a VM's record holds its metadata.
    """
    temporary = path.with_suffix(".tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    with os.fdopen(os.open(temporary, flags, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Return once the disk has what was created, renamed or removed in a directory. Blocks."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
