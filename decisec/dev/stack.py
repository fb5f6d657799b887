"""The embedded stack from lock to proof: start everything, hand it out, stop everything."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from decisec.dev.endpoint import Endpoint, write_endpoint
from decisec.dev.errors import StackError
from decisec.dev.guest import prepare_guest
from decisec.dev.hypervisor import find_firecracker
from decisec.dev.journal import journal
from decisec.dev.programs import HOST_ID, STOP_ORDER, Ports, Programs
from decisec.dev.race import race
from decisec.dev.readiness import accepts_connections, says_ready
from decisec.dev.remains import end_remains, prove_nothing_left, reap
from decisec.dev.state import StateDir
from decisec.dev.supervisor import Report, Supervisor
from decisec.dev.tokens import development_token
from decisec.dev.vms import stop_vms
from runtime.buckets import Bucket
from runtime.bus import Bus
from runtime.settings import CommonSettings
from runtime.streams import apply, declared
from schemas.hosts import HostInfo, decode_host_info
from schemas.subjects import HOSTS

_HEARTBEAT_WITHIN_S = 10.0
_PROBE_WITHIN_S = 60.0
"""An agent boots the probe guest under each hypervisor it finds before it is ready."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StackOptions:
    """What a user can choose.

    Attributes:
        driver: `auto`, or the one hypervisor to take.
        api_port: 0 takes a free one.
        nats_port: Likewise.
        fresh: Forget what a former stack stored on this state directory.
        customer: Whose token goes into `dev.json`.
    """

    state_dir: Path
    driver: str = "auto"
    api_port: int = 0
    nats_port: int = 0
    fresh: bool = False
    customer: str = "demo"


@dataclass(slots=True, kw_only=True)
class Stack:
    """A running stack.

    Attributes:
        host: The one host's last heartbeat at the start: which hypervisor, and why.
        bus: A connection for looking on.
        clean: Set at the end, once the kernel confirms that nothing is left.
    """

    state: StateDir
    endpoint: Endpoint
    supervisor: Supervisor
    host: HostInfo
    bus: Bus
    clean: asyncio.Event = field(default_factory=asyncio.Event)

    def token(self, customer: str) -> str:
        """A development token for a customer."""
        return development_token(self.state.key(), customer)


@asynccontextmanager
async def running_stack(
    options: StackOptions, report: Report, hurry: asyncio.Event
) -> AsyncIterator[Stack]:
    """A stack for the length of the block.

    Whatever way the block is left, during the start as well, everything is stopped in order;
    `hurry` makes that quick. What the kernel still finds afterwards is reported.

    Raises:
        StackError: It cannot start, or something of it was left at the end.
    """
    state = StateDir(options.state_dir)
    async with AsyncExitStack() as exits:
        exits.enter_context(state.held())
        ports = Ports.choose(nats=options.nats_port, api=options.api_port)
        programs = Programs(state, ports)
        supervisor = Supervisor(report, hurry)
        exits.push_async_callback(prove_nothing_left, state, report)
        await end_remains(state, supervisor, programs, report)
        if options.fresh:
            state.clear()
        exits.enter_context(journal(state.logs / "supervisor.log"))
        key = state.key()

        exits.push_async_callback(supervisor.stop, STOP_ORDER[-1:])
        began = time.monotonic()
        supervisor.spawn(programs.nats_server())
        await supervisor.ready("nats-server", accepts_connections(ports.nats))
        bus = await exits.enter_async_context(
            Bus.connect(CommonSettings(nats_url=ports.nats_url), name="dev")
        )
        await supervisor.guard(apply(bus, declared()))
        report(f"nats-server ready on port {ports.nats} in {time.monotonic() - began:.1f} s")

        await prepare_guest(options.driver, state, supervisor, programs, report)
        firecracker = await find_firecracker(options.driver, state, supervisor, programs, report)

        exits.push_async_callback(_stop_services, state, supervisor, programs, report)
        began = time.monotonic()
        supervisor.spawn(programs.agent(options.driver, firecracker))
        supervisor.spawn(programs.collector())
        supervisor.spawn(programs.batcher())
        supervisor.spawn(programs.gateway())
        for name, port, within_s in (
            ("collector", ports.collector, 30.0),
            ("batcher", ports.batcher, 30.0),
            ("gateway", ports.gateway, 30.0),
            ("agent", ports.agent, _PROBE_WITHIN_S),
        ):
            await supervisor.ready(name, says_ready(port), within_s=within_s)
            report(f"{name} ready in {time.monotonic() - began:.1f} s")
        exits.push_async_callback(_stop_vms, ports.api_url, key, bus, report, hurry)
        host = await supervisor.guard(_heartbeat(bus))
        report(f"hypervisor: {host.driver} {host.driver_version} ({host.driver_reason})")
        if host.no_network:
            report(f"VMs get no network interface: {host.no_network}")

        endpoint = Endpoint(
            api_url=ports.api_url,
            docs_url=f"{ports.api_url}/docs",
            nats_url=ports.nats_url,
            token=development_token(key, options.customer),
            customer=options.customer,
            host_id=HOST_ID,
            state_dir=str(state.root),
            pid=os.getpid(),
        )
        exits.callback(state.endpoint_file.unlink, missing_ok=True)
        write_endpoint(state, endpoint)
        yield Stack(state=state, endpoint=endpoint, supervisor=supervisor, host=host, bus=bus)


async def _heartbeat(bus: Bus) -> HostInfo:
    bucket: Bucket[HostInfo] = Bucket(bus, HOSTS, decode_host_info)
    try:
        async with asyncio.timeout(_HEARTBEAT_WITHIN_S):
            while (entry := await bucket.get(HOST_ID)) is None:
                await asyncio.sleep(0.05)
    except TimeoutError as error:
        raise StackError(
            f"the agent sent no heartbeat within {_HEARTBEAT_WITHIN_S:g} s; see its log"
        ) from error
    return entry.value


async def _stop_vms(
    api_url: str, key: bytes, bus: Bus, report: Report, hurry: asyncio.Event
) -> None:
    if not hurry.is_set():
        await race(stop_vms(api_url, key, bus, report), hurry.wait(), name="stop-vms")


async def _stop_services(
    state: StateDir, supervisor: Supervisor, programs: Programs, report: Report
) -> None:
    await supervisor.stop(STOP_ORDER[:2])
    # What a killed or impatient agent left: its VMs survive it by design.
    await reap(state, supervisor, programs)
    await supervisor.stop(STOP_ORDER[2:-1])
    report("all services stopped")
