"""What a message from the bus must be before anything is done about it. Pure functions, no I/O.

A message is read in the order of its cost: subject, size, JSON, types, and whether both say the
same. A command is then held against what is known of its VM and of the time.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

import msgspec

from runtime.errors import PoisonError
from schemas.codec import decoder
from schemas.commands import (
    MAX_COMMAND_BYTES,
    MAX_COMMAND_LIFE_S,
    VERB_OF,
    Command,
    CreateVm,
    decode_command,
)
from schemas.errors import ErrorCode, ErrorInfo, InvalidIdError, MalformedMessageError
from schemas.hosts import Operation
from schemas.ids import parse_uuid, token
from schemas.subjects import CommandAddress, parse_vm_command
from schemas.vms import VmState
from vm_agent.store import Record

MAX_AHEAD: Final = timedelta(seconds=60)
"""How far the clock of a gateway may be ahead of this host's."""

_MAX_LIFE: Final = timedelta(seconds=MAX_COMMAND_LIFE_S)
_SHORT = 255
_VERBS = {kind.__name__: verb for kind, verb in VERB_OF.items()}


class Reason(StrEnum):
    """Why a message is refused.

    Attributes:
        BAD_SUBJECT: No subject of a command or question.
        TOO_LARGE: Not read, for its size.
        NOT_JSON: Cannot be read.
        INVALID_MESSAGE: Not of the type that it should have.
        WRONG_HOST: For another host.
        SUBJECT_MISMATCH: Subject and body disagree on VM or verb.
        FOREIGN_VM: The customer does not own the VM.
        NO_SUCH_VM: There is none, or none any more.
        EXPIRED: Its deadline had passed before it began.
        FROM_THE_FUTURE: It is issued later than now.
        ENDLESS: From issue to deadline is longer than any command's life.
        ID_REUSED: Under its id another command was given.
        REPEATED: It has its result already; that is told again.
        TOO_MANY: Too many questions at the same time.
        NO_REPLY: A question that says nowhere to answer.
    """

    BAD_SUBJECT = "bad_subject"
    TOO_LARGE = "too_large"
    NOT_JSON = "not_json"
    INVALID_MESSAGE = "invalid_message"
    WRONG_HOST = "wrong_host"
    SUBJECT_MISMATCH = "subject_mismatch"
    FOREIGN_VM = "foreign_vm"
    NO_SUCH_VM = "no_such_vm"
    EXPIRED = "expired"
    FROM_THE_FUTURE = "from_the_future"
    ENDLESS = "endless"
    ID_REUSED = "id_reused"
    REPEATED = "repeated"
    TOO_MANY = "too_many"
    NO_REPLY = "no_reply"


