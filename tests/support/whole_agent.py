"""The whole agent on a host in memory, driven by a test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from runtime.bus import Message as BusMessage
from runtime.clock import SystemClock, utc_now
from schemas.audit import AuditEntry
from schemas.codec import encode
from schemas.commands import BootVm, Command, CreateVm
from schemas.frames import decode_frame
from schemas.hosts import HostInfo, Operation, OperationStatus, Resources
from schemas.ids import new_id
from schemas.subjects import vm_command
from schemas.vms import VmSpec
from tests.support.memory_host import MemoryDesk, MemoryDriver, MemoryImages, memory_host
from tests.support.memory_kernel import MemoryKernel
from tests.support.memory_orders import MemoryOrders
from tests.support.memory_peers import MemoryPeers
from vm_agent.agent import Agent, World
from vm_agent.intake import Message
from vm_agent.questions import Answerer
from vm_agent.settings import AgentSettings
from vm_agent.spool import Outgoing
from vm_agent.telemetry import Telemetry

SPEC = VmSpec(image="tiny", memory_mib=64, disk_mib=1)


@dataclass(eq=False)
class Letter:
    """One delivery; remembers how it was answered."""

    subject: str
    data: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    attempts: int = 1
    answers: list[str] = field(default_factory=list)
    answered: asyncio.Event = field(default_factory=asyncio.Event)

    async def ack_sync(self) -> None:
        self._answer("ack")

    async def nak(self) -> None:
        self._answer("nak")

    async def in_progress(self) -> None:
        self.answers.append("in_progress")

    async def term(self) -> None:
        self._answer("term")

    def _answer(self, word: str) -> None:
        self.answers.append(word)
        self.answered.set()


class MemoryQuestions:
    """`Questions` that a test asks."""

    def __init__(self) -> None:
        self._answers: Answerer | None = None

    async def run(self, answers: Answerer) -> None:
        """`Questions`."""
        self._answers = answers
        try:
            await asyncio.Event().wait()
        finally:
            self._answers = None

    async def ask(self, subject: str, data: bytes) -> bytes:
        """The agent's answer."""
        assert self._answers is not None, "the agent answers no questions"
        return await self._answers.to(BusMessage(subject, data, {}, "reply"))


class Rig:
    """An agent in memory, and everything around it."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.settings = settings
        self.kernel = MemoryKernel()
        self.driver = MemoryDriver(self.kernel)
        self.desk = MemoryDesk()
        self.letters: asyncio.Queue[Letter] = asyncio.Queue()
        self.sent: list[Letter] = []
        self.frames: list[Outgoing] = []
        self.claims: list[int] = []
        self.beats: list[HostInfo] = []
        self.entries: list[AuditEntry] = []
        self.stop = asyncio.Event()
        self.started = asyncio.Event()
        self.connected = True
        self.orders = MemoryOrders()
        self.peers = MemoryPeers()
        self.questions = MemoryQuestions()
        self.images = MemoryImages()

    async def run(self) -> None:
        """One run of the agent, until `stop` is set."""
        world = World(
            host=memory_host(self.kernel, self.driver, self.folder, self.images),
            capacity=Resources(vcpus=8, memory_mib=1024, disk_mib=100, slots=5),
            driver=("1", "told so"),
            desk=self.desk,
            inbox=self,
            outlet=self,
            write_heartbeat=self._beat,
            orders=self.orders,
            peers=self.peers,
            announce=self.orders.announce,
            audit=self._audit,
            questions=self.questions,
            clock=SystemClock(),
            ready=self.started.set,
        )
        settings = AgentSettings(
            host_id="h1", data_dir=str(self.folder), grace_s=2.0, **self.settings
        )
        await Agent(settings, world, Telemetry()).run(self.stop)

    async def batches(self, stop: asyncio.Event) -> AsyncIterator[list[Message]]:
        """`Inbox`."""
        while not stop.is_set():
            getting = asyncio.ensure_future(self.letters.get())
            stopping = asyncio.ensure_future(stop.wait())
            await asyncio.wait({getting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            if getting.done():
                yield [getting.result()]
            else:
                getting.cancel()

    async def waits_for(self, vm_id: UUID) -> bool:
        """`Inbox`: an acknowledged letter is gone."""
        return any(str(vm_id) in s.subject and s.answers[-1:] != ["ack"] for s in self.sent)

    async def publish(self, frame: Outgoing, complete_ms: int | None) -> None:
        """`Outlet`."""
        self.frames.append(frame)
        if complete_ms is not None:
            self.claims.append(complete_ms)

    async def _audit(self, entry: AuditEntry) -> None:
        self.entries.append(entry)

    async def _beat(self, info: HostInfo) -> None:
        self.beats.append(info)

    def post(self, kind: Callable[..., Command], vm_id: UUID, **fields: Any) -> Letter:
        """Send a command."""
        given = {
            "command_id": new_id(),
            "customer_id": "acme",
            "host_id": "h1",
            "issued_at": utc_now(),
            "deadline": utc_now() + timedelta(minutes=1),
        }
        command = kind(**{**given, "vm_id": vm_id, **fields})
        return self.letter(vm_command(command), encode(command), command.command_id)

    def letter(self, subject: str, data: bytes, command_id: UUID | None = None) -> Letter:
        """Send anything."""
        letter = Letter(subject, data, {"id": str(command_id)})
        self.sent.append(letter)
        self.letters.put_nowait(letter)
        return letter

    async def do(self, kind: Callable[..., Command], vm_id: UUID, **fields: Any) -> Operation:
        """Send a command and wait for its answer."""
        letter = self.post(kind, vm_id, **fields)
        await letter.answered.wait()
        assert letter.answers[-1] == "ack"
        return self.desk.operations[UUID(letter.headers["id"])][-1]

    async def running_vm(self, spec: VmSpec = SPEC) -> UUID:
        """A VM that runs."""
        vm_id = new_id()
        await self.do(CreateVm, vm_id, spec=spec)
        assert (await self.do(BootVm, vm_id)).status is OperationStatus.SUCCEEDED
        return vm_id

    def flags_of(self, vm_id: UUID) -> list[int]:
        """The flags of a VM's samples, in order."""
        return [
            frame.flags[row]
            for frame in (decode_frame(outgoing.payload) for outgoing in self.frames)
            for row in range(frame.rows)
            if frame.vm_ids[16 * row : 16 * row + 16] == vm_id.bytes
        ]

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait for what no event tells."""
        while not condition():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def whole_agent(rig: Rig) -> AsyncIterator[Rig]:
    """Run it for the length of the block; it ends in order. May be done again with the same rig."""
    rig.stop.clear()
    rig.started.clear()
    async with asyncio.TaskGroup() as group:
        group.create_task(rig.run(), name="agent")
        await rig.started.wait()
        yield rig
        rig.driver.release.set()
        rig.stop.set()
