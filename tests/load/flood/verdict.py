"""Whether everything that was sent is stored, once, and billed to the unit."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import UUID

import nats.errors
import nats.js.errors

from runtime.bus import Bus
from runtime.errors import TransientError
from schemas.codec import encode
from schemas.subjects import METRICS_REJECTED, host_of_metrics, usage_query
from schemas.usage import UsageQuery, UsageRow, decode_usage_reply
from schemas.vms import METERS
from tests.load.flood.host import FloodHost
from tests.load.flood.plan import Plan

_ASKED_AT_ONCE = 1000
_ANSWER_S = 60.0
STANDSTILL_S = 60.0
"""If nothing more is stored for so long, what is missing is lost."""
_SHOWN = 10


@dataclass(slots=True)
class Verdict:
    """What has become of a flood.

    Attributes:
        missing: Samples that were sent and are not stored.
        invented: Samples that are stored and were not sent.
        misbilled: VMs whose usage differs from their counters.
        rejected: Messages set aside, by reason.
        problems: The first few of all this in words.
    """

    missing: int = 0
    invented: int = 0
    misbilled: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def note(self, problem: str) -> None:
        """Keep it if it is one of the first."""
        if len(self.problems) < _SHOWN:
            self.problems.append(problem)


class Auditor:
    """Asks the store what was used, as a customer would, and compares.

    Args:
        bus: Where batchers answer.
        plan: What was sent.
        hosts: By whom.
        told: Called with the number of samples stored so far.
        standstill_s: See `STANDSTILL_S`.
    """

    def __init__(
        self,
        bus: Bus,
        plan: Plan,
        hosts: list[FloodHost],
        told: Callable[[int], None],
        *,
        standstill_s: float = STANDSTILL_S,
    ) -> None:
        self._bus = bus
        self._standstill_s = standstill_s
        self._plan = plan
        self._hosts = hosts
        self._told = told
        now = datetime.now(UTC)
        self._start = now - timedelta(hours=2, seconds=plan.skew_s + plan.seconds)
        self._vms: dict[str, list[UUID]] = defaultdict(list)
        for host in hosts:
            for record in host.records:
                self._vms[record.customer_id].append(record.vm_id)

    async def judge(self, rubbish: int) -> Verdict:
        """Wait until all is stored, or nothing comes any more; then look closely.

        Args:
            rubbish: Messages that must have been set aside.
        """
        expected = self._plan.samples
        rows, since_s, before = await self._rows(), time.monotonic(), -1
        while (stored := sum(row.samples for row in rows.values())) < expected:
            self._told(stored)
            if stored > before:
                before, since_s = stored, time.monotonic()
            elif time.monotonic() - since_s > self._standstill_s:
                break
            await asyncio.sleep(1.0)
            rows = await self._rows()
        self._told(stored)
        verdict = Verdict(rejected=await self._rejected(rubbish))
        for host in self._hosts:
            for vm_id, truth in host.truth().items():
                self._compare(verdict, vm_id, truth, rows.get(vm_id))
        found = sum(verdict.rejected.values())
        if found != rubbish:
            verdict.note(f"{rubbish} messages were rubbish, {found} were set aside")
        return verdict

    def _compare(
        self, verdict: Verdict, vm_id: UUID, truth: Mapping[str, int], row: UsageRow | None
    ) -> None:
        if row is None:
            verdict.missing += self._plan.ticks
            verdict.note(f"nothing is stored of VM {vm_id}")
            return
        verdict.missing += max(0, self._plan.ticks - row.samples)
        verdict.invented += max(0, row.samples - self._plan.ticks)
        billed = {meter: getattr(row, meter) for meter in METERS}
        if billed != truth:
            verdict.misbilled += 1
            verdict.note(f"VM {vm_id} was billed {billed}, did {dict(truth)}")
        elif row.samples != self._plan.ticks:
            verdict.note(f"{row.samples} of {self._plan.ticks} samples of VM {vm_id} are stored")

    async def _rows(self) -> dict[UUID, UsageRow]:
        found: dict[UUID, UsageRow] = {}
        for customer_id, vm_ids in self._vms.items():
            for some in _pieces(vm_ids):
                found |= await self._ask(customer_id, some)
        return found

    async def _ask(self, customer_id: str, vm_ids: tuple[UUID, ...]) -> dict[UUID, UsageRow]:
        query = UsageQuery(
            start=self._start, end=datetime.now(UTC) + timedelta(hours=1), vm_ids=vm_ids
        )
        try:
            answer = await self._bus.request(
                usage_query(customer_id), encode(query), timeout_s=_ANSWER_S
            )
        except TransientError:
            return {}  # the batcher is away; it will be asked again
        reply = decode_usage_reply(answer.data)
        return {row.vm_id: row for row in reply.report.vms} if reply.report else {}

    async def _rejected(self, rubbish: int) -> dict[str, int]:
        """By reason, of this flood's hosts; waits a while for as many as there must be."""
        mine = {host.host_id for host in self._hosts}
        until_s = time.monotonic() + (self._standstill_s if rubbish else 0)
        while True:
            try:
                info = await self._bus.js.stream_info(
                    METRICS_REJECTED, subjects_filter="metrics.rejected.*.*"
                )
            except (nats.errors.Error, nats.js.errors.Error, TimeoutError) as error:
                raise TransientError(f"no word about what was rejected: {error}") from error
            tally: Counter[str] = Counter()
            for subject, count in (info.state.subjects or {}).items():
                if host_of_metrics(subject) in mine:
                    tally[subject.split(".")[2]] += count
            if tally.total() >= rubbish or time.monotonic() > until_s:
                return dict(tally)
            await asyncio.sleep(0.5)


def _pieces(vm_ids: list[UUID]) -> Iterator[tuple[UUID, ...]]:
    for first in range(0, len(vm_ids), _ASKED_AT_ONCE):
        yield tuple(vm_ids[first : first + _ASKED_AT_ONCE])
