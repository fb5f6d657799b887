"""What is done to good messages: in bytes, in fields, in subjects, in headers, in order."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from tests.chaos.fuzzing.minting import Message, Mint, body_of, sealed, shifted, subject_of
from tests.chaos.fuzzing.wire_format import KIND_OF, KINDS, is_token, is_uuid

_HEADERS = (
    b"\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n\r\n",
    b"\r\ntraceparent: 00-\x00-zz\r\nbaggage: =,;=\xff\r\n\r\n",
    b" 409 Consumer Deleted\r\n\r\n",
    b" 100 \xff\r\nA: b\r\n\r\n",
    b" \xff\xff\xff\r\n\r\n",
    b"\r\nno colon\r\n\r\n",
    b"\r\n\xff: \xff\r\n: \r\n\r\n",
    b"\r\nStatus: 404\r\nNats-Pending-Messages: many\r\n\r\n",
    b"\r\nX: " + b"y" * 3000 + b"\r\n\r\n",
    b"\r\n" + b"tracestate: a=b\r\n" * 60 + b"\r\n",
)
_TOKENS = (
    b"\xff", b"\x00", b"a\x0bb", "\u202eboot".encode(), b"a" * 2000, b"BOOT", b"explode", b"..",
    b"-", b"boot2", b"\xef\xbd\x82oot", b"%s", b"'or'1'='1", b"0", b"null",
)  # fmt: skip
_RAW = (
    b"", b"null", b"[]", b"{}", b"0", b'""', b"\x00", b"\xef\xbb\xbf{}", b"{" * 3000,
    b"[" * 20_000, b'{"a":' * 20_000, b'{"type":"BootVm"}', b"\xff\xfe", b'"' + b"a" * 5000,
    b"9" * 5000, b'{"type":' + b"[" * 5000 + b"]" * 5000 + b"}",
)  # fmt: skip


def _nested(depth: int) -> Any:
    found: Any = 1
    for _ in range(depth):
        found = [found]
    return found


_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 1.5, -0.0, 1e308, float("nan"), float("inf"), 2**31, 2**63, 2**64,
    -(2**63) - 1, 10**400, "", " ", "acme", "ACME", "a.b", "*", ">", "../../etc/passwd", "h1", "h2",
    "a" * 63, "a" * 64, "a" * 256, "a" * 70_000, "\x00", "\n", "é", "e\u0301", "\u202e", "😀" * 64,
    "operator", "$KV.hosts.h1", [], {}, [1], {"a": 1}, {"type": "BootVm"}, _nested(50),
    _nested(900), "2026-01-01", "2026-01-01T00:00:00", "9999-12-31T23:59:59Z",
    "0001-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00",
    "2026-02-30T00:00:00Z", "now", "0195d9a0-0000-7000-8000-000000000001",
    "00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff",
    "0195D9A0-0000-7000-8000-000000000001", "0195d9a0000070008000000000000001",
    "{0195d9a0-0000-7000-8000-000000000001}", "full", "diff", "BootVm", "boot", 300, 301, "10",
)  # fmt: skip
FIXED_IDS = frozenset(
    {
        "0195d9a0-0000-7000-8000-000000000001",
        "00000000-0000-0000-0000-000000000000",
        "ffffffff-ffff-ffff-ffff-ffffffffffff",
    }
)
"""Ids among the values: of commands too, so what stands under them has to be remembered."""

_PIECES = (b'"', b"}", b"{", b",", b"\\u0000", b"NaN", b"\\")
_OF_OTHERS = ("pool", "grace_s", "snapshot_id", "kind", "unknown")
_SPEC_FIELDS = (
    "image", "vcpus", "memory_mib", "disk_mib", "network", "restart", "track_memory",
    "kernel_args", "labels", "limits", "placement",
)  # fmt: skip


class Mutator:
    """Makes bad messages of good ones.

    Args:
        mint: Makes the good ones.
        chance: Decides.
        targets: VMs that are there, with their owners.
        former: A message that was sent before and has its answer; None if there is none.
    """

    def __init__(
        self,
        mint: Mint,
        chance: random.Random,
        targets: dict[str, str],
        former: Callable[[], Message | None],
    ) -> None:
        self._mint = mint
        self._chance = chance
        self._targets = targets
        self._former = former
        self._kinds: tuple[tuple[str, int, Callable[[], Message]], ...] = (
            ("bytes", 16, self._bytes),
            ("raw", 4, self._raw),
            ("large", 1, self._large),
            ("field", 22, self._field),
            ("spec", 6, self._spec),
            ("shape", 6, self._shape),
            ("subject", 8, self._subject),
            ("swap", 6, self._swap),
            ("nobody", 9, self._nobody),
            ("foreign", 7, self._foreign),
            ("time", 7, self._time),
            ("replay", 8, self._replay),
            ("reuse", 6, self._reuse),
        )
        self._weights = [weight for _, weight, _ in self._kinds]

    def command(self) -> tuple[str, Message]:
        """A message on a command's subject, and by what it was made."""
        ((name, _, make),) = self._chance.choices(self._kinds, self._weights)
        made = make()
        if not made.header and self._chance.random() < 0.06:
            made = Message(made.subject, made.data, self._chance.choice(_HEADERS))
        return name, made

    def question(self) -> tuple[Message, bool]:
        """A question, and whether it says where to answer."""
        chance = self._chance
        vm = chance.choice((*self._targets, self._mint.uuid(), self._mint.uuid()))
        asked = self._mint.question(vm_id=vm, customer_id=self._targets.get(vm, "acme"))
        subject = f"vm.ask.{self._mint.host}.{vm}.console".encode()
        body = body_of(asked)
        match chance.randrange(9):
            case 0:
                body = self._spoilt(body)
            case 1:
                body = body_of({**asked, "customer_id": "globex2"})
            case 2:
                body = body_of({**asked, chance.choice(tuple(asked)): chance.choice(_VALUES)})
            case 3:
                subject = subject.replace(b"console", chance.choice(_TOKENS).replace(b".", b"x"))
            case 4:
                body = body_of({**asked, "vm_id": self._mint.uuid()})
            case 5:
                body += b" " * 5000
            case 6:
                return Message(subject, body), False
        return Message(subject, body), True

    def _target(self) -> dict[str, str]:
        """A VM that is there, and its owner."""
        vm = self._chance.choice(tuple(self._targets))
        return {"vm_id": vm, "customer_id": self._targets[vm]}

    def _aimed(self) -> dict[str, Any]:
        """A command that would be carried out if it were not too late."""
        kind = self._chance.choice(tuple(KINDS))
        issued, deadline = shifted(-timedelta(days=400)), shifted(-timedelta(days=399))
        times = {"issued_at": issued, "deadline": deadline}
        return self._mint.command(kind, **self._target(), **times)

    def _any(self) -> dict[str, Any]:
        return self._aimed() if self._chance.random() < 0.5 else self._mint.command()

    def _bytes(self) -> Message:
        command = self._any()
        return Message(subject_of(command), self._spoilt(body_of(command)))

    def _spoilt(self, data: bytes) -> bytes:
        chance = self._chance
        spoilt = bytearray(data)
        for _ in range(chance.choice((1, 1, 1, 2, 8))):
            at = chance.randrange(len(spoilt) + 1) if spoilt else 0
            match chance.randrange(7):
                case 0 if spoilt:
                    spoilt[min(at, len(spoilt) - 1)] ^= 1 << chance.randrange(8)
                case 1:
                    spoilt[at:at] = chance.randbytes(chance.choice((1, 4, 64)))
                case 2:
                    del spoilt[at : at + chance.choice((1, 3, 40))]
                case 3:
                    del spoilt[at:]
                case 4:
                    spoilt[at:at] = spoilt[: chance.randrange(200)]
                case 5:
                    spoilt[at:at] = chance.choice(_PIECES)
                case _:
                    spoilt += body_of(self._mint.command())
        return bytes(spoilt)

    def _raw(self) -> Message:
        raw = self._chance.choice((*_RAW, self._chance.randbytes(self._chance.randrange(300))))
        return Message(subject_of(self._any()), raw)

    def _large(self) -> Message:
        command = self._any()
        size = self._chance.choice((30_000, 262_144, 262_145, 300_000, 900_000))
        body = body_of({**command, "extra": ""})
        padding = b"x" * max(0, size - len(body))
        return Message(subject_of(command), body.replace(b'"extra":""', b'"extra":"%b"' % padding))

    def _field(self) -> Message:
        command = self._any()
        subject = subject_of(command)
        for _ in range(self._chance.choice((1, 1, 1, 2))):
            name = self._chance.choice((*command, *_OF_OTHERS))
            if self._chance.random() < 0.2:
                command.pop(name, None)
            else:
                command[name] = self._chance.choice(_VALUES)
        return Message(subject, json.dumps(command).encode())

    def _spec(self) -> Message:
        command = self._mint.command("CreateVm")
        name = self._chance.choice(_SPEC_FIELDS)
        command["spec"][name] = self._chance.choice(_VALUES)
        if self._chance.random() < 0.3:
            command["spec"]["placement"] = {"driver": self._chance.choice(_VALUES)}
        return Message(subject_of(command), json.dumps(command).encode())

    def _shape(self) -> Message:
        command = self._any()
        body = body_of(command)
        name = self._chance.choice(tuple(command))
        match self._chance.randrange(5):
            case 0:  # twice, and the last one counts
                body = body[:-1] + b',"%b":%b}' % (
                    name.encode(), json.dumps(self._chance.choice(_VALUES)).encode()
                )  # fmt: skip
            case 1:
                body = body_of(dict.fromkeys((f"f{n}" for n in range(2000)), 0) | command)
            case 2:
                body = b"[" + body + b"]"
            case 3:
                body = b" \n\t" + body + b"\r\n "
            case _:
                body = body.replace(b'"' + name.encode(), b'"' + name.upper().encode())
        return Message(subject_of(command), body)

    def _subject(self) -> Message:
        command = self._any()
        parts = subject_of(command).split(b".")
        match self._chance.randrange(6):
            case 0:
                parts[4] = self._chance.choice(_TOKENS).replace(b".", b"x")
            case 1:
                parts[3] = self._chance.choice(_TOKENS).replace(b".", b"x")
            case 2:
                parts.append(self._chance.choice(_TOKENS).replace(b".", b"x"))
            case 3:
                del parts[self._chance.choice((3, 4))]
            case 4:
                parts[3] = parts[3].upper()
            case _:
                parts[4] = self._chance.choice(tuple(KIND_OF)).encode()
        return Message(b".".join(parts), body_of(command))

    def _swap(self) -> Message:
        """One VM's command on another's subject, or for another host."""
        command, other = self._aimed(), self._aimed()
        if self._chance.random() < 0.3:
            return Message(subject_of(command), body_of({**command, "host_id": "h2"}))
        return Message(subject_of(other), body_of(command))

    def _nobody(self) -> Message:
        kind = self._chance.choice([kind for kind in KINDS if kind != "CreateVm"])
        return sealed(self._mint.command(kind))

    def _foreign(self) -> Message:
        """All in order, but for the customer."""
        command = self._mint.command(self._chance.choice(tuple(KINDS)), **self._target())
        times = {"issued_at": shifted(timedelta(0)), "deadline": shifted(timedelta(hours=2))}
        return sealed({**command, **times, "customer_id": "mallory"})

    def _time(self) -> Message:
        """All in order, but for the time."""
        command = self._mint.command(self._chance.choice(tuple(KINDS)), **self._target())
        issued, deadline = self._chance.choice(
            (
                (timedelta(hours=-2), timedelta(hours=-1)),
                (timedelta(days=-9000), timedelta(days=-8000)),
                (timedelta(hours=1), timedelta(hours=2)),
                (timedelta(days=90_000), timedelta(days=90_001)),
                (timedelta(seconds=-5), timedelta(days=2)),
                (timedelta(days=-20_000), timedelta(days=90_000)),
            )
        )
        return sealed({**command, "issued_at": shifted(issued), "deadline": shifted(deadline)})

    def _replay(self) -> Message:
        former = self._former()
        return former if former is not None else self._nobody()

    def _reuse(self) -> Message:
        """Something else under an id that has its answer."""
        former = self._former()
        try:
            old = json.loads(former.data) if former is not None else None
        except (ValueError, RecursionError):
            old = None
        if not isinstance(old, dict) or not isinstance(old.get("command_id"), str):
            return self._nobody()
        command_id = {"command_id": old["command_id"]}
        match self._chance.randrange(4):
            case 0:
                return sealed(self._mint.command(**self._target(), **command_id))
            case 1:
                return sealed(self._mint.command(**command_id))
            case 2:
                return sealed({**self._aimed(), **command_id, "customer_id": "mallory"})
            case _:
                vm, customer = old.get("vm_id"), old.get("customer_id")
                if not is_uuid(vm) or not is_token(customer):
                    return self._nobody()
                return sealed(self._mint.command(vm_id=vm, customer_id=customer, **command_id))
