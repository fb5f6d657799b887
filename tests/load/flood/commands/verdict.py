"""Whether every VM that lived was billed to the unit, and whether anything is left of it."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import UUID

import httpx

from decisec.sdk import ApiError
from decisec.streams.reading import extent, records, resolve
from runtime.buckets import Bucket
from runtime.bus import Bus
from schemas.errors import MalformedMessageError
from schemas.events import VmStopped, decode_vm_event
from schemas.subjects import VM_EVENTS, VM_SPECS, vm_events_of
from schemas.usage import UsageRow
from schemas.vms import METERS, Counters, decode_vm_record
from tests.load.flood.commands.doors import Door, HttpDoor, RefusedError, UnansweredError, refusal
from tests.load.flood.commands.life import LABEL, Life
from tests.load.flood.commands.tally import Tally

_ASKED_AT_ONCE = 50
_SETTLED_WITHIN_S = 30.0
"""If nothing more is settled for so long, what is missing is lost."""
_ASK_EVERY_S = 0.3
_AT_ONCE = 16
_CLEAR_EVERY_S = 1.0
_GONE_WITHIN_S = 60.0
_FORGOTTEN_WITHIN_S = 10.0

Truth = dict[UUID, dict[str, int]]
"""Last counters by VM, summed over its incarnations."""


class Leftovers(ABC):
    """Finds VMs of a storm that are still there."""

    @abstractmethod
    async def find(self, storm_id: str) -> dict[UUID, Door]:
        """Those that are not deleted, each with a door to delete it through.

        Raises:
            RefusedError: The deployment does not say.
            UnansweredError: Likewise.
            TransientError: Likewise, on the bus.
        """


class ListedByTheApi(Leftovers):
    """As their owners see them."""

    def __init__(self, doors: Sequence[HttpDoor]) -> None:
        self._doors = doors

    async def find(self, storm_id: str) -> dict[UUID, Door]:
        try:
            return {
                vm.vm_id: door
                for door in self._doors
                async for vm in door.client.list_vms(page_size=500)
                if vm.spec.labels.get(LABEL) == storm_id
            }
        except (ApiError, httpx.TransportError) as error:
            raise refusal(error) from error


class RecordedOnTheBus(Leftovers):
    """As their records say; no verb of the door on the bus lists VMs."""

    def __init__(self, bus: Bus, doors: Sequence[Door]) -> None:
        self._bucket = Bucket(bus, VM_SPECS, decode_vm_record)
        self._doors = {door.customer: door for door in doors}

    async def find(self, storm_id: str) -> dict[UUID, Door]:
        return {
            record.vm_id: self._doors[record.customer_id]
            for record in (await self._bucket.all()).values()
            if record.customer_id in self._doors
            and record.deleted_at is None
            and record.spec.labels.get(LABEL) == storm_id
        }


@dataclass(slots=True)
class Left:
    """What a storm has left behind.

    Attributes:
        orphans: VMs that are there after their deletion had succeeded, or that nobody here was
            told of, or that could not be deleted at the end.
        cleared: VMs that were deleted at the end, since their lives did not come to it.
    """

    orphans: int = 0
    cleared: int = 0


async def clear(leftovers: Leftovers, storm_id: str, lives: Iterable[Life], tally: Tally) -> Left:
    """Delete what is left, and tell what should not have been."""
    deleted = {life.vm_id for life in lives if life.deleted}
    known = {life.vm_id for life in lives}
    left = Left()
    until_s = time.monotonic() + _FORGOTTEN_WITHIN_S
    # An agent says that a VM is gone before the gateway has noted it.
    while not deleted.isdisjoint(found := await leftovers.find(storm_id)):
        if time.monotonic() > until_s:
            break
        await asyncio.sleep(_ASK_EVERY_S)
    for vm_id in found:
        if vm_id in deleted or vm_id not in known:
            left.orphans += 1
            why = "its deletion had succeeded" if vm_id in deleted else "nobody was told of it"
            tally.note(f"VM {vm_id} is there, though {why}")
    until_s = time.monotonic() + _GONE_WITHIN_S
    remaining = found
    # A command that was lost may hold a VM up until its deadline.
    while remaining and time.monotonic() < until_s:
        await _delete_all(remaining, until_s)
        remaining = await leftovers.find(storm_id)
        if remaining:
            await asyncio.sleep(_CLEAR_EVERY_S)
    for vm_id in remaining:
        tally.note(f"VM {vm_id} cannot be deleted")
        if vm_id in known and vm_id not in deleted:
            left.orphans += 1
    left.cleared = len(found) - len(remaining)
    return left


async def _delete_all(found: dict[UUID, Door], until_s: float) -> None:
    waiting = iter(found.items())

    async def work() -> None:
        for vm_id, door in waiting:
            wait_s = min(30.0, until_s - time.monotonic())
            if wait_s <= 0:
                return
            try:
                await door.act(vm_id, "delete", wait_s=wait_s)
            except (RefusedError, UnansweredError):
                continue  # whether it is gone, the next look tells

    async with asyncio.TaskGroup() as group:
        for number in range(_AT_ONCE):
            group.create_task(work(), name=f"clear-{number}")


@dataclass(slots=True)
class Bills:
    """What was billed against what was counted.

    Attributes:
        vms: VMs whose bill was compared.
        misbilled: VMs whose usage is not their last counters.
        unbilled: VMs that ran and of which nothing is billed, or not their last sample.
        uncounted: VMs that ran and whose last counters nobody has told.
    """

    vms: int = 0
    misbilled: int = 0
    unbilled: int = 0
    uncounted: int = 0


@dataclass(slots=True)
class Audit:
    """Compares bills with the last counters of VMs.

    Attributes:
        bus: Where agents tell the last counters; None if only the API does.
        since: First event of the storm at the earliest, a sequence.
        settled_within_s: See `_SETTLED_WITHIN_S`.
    """

    bus: Bus | None
    began: datetime
    since: int = 0
    settled_within_s: float = _SETTLED_WITHIN_S
    _rows: dict[UUID, UsageRow] = field(default_factory=dict)

    async def judge(self, lives: Sequence[Life], tally: Tally) -> Bills:
        """Wait until all is billed, or nothing more is; then compare.

        Raises:
            TransientError: The bus does not answer.
        """
        ran = [life for life in lives if life.booted and life.vm_id is not None]
        await self._settle(ran, tally)
        truth = await self._truth(ran)
        bills = Bills()
        for life in ran:
            if life.vm_id is not None:
                self._compare(bills, tally, life.vm_id, truth.get(life.vm_id))
        return bills

    def _compare(
        self, bills: Bills, tally: Tally, vm_id: UUID, counted: dict[str, int] | None
    ) -> None:
        row = self._rows.get(vm_id)
        if row is None or not row.settled:
            bills.unbilled += 1
            what = "its last sample" if row else "anything"
            tally.note(f"VM {vm_id} ran, and {what} of it is not billed")
        elif counted is None:
            bills.uncounted += 1
            tally.note(f"VM {vm_id} ran, and nobody has told its last counters")
        else:
            bills.vms += 1
            billed = {meter: getattr(row, meter) for meter in METERS}
            if billed != counted:
                bills.misbilled += 1
                tally.note(f"VM {vm_id} was billed {billed}, counted {counted}")

    async def _settle(self, ran: Sequence[Life], tally: Tally) -> None:
        by_door: dict[Door, list[UUID]] = defaultdict(list)
        for life in ran:
            if life.vm_id is not None:
                by_door[life.door].append(life.vm_id)
        since_s, trouble = time.monotonic(), ""
        while by_door and time.monotonic() - since_s < self.settled_within_s:
            before_s = since_s
            for door, waiting in list(by_door.items()):
                some, rest = waiting[:_ASKED_AT_ONCE], waiting[_ASKED_AT_ONCE:]
                try:
                    settled = await self._ask(door, tuple(some))
                except (RefusedError, UnansweredError) as error:
                    trouble = str(error)
                    continue
                if settled:
                    since_s = time.monotonic()
                # What is not settled yet is asked for again after the others.
                by_door[door] = rest + [vm_id for vm_id in some if vm_id not in settled]
                if not by_door[door]:
                    del by_door[door]
            if since_s == before_s:
                await asyncio.sleep(_ASK_EVERY_S)
        if by_door and trouble:
            tally.note(f"usage was not told: {trouble}")

    async def _ask(self, door: Door, vm_ids: tuple[UUID, ...]) -> set[UUID]:
        end = datetime.now(UTC) + timedelta(minutes=5)
        report = await door.usage(self.began - timedelta(minutes=5), end, vm_ids)
        found = {row.vm_id: row for row in report.vms}
        self._rows |= found
        return {vm_id for vm_id, row in found.items() if row.settled}

    async def _truth(self, ran: Sequence[Life]) -> Truth:
        if self.bus is None:
            return {
                life.vm_id: _values(life.final)
                for life in ran
                if life.vm_id is not None and life.final is not None
            }
        ends: dict[tuple[UUID, int], Counters] = {}
        customers = sorted({life.door.customer for life in ran})
        stretch = await resolve(self.bus, VM_EVENTS, self.since, None)
        filters = [vm_events_of(customer) for customer in customers]
        if customers:
            async for batch in records(self.bus, VM_EVENTS, stretch, filters):
                for record in batch:
                    try:
                        event = decode_vm_event(record.data)
                    except MalformedMessageError:
                        continue  # of a newer version
                    if isinstance(event, VmStopped):
                        ends[event.vm_id, event.incarnation] = event.final_counters
        truth: Truth = defaultdict(lambda: dict.fromkeys(METERS, 0))
        for (vm_id, _), counters in ends.items():
            for meter, value in _values(counters).items():
                truth[vm_id][meter] += value
        return dict(truth)


async def next_event(bus: Bus) -> int:
    """The sequence that the next event of a VM will have.

    Raises:
        FatalError: There is no stream of events.
        TransientError: The server did not say.
    """
    return (await extent(bus, VM_EVENTS)).last + 1


def _values(counters: Counters) -> dict[str, int]:
    return {meter: getattr(counters, meter) for meter in METERS}
