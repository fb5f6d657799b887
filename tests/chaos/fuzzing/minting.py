"""Messages: commands and questions as they should be, made without the product's code."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from tests.chaos.fuzzing.wire_format import KINDS


@dataclass(frozen=True, slots=True)
class Message:
    """One to send; `reply` only of questions."""

    subject: bytes
    data: bytes
    header: bytes = b""


class Mint:
    """Makes good commands.

    Args:
        host: For which host.
        chance: Decides what is left open.
    """

    def __init__(self, host: str, chance: random.Random) -> None:
        self.host = host
        self._chance = chance

    def uuid(self) -> str:
        """A fresh UUIDv7."""
        millis = int(datetime.now(tz=UTC).timestamp() * 1000)
        bits = millis << 80 | self._chance.getrandbits(80)
        bits = bits & ~(0xF << 76) | 7 << 76
        return str(UUID(int=bits & ~(0x3 << 62) | 2 << 62))

    def command(self, verb_of: str = "", **fields: Any) -> dict[str, Any]:
        """A command of a kind, or of any, to a VM that nobody has."""
        kind = verb_of or self._chance.choice(tuple(KINDS))
        now = datetime.now(tz=UTC)
        made: dict[str, Any] = {
            "type": kind,
            "command_id": self.uuid(),
            "customer_id": self._chance.choice(("acme", "globex", "initech")),
            "vm_id": self.uuid(),
            "host_id": self.host,
            "issued_at": _stamp(now),
            "deadline": _stamp(now + timedelta(hours=2)),
            "requested_by": self._chance.choice(("ann", "bob", "a service", "")),
        }
        if kind == "CreateVm":
            made["spec"] = {"image": "tiny", "memory_mib": 64, "labels": {"app": "x"}}
            # A good create of a VM that nobody has would make one.
            made["deadline"] = _stamp(now - timedelta(hours=1))
            made["issued_at"] = _stamp(now - timedelta(hours=2))
        elif kind in ("ShutdownVm", "RebootVm"):
            made["grace_s"] = self._chance.choice((0, 0.5, 10))
        elif kind in ("SnapshotVm", "RestoreVm", "DiscardSnapshot"):
            made["snapshot_id"] = self.uuid()
        return {**made, **fields}

    def question(self, **fields: Any) -> dict[str, Any]:
        """A question about a console."""
        made = {"customer_id": "acme", "vm_id": self.uuid(), "offset": 0, "limit_bytes": 100}
        return {**made, **fields}


def sealed(command: dict[str, Any], header: bytes = b"") -> Message:
    """A command on its own subject."""
    return Message(subject_of(command), body_of(command), header)


def subject_of(command: dict[str, Any]) -> bytes:
    """Where it belongs."""
    verb = KINDS[command["type"]]
    return f"vm.cmd.{command['host_id']}.{command['vm_id']}.{verb}".encode()


def body_of(message: dict[str, Any]) -> bytes:
    """As JSON."""
    return json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode()


def shifted(delta: timedelta) -> str:
    """A time so far from now."""
    return _stamp(datetime.now(tz=UTC) + delta)


def _stamp(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")
