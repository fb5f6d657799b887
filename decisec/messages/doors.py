"""Channels on which somebody asks and is answered: customers, services, operators."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from decisec.messages.channel import NOTHING, Channel, Message, one
from decisec.messages.headers import COMMAND, TRACED, VM
from schemas.audit_log import AuditQuery, AuditReply
from schemas.consoles import ConsoleQuery, ConsoleReply
from schemas.event_lists import EventsQuery, EventsReply
from schemas.idempotency import REPLAYED_HEADER
from schemas.limits import Levels
from schemas.network_checks import NetworkQuery, NetworkReply
from schemas.places import PlaceQuestion, PlaceReply
from schemas.requests import REQUESTS, Reply, Verb
from schemas.series import SeriesQuery, SeriesReply
from schemas.store import StoreQuestion, StoreReply, StoreVerb
from schemas.usage import UsageQuery, UsageReply
from schemas.usage_windows import UsageWindowsQuery, WindowsReply

REFUSAL = "DoorRefusal"

_SUMMARIES = {
    "create": "Make a VM",
    "boot": "Start a VM",
    "shutdown": "Stop a VM, by force after `grace_s` seconds",
    "pause": "Stop a VM's vCPUs",
    "resume": "Let a paused VM go on",
    "reboot": "Stop a VM and start it again",
    "delete": "Delete a VM, a running one too",
    "snapshot": "Keep the state of a VM",
    "restore": "Start a stopped VM from a snapshot",
    "snapshot-delete": "Throw a snapshot away",
    "patch": "Change a VM's name or labels",
    "get": "One VM",
    "list": "VMs, page by page",
    "console": "What a VM printed on its serial console",
    "check-network": "Prove that a VM can be reached, by probes to its own addresses",
    "operation": "How far a command has come",
    "operations": "Commands, newest first",
    "snapshots": "Snapshots, oldest first",
    "snapshot-get": "One snapshot",
    "quotas": "What may be had, and what is taken",
    "images": "Images that VMs can be made from",
    "peers": "Customers that you agree with, or that agree with you",
    "peer-add": "Agree that your VMs and another customer's reach each other",
    "peer-remove": "Agree to that no more",
    "usage": "What VMs have used, and will be billed for",
    "metrics": "What VMs did lately, step by step",
    "events": "What happened to VMs, page by page",
    "audit": "What was done and refused, newest first",
}
_EXAMPLES: dict[str, dict[str, Any]] = {
    "create": {
        "vm": {"image": "tiny", "memory_mib": 128, "boot": True, "labels": {"team": "web"}},
        "wait_s": 30,
        "idempotency_key": "order-4711",
    },
    "shutdown": {"vm_id": VM, "grace_s": 5, "wait_s": 30},
    "boot": {"vm_id": VM, "wait_s": 30},
    "snapshot": {"vm_id": VM, "kind": "full", "wait_s": 30},
    "patch": {"vm_id": VM, "patch": {"labels": {"team": "api", "old": None}}, "generation": 1},
    "list": {"state": "running", "labels": {"team": "web"}, "limit": 50},
    "console": {"vm_id": VM, "tail_bytes": 4096},
    "operation": {"operation_id": COMMAND},
    "operations": {"vm_id": VM, "status": "failed"},
    "peer-add": {"peer_id": "globex"},
    "peer-remove": {"peer_id": "globex"},
    "usage": {"start": "2026-01-31T00:00:00Z", "end": "2026-02-01T00:00:00Z"},
}
_EXAMPLES["metrics"] = _EXAMPLES["usage"] | {"vm_ids": [VM]}
_EXAMPLES["events"] = {"vm_ids": [VM], "types": ["vm_stopped"], "limit": 10}
_EXAMPLES["audit"] = _EXAMPLES["usage"]
_ANSWERED_BY_GATEWAY = (
    "Any gateway answers, as `POST` or `GET` of the HTTP API would be answered. A mutation is "
    "answered as soon as it is accepted, or at its end with `wait_s`."
)


def _answer(verb: str, asked: Verb) -> Message:
    """A reply with its one field."""
    name = "Door" + asked.answer.capitalize()
    return Message(
        name=f"{name}Done" if asked.mutates else name,
        schema={"reply": Reply, "field": asked.answer},
        summary=f"`{asked.answer}` is set",
        headers=(REPLAYED_HEADER, *TRACED) if asked.mutates else TRACED,
    )


def _door() -> Iterator[Channel]:
    refusal = Message(
        name=REFUSAL,
        schema={"reply": Reply, "field": "error"},
        summary="It was not done: why, and what to do",
        headers=(REPLAYED_HEADER, *TRACED),
    )
    for verb, asked in REQUESTS.items():
        words = "".join(part.capitalize() for part in verb.split("-"))
        yield Channel(
            f"request{words}",
            f"vm.req.{{customer}}.{verb}",
            one(
                Message(
                    asked.request,
                    name=f"Ask{words}",
                    summary=_SUMMARIES[verb],
                    headers=TRACED,
                    example=_EXAMPLES.get(verb, {}),
                )
            ),
            _SUMMARIES[verb],
            _ANSWERED_BY_GATEWAY,
            replies=(_answer(verb, asked), refusal),
        )


def _query(
    name: str, address: str, summary: str, query: type, reply: type, **example: Any
) -> Channel:
    return Channel(
        name,
        address,
        one(Message(query, headers=TRACED, example=example)),
        summary,
        replies=(Message(reply, headers=TRACED),),
    )


_WINDOW = {"start": "2026-01-31T09:00:00Z", "end": "2026-01-31T10:00:00Z"}

CHANNELS: tuple[Channel, ...] = (
    *_door(),
    _query("usageQuery", "usage.query.{customer}", "What a customer's VMs have used",
           UsageQuery, UsageReply, **_WINDOW, vm_ids=[VM]),
    _query("usageWindows", "usage.windows.{customer}", "The same, window by window",
           UsageWindowsQuery, WindowsReply, edges_ms=[1769850000000, 1769853600000]),
    _query("metricsSeries", "metrics.series.{customer}", "Recent metrics as series",
           SeriesQuery, SeriesReply, **_WINDOW, vm_ids=[VM]),
    _query("eventsQuery", "events.query.{customer}", "Events of a customer's VMs, out of the store",
           EventsQuery, EventsReply, **_WINDOW, types=["vm_started"]),
    _query("auditQuery", "auditlog.query.{customer}", "The audit log of a customer",
           AuditQuery, AuditReply, **_WINDOW),
    Channel(
        "storeQuestion",
        "store.ask.{question}",
        one(Message(StoreQuestion, headers=TRACED)),
        "What an operator asks of the store",
        replies=(Message(StoreReply, headers=TRACED),),
        values={"question": tuple(verb.value for verb in StoreVerb)},
    ),
    _query("placeQuestion", "place.ask.explain", "Where a VM would be placed",
           PlaceQuestion, PlaceReply, spec={"image": "tiny"}, customer_id="acme"),
    _query("vmConsole", "vm.ask.{host}.{vm}.console", "What a VM has printed, asked of its host",
           ConsoleQuery, ConsoleReply, tail_bytes=4096),
    _query("vmNetwork", "vm.ask.{host}.{vm}.network", "Whether a VM can be reached, as its host "
           "finds out", NetworkQuery, NetworkReply),
    Channel(
        "limitsLevels",
        "gateway.limits.levels",
        one(Message(name="LimitsQuestion", content_type=NOTHING, headers=TRACED,
                    summary="A gateway starts: how do the buckets stand?")),
        "How the buckets of rate limits stand",
        replies=(Message(Levels, headers=TRACED),),
    ),
)  # fmt: skip
