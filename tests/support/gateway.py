"""A gateway on a real nats-server, and agents that follow a script."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import httpx
import msgspec

from gateway.app import gateway
from gateway.settings import GatewaySettings
from runtime.buckets import Bucket
from runtime.bus import Bus
from runtime.clock import utc_now
from runtime.consumer import Consumer, Delivery
from runtime.health import Health
from schemas.commands import Command, DeleteVm, DiscardSnapshot, SnapshotVm, decode_command
from schemas.errors import ErrorCode, ErrorInfo
from schemas.hosts import HostInfo, OperationStatus, Resources, decode_host_info, decode_operation
from schemas.ids import new_id
from schemas.subjects import (
    HOSTS,
    OPERATIONS,
    VM_COMMANDS,
    VM_SPECS,
    VM_STATUS,
    status_key,
    vm_commands_of,
)
from schemas.vms import SnapshotInfo, VmState, VmStatus, decode_vm_record, decode_vm_status
from tests.support.nats import NatsServer, bus_with_streams
from tests.support.ports import free_port
from tests.support.service_process import ServiceProcess, python_module, settings_env
from tests.support.tokens import KEY

ROOM = Resources(vcpus=32, memory_mib=65_536, disk_mib=65_536, slots=50)
WAIT = {"Prefer": "wait=10"}
"""Headers that ask for the end of an operation, not for its beginning."""
TINY = {"image": "tiny"}
"""The least that makes a VM."""

_AFTER = {
    "create": VmState.CREATED,
    "boot": VmState.RUNNING,
    "resume": VmState.RUNNING,
    "restore": VmState.RUNNING,
    "reboot": VmState.RUNNING,
    "pause": VmState.PAUSED,
    "shutdown": VmState.STOPPED,
    "delete": VmState.DELETED,
}

Script = Callable[[Command], ErrorInfo | None]


@dataclass
class ScriptedAgent:
    """Takes commands from the stream and answers in the buckets, as an agent does.

    Attributes:
        script: Says which commands fail, and how.
        seen: Commands that it has carried out or refused.
        gate: Commands wait here while it is cleared.
    """

    bus: Bus
    host_id: str
    script: Script = lambda _: None
    seen: list[Command] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.gate.set()
        self.operations = Bucket(self.bus, OPERATIONS, decode_operation)
        self.statuses = Bucket(self.bus, VM_STATUS, decode_vm_status)
        self.hosts = Bucket(self.bus, HOSTS, decode_host_info)

    async def beat(self, **changes: Any) -> None:
        """Write one heartbeat."""
        info = HostInfo(
            host_id=self.host_id,
            run_id=new_id(),
            boot_id="test",
            version="test",
            driver="simulator",
            simulated=True,
            images=("tiny",),
            capacity=ROOM,
            free=ROOM,
            heartbeat_at=utc_now(),
        )
        await self.hosts.put(self.host_id, msgspec.structs.replace(info, **changes))

    async def run(self, **heartbeat: Any) -> None:
        """Beat and carry out commands until cancelled."""
        consumer = Consumer(
            self.bus,
            VM_COMMANDS,
            f"agent-{self.host_id}",
            filter_subjects=(vm_commands_of(self.host_id),),
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(self._beat(heartbeat), name="beat")
            async for batch in consumer.batches(asyncio.Event()):
                for delivery in batch:
                    await self.gate.wait()
                    await self._carry_out(delivery)

    async def _beat(self, heartbeat: dict[str, Any]) -> None:
        while True:
            await self.beat(**heartbeat)
            await asyncio.sleep(0.5)

    async def _carry_out(self, delivery: Delivery) -> None:
        command = decode_command(delivery.data)
        entry = await self.operations.get(str(command.command_id))
        if entry is None or entry.value.finished:
            await delivery.ack()
            return
        self.headers.append(dict(delivery.headers))
        error = self.script(command)
        if utc_now() > command.deadline:
            error = ErrorInfo(code=ErrorCode.DEADLINE_EXCEEDED, message="too late")
        state = None
        if error is None:
            state = await self.tell(command, _AFTER.get(command.verb))
        done = msgspec.structs.replace(
            entry.value,
            status=OperationStatus.FAILED if error else OperationStatus.SUCCEEDED,
            state=state,
            error=error,
            finished_at=utc_now(),
        )
        await self.operations.put(str(command.command_id), done)
        self.seen.append(command)
        await delivery.ack()

    async def tell(self, command: Command, state: VmState | None) -> VmState:
        """Write a VM's status; it stays in its state without a new one."""
        key = status_key(self.host_id, command.customer_id, command.vm_id)
        before = await self.statuses.get(key)
        if state is None:
            assert before is not None
            state = before.value.state
        incarnation = before.value.incarnation if before else 0
        grown = command.verb in ("boot", "reboot", "restore")
        await self.statuses.put(
            key,
            VmStatus(
                vm_id=command.vm_id,
                customer_id=command.customer_id,
                host_id=self.host_id,
                state=state,
                incarnation=incarnation + (1 if grown else 0),
                driver="simulator",
                simulated=True,
                snapshots=_snapshots(command, before.value.snapshots if before else ()),
                updated_at=utc_now(),
            ),
        )
        return state


