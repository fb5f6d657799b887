"""What the gateway costs: reads and mutations a second of one core, what it adds to a command.

A gateway process on one core of its own; nats-server and the clients have the others. The baseline
is the same framework's bare handler, behind the same server, on the same core. Figures go to
`.decisec/bench/gateway.json`, what was behind them to `details` in it.

    python -m tests.load.bench_gateway --seconds 5
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from nats.aio.msg import Msg
from nats.js.client import JetStreamContext

from decisec.devkit.tokens import mint
from gateway.inventory import Inventory
from runtime.buckets import Bucket
from runtime.bus import Bus
from runtime.clock import utc_now
from runtime.streams import apply, declared
from runtime.telemetry import configure_logging
from schemas.hosts import HostInfo, Resources, decode_host_info
from schemas.ids import new_id
from schemas.subjects import HOSTS, VM_COMMANDS, VM_SPECS, VM_STATUS, status_key, vm_key
from schemas.vms import (
    VmRecord,
    VmSpec,
    VmState,
    VmStatus,
    decode_vm_record,
    decode_vm_status,
)
from tests.load.gateway_callers import Bare, Caller, percentiles, rate, request
from tests.load.machine import machine_facts
from tests.support.gateway_process import GatewayProcess
from tests.support.nats import NatsServer
from tests.support.tokens import KEY
from vm_agent.process import cpu_ns

REPORT = Path(".decisec/bench/gateway.json")
CUSTOMERS = 8
_UNLIMITED: dict[str, Any] = {
    "reads_per_s": 0,
    "mutations_per_s": 0,
    "expensive_per_s": 0,
    "address_per_s": 0,
    "max_connections_per_address": 4096,
}
GOALS = {
    "reads_per_s": 1500.0,
    "mutations_per_s": 700.0,
    "command_added_p50_ms": 3.0,
    "command_added_p99_ms": 15.0,
    "place_ms": 2.0,
}


def host_info(name: str, now: datetime) -> HostInfo:
    """A large host with room."""
    room = Resources(vcpus=100_000, memory_mib=2**30, disk_mib=2**30, slots=1_000_000)
    return HostInfo(
        host_id=name, run_id=new_id(), boot_id="bench", version="bench", driver="simulator",
        simulated=True, images=("tiny", "linux", "other"), capacity=room, free=room,
        heartbeat_at=now, labels={"zone": "a"},
    )  # fmt: skip


def place_ms(decisions: int = 1000, hosts: int = 1000) -> dict[str, float]:
    """Deciding for a VM among a thousand hosts, a fifth of them with placements in flight."""
    now = utc_now()
    inventory = Inventory()
    for number in range(hosts):
        inventory.take_host(f"h{number}", host_info(f"h{number}", now))
    spec = VmSpec(image="tiny", vcpus=2, memory_mib=512)
    for number in range(0, hosts, 5):
        inventory.hold(new_id(), f"h{number}", spec, now)
    taken: list[float] = []
    for _ in range(decisions):
        began = time.perf_counter()
        placement = inventory.choose(spec, now, pool="default", region="local")
        if placement.host is None:
            raise RuntimeError("no host was found")
        inventory.hold(new_id(), placement.host.host_id, spec, now)
        taken.append((time.perf_counter() - began) * 1000)
    return percentiles(taken)


class Fleet:
    """VMs that run, as the buckets have it; no agent is there to change that."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.vms: list[tuple[str, str]] = []

    async def make(self, count: int) -> None:
        specs = Bucket(self._bus, VM_SPECS, decode_vm_record)
        statuses = Bucket(self._bus, VM_STATUS, decode_vm_status)
        await Bucket(self._bus, HOSTS, decode_host_info).put("h1", host_info("h1", utc_now()))

        async def one(number: int) -> None:
            customer, vm_id = f"c{number % CUSTOMERS}", new_id()
            record = VmRecord(
                vm_id=vm_id, customer_id=customer, host_id="h1",
                spec=VmSpec(image="tiny"), created_at=utc_now(),
            )  # fmt: skip
            status = VmStatus(
                vm_id=vm_id, customer_id=customer, host_id="h1", state=VmState.RUNNING,
                incarnation=1, updated_at=utc_now(),
            )  # fmt: skip
            await specs.put(vm_key(customer, vm_id), record)
            await statuses.put(status_key("h1", customer, vm_id), status)
            self.vms.append((customer, str(vm_id)))

        for begin in range(0, count, 100):
            await asyncio.gather(*(one(number) for number in range(begin, begin + 100)))

    def requests(self, method: str, tail: str = "") -> list[bytes]:
        """One for each VM."""
        tokens = {f"c{n}": mint(KEY, f"c{n}") for n in range(CUSTOMERS)}
        return [request(method, f"/v1/vms/{vm}{tail}", tokens[c]) for c, vm in self.vms]


