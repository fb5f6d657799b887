"""What must come of each message: decided before it is sent, and without the product's code."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from tests.chaos.fuzzing.wire_format import (
    AHEAD,
    KIND_OF,
    KINDS,
    LIFE,
    MAX_BYTES,
    MAX_QUESTION_BYTES,
    MalformedError,
    UnsureError,
    check_command,
    check_question,
    is_token,
    is_uuid,
    parse,
)

MALFORMED = "malformed"
"""`not_json` or `invalid_message`: which of two faults is found first is nobody's business."""

CARRIED_OUT = "carried out"
ANSWERED = "answered"
_MARGIN = timedelta(minutes=5)
"""A message that may wait so long must not change its meaning meanwhile."""


class UndecidedError(Exception):
    """It depends on the moment, or on what is not said anywhere: not worth sending."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What must come of a message.

    Attributes:
        outcome: A reason of the refusals, `CARRIED_OUT`, or `ANSWERED`.
        operation: Id under which an operation must say failed; empty if none may be written.
        code: The operation's.
        identity: What stands under the id from then on.
    """

    outcome: str
    operation: str = ""
    code: str = ""
    identity: tuple[str, ...] = ()


@dataclass(slots=True)
class Model:
    """What is known of one host.

    Attributes:
        host: Its name.
        owners: VMs that are there, by id.
        answered: What stands under a command's id.
        unsettled: Ids under which something is about to stand.
    """

    host: str
    owners: dict[str, str] = field(default_factory=dict)
    answered: dict[str, tuple[str, ...]] = field(default_factory=dict)
    unsettled: set[str] = field(default_factory=set)

    def judge(self, subject: bytes, data: bytes, now: datetime) -> Verdict:
        """What must come of a message on a command's subject.

        Raises:
            UndecidedError: Send another one.
        """
        address = _address(subject)
        if address is None:
            return Verdict("bad_subject")
        vm, verb = address
        if len(data) > MAX_BYTES:
            return Verdict("too_large")
        try:
            message = parse(data)
        except MalformedError:
            return Verdict(MALFORMED)
        except UnsureError as error:
            raise UndecidedError from error
        try:
            command = check_command(message)
        except MalformedError:
            return self._broken(message, vm, verb)
        if command["host_id"] != self.host:
            return Verdict("wrong_host")
        if (command["vm_id"], KINDS[command["type"]]) != (vm, verb):
            return Verdict("subject_mismatch")
        return self._command(command, now)

    def ask(self, subject: bytes, data: bytes, *, reply: bool) -> Verdict:
        """What must come of a question."""
        if not reply:
            return Verdict("no_reply")
        parts = subject.split(b".")
        if len(parts) != 5 or not is_uuid(_text(parts[3])) or parts[4] != b"console":
            return Verdict("bad_subject")
        if len(data) > MAX_QUESTION_BYTES:
            return Verdict("too_large")
        try:
            question = check_question(parse(data))
        except MalformedError:
            return Verdict(MALFORMED)
        except UnsureError as error:
            raise UndecidedError from error
        if question["vm_id"] != _text(parts[3]):
            return Verdict("subject_mismatch")
        owner = self.owners.get(question["vm_id"])
        if owner is None:
            return Verdict("no_such_vm")
        return Verdict(ANSWERED if owner == question["customer_id"] else "foreign_vm")

    def _broken(self, message: Any, vm: str, verb: str) -> Verdict:
        """A command that cannot be read: its sender hears of it where that is certainly he."""
        if not isinstance(message, dict):
            return Verdict(MALFORMED)
        kind = message.get("type")
        said = KINDS.get(kind, "") if isinstance(kind, str) else ""
        command_id, customer = message.get("command_id"), message.get("customer_id")
        if not isinstance(command_id, str) or not isinstance(customer, str):
            return Verdict(MALFORMED)
        told = (
            is_uuid(command_id)
            and is_token(customer)
            and message.get("host_id") == self.host
            and message.get("vm_id") == vm
            and said in ("", verb)
        )
        if not told or command_id in self.answered:
            return Verdict(MALFORMED)
        if command_id in self.unsettled:
            raise UndecidedError
        identity = (customer, vm, self.host, said or "unknown", "")
        return Verdict(MALFORMED, command_id, "bad_request", identity)

    def _command(self, command: dict[str, Any], now: datetime) -> Verdict:
        command_id, vm = command["command_id"], command["vm_id"]
        if command_id in self.unsettled:
            raise UndecidedError
        identity = identity_of(command)
        standing = self.answered.get(command_id)
        if standing is not None:
            if standing[:4] != identity[:4] or (standing[4] and standing[4] != identity[4]):
                return Verdict("id_reused")
            return Verdict("repeated")
        owner = self.owners.get(vm)
        if owner is not None and owner != command["customer_id"]:
            return Verdict("foreign_vm", command_id, "not_found", identity)
        if owner is None and command["type"] != "CreateVm":
            return Verdict("no_such_vm", command_id, "not_found", identity)
        for reason, code, ahead in (
            ("expired", "deadline_exceeded", now - command["deadline"]),
            ("from_the_future", "unavailable", command["issued_at"] - now - AHEAD),
        ):
            if ahead > _MARGIN:
                return Verdict(reason, command_id, code, identity)
            if ahead > -_MARGIN / 5:
                raise UndecidedError
        if command["deadline"] - command["issued_at"] > LIFE:
            return Verdict("endless", command_id, "bad_request", identity)
        return Verdict(CARRIED_OUT, command_id, "", identity)


def identity_of(command: dict[str, Any]) -> tuple[str, ...]:
    """Customer, VM, host, verb, and what it is to do."""
    effect = {
        name: value
        for name, value in command.items()
        if name not in ("issued_at", "deadline", "requested_by", "placed", "pool", "region")
    }
    if "spec" in effect:
        effect["spec"] = {n: v for n, v in effect["spec"].items() if n != "labels"}
    if "grace_s" in effect:
        effect["grace_s"] = float(effect["grace_s"])
    return (
        command["customer_id"],
        command["vm_id"],
        command["host_id"],
        KINDS[command["type"]],
        json.dumps(effect, sort_keys=True),
    )


def _address(subject: bytes) -> tuple[str, str] | None:
    parts = [_text(part) for part in subject.split(b".")]
    if len(parts) != 5 or not is_uuid(parts[3]) or parts[4] not in KIND_OF:
        return None
    return parts[3], parts[4]


def _text(token: bytes) -> str:
    return token.decode("utf-8", "replace")
