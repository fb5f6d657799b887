"""Channels of the KV buckets: a change of a key is a message on `$KV.<bucket>.<key>`."""

from __future__ import annotations

from typing import Any

from decisec.messages.channel import NOTHING, Channel, Message
from decisec.messages.headers import EXPECTED, OPERATION, TRACED
from schemas.corrections import VmCorrections
from schemas.hosts import Customer, HostInfo, HostLoss, HostOrders, Operation
from schemas.idempotency import KeyRecord
from schemas.network_peers import CustomerPeers
from schemas.price_plans import PricePlan
from schemas.quotas import QuotaLedger
from schemas.secrets import SharedSecret
from schemas.tokens import Revocation, RevokedBy
from schemas.vms import VmRecord, VmStatus

_REMOVED = Message(
    name="KeyRemoved",
    content_type=NOTHING,
    summary="The key is gone",
    headers=(OPERATION, *EXPECTED, *TRACED),
)


def _bucket(
    bucket: str, key: str, kind: type, values: dict[str, tuple[str, ...]] | None = None,
    **example: Any,
) -> Channel:  # fmt: skip
    words = "".join(part.capitalize() for part in bucket.split("_"))
    value = Message(kind, headers=(*EXPECTED, *TRACED), example=example)
    return Channel(
        f"bucket{words}",
        f"$KV.{bucket}.{key}",
        {value.key: value, _REMOVED.key: _REMOVED},
        f"Keys of the bucket `{bucket}`",
        values=values or {},
    )


CHANNELS: tuple[Channel, ...] = (
    _bucket("customers", "{customer}", Customer),
    _bucket("price_plans", "{plan}", PricePlan, currency="EUR"),
    _bucket("vm_specs", "{customer}.{vm}", VmRecord),
    _bucket("vm_status", "{host}.{customer}.{vm}", VmStatus, state="running", incarnation=1),
    _bucket("hosts", "{host}", HostInfo),
    _bucket("host_orders", "{host}", HostOrders, draining=True, reason="new disks"),
    _bucket("lost_hosts", "{host}", HostLoss, reason="burnt"),
    _bucket("corrections", "{vm}", VmCorrections),
    _bucket("operations", "{command}", Operation, verb="boot", status="succeeded"),
    _bucket("quotas", "{customer}", QuotaLedger),
    _bucket("network_peers", "{customer}", CustomerPeers),
    _bucket("secrets", "{secret}", SharedSecret),
    _bucket("idempotency_keys", "{owner}.{digest}", KeyRecord),
    _bucket(
        "revoked_tokens",
        "{by}.{value}",
        Revocation,
        values={"by": tuple(by.value for by in RevokedBy)},
        by="customer",
        value="acme",
        reason="a laptop was stolen",
    ),
)
