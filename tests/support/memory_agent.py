"""The agent's logic on a host in memory: it gets mail, and can be cut short at any await.

With `InlineExecutor` in the loop no thread runs, so that a run can be cut at the same place again.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID

from runtime.clock import SystemClock
from schemas.audit import AuditEntry
from schemas.codec import encode
from schemas.commands import Command
from schemas.frames import SampleFlag, decode_frame
from schemas.hosts import Resources
from schemas.ids import new_id
from schemas.subjects import vm_command
from tests.support.memory_host import (
    LooseTasks,
    MemoryDesk,
    MemoryDriver,
    MemoryImages,
    memory_host,
)
from tests.support.memory_kernel import MemoryKernel
from vm_agent.admission import Admission
from vm_agent.adoption import Adoption
from vm_agent.agreements import Agreements
from vm_agent.checkpoint import Checkpoint
from vm_agent.connecting import Connecting
from vm_agent.consoles import Consoles
from vm_agent.fleet import Fleet
from vm_agent.framing import FrameBuilder
from vm_agent.incarnations import Incarnations
from vm_agent.intake import Intake, Message
from vm_agent.lifecycle import Lifecycle
from vm_agent.places import Places
from vm_agent.refusals import Refusals
from vm_agent.sampler import Sampler
from vm_agent.snapshot_store import SnapshotStore
from vm_agent.snapshotting import Snapshotting
from vm_agent.spool import Outgoing
from vm_agent.store import RecordStore
from vm_agent.telemetry import Telemetry
from vm_agent.ticks import Tick

CAPACITY = Resources(vcpus=8, memory_mib=1024, disk_mib=100, slots=2)
"""What the host has room for."""


class InlineExecutor(ThreadPoolExecutor):
    """Runs at once what is submitted: no thread, no chance."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call, and hand out what came of it."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except OSError as error:
            future.set_exception(error)
        return future


class Mail:
    """One delivery of a command."""

    def __init__(self, command: Command) -> None:
        self.command = command
        self.acked = False

    @property
    def subject(self) -> str:
        """Where the command was published."""
        return vm_command(self.command)

    @property
    def data(self) -> bytes:
        """The command, encoded."""
        return encode(self.command)

    @property
    def headers(self) -> Mapping[str, str]:
        """No trace comes with it."""
        return {}

    @property
    def attempts(self) -> int:
        """It comes once."""
        return 1

    async def ack_sync(self) -> None:
        """Note that the command is done with."""
        await asyncio.sleep(0)
        self.acked = True

    async def nak(self) -> None:
        """Do nothing: a test posts it again itself."""
        await asyncio.sleep(0)

    async def in_progress(self) -> None:
        """Do nothing: no time runs out here."""
        await asyncio.sleep(0)

    async def term(self) -> None:
        """Fail the test."""
        raise AssertionError("no command here is malformed")


class Letterbox:
    """`Inbox` that a test fills."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Mail] = asyncio.Queue()

    async def batches(self, stop: asyncio.Event) -> AsyncIterator[list[Message]]:
        """Yield each mail by itself, as it comes."""
        while not stop.is_set():
            yield [await self.queue.get()]

    async def waits_for(self, vm_id: UUID) -> bool:
        """Nobody asks here: what is acknowledged is always heard."""
        raise NotImplementedError


class Run:
    """One run of the agent's logic, from adoption to its sudden end."""

    def __init__(
        self,
        folder: Path,
        kernel: MemoryKernel,
        desk: MemoryDesk,
        images: MemoryImages | None = None,
        driver: MemoryDriver | None = None,
    ) -> None:
        self.folder = folder
        self.kernel = kernel
        self.tasks = LooseTasks()
        self.inbox = Letterbox()
        self.frames: list[bytes] = []
        self.entries: list[AuditEntry] = []
        host = memory_host(kernel, driver or MemoryDriver(kernel), folder, images)
        self.checkpoint = Checkpoint(folder / "checkpoint")
        self.store = RecordStore(folder / "vms")
        self.fleet = Fleet("h1", self.store, desk, self.tasks.spawn)
        telemetry = Telemetry()
        consoles = Consoles(host.console)
        self.sampler = Sampler(
            SystemClock(),
            kernel.boottime_ns,
            FrameBuilder("h1", new_id()),
            self.checkpoint,
            consoles,
            self._offer,
            telemetry,
            self.tasks.spawn,
        )
        self.admission = Admission(CAPACITY)
        places = Places(host, consoles)
        self.connecting = Connecting(host, Agreements(folder / "peers.json"))
        incarnations = Incarnations(
            host, places, self.fleet, self.sampler, self.tasks.spawn, self.connecting
        )
        self.adoption = Adoption(
            host, self.fleet, places, incarnations, self.admission, self.sampler,
            self.checkpoint.values,
        )  # fmt: skip
        self.snapshots = Snapshotting(
            host, self.fleet, incarnations, self.admission, SnapshotStore(folder / "snapshots")
        )
        self.refusals = Refusals("h1", self._write, telemetry)
        lifecycle = Lifecycle(
            host, self.fleet, places, incarnations, self.admission, self.snapshots,
            self.connecting,
        )  # fmt: skip
        self.intake = Intake(
            "h1", self.inbox, lifecycle, desk, self.fleet.reporter, self.refusals, telemetry,
            self.tasks.spawn,
        )  # fmt: skip

    async def start(self) -> None:
        """Adopt what is there and begin to take commands."""
        records = self.store.load()
        await self.connecting.open(records)
        await self.adoption.run(records)
        await self.snapshots.adopt()
        self.tasks.spawn(self.intake.run(asyncio.Event()), "intake")

    async def quiet(self) -> None:
        """Return once nothing is at work."""
        calm = 0
        for _ in range(5000):
            await asyncio.sleep(0)
            if self.tasks.failures:
                raise BaseExceptionGroup("tasks have failed", self.tasks.failures)
            waiting = not self.inbox.queue.empty() or self.intake.open
            calm = 0 if waiting or self.fleet.reporter.waiting else calm + 1
            if calm > 40:
                return
        names = sorted(task.get_name() for task in self.tasks.running)
        raise AssertionError(f"the agent does not come to rest: {names}")

    async def tick(self, tick_ms: int) -> list[bytes]:
        """Sample once; the frames count as delivered at once."""
        self.frames.clear()
        self.sampler.sample(Tick(tick_ms, 0, 0, 0))
        frames = list(self.frames)
        for payload in frames:
            frame = decode_frame(payload)
            for row in range(frame.rows):
                if frame.flags[row] & SampleFlag.FINAL:
                    vm_id = UUID(bytes=frame.vm_ids[16 * row : 16 * row + 16])
                    await self.fleet.settled(vm_id, array("I", frame.incarnations)[row])
        return frames

    async def die(self) -> None:
        """End at once, whatever is at work."""
        await self.tasks.cancel()
        self.checkpoint.close()

    async def _write(self, entry: AuditEntry) -> None:
        self.entries.append(entry)

    def _offer(self, frame: Outgoing) -> None:
        self.frames.append(frame.payload)
