"""This collector among the others: who lives, and at which partitions it works."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

import structlog

from collector.claims import Claims
from collector.parting import DURABLE, former_partitions, parting
from collector.partition import Partition, Tools, Unit
from collector.progress import Progress
from collector.shares import Members, shares
from collector.verdicts import Verdicts
from runtime.bus import Bus, Message
from runtime.consumer import floor_of, info_of
from runtime.errors import TransientError
from schemas import subjects
from schemas.codec import encode
from schemas.collectors import CollectorAlive, decode_collector_alive
from schemas.errors import MalformedMessageError
from schemas.units import NS_PER_S

_log = structlog.get_logger("decisec.collector")

BEAT_S = 0.5
LOST_AFTER_S = 2.0
_REPLIES_S = 0.1
_LOOK_AGAIN_S = 0.5
"""Sooner than a host is suspected: once the stream is parted anew, frames go other ways."""


def units_of(
    partitions: int, former: int = 0, until: int = 0, mixed_until: int = 0
) -> dict[str, Unit]:
    """What there is to do, by name of the consumer.

    Args:
        partitions: Of the stream, now.
        former: It had so many once; frames from then may be left.
        until: The place of the last frame that may be one of these.
        mixed_until: The place of the last frame of which others of its host may be elsewhere.
    """
    units = {
        DURABLE: Unit(
            DURABLE,
            subjects.METRICS_RAW_UNPARTED,
            lambda _: partitions == 0,
            partitions,
            until,
            mixed_until,
        ),
    }
    for number in range(max(partitions, former)):
        units[f"{DURABLE}-{number}"] = Unit(
            f"{DURABLE}-{number}",
            subjects.metrics_raw_of(number),
            _whose(number, partitions),
            partitions,
            until,
            mixed_until,
        )
    return units


@dataclass(slots=True)
class _Job:
    partition: Partition
    stop: asyncio.Event
    task: asyncio.Task[None]


class Crew:
    """Works at this collector's share of the partitions until it is told to stop.

    Every collector tells the others twice a second that it lives, and works at what falls to it
    (`shares`). For a moment two may hold themselves responsible, or none: the server gives the
    frames of a partition to one only, and keeps them until there is one.
    """

    def __init__(self, me: UUID, tools: Tools) -> None:
        self._me = me
        self._tools = tools
        self._bus: Bus = tools.bus
        self._members = Members(me, int(LOST_AFTER_S * NS_PER_S))
        self._units: dict[str, Unit] = {}
        self._partitions = -1
        self._jobs: dict[str, _Job] = {}
        self._news = asyncio.Event()
        self._progress = Progress(tools.publisher, me)
        self._verdicts = Verdicts(me, tools, self._in_charge)
        self._behind: set[str] = set()
        self._barrier = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set; then finish what is in hand, hand over and return."""
        await self._bus.subscribe(subjects.COLLECTORS_ALIVE, self._hear)
        # Whoever is there answers, and so nothing is taken that would be given back at once.
        await self._beat()
        await asyncio.sleep(_REPLIES_S)
        async with asyncio.TaskGroup() as group:
            stopped = group.create_task(self._wake(stop), name="crew-stop")
            looking = group.create_task(self._follow_stream(), name="crew-partitions")
            judging = group.create_task(self._verdicts.run(), name="crew-verdicts")
            loop = asyncio.get_running_loop()
            before_s = loop.time()
            while not stop.is_set():
                now_s = loop.time()
                if now_s - before_s > LOST_AFTER_S / 2:
                    # This process stood still: what the others said waits to be heard.
                    self._members.deafened(self._now_ns())
                before_s = now_s
                self._share(group)
                self._tell()
                await self._beat()
                await self._pause()
            stopped.cancel()
            looking.cancel()
            judging.cancel()
            await self._beat(leaving=True)
            for job in self._jobs.values():
                job.stop.set()

    async def _follow_stream(self) -> None:
        """Know how the stream is parted, and tell how far hosts have come, until cancelled."""
        while True:
            # In this order: a stream that is parted as before was so up to these floors.
            floors = await self._floors()
            if await self._look() and await self._caught_up():
                await self._progress.tell(floors)
            await asyncio.sleep(_LOOK_AGAIN_S)

    async def _floors(self) -> list[tuple[Claims, int]]:
        """Of the partitions with something to say: what is claimed, and what is answered."""
        floors = []
        try:
            for job in list(self._jobs.values()):
                claims = job.partition.claims
                if claims.waiting:
                    floors.append((claims, await job.partition.ack_floor()))
        except TransientError as error:
            _log.warning("progress.not_known", error=str(error))
        return floors

    async def _caught_up(self) -> bool:
        """Whether all is answered that was stored before the stream was found parted as it is.

        Until then earlier frames of a host can lie with another unit than its claims.
        """
        try:
            for name in sorted(self._behind):
                info = await info_of(self._bus, subjects.METRICS_RAW, name)
                idle = not info.num_pending and not info.num_ack_pending
                if idle or floor_of(info) >= self._barrier:
                    self._behind.discard(name)
        except TransientError as error:
            _log.debug("progress.held_back", error=str(error))
        return not self._behind

    async def _look(self) -> bool:
        """Whether the stream is parted as it was when it was looked at last."""
        try:
            partitions, last = await parting(self._bus)
            if partitions == self._partitions:
                return True
            former = await former_partitions(self._bus)
        except TransientError as error:
            _log.warning("partitions.unknown", error=str(error))
            return False
        _log.info("partitions.found", partitions=partitions)
        parted_anew = self._partitions >= 0
        self._partitions = partitions
        self._units = units_of(partitions, former, last, last if parted_anew else 0)
        self._behind, self._barrier = set(self._units), last
        # Hosts may belong elsewhere now: everything starts anew.
        for job in self._jobs.values():
            job.stop.set()
        self._news.set()
        return False

    def _share(self, group: asyncio.TaskGroup) -> None:
        living = self._members.living(self._now_ns())
        mine = {name for name, member in shares(living, self._units).items() if member == self._me}
        for name, job in list(self._jobs.items()):
            if job.task.done():
                del self._jobs[name]
            elif name not in mine:
                job.stop.set()
        for name in sorted(mine - self._jobs.keys()):
            partition, stop = Partition(self._units[name], self._tools), asyncio.Event()
            task = group.create_task(partition.run(stop), name=name)
            task.add_done_callback(lambda _: self._news.set())
            self._jobs[name] = _Job(partition, stop, task)

    def _in_charge(self, host_id: str) -> Partition | None:
        """The partition of a host, if it is worked at here."""
        if self._partitions < 0:
            return None
        number = subjects.partition_of(host_id, self._partitions) if self._partitions else 0
        job = self._jobs.get(f"{DURABLE}-{number}" if self._partitions else DURABLE)
        return None if job is None or job.stop.is_set() else job.partition

    def _tell(self) -> None:
        jobs = [job.partition for job in self._jobs.values()]
        self._tools.instruments.state(
            missing=sum(one.pipeline.gaps.missing for one in jobs),
            hosts=sum(one.pipeline.silence.hosts for one in jobs),
            partitions=sum(one.pinned for one in jobs),
            members=len(self._members.living(self._now_ns())),
        )

    async def _beat(self, *, leaving: bool = False) -> None:
        units = tuple(sorted(name for name, job in self._jobs.items() if not job.stop.is_set()))
        alive = CollectorAlive(
            collector_id=self._me, units=() if leaving else units, leaving=leaving
        )
        try:
            await self._bus.publish(subjects.collector_alive(str(self._me)), encode(alive))
        except TransientError as error:
            _log.warning("heartbeat.not_sent", error=str(error))

    async def _hear(self, message: Message) -> None:
        try:
            alive = decode_collector_alive(message.data)
        except MalformedMessageError as error:
            _log.warning("heartbeat.refused", error=str(error))
            return
        if alive.collector_id == self._me:
            return
        if alive.leaving:
            changed = self._members.left(alive.collector_id)
        else:
            changed = self._members.heard(alive.collector_id, self._now_ns())
        if changed:
            _log.info(
                "collector.left" if alive.leaving else "collector.joined",
                collector=str(alive.collector_id),
            )
            self._news.set()

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(BEAT_S):
                await self._news.wait()
        except TimeoutError:
            return
        finally:
            self._news.clear()

    async def _wake(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._news.set()

    def _now_ns(self) -> int:
        return self._tools.clock.monotonic_ns()


def _whose(number: int, partitions: int) -> Callable[[str], bool]:
    def tells_of(host_id: str) -> bool:
        return partitions > 0 and subjects.partition_of(host_id, partitions) == number

    return tells_of
