"""What a command is on the bus, written down once more from the documentation.

Nothing here comes from the product's code, so that a mistake there is no mistake here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

KINDS: Mapping[str, str] = {
    "CreateVm": "create",
    "BootVm": "boot",
    "ShutdownVm": "shutdown",
    "DeleteVm": "delete",
    "PauseVm": "pause",
    "ResumeVm": "resume",
    "RebootVm": "reboot",
    "SnapshotVm": "snapshot",
    "RestoreVm": "restore",
    "DiscardSnapshot": "discard",
}
KIND_OF: Mapping[str, str] = {verb: kind for kind, verb in KINDS.items()}
MAX_BYTES = 256 * 1024
MAX_QUESTION_BYTES = 4096
AHEAD = timedelta(seconds=60)
LIFE = timedelta(days=1)

_TOKEN = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_ANY_UUID = re.compile(
    r"[0-9a-f]{32}|[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE
)
_TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d+))?(Z|z|[+-]\d\d:?\d\d)", re.ASCII
)
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class MalformedError(Exception):
    """It is no command."""


class UnsureError(Exception):
    """The documentation does not say what it is."""


def is_token(value: Any) -> bool:
    """Whether it is an id of a customer, a host, an image."""
    return isinstance(value, str) and _TOKEN.fullmatch(value) is not None


def is_uuid(value: Any) -> bool:
    """Whether it is a UUID in its canonical form."""
    return isinstance(value, str) and _UUID.fullmatch(value) is not None


def uuid_of(value: Any) -> str:
    """A UUID in any of the usual forms, in its canonical one."""
    if not isinstance(value, str) or not _ANY_UUID.fullmatch(value):
        raise MalformedError("no UUID")
    digits = value.replace("-", "").lower()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def time_of(value: Any) -> datetime:
    """An RFC 3339 time."""
    found = _TIME.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise MalformedError("no time")
    day, clock, fraction, zone = found.groups()
    zone = "+00:00" if zone in "Zz" else zone
    try:
        return datetime.fromisoformat(f"{day}T{clock}.{(fraction or '0')[:6]:0<6}{zone}")
    except ValueError as error:
        raise MalformedError("no time") from error


def parse(data: bytes) -> Any:
    """The JSON in a message.

    Raises:
        MalformedError: There is none.
        UnsureError: There may be, for those who look less closely.
    """
    try:
        text, exact = data.decode(), True
    except UnicodeDecodeError:
        text, exact = data.decode(errors="replace"), False
    try:
        found = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_Object)
    except (ValueError, RecursionError) as error:
        raise MalformedError("no JSON") from error
    if not exact or _SURROGATE.search(data):
        raise UnsureError
    return found


def check_command(message: Any) -> dict[str, Any]:
    """The command in parsed JSON, ids in canonical form, defaults filled in.

    Raises:
        MalformedError: It is none.
    """
    if not isinstance(message, dict):
        raise MalformedError("no object")
    kind = message.get("type")
    if not isinstance(kind, str) or kind not in KINDS:
        raise MalformedError("no kind of command")
    if any(name == "type" and value != kind for name, value in getattr(message, "earlier", ())):
        raise MalformedError("two kinds of command")
    fields = {**_COMMON, **_OWN.get(kind, {})}
    return {"type": kind, **_checked(message, fields)}


def check_question(message: Any) -> dict[str, Any]:
    """The same of a question about a console."""
    return _checked(message, _QUESTION)


class _Object(dict[str, Any]):
    """What the last one of each name says; what the earlier ones say must be right, too."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.earlier = [] if len(self) == len(pairs) else pairs


def _no_constant(word: str) -> Any:
    raise ValueError(word)


Check = Callable[[Any], Any]
_REQUIRED = object()


def _checked(message: Any, fields: Mapping[str, tuple[Any, Check]]) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise MalformedError("no object")
    for name, value in getattr(message, "earlier", ()):
        if name in fields:
            fields[name][1](value)
    found = {}
    for name, (default, check) in fields.items():
        if name in message:
            found[name] = check(message[name])
        elif default is _REQUIRED:
            raise MalformedError(f"{name} is missing")
        else:
            found[name] = default
    return found


def _that(condition: Callable[[Any], bool]) -> Check:
    def check(value: Any) -> Any:
        if not condition(value):
            raise MalformedError("out of range")
        return value

    return check


