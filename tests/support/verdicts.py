"""A collector's judge of silent hosts on a real server, with a clock that a test moves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import msgspec

from collector.crew import units_of
from collector.expected import Expected
from collector.losses import Losses
from collector.partition import Partition, Tools
from collector.pipeline import Rules
from collector.specs import SpecIndex
from collector.telemetry import Instruments
from collector.verdicts import Verdicts
from runtime.buckets import Bucket, Mirror
from runtime.bus import Bus
from runtime.publisher import Publisher
from schemas import subjects
from schemas.frames import Frame, encode_frame
from schemas.hosts import HostInfo, HostLoss, Resources, decode_host_info, decode_host_loss
from schemas.ids import new_id
from schemas.units import NS_PER_S
from schemas.vms import VmRecord
from tests.support.frames import frame

AFTER_S = 60
STEP_S = 5


class HandClock:
    """Time that stands still unless it is moved."""

    def __init__(self) -> None:
        self.s = 1000.0

    def wall_ns(self) -> int:
        """Unix time in ns."""
        return int(datetime.now(UTC).timestamp() * NS_PER_S)

    def monotonic_ns(self) -> int:
        """As it was moved."""
        return int(self.s * NS_PER_S)

    async def sleep_until(self, monotonic_ns: int) -> None:
        """Nobody waits by this clock."""
        raise NotImplementedError


class Judge:
    """One collector's verdicts about the hosts of a partition that it works at.

    Attributes:
        clock: Moved by hand.
        expected: The hosts that there are VMs on.
        losses: What the bucket says, by a mirror.
        partition: Which it works at; nothing is read from the stream.
    """

    def __init__(self, bus: Bus) -> None:
        self.clock = HandClock()
        self.expected = Expected()
        self.losses = Losses()
        self.bus = bus
        tools = Tools(
            bus=bus,
            rules=Rules(),
            specs=SpecIndex(0),
            losses=self.losses,
            expected=self.expected,
            lost_after_ns=AFTER_S * NS_PER_S,
            publisher=Publisher(bus),
            instruments=Instruments(),
            clock=self.clock,
            max_batch=1,
            max_ack_pending=1,
            ack_wait_s=3,
        )
        self.partition = Partition(units_of(1)["collector-0"], tools)
        self.verdicts = Verdicts(new_id(), tools, lambda _: self.partition)

    def expect(self, *records: VmRecord) -> None:
        """There are such VMs."""
        for one in records:
            self.expected.change(subjects.vm_key(one.customer_id, one.vm_id), one)

    async def turns(self, seconds: float) -> None:
        """Let so much time pass, with a look every few seconds."""
        for _ in range(int(seconds / STEP_S)):
            self.clock.s += STEP_S
            await self.verdicts.turn()

    async def standing(self, host_id: str) -> HostLoss | None:
        """What the bucket says of a host."""
        entry = await Bucket(self.bus, subjects.LOST_HOSTS, decode_host_loss).get(host_id)
        return entry.value if entry else None

    async def knows(self, host_id: str, *, lost: bool) -> None:
        """Return once the mirror knows it."""
        async with asyncio.timeout(20):
            while (host_id in self.losses.standing) is not lost:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def judge(bus: Bus) -> AsyncIterator[Judge]:
    """One whose mirror follows the bucket for the length of the block."""
    one = Judge(bus)
    bucket = Bucket(bus, subjects.LOST_HOSTS, decode_host_loss)
    mirror = Mirror(bucket, one.losses.change, on_removed=one.losses.removed)
    async with asyncio.TaskGroup() as group:
        following = group.create_task(mirror.run(), name="losses")
        await mirror.synced()
        yield one
        following.cancel()


async def send_frame(bus: Bus, host: str, *, tick_ms: int | None = None) -> None:
    """A frame without VMs, as the agent of a host stores it."""
    one: Frame = frame([], run_id=new_id(), host=host, tick_ms=tick_ms)
    await Publisher(bus).publish(subjects.metrics_raw(host), encode_frame(one), msg_id=one.msg_id)


async def beat(bus: Bus, host: str) -> None:
    """A heartbeat of a host's agent."""
    info = HostInfo(
        host_id=host, run_id=new_id(), boot_id="b", version="0", driver="simulator",
        capacity=Resources(), free=Resources(), heartbeat_at=datetime.now(UTC),
    )  # fmt: skip
    await Bucket(bus, subjects.HOSTS, decode_host_info).put(host, info)


def deleted(record: VmRecord, at: datetime) -> VmRecord:
    """The tombstone of a VM."""
    return msgspec.structs.replace(record, deleted_at=at)
