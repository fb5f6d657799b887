"""A real agent process on a real bus, for tests that kill it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from decisec.dev.guest import allowed_args
from runtime.buckets import Bucket
from runtime.bus import Bus
from runtime.clock import utc_now
from runtime.publisher import Publisher
from runtime.reading import read_stream
from schemas.codec import encode
from schemas.commands import BootVm, Command, CreateVm
from schemas.events import VmEvent, decode_vm_event
from schemas.frames import Frame, decode_frame
from schemas.hosts import HostInfo, Operation, OperationStatus, decode_host_info, decode_operation
from schemas.ids import new_id
from schemas.subjects import (
    HOSTS,
    METRICS_RAW,
    OPERATIONS,
    VM_EVENTS,
    VM_STATUS,
    status_key,
    vm_command,
)
from schemas.vms import VmSpec, VmStatus, decode_vm_status
from tests.support.hypervisors import Lab
from tests.support.nats import bus_with_streams
from tests.support.service_process import ROOT, ServiceProcess, python_module, settings_env
from vm_agent.images import ImageStore
from vm_agent.store import RecordStore

HOST = "h1"
CUSTOMER = "acme"


class AgentProcess(ServiceProcess):
    """`python -m vm_agent` on one data directory; `Client.host` tells when it is there.

    Args:
        folder: Its data directory.
        nats_url: Its bus.
        settings: The agent's own.
        module: What is run instead of the plain agent.
        env: More environment.
    """

    def __init__(
        self,
        folder: Path,
        nats_url: str,
        *,
        settings: Mapping[str, str],
        module: str = "vm_agent",
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.data_dir = folder
        where = {"host_id": HOST, "data_dir": str(folder)}
        super().__init__(
            *python_module(module),
            log_path=folder.with_suffix(".log"),
            env={
                "DECISEC_GRACE_S": "8",
                **settings_env("agent", nats_url, {**where, **settings}),
                **(env or {}),
            },
        )

    async def reap(self) -> str:
        """Run the reaper; what it printed."""
        reaper = await asyncio.create_subprocess_exec(
            *(*python_module("vm_agent"), "reap", "--data-dir", str(self.data_dir)),
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await reaper.communicate()
        assert reaper.returncode == 0, output
        return output.decode()

    def vmm_of(self, vm_id: UUID) -> tuple[int, int]:
        """Pid and start time of a VM's VMM, from the agent's record."""
        (record,) = [r for r in RecordStore(self.data_dir / "vms").load() if r.vm_id == vm_id]
        assert record.vmm is not None
        return record.vmm.pid, record.vmm.start_ticks


class Client:
    """What a gateway, a collector and a curious person do on the bus.

    Attributes:
        look_s: How often it is looked for a result.
    """

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.look_s = 0.01
        self._publisher = Publisher(bus)
        self._operations = Bucket(bus, OPERATIONS, decode_operation)
        self._statuses = Bucket(bus, VM_STATUS, decode_vm_status)
        self._hosts = Bucket(bus, HOSTS, decode_host_info)

    async def send(self, kind: Callable[..., Command], vm_id: UUID, /, **fields: Any) -> Command:
        """Publish a command."""
        given = {
            "command_id": new_id(),
            "customer_id": CUSTOMER,
            "host_id": HOST,
            "issued_at": utc_now(),
            "deadline": utc_now() + timedelta(seconds=60),
        }
        command = kind(**{**given, "vm_id": vm_id, **fields})
        await self.publish(command, msg_id=str(command.command_id))
        return command

    async def publish(self, command: Command, *, msg_id: str) -> None:
        """Publish a command under an id of one's own."""
        await self._publisher.publish(vm_command(command), encode(command), msg_id=msg_id)

    async def do(self, kind: Callable[..., Command], vm_id: UUID, /, **fields: Any) -> Operation:
        """Publish a command and wait for its result."""
        command = await self.send(kind, vm_id, **fields)
        return await self.result(command.command_id)

    async def result(self, command_id: UUID) -> Operation:
        """The result of a command, once it is there."""
        while True:
            entry = await self._operations.get(str(command_id))
            if entry is not None and entry.value.finished:
                return entry.value
            await asyncio.sleep(self.look_s)

    async def status(self, vm_id: UUID, customer: str = CUSTOMER) -> VmStatus | None:
        """What `vm_status` says."""
        entry = await self._statuses.get(status_key(HOST, customer, vm_id))
        return entry.value if entry else None

    async def host(self, *, other_than: UUID | None = None) -> HostInfo:
        """The host's heartbeat, once there is one of another run than the given one."""
        while True:
            entry = await self._hosts.get(HOST)
            if entry is not None and entry.value.run_id != other_than:
                return entry.value
            await asyncio.sleep(0.02)

    async def frames(self) -> list[Frame]:
        """All frames in the stream, in its order."""
        return [decode_frame(m.data) for m in await read_stream(self.bus, METRICS_RAW)]

    async def frames_until(self, condition: Callable[[list[Frame]], bool]) -> list[Frame]:
        """All frames in the stream, once they meet a condition."""
        while not condition(frames := await self.frames()):
            await asyncio.sleep(0.1)
        return frames

    async def events(self) -> list[VmEvent]:
        """All events in the stream, in its order."""
        return [decode_vm_event(m.data) for m in await read_stream(self.bus, VM_EVENTS)]


@asynccontextmanager
async def agent(
    folder: Path, nats_url: str, kernel: Path, **settings: str
) -> AsyncIterator[AgentProcess]:
    """A data directory with the image `tiny`, and an agent that runs on it until the end.

    Whatever the test did, no agent, VMM or namespace is left.
    """
    process = AgentProcess(folder, nats_url, settings=settings)
    ImageStore(folder / "images").add(
        "tiny",
        kernel,
        allowed_args=allowed_args(settings.get("driver", "auto")),
        driver_args={"*": "console=ttyS0"},
    )
    try:
        async with process:
            yield process
    finally:
        await process.reap()


@asynccontextmanager
async def running_agent(
    folder: Path, lab: Lab, name: str, **more: str
) -> AsyncIterator[tuple[AgentProcess, Client]]:
    """An agent on one hypervisor; skips the test, with the reason, where that does not work."""
    lab.require(name)
    settings = {"driver": name, **more}
    if name == "firecracker" and lab.firecracker is not None:
        settings["firecracker"] = str(lab.firecracker)
    async with (
        bus_with_streams(folder / "nats") as (server, bus),
        agent(folder / "agent", server.url, lab.image.kernel, **settings) as process,
    ):
        yield process, Client(bus)


async def booted(client: Client, spec: VmSpec) -> UUID:
    """A VM of this spec whose guest runs."""
    vm_id = new_id()
    for kind, fields in ((CreateVm, {"spec": spec}), (BootVm, {})):
        done = await client.do(kind, vm_id, **fields)
        assert done.status is OperationStatus.SUCCEEDED, done
    return vm_id