@dataclass(frozen=True, slots=True)
class Objection:
    """Why a command is not carried out, and what its sender is told.

    Attributes:
        state: The VM's; None where it must not be told.
    """

    reason: Reason
    error: ErrorInfo
    state: VmState | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What a message says of itself, as far as that can be read. None of it need be true."""

    command_id: UUID | None = None
    customer_id: str = ""
    vm_id: UUID | None = None
    verb: str = ""
    requested_by: str = ""

    @classmethod
    def of(cls, command: Command) -> Claims:
        """What a command says."""
        return cls(
            command_id=command.command_id,
            customer_id=command.customer_id,
            vm_id=command.vm_id,
            verb=command.verb,
            requested_by=command.requested_by,
        )


class _Loose(msgspec.Struct, frozen=True):
    """Any object."""

    type: Any = None
    command_id: Any = None
    customer_id: Any = None
    vm_id: Any = None
    host_id: Any = None
    requested_by: Any = None


_decode_loose = decoder(_Loose)


def read_command(host_id: str, subject: str, data: bytes) -> Command:
    """The command in a message, if it is one for this host and as its subject says.

    Raises:
        MalformedMessageError, PoisonError: It is not; `reason` is one of `Reason`.
    """
    address = parse_vm_command(subject)
    check_size(data, MAX_COMMAND_BYTES)
    command = decode_command(data)
    if not command.host_id == address.host_id == host_id:
        raise PoisonError(Reason.WRONG_HOST, f"the command is for host {command.host_id}")
    said = (command.vm_id, command.verb)
    if said != (address.vm_id, address.verb):
        raise PoisonError(
            Reason.SUBJECT_MISMATCH, f"the message is for {said[0]} {said[1]}, not as its subject"
        )
    return command


def check_size(data: bytes, most: int) -> None:
    """Refuse what is not worth reading.

    Raises:
        PoisonError: `too_large`.
    """
    if len(data) > most:
        raise PoisonError(Reason.TOO_LARGE, f"{len(data)} bytes, at most {most}")


def claims_in(host_id: str, subject: str, data: bytes) -> Claims:
    """What can be read of a message that is no command.

    `command_id` only where nothing contradicts that it was meant for host, VM and verb of the
    subject: what is under another's id is not this message's to tell of.
    """
    try:
        loose = _decode_loose(data) if len(data) <= MAX_COMMAND_BYTES else _Loose()
    except MalformedMessageError:
        loose = _Loose()
    said = _VERBS.get(loose.type, "") if isinstance(loose.type, str) else ""
    try:
        address: CommandAddress | None = parse_vm_command(subject)
    except MalformedMessageError:
        address = None
    own = (
        address is not None
        and (loose.host_id, loose.vm_id) == (host_id, str(address.vm_id))
        and said in ("", address.verb)
    )
    return Claims(
        command_id=_uuid(loose.command_id) if own else None,
        customer_id=_token(loose.customer_id),
        vm_id=address.vm_id if address is not None else None,
        verb=said,
        requested_by=loose.requested_by[:_SHORT] if isinstance(loose.requested_by, str) else "",
    )


def is_same(operation: Operation, command: Command) -> bool:
    """Whether what stands under a command's id is about this command, as far as it says."""
    return (
        operation.customer_id == command.customer_id
        and operation.vm_id == command.vm_id
        and operation.host_id == command.host_id
        and operation.verb == command.verb
    )


def objection(command: Command, record: Record | None, now: datetime) -> Objection | None:
    """What speaks against carrying out a command that has no result yet; None if nothing does.

    Args:
        command: As its subject says.
        record: The record of its VM, whoever owns it; None if there is none.
        now: The wall clock.
    """
    missing = record is None or record.state is VmState.DELETED
    foreign = record is not None and record.customer_id != command.customer_id
    if foreign or (missing and not (record is None and isinstance(command, CreateVm))):
        # One answer for both, so that nobody learns which ids there are.
        return Objection(
            Reason.FOREIGN_VM if foreign else Reason.NO_SUCH_VM,
            ErrorInfo(code=ErrorCode.NOT_FOUND, message="there is no such VM"),
        )
    state = record.state if record is not None else None
    if now > command.deadline:
        said = "the command's deadline passed before it began"
        return _late(Reason.EXPIRED, ErrorCode.DEADLINE_EXCEEDED, said, state)
    if command.issued_at > now + MAX_AHEAD:
        said = "the command is from the future: the clocks of gateway and host disagree"
        return _late(Reason.FROM_THE_FUTURE, ErrorCode.UNAVAILABLE, said, state)
    if command.deadline - command.issued_at > _MAX_LIFE:
        said = f"no command may take longer than {MAX_COMMAND_LIFE_S} s to begin"
        return _late(Reason.ENDLESS, ErrorCode.BAD_REQUEST, said, state)
    return None


def _late(reason: Reason, code: ErrorCode, message: str, state: VmState | None) -> Objection:
    return Objection(reason, ErrorInfo(code=code, message=message), state)


def _uuid(value: Any) -> UUID | None:
    try:
        return parse_uuid(value) if isinstance(value, str) else None
    except InvalidIdError:
        return None


def _token(value: Any) -> str:
    try:
        return token(value) if isinstance(value, str) else ""
    except InvalidIdError:
        return ""
