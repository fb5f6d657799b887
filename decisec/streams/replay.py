"""The engine of replays: reads a stretch of a stream, takes what is meant, gives it to a target.

A program calls `decisec.streams.replay`, which plans, audits and runs; see `docs/replay.md`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, auto
from uuid import UUID

from decisec.streams.acts import audited
from decisec.streams.adjusting import Telling
from decisec.streams.bounds import Bound
from decisec.streams.checkpoint import Plan, Progress
from decisec.streams.decoding import frame_of, message_row
from decisec.streams.reading import Record, extent, records, resolve
from decisec.streams.rejects import frame_in, reject_of
from decisec.streams.selection import Owners, Selection, narrowed, owners_of
from decisec.streams.targets import GOES_BACK, Item, Target
from runtime.bus import Bus
from runtime.clock import Clock, SystemClock
from schemas.errors import MalformedMessageError
from schemas.events import AdjustmentCause
from schemas.frames import replay_of
from schemas.ids import new_id
from schemas.subjects import METRICS_RAW, METRICS_REJECTED
from schemas.units import NS_PER_S


class Skip(Enum):
    """Why a message is left out."""

    REPLAY = auto()
    UNDECODABLE = auto()
    OTHER = auto()


@dataclass(slots=True)
class _Portion:
    """Messages that are done together."""

    items: list[Item] = field(default_factory=list)
    skipped: Counter[Skip] = field(default_factory=Counter)


async def plan(
    bus: Bus,
    *,
    source: str,
    target: str,
    begin: Bound | None,
    end: Bound | None,
    selection: Selection,
    speed: float = 0.0,
    again: bool = False,
    reason: str = "",
) -> Plan:
    """What a replay will do, with bounds that are sequences of the stream as it stands now.

    Raises:
        FatalError: There is no such stream.
        TransientError: The server did not answer.
    """
    stretch = await resolve(bus, source, begin, end)
    return Plan(
        replay_id=new_id(),
        source=source,
        target=target,
        first=stretch.first,
        last=stretch.last,
        selection=selection,
        speed=speed,
        again=again,
        reason=reason,
    )


async def overflow_bytes(bus: Bus, plan: Plan) -> int:
    """How much of its oldest the stream would discard for a replay into it, by estimate.

    Raises:
        TransientError: The server did not answer.
    """
    stream = GOES_BACK.get(plan.target)
    if stream is None:
        return 0
    holds = await extent(bus, stream)
    if not (holds.max_bytes and holds.messages):
        return 0
    wanted = plan.stretch.length * holds.size_bytes // holds.messages
    return max(0, wanted - (holds.max_bytes - holds.size_bytes))


class Replay:
    """One replay, or what is left of it.

    Args:
        bus: The connection; may break in between.
        plan: What to do.
        target: Where to.
        progress: How far a former attempt has come; counted on in it.
        told: Called whenever the progress has changed.
        clock: Paces it.
    """

    def __init__(
        self,
        bus: Bus,
        plan: Plan,
        target: Target,
        *,
        progress: Progress | None = None,
        told: Callable[[Progress], None] = lambda _: None,
        clock: Clock | None = None,
    ) -> None:
        self.plan = plan
        self.progress = progress or Progress(cursor=plan.first - 1)
        self._bus = bus
        self._target = target
        self._told = told
        self._clock = clock or SystemClock()
        self._owners: Owners = {}
        self._telling: Telling | None = None
        self._began_ns = 0
        self._began_at: datetime | None = None

    async def run(self, telling: Telling | None = None) -> Progress:
        """Do it. Cancelled, it leaves a progress from which another one can go on.

        Args:
            telling: Is told of all frames, before they are sent.

        Raises:
            TransientError: The bus is away for longer than half a minute.
        """
        plan, self._telling = self.plan, telling
        if plan.source == METRICS_RAW and plan.selection.customers:
            self._owners = await owners_of(self._bus)
        stretch = plan.stretch._replace(first=max(plan.first, self.progress.cursor + 1))
        filters = plan.selection.filters(plan.source)
        async for batch in records(self._bus, plan.source, stretch, filters):
            await self._miss(batch[0].sequence)
            await self._pass_on(batch)
        await self._miss(plan.last + 1)
        self._advance(plan.last, _Portion())
        return self.progress

    async def _miss(self, sequence: int) -> None:
        """Count what the stream has discarded of its oldest before this sequence was reached."""
        expected = self.progress.cursor + 1
        if sequence > expected:
            first = (await extent(self._bus, self.plan.source)).first
            self.progress.gone += max(0, min(first, sequence) - expected)

    async def _pass_on(self, batch: Sequence[Record]) -> None:
        portion = _Portion()
        for record in batch:
            item = self._select(record)
            if isinstance(item, Item):
                due_ns = self._due_ns(record.at)
                if due_ns > self._clock.monotonic_ns():
                    # What is due goes first; then comes the wait for this one.
                    await self._give(portion, record.sequence - 1)
                    portion = _Portion()
                    await self._clock.sleep_until(due_ns)
                portion.items.append(item)
            else:
                portion.skipped[item] += 1
        await self._give(portion, batch[-1].sequence)

    def _select(self, record: Record) -> Item | Skip:
        """A message with what is meant of it, or why it is left out."""
        source, selection = self.plan.source, self.plan.selection
        if replay_of(record.headers) and not self.plan.again:
            return Skip.REPLAY
        try:
            frame = frame_of(source, record)
            if frame is None:
                return Item(record, None) if self._means(record) else Skip.OTHER
        except MalformedMessageError:
            return Skip.UNDECODABLE
        part = narrowed(frame, selection, self._owners)
        return Skip.OTHER if part is None else Item(record, part, whole=part is frame)

    def _means(self, record: Record) -> bool:
        """Whether a message that holds no frame is meant, or a reject."""
        selection = self.plan.selection
        if self.plan.source == METRICS_REJECTED:
            frame = frame_in(record)
            if not selection.vm_ids:
                return True
            return frame is not None and narrowed(frame, selection, {}) is not None
        row = message_row(self.plan.source, record)
        return selection.has(
            host=row["host_id"], customer=row["customer_id"], vm_id=UUID(row["vm_id"])
        )

    def _due_ns(self, at: datetime) -> int:
        if not self.plan.speed:
            return 0
        if self._began_at is None:
            self._began_at, self._began_ns = at, self._clock.monotonic_ns()
        since_s = (at - self._began_at).total_seconds()
        return self._began_ns + int(since_s / self.plan.speed * NS_PER_S)

    async def _give(self, portion: _Portion, cursor: int) -> None:
        if portion.items:
            if self._telling is not None:
                frames = [item.frame for item in portion.items if item.frame is not None]
                await self._telling.ahead(frames)
            await self._target.take(portion.items)
        self._advance(cursor, portion)

    def _advance(self, cursor: int, portion: _Portion) -> None:
        progress, skipped = self.progress, portion.skipped
        progress.cursor = max(progress.cursor, cursor)
        progress.messages += len(portion.items)
        progress.replays += skipped[Skip.REPLAY]
        progress.undecodable += skipped[Skip.UNDECODABLE]
        progress.other += skipped[Skip.OTHER]
        progress.written_bytes = self._target.written_bytes
        for item in portion.items:
            progress.size_bytes += len(item.record.data)
            progress.samples += item.frame.rows if item.frame else 0
            host = _host_of(self.plan.source, item)
            progress.hosts[host] = progress.hosts.get(host, 0) + 1
        self._told(progress)


async def run_audited(bus: Bus, work: Replay, *, actor: str, resumed: bool = False) -> Progress:
    """Run a replay that sends something, with an entry in the audit before it and one after it.

    Adjustments tell which hosts it has touched, from when to when.

    Raises:
        TransientError: The audit stream did not take the first entry, and nothing was sent; or the
            bus is away for longer than half a minute.
    """
    plan, progress = work.plan, work.progress
    async with audited(
        bus,
        act_id=new_id() if resumed else plan.replay_id,
        actor=actor,
        action="replay",
        target=plan.words(),
        reason=plan.reason,
        details={"replay_id": str(plan.replay_id), "resumed": str(resumed).lower()},
    ) as found:
        telling = Telling(bus, AdjustmentCause.REPLAY, plan.replay_id, plan.reason)
        try:
            try:
                await work.run(telling)
            finally:
                await telling.rest()
        finally:
            found |= {
                "cursor": str(progress.cursor),
                "messages": str(progress.messages),
                "samples": str(progress.samples),
                "gone": str(progress.gone),
            }
    return progress


def _host_of(source: str, item: Item) -> str:
    if item.frame is not None:
        return item.frame.host
    if source == METRICS_REJECTED:
        return reject_of(item.record).host
    return str(message_row(source, item.record)["host_id"])