async def stored_at(bus: Bus) -> AsyncIterator[tuple[str, float]]:
    """Commands as they stand on the stream: id, and when the server stored them, s."""
    taken = await bus.js.pull_subscribe("vm.cmd.>", "bench", stream=VM_COMMANDS)
    try:
        while messages := await _next(taken):
            for message in messages:
                at: datetime = message.metadata.timestamp
                yield (message.headers or {})["Nats-Msg-Id"], at.replace(tzinfo=UTC).timestamp()
                await message.ack()
    finally:
        await taken.unsubscribe()


async def _next(taken: JetStreamContext.PullSubscription) -> list[Msg]:
    try:
        return await taken.fetch(500, timeout=1)
    except TimeoutError:
        return []


async def added(
    port: int, bus: Bus, requests: list[bytes], seconds: float, per_s: float
) -> dict[str, float]:
    """From the first byte sent to the command stored, ms, at a steady pace."""
    async for _ in stored_at(bus):
        pass
    callers = [await Caller.connect(port) for _ in range(16)]
    idle: asyncio.Queue[Caller] = asyncio.Queue()
    for caller in callers:
        idle.put_nowait(caller)
    sent: dict[str, float] = {}

    async def one(number: int) -> None:
        caller = await idle.get()
        began = time.time()
        body = await caller.ask(requests[number % len(requests)], 202)
        idle.put_nowait(caller)
        sent[json.loads(body)["operation"]["operation_id"]] = began

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(int(seconds * per_s)):
            await asyncio.sleep(max(0.0, began + number / per_s - time.perf_counter()))
            group.create_task(one(number))
    found = [at - sent[name] async for name, at in stored_at(bus) if name in sent]
    for caller in callers:
        await caller.close()
    if len(found) != len(sent):
        raise RuntimeError(f"{len(sent)} commands were accepted, {len(found)} are stored")
    return percentiles([value * 1000 for value in found])


async def published_ms(bus: Bus, count: int = 500) -> dict[str, float]:
    """What a command takes to its stream without a gateway: sent to stored, ms."""
    sent: dict[str, float] = {}
    for _ in range(count):
        name = str(new_id())
        sent[name] = time.time()
        await bus.js.publish(
            f"vm.cmd.h1.{new_id()}.boot", b"x" * 300, headers={"Nats-Msg-Id": name}
        )
    found = [at - sent[name] async for name, at in stored_at(bus) if name in sent]
    return percentiles([value * 1000 for value in found])