def _snapshots(command: Command, before: tuple[SnapshotInfo, ...]) -> tuple[SnapshotInfo, ...]:
    match command:
        case SnapshotVm():
            taken = SnapshotInfo(
                snapshot_id=command.snapshot_id,
                kind=command.kind,
                image="tiny",
                vcpus=1,
                memory_mib=128,
                disk_mib=0,
                created_at=utc_now(),
            )
            return (*before, taken)
        case DiscardSnapshot():
            return tuple(info for info in before if info.snapshot_id != command.snapshot_id)
        case DeleteVm():
            return ()
    return before


class GatewayProcess(ServiceProcess):
    """`python -m gateway`, to be killed."""

    def __init__(self, folder: Path, nats_url: str, **settings: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        more = {"api_port": str(port), "jwt_key": KEY.decode(), **settings}
        super().__init__(
            *python_module("gateway"),
            log_path=folder / "gateway.log",
            env=settings_env("gateway", nats_url, more),
        )

    async def ready(self, api: httpx.AsyncClient) -> None:
        """Return once it answers."""
        async with asyncio.timeout(30):
            while True:
                try:
                    await api.get("/openapi.json")
                except httpx.TransportError:
                    await asyncio.sleep(0.05)
                else:
                    return


def refusing(code: ErrorCode, *verbs: str) -> Script:
    """A script that fails some verbs with a code."""

    def script(command: Command) -> ErrorInfo | None:
        if command.verb in verbs:
            return ErrorInfo(code=code, message=f"scripted {code.value}")
        return None

    return script


@dataclass(frozen=True)
class Stack:
    """A running gateway and what is around it."""

    server: NatsServer
    bus: Bus
    agent: ScriptedAgent
    health: Health
    settings: GatewaySettings
    url: str

    def client(self, **options: Any) -> httpx.AsyncClient:
        """An HTTP client of the API."""
        return httpx.AsyncClient(base_url=self.url, timeout=30, **options)

    async def keys(self, bucket: str) -> set[str]:
        """Keys of a bucket."""
        decoders: dict[str, Any] = {
            VM_SPECS: decode_vm_record,
            OPERATIONS: decode_operation,
            VM_STATUS: decode_vm_status,
        }
        return set(await Bucket(self.bus, bucket, decoders[bucket]).all())

    async def commands(self) -> int:
        """Commands that were ever stored."""
        info = await self.bus.js.stream_info(VM_COMMANDS)
        return info.state.last_seq


class Addressed(Protocol):
    """A server of the bus."""

    @property
    def url(self) -> str:
        """Where it is."""


@asynccontextmanager
async def running_gateway(
    server: Addressed, **options: Any
) -> AsyncIterator[tuple[GatewaySettings, Health, str]]:
    """A gateway with a connection of its own."""
    settings = GatewaySettings(
        nats_url=server.url,
        api_port=0,
        # All tests of a module come from one address, with many bad tokens.
        **{
            "jwt_key": KEY.decode(),
            "publish_limit_s": 2.0,
            "address_per_s": 0.0,
            **options,
        },
    )
    health = Health()
    async with (
        Bus.connect(settings, name="gateway", health=health) as bus,
        gateway(settings, bus, health, asyncio.Event()) as port,
    ):
        yield settings, health, f"http://127.0.0.1:{port}"


@asynccontextmanager
async def stack(folder: Path, **options: Any) -> AsyncIterator[Stack]:
    """nats-server, one scripted agent `h1`, and a gateway."""
    async with bus_with_streams(folder) as (server, bus):
        agent = ScriptedAgent(bus, "h1")
        await agent.beat()
        async with asyncio.TaskGroup() as group:
            task = group.create_task(agent.run(), name="agent")
            try:
                async with running_gateway(server, **options) as (settings, health, url):
                    yield Stack(server, bus, agent, health, settings, url)
            finally:
                task.cancel()


def shared_stack(folder: Path) -> AbstractAsyncContextManager[Stack]:
    """A stack for all tests of a module; each test is a customer of its own."""
    return stack(folder, command_deadline_s=20.0)


async def made(api: httpx.AsyncClient, **fields: Any) -> str:
    """The id of a VM that has just been made."""
    response = await api.post("/v1/vms", json={**TINY, **fields}, headers=WAIT)
    assert response.status_code == 201, response.text
    return str(response.json()["vm"]["vm_id"])


async def until(condition: Callable[[], Any], timeout_s: float = 10.0) -> None:
    """Return once an awaitable or plain condition holds."""
    async with asyncio.timeout(timeout_s):
        while True:
            found = condition()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return
            await asyncio.sleep(0.02)
