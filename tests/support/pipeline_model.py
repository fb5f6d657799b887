"""The way of frames from agents to the store in memory, cut short and repeated anywhere.

What decides how far hosts have come is real: the agent's `Completeness`, the collector's `Claims`,
the batcher's `ProgressKeeper`. Streams and processes are stand-ins that do what the real ones may.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from batcher.buffer import Custody
from batcher.progress import ProgressKeeper
from collector.claims import Claims
from runtime.clock import SystemClock
from runtime.consumer import Delivery
from runtime.errors import TransientError
from schemas.codec import encode
from schemas.progress import HostProgress
from schemas.subjects import metrics_enriched, metrics_progress
from vm_agent.completeness import STRAY_NS, Completeness


@dataclass(frozen=True)
class Sent:
    """A frame; where there are several of one tick, `part` tells them apart."""

    host: str
    tick_ms: int
    part: int = 0


@dataclass(frozen=True)
class Entry:
    """A message in a stream: a frame, perhaps with a claim, or what a collector says."""

    frame: Sent | None = None
    complete_ms: int | None = None
    progress: bytes = b""


@dataclass
class Stream:
    """A stream with one durable consumer; places count from 1."""

    entries: list[Entry] = field(default_factory=list)
    acked: set[int] = field(default_factory=set)
    delivered: int = 0

    def store(self, entry: Entry, *, twice: bool = False) -> None:
        """Append, unless the frame stands there and is seen to be a duplicate."""
        if entry.frame is None or twice or all(e.frame != entry.frame for e in self.entries):
            self.entries.append(entry)

    def fetch(self, count: int) -> list[int]:
        """The next places that were not delivered yet."""
        first, self.delivered = self.delivered, min(self.delivered + count, len(self.entries))
        return list(range(first + 1, self.delivered + 1))

    def again(self) -> list[int]:
        """The places that were delivered and not acknowledged."""
        return [place for place in range(1, self.delivered + 1) if place not in self.acked]

    @property
    def floor(self) -> int:
        """The place up to which all is acknowledged."""
        return next(iter(self.again()), self.delivered + 1) - 1


class Agent:
    """One host: makes frames, sends them as the sender does, is killed.

    Attributes:
        tick_ms: The newest one that was sampled.
        strays: Frames that nobody sends any more and that are on their way, with what they claim.
    """

    def __init__(self, host: str, raw: Stream) -> None:
        self.host = host
        self.tick_ms = 0
        self.strays: list[Entry] = []
        self._raw = raw
        self._now_ns = 0
        self._spool: list[Sent] = []
        self._recent: list[Sent] = []
        self._completeness = Completeness(lambda: self._now_ns)

    @property
    def doubtful(self) -> bool:
        """Whether it claims nothing for now."""
        return self._completeness.doubtful

    @property
    def waiting(self) -> bool:
        """Whether a frame is not acknowledged."""
        return bool(self._spool or self._recent)

    def sample(self, parts: int) -> None:
        """A tick, in so many frames."""
        self.tick_ms += 500
        self._recent += [Sent(self.host, self.tick_ms, part) for part in range(parts)]

    def send(self, fates: Sequence[str]) -> None:
        """A batch. Fates: `ok`, `unheard` (no ack), `late` (on its way), `lost`."""
        source = self._spool or self._recent
        batch = source[: len(fates)]
        claim = None if self._spool or not batch else self._completeness.claim(batch[0].tick_ms)
        done = True
        for number, (frame, fate) in enumerate(zip(batch, fates, strict=False)):
            entry = Entry(frame, None if number else claim)
            if fate in ("ok", "unheard"):
                self._raw.store(entry)
            elif fate == "late":
                self.strays.append(entry)
            if number == 0 and fate == "ok" and claim is not None:
                self._completeness.claimed(claim)
            done = done and fate == "ok"
            if done:
                source.pop(0)

    def spool(self) -> None:
        """NATS seems to be away: what waits goes to disk."""
        self._spool += self._recent
        self._recent = []

    def restart(self) -> None:
        """An end in order: what waits is put away, unless there is doubt."""
        self.spool()
        doubtful = self._completeness.doubtful
        self._completeness = Completeness(lambda: self._now_ns)
        if doubtful:
            self._completeness.doubt()

    def kill(self) -> None:
        """What was in memory is on its way, and nobody sends it any more."""
        self.strays += map(Entry, self._recent)
        self._recent = []
        self._completeness = Completeness(lambda: self._now_ns)
        self._completeness.doubt()

    def wait(self) -> None:
        """So long that no stray is left."""
        self._now_ns += STRAY_NS
        self.strays = []


class Collector:
    """Takes raw frames and says how far hosts have come."""

    def __init__(self, raw: Stream, enriched: Stream) -> None:
        self.claims = Claims()
        self._raw = raw
        self._enriched = enriched

    def take(self, places: Sequence[int], fates: Sequence[str]) -> None:
        """Frames. Fates: `ok`, `unheard` (the ack is lost), `wait`, `failed` (not published)."""
        for place, fate in zip(places, fates, strict=False):
            entry = self._raw.entries[place - 1]
            assert entry.frame is not None
            if fate == "failed":
                continue
            if entry.complete_ms is not None:
                self.claims.note(entry.frame.host, entry.complete_ms, place)
            if fate == "wait":
                continue
            self._enriched.store(Entry(entry.frame), twice=fate == "twice")
            if fate != "unheard":
                self._raw.acked.add(place)

    def tell(self, fate: str) -> None:
        """What is true. Fates: `ok`, `unheard` (no ack), `lost`."""
        released = self.claims.release(self._raw.floor)
        if not released:
            return
        if fate != "lost":
            message = encode(HostProgress(complete_ms=released))
            self._enriched.store(Entry(progress=message))
        if fate != "ok":
            self.claims.say_again()


@dataclass
class Table:
    """The store: which frames it has, and how far hosts have come."""

    frames: set[Sent] = field(default_factory=set)
    complete_ms: dict[str, int] = field(default_factory=dict)
    away: bool = False
    refused: int = 0

    async def insert(self, table: str, rows: pa.Table, *, token: str) -> None:
        """As `Store.insert`, for `host_progress`."""
        assert (table, bool(token)) == ("host_progress", True)
        if self.away:
            self.refused += 1
            raise TransientError("told so")
        for row in rows.to_pylist():
            known = self.complete_ms.get(row["host"], -1)
            self.complete_ms[row["host"]] = max(known, row["complete_ms"])


class _Answer:
    def __init__(self, stream: Stream, place: int) -> None:
        self._stream = stream
        self._place = place

    async def ack(self) -> None:
        self._stream.acked.add(self._place)


class Batcher:
    """Fetches frames and progress, stores the frames, keeps the progress."""

    def __init__(self, enriched: Stream, table: Table) -> None:
        self._enriched = enriched
        self._table = table
        self._custody = Custody(SystemClock(), renew_after_s=1)
        self._buffer: list[Delivery] = []
        refusals: Any = None
        self.keeper = ProgressKeeper(table, self._custody, refusals, self._floor)

    async def _floor(self) -> int:
        return self._enriched.floor

    async def take(self, places: Sequence[int]) -> None:
        """What was fetched."""
        for place in places:
            entry = self._enriched.entries[place - 1]
            frame = entry.frame
            subject = metrics_enriched(frame.host) if frame else metrics_progress("collector")
            answer: Any = _Answer(self._enriched, place)
            delivery = Delivery(answer, subject, entry.progress, {}, "", place, 1)
            if not self._custody.take(delivery):
                continue
            if self.keeper.concerns(delivery):
                await self.keeper.take(delivery)
            else:
                self._buffer.append(delivery)

    async def flush(self, fate: str) -> None:
        """Store all that is there. Fates: `ok`, `unheard` (no ack gets through)."""
        for delivery in self._buffer:
            frame = self._enriched.entries[delivery.sequence - 1].frame
            assert frame is not None
            self._table.frames.add(frame)
            if fate == "ok":
                await self._custody.ack(delivery)
            else:
                self._custody.release(delivery)
        self._buffer = []

    async def look(self) -> None:
        """Write down what has become true."""
        if len(self.keeper):
            try:
                await self.keeper.look()
            except TransientError:
                assert self._table.away
