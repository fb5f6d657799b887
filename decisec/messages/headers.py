"""Headers of messages on the bus, and parameters of subjects, with what they mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from schemas.frames import (
    HEADER_COMPLETE_MS,
    HEADER_DETAIL,
    HEADER_ORIGIN_SEQUENCE,
    HEADER_ORIGIN_STREAM,
    HEADER_REASON,
    HEADER_REPLAY,
    RejectReason,
)
from schemas.idempotency import REPLAYED_HEADER
from schemas.replays import HEADER_REPLAY_REASON, HEADER_RETRY, Refused

MSG_ID = "Nats-Msg-Id"
TRACED = ("traceparent", "tracestate")
STORED = (MSG_ID, *TRACED)
"""Of what is put into a stream."""
REPLAYED = (HEADER_REPLAY,)
PUT_BACK = (HEADER_REPLAY, HEADER_RETRY, HEADER_REPLAY_REASON)
REJECTED = (HEADER_REASON, HEADER_DETAIL, HEADER_ORIGIN_STREAM, HEADER_ORIGIN_SEQUENCE)
TOLD_ONCE_MORE = (
    "Nats-Stream",
    "Nats-Subject",
    "Nats-Sequence",
    "Nats-Last-Sequence",
    "Nats-Time-Stamp",
)
EXPECTED = ("Nats-Expected-Last-Subject-Sequence",)
OPERATION = "KV-Operation"

_WHOLE = {"type": "string", "pattern": "^[0-9]+$"}
_TEXT = {"type": "string"}

HEADERS: Mapping[str, Mapping[str, Any]] = {
    MSG_ID: _TEXT
    | {"description": "Of messages with one id the stream keeps the first, within its window"},
    "traceparent": _TEXT | {"description": "W3C trace context, where the sender is traced"},
    "tracestate": _TEXT | {"description": "W3C trace context, likewise"},
    HEADER_COMPLETE_MS: _WHOLE
    | {
        "description": "Unix ms, a claim of the host: its frames with an earlier tick are all in "
        "`METRICS_RAW`, or will never come"
    },
    HEADER_REPLAY: _TEXT
    | {"description": "An operator sent it once more: the id of the act, as in the audit"},
    HEADER_RETRY: _TEXT
    | {
        "enum": [word.value for word in Refused],
        "description": "It had been refused: as its host had sent it, or as a replay had",
    },
    HEADER_REPLAY_REASON: _TEXT
    | {"description": "Why it is put back; what is not printable ASCII is percent-encoded"},
    HEADER_REASON: _TEXT
    | {"enum": [word.value for word in RejectReason], "description": "Why it was refused"},
    HEADER_DETAIL: _TEXT | {"description": "The same for people: one line of printable ASCII"},
    HEADER_ORIGIN_STREAM: _TEXT | {"description": "The stream that it came from"},
    HEADER_ORIGIN_SEQUENCE: _WHOLE | {"description": "Its place there"},
    REPLAYED_HEADER: _TEXT
    | {
        "enum": ["true"],
        "description": "The answer that an earlier request with the idempotency key got",
    },
    "Nats-Stream": _TEXT | {"description": "Where it is stored"},
    "Nats-Subject": _TEXT | {"description": "The subject on which it was published"},
    "Nats-Sequence": _WHOLE | {"description": "Its place in the stream"},
    "Nats-Last-Sequence": _WHOLE
    | {
        "description": "The place of the message before it on the same subject, 0 if it is the "
        "first"
    },
    "Nats-Time-Stamp": _TEXT | {"description": "When it was stored, RFC 3339"},
    "Nats-Expected-Last-Subject-Sequence": _WHOLE
    | {"description": "It is stored only if the key still stands at this revision"},
    OPERATION: _TEXT
    | {"enum": ["DEL", "PURGE"], "description": "The key is removed: the payload is empty"},
}
"""JSON Schema of each. All values are text."""

REQUIRED = frozenset(REJECTED)
"""Headers that are never missing where they are said of a message."""


class Parameter(NamedTuple):
    """A part of a subject.

    Attributes:
        words: What it is.
        example: One value.
    """

    words: str
    example: str


VM = "019c1372-8b40-7c51-9a56-6d1b2f0e4c11"
COLLECTOR = "019c1370-0000-7000-8000-00000000c011"
COMMAND = "019c1375-22f9-7f64-b3a1-5c0de8a94b72"

PARAMETERS: Mapping[str, Parameter] = {
    "customer": Parameter("A customer's id; in the audit also `operator`.", "acme"),
    "vm": Parameter("A VM's id, a UUID in lower case.", VM),
    "host": Parameter("A host's id.", "rack-3-host-7"),
    "verb": Parameter("What is to be done.", "boot"),
    "type": Parameter("Which event it is: `type` of the payload.", "vm_started"),
    "partition": Parameter("The part of the stream that the host belongs to.", "3"),
    "collector": Parameter("A collector's id, new at each start.", COLLECTOR),
    "reason": Parameter("Why it was refused.", "unknown_vm"),
    "action": Parameter("What was done, such as `create-vm`.", "create-vm"),
    "question": Parameter("What is asked.", "status"),
    "command": Parameter("A command's id, a UUID.", COMMAND),
    "by": Parameter("What is revoked.", "customer"),
    "value": Parameter("The customer, or a hash of the token's id or subject.", "acme"),
    "owner": Parameter("A customer's id; `_operators` for operators.", "acme"),
    "digest": Parameter("A hash of the idempotency key.", "0f9d1a36c8a14c0b8f0b8d6b0a4f2c11"),
    "secret": Parameter("What the secret is for.", "event-ids"),
    "plan": Parameter("A price plan's id.", "standard"),
}  # fmt: skip
