"""What a customer may have, what is taken, and what is reserved of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import msgspec

from schemas.codec import decoder
from schemas.hosts import Amount
from schemas.vms import Timestamp

_Revision = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class Amounts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An amount of all that a quota limits.

    Attributes:
        slots: VMs.
    """

    vcpus: Amount = 0
    memory_mib: Amount = 0
    disk_mib: Amount = 0
    slots: Amount = 0
    snapshots: Amount = 0


class Hold(msgspec.Struct, frozen=True, kw_only=True):
    """What was granted and does not stand yet; after `until` it counts no more."""

    amounts: Amounts
    until: Timestamp


class QuotaLedger(msgspec.Struct, frozen=True, kw_only=True):
    """Value of bucket `quotas`: what gateways have granted to one customer, written by them.

    What stands is counted from the records; the ledger is about the moment before.

    Attributes:
        holds: By the id of what is to be made.
        seen: Per bucket of records: holds left out here stand in it up to this revision, so whoever
            counts must have read so far.
    """

    holds: dict[str, Hold] = msgspec.field(default_factory=dict)
    seen: dict[str, _Revision] = msgspec.field(default_factory=dict)


class QuotaAmounts(msgspec.Struct, frozen=True, kw_only=True):
    """Amounts as the API shows them."""

    vms: int
    vcpus: int
    memory_mib: int
    disk_mib: int
    snapshots: int


class QuotaView(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to `GET /v1/quotas`.

    Attributes:
        limits: What all of the customer's VMs may take together, and how many there may be.
        used: What they take, what is being made included.
    """

    limits: QuotaAmounts
    used: QuotaAmounts


decode_quota_ledger: Callable[[bytes], QuotaLedger] = decoder(QuotaLedger)