def _whole(low: int, high: int) -> Check:
    return _that(lambda v: type(v) is int and low <= v <= high)


def _text(pattern: str) -> Check:
    matches = re.compile(pattern, re.ASCII).fullmatch
    return _that(lambda v: isinstance(v, str) and matches(v) is not None)


def _pairs(most: int, names: str, values: Check) -> Check:
    named = _text(names)

    def check(value: Any) -> Any:
        if not isinstance(value, dict) or len(value) > most:
            raise MalformedError("no pairs")
        return {named(name): values(one) for name, one in value.items()}

    return check


_FLAG = _that(lambda v: isinstance(v, bool))
_TOKENS = _that(is_token)
_LABELS = (r"[a-z][a-z0-9_-]{0,62}", _text(r"[A-Za-z0-9._-]{0,63}"))
_SECONDS = _that(lambda v: type(v) in (int, float) and 0 <= v <= 300)
_LIMITS = {
    "disk_bytes_per_s": (0, _whole(0, 100_000_000_000)),
    "disk_ops_per_s": (0, _whole(0, 10_000_000)),
    "net_rx_bytes_per_s": (0, _whole(0, 100_000_000_000)),
    "net_tx_bytes_per_s": (0, _whole(0, 100_000_000_000)),
}
_PLACEMENT = {
    "host_labels": ({}, _pairs(8, *_LABELS)),
    "driver": ("", _text(r"[a-z0-9-]{0,32}")),
    "arch": ("", _text(r"[a-z0-9_]{0,16}")),
    "apart_by": ("", _text(r"([a-z][a-z0-9_-]{0,62})?")),
    "apart": ("preferred", _text(r"preferred|required")),
}
_SPEC: dict[str, tuple[Any, Check]] = {
    "image": (_REQUIRED, _TOKENS),
    "vcpus": (1, _whole(1, 32)),
    "memory_mib": (128, _whole(16, 1_048_576)),
    "disk_mib": (0, _whole(0, 1_048_576)),
    "network": (True, _FLAG),
    "restart": ("never", _text(r"never|on-failure")),
    "track_memory": (False, _FLAG),
    "kernel_args": ({}, _pairs(16, r"[a-z][a-z0-9_]{0,31}", _text(r"[A-Za-z0-9._:-]{0,64}"))),
    "labels": ({}, _pairs(32, *_LABELS)),
    "limits": (_checked({}, _LIMITS), lambda v: _checked(v, _LIMITS)),
    "placement": (_checked({}, _PLACEMENT), lambda v: _checked(v, _PLACEMENT)),
}
_PLACE = _text(r"([a-z0-9][a-z0-9-]{0,62})?")
_COMMON: dict[str, tuple[Any, Check]] = {
    "command_id": (_REQUIRED, uuid_of),
    "customer_id": (_REQUIRED, _TOKENS),
    "vm_id": (_REQUIRED, uuid_of),
    "host_id": (_REQUIRED, _TOKENS),
    "issued_at": (_REQUIRED, time_of),
    "deadline": (_REQUIRED, time_of),
    "requested_by": ("", _that(lambda v: isinstance(v, str) and len(v) <= 255)),
}
_OWN: dict[str, dict[str, tuple[Any, Check]]] = {
    "CreateVm": {
        "spec": (_REQUIRED, lambda v: _checked(v, _SPEC)),
        "placed": ("", _that(lambda v: isinstance(v, str) and len(v) <= 64)),
        "pool": ("", _PLACE),
        "region": ("", _PLACE),
    },
    "ShutdownVm": {"grace_s": (10.0, _SECONDS)},
    "RebootVm": {"grace_s": (10.0, _SECONDS)},
    "SnapshotVm": {
        "snapshot_id": (_REQUIRED, uuid_of),
        "kind": ("full", _text(r"full|diff")),
    },
    "RestoreVm": {"snapshot_id": (_REQUIRED, uuid_of)},
    "DiscardSnapshot": {"snapshot_id": (_REQUIRED, uuid_of)},
}
_OFFSET = _that(lambda v: v is None or (type(v) is int and 0 <= v < 2**63))
_QUESTION: dict[str, tuple[Any, Check]] = {
    "customer_id": (_REQUIRED, _TOKENS),
    "vm_id": (_REQUIRED, uuid_of),
    "offset": (None, _OFFSET),
    "tail_bytes": (None, _OFFSET),
    "limit_bytes": (65_536, _whole(1, 65_536)),
}
