"""How a customer tries each route, and each verb of the bus, with another customer's ids.

A new route fails the suite until it stands here. Take the shape that fits:

- a thing's id in the path: `Try()`, with a `body` if it needs one;
- parameters that name things: `Try(queries=...)`, each made of another's or of missing things;
- nothing of the kind: `Try()` as well; the answer must not depend on what another customer has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Things:
    """What belongs to a customer, or is missing everywhere."""

    vm_id: str
    snapshot_id: str
    operation_id: str
    event_id: str
    label: str
    name: str
    peer_id: str

    @property
    def ids(self) -> tuple[str, ...]:
        """All that an answer may repeat because it was asked."""
        ids = self.vm_id, self.snapshot_id, self.operation_id, self.event_id
        return (*ids, self.label, self.name, self.peer_id)


Query = Callable[[Things], Mapping[str, str]]
Body = Callable[[Things], Any]


def _nothing(_: Things) -> Mapping[str, str]:
    return {}


@dataclass(frozen=True)
class Try:
    """One route.

    Attributes:
        queries: Query parameters of each try.
        body: JSON, if it takes one.
        headers: More of them.
        streams: The answer goes on: only its beginning is read.
        status: Of the answer, where a thing's id is in the path.
    """

    queries: tuple[Query, ...] = (_nothing,)
    body: Body | None = None
    headers: Mapping[str, str] | None = None
    streams: bool = False
    status: int = 404


SSE = {"Accept": "text/event-stream"}

ROUTES: dict[str, Try] = {
    "GET /v1/whoami": Try(),
    "GET /v1/quotas": Try(),
    "GET /v1/images": Try(),
    "GET /v1/vms": Try(
        queries=(
            _nothing,
            lambda t: {"label": t.label},
            lambda t: {"name": t.name},
            lambda t: {"host": "h1"},
            lambda t: {"state": "running"},
            lambda t: {"cursor": t.vm_id},
        )
    ),
    "POST /v1/vms": Try(body=lambda t: {"image": "none", "name": t.name}),
    "GET /v1/vms/{vm_id}": Try(),
    "PATCH /v1/vms/{vm_id}": Try(body=lambda t: {"name": "mine"}, headers={"If-Match": '"1"'}),
    "DELETE /v1/vms/{vm_id}": Try(headers={"Prefer": "wait=5"}),
    "POST /v1/vms/{vm_id}/boot": Try(),
    "POST /v1/vms/{vm_id}/pause": Try(),
    "POST /v1/vms/{vm_id}/resume": Try(),
    "POST /v1/vms/{vm_id}/reboot": Try(body=lambda t: {"grace_s": 0}),
    "POST /v1/vms/{vm_id}/shutdown": Try(body=lambda t: {"grace_s": 0}),
    "POST /v1/vms/{vm_id}/snapshot": Try(body=lambda t: {}),
    "POST /v1/vms/{vm_id}/restore": Try(body=lambda t: {"snapshot_id": t.snapshot_id}),
    "POST /v1/vms/{vm_id}/network-check": Try(),
    "GET /v1/vms/{vm_id}/console": Try(queries=(_nothing, lambda t: {"offset": "3"})),
    "GET /v1/operations": Try(
        queries=(
            _nothing,
            lambda t: {"vm_id": t.vm_id},
            lambda t: {"cursor": t.operation_id},
        )
    ),
    "GET /v1/operations/{operation_id}": Try(),
    "GET /v1/snapshots": Try(
        queries=(_nothing, lambda t: {"vm_id": t.vm_id}, lambda t: {"cursor": t.snapshot_id})
    ),
    "GET /v1/snapshots/{snapshot_id}": Try(),
    "DELETE /v1/snapshots/{snapshot_id}": Try(),
    "GET /v1/network/peers": Try(
        queries=(lambda t: {"state": "asked"}, lambda t: {"state": "agreed", "cursor": t.peer_id})
    ),
    "PUT /v1/network/peers/{peer_id}": Try(status=200),
    "DELETE /v1/network/peers/{peer_id}": Try(status=200),
    "GET /v1/events": Try(queries=(_nothing, lambda t: {"vm_id": t.vm_id})),
    "GET /v1/metrics/live": Try(
        queries=(_nothing, lambda t: {"vm_id": t.vm_id}), headers=SSE, streams=True
    ),
    "GET /v1/metrics/series": Try(queries=(lambda t: {"vm_id": t.vm_id},)),
    "GET /v1/usage": Try(
        queries=(
            lambda t: {"start": "2026-01-01T00:00:00Z", "end": "2026-01-02T00:00:00Z"},
            lambda t: {
                "start": "2026-01-01T00:00:00Z",
                "end": "2026-01-02T00:00:00Z",
                "vm_id": t.vm_id,
            },
        )
    ),
    "GET /v1/audit": Try(
        queries=(lambda t: {"start": "2026-01-01T00:00:00Z", "end": "2026-01-02T00:00:00Z"},)
    ),
}

_WHEN = {"start": "2026-01-01T00:00:00Z", "end": "2026-01-02T00:00:00Z"}

VERBS: dict[str, tuple[Body, ...]] = {
    **{
        verb: (lambda t: {"vm_id": t.vm_id, "wait_s": 1},)
        for verb in ("get", "boot", "shutdown", "pause", "resume", "reboot", "delete", "console")
    },
    "check-network": (lambda t: {"vm_id": t.vm_id},),
    "create": (lambda t: {"vm": {"image": "none", "name": t.name}},),
    "list": (
        lambda t: {},
        lambda t: {"labels": {t.label: None}},
        lambda t: {"name": t.name},
        lambda t: {"cursor": t.vm_id},
    ),
    "patch": (
        lambda t: {"vm_id": t.vm_id, "patch": {"name": "mine"}},
        lambda t: {"vm_id": t.vm_id, "patch": {"name": "mine"}, "generation": 1},
    ),
    "operation": (lambda t: {"operation_id": t.operation_id},),
    "operations": (lambda t: {}, lambda t: {"vm_id": t.vm_id}),
    "snapshot": (lambda t: {"vm_id": t.vm_id},),
    "restore": (lambda t: {"vm_id": t.vm_id, "snapshot_id": t.snapshot_id},),
    "snapshots": (lambda t: {}, lambda t: {"vm_id": t.vm_id}),
    "snapshot-get": (lambda t: {"snapshot_id": t.snapshot_id},),
    "snapshot-delete": (lambda t: {"snapshot_id": t.snapshot_id},),
    "images": (lambda t: {},),
    "peers": (lambda t: {"state": "asked"}, lambda t: {"state": "agreed", "cursor": t.peer_id}),
    "peer-add": (lambda t: {"peer_id": t.peer_id},),
    "peer-remove": (lambda t: {"peer_id": t.peer_id},),
    "quotas": (lambda t: {},),
    "metrics": (lambda t: {**_WHEN, "vm_ids": [t.vm_id]},),
    "events": (lambda t: {}, lambda t: {"vm_ids": [t.vm_id]}),
    "audit": (lambda t: _WHEN,),
    "usage": (lambda t: _WHEN, lambda t: {**_WHEN, "vm_ids": [t.vm_id]}),
}

REPEATING = frozenset({"peer-add", "peer-remove"})
"""Verbs whose answer repeats an id because it was asked for: nobody is to learn whose it is."""
