"""Lists of VMs: filters, orders, pages.

A filter may want something that none of 100,000 VMs has. So a request looks at a bounded number
of them, in slices between which others have their turn, and what it has found by then is a page.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from uuid import UUID

from gateway.catalog import Key
from gateway.cursors import Position, digest, seal, unseal
from gateway.fleet import Fleet
from gateway.host_names import Naming, real
from schemas.api import VmList, VmView
from schemas.requests import Sort
from schemas.vms import VmRecord, VmState

SLICE = 256
"""VMs that are looked at without a pause: a fraction of a millisecond."""

MAX_EXAMINED = 10_240
"""VMs that one request looks at: some 10 ms of work."""


@dataclass(frozen=True, slots=True)
class VmQuery:
    """Which VMs, in which order. What is None is not asked for.

    Attributes:
        labels: All of these; a value of None means that the label is there, whatever its value.
        host: The host's name: for operators only.
    """

    state: VmState | None = None
    labels: Mapping[str, str | None] = field(default_factory=dict)
    host: str | None = None
    image: str | None = None
    name: str | None = None
    sort: Sort = Sort.CREATED

    def wants(self, record: VmRecord, state: VmState) -> bool:
        """Whether a VM in this state is one of those."""
        if self.state is not None and state is not self.state:
            return False
        if self.image is not None and record.spec.image != self.image:
            return False
        if self.name is not None and record.name != self.name:
            return False
        if self.host is not None and record.host_id != self.host:
            return False
        labels = record.spec.labels
        for name, value in self.labels.items():
            found = labels.get(name)
            if found is None or (value is not None and found != value):
                return False
        return True

    def digest(self, customer_id: str) -> str:
        """What a cursor of this query carries."""
        return digest(
            "vms",
            customer_id,
            self.sort.value,
            self.state.value if self.state else None,
            sorted(self.labels.items(), key=lambda item: (item[0], item[1] or "")),
            self.host,
            self.image,
            self.name,
        )


async def page(
    fleet: Fleet,
    customer_id: str,
    query: VmQuery,
    *,
    cursor: str,
    limit: int,
    naming: Naming = real,
) -> VmList:
    """One page of a customer's VMs.

    A VM that is there all the time is on exactly one page, whichever others come and go. In an
    order by name one that gets another name meanwhile may be on two, or on none.

    Raises:
        RefusedError: BAD_REQUEST. The cursor is none, or another query's.
    """
    sealed_with = query.digest(customer_id)
    begin = unseal(sealed_with, cursor)
    last = begin.key if begin else None
    by_name = query.sort in (Sort.NAME, Sort.NAME_BACK)
    descending = query.sort in (Sort.NEWEST, Sort.NAME_BACK)
    found: list[VmView] = []
    examined = 0
    while True:
        keys = fleet.catalog.after(
            customer_id, last, SLICE, by_name=by_name, descending=descending, name=query.name
        )
        for key in keys:
            vm = fleet.wanted(customer_id, key[1], query.wants, naming)
            if vm is not None:
                if len(found) == limit:
                    return VmList(vms=tuple(found), next_cursor=_seal(sealed_with, last))
                found.append(vm)
            last = key
        if len(keys) < SLICE:
            return VmList(vms=tuple(found))
        examined += len(keys)
        if examined >= MAX_EXAMINED:
            return VmList(vms=tuple(found), next_cursor=_seal(sealed_with, last))
        await asyncio.sleep(0)


def _seal(query: str, last: Key | None) -> str:
    return seal(query, Position(last[0], UUID(last[1]))) if last else ""