def pin(pid: int, cpus: set[int]) -> None:
    """Keep a process on some CPUs, with all its threads."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), cpus)


def cpu_of(pid: int, began: tuple[int, float]) -> float:
    """Part of a CPU that a process has used since."""
    return round((cpu_ns(pid) - began[0]) / 1e9 / (time.perf_counter() - began[1]), 2)


async def measure(seconds: float, rounds: int, vms: int) -> dict[str, Any]:
    """All of it; the gateway and the bare handler by turns on the same core."""
    cpus = sorted(os.sched_getaffinity(0))
    own, others = {cpus[0]}, set(cpus[1:]) or {cpus[0]}
    pin(os.getpid(), own)
    placing = place_ms()
    pin(os.getpid(), others)
    with tempfile.TemporaryDirectory(prefix="decisec-bench-") as name:
        folder = Path(name)
        async with (
            NatsServer(folder) as server,
            Bus.connect(server.settings(), name="bench") as bus,
            Bare(folder) as bare,
        ):
            pin(server.pid, others)
            await apply(bus, declared())
            fleet = Fleet(bus)
            await fleet.make(vms)
            bare_port = await bare.port()
            async with GatewayProcess(server, folder, **_UNLIMITED) as gateway:
                await gateway.serving()
                for process in (bare, gateway):
                    pin(process.pid, own)
                reads, reboots = fleet.requests("GET"), fleet.requests("POST", "/reboot")
                found: dict[str, list[float]] = {"bare": [], "reads": [], "mutations": []}
                cpu: dict[str, list[float]] = {"reads": [], "mutations": []}
                for _ in range(rounds):
                    asked = [request("GET", "/bare", "x" * 300)]
                    found["bare"].append(await rate(bare_port, asked, 200, seconds, 16))
                    for what, requests, status in (
                        ("reads", reads, 200),
                        ("mutations", reboots, 202),
                    ):
                        began = cpu_ns(gateway.pid), time.perf_counter()
                        found[what].append(await rate(gateway.port, requests, status, seconds, 32))
                        cpu[what].append(cpu_of(gateway.pid, began))
                commands = await added(gateway.port, bus, reboots, seconds, 200.0)
                published = await published_ms(bus)
    return {
        "reads_per_s": round(median(found["reads"])),
        "mutations_per_s": round(median(found["mutations"])),
        "bare_reads_per_s": round(median(found["bare"])),
        "command_added_ms": commands,
        "place_ms": placing,
        "details": {
            "machine": machine_facts(),
            "rounds": {what: [round(one) for one in ones] for what, ones in found.items()},
            "gateway_cpu": cpu,
            # What it would be with the core to itself, where it had not.
            "per_cpu_s": {
                what: round(
                    median(
                        n / max(used, 0.01) for n, used in zip(found[what], cpu[what], strict=True)
                    )
                )
                for what in cpu
            },
            "published_without_gateway_ms": published,
            "commands_per_s_while_adding": 200,
            "vms": vms,
        },
    }


def table(report: dict[str, Any], out: Callable[[str], object]) -> None:
    """For people."""
    out(f"{'':36}{'figure':>10}{'goal':>10}")
    command, placing = report["command_added_ms"], report["place_ms"]
    rows = [
        ("bare handler, requests/s", report["bare_reads_per_s"], None),
        ("reads/s", report["reads_per_s"], GOALS["reads_per_s"]),
        ("mutations/s", report["mutations_per_s"], GOALS["mutations_per_s"]),
        ("command stored, p50 ms", command["p50"], GOALS["command_added_p50_ms"]),
        ("command stored, p99 ms", command["p99"], GOALS["command_added_p99_ms"]),
        ("placed among 1000 hosts, p50 ms", placing["p50"], GOALS["place_ms"]),
        ("placed among 1000 hosts, p99 ms", placing["p99"], GOALS["place_ms"]),
    ]
    for what, figure, goal in rows:
        out(f"{what:36}{figure:>10}{goal if goal is not None else '':>10}")


def main() -> int:
    """Measure, and say what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each part (default: 5)")
    parser.add_argument("--rounds", type=int, default=3, help="of reads and mutations (default: 3)")
    parser.add_argument("--vms", type=int, default=2000, help="that run (default: 2000)")
    arguments = parser.parse_args()
    configure_logging("bench", "error")
    report = asyncio.run(measure(arguments.seconds, arguments.rounds, arguments.vms))
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=2) + "\n")
    table(report, lambda line: sys.stdout.write(line + "\n"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
