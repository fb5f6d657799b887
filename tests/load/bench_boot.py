"""What it takes until a guest runs, beside the bare VMM. Prints a table.

Each round starts the tiny guest four times, one after the other:

- `bare`: Firecracker by itself, told by a configuration file what machine to make;
- `driver`: through the agent's driver, not jailed: socket, API calls, metrics, control group;
- `jailed`: the same in the jailer's jail;
- `bus`: jailed and with a tap, create and boot as commands over a nats-server, until the boot is
  reported as done.

The first three are timed from before the process is started until the guest has printed READY.

    python -m tests.load.bench_boot --rounds 30
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from runtime.telemetry import configure_logging
from schemas.commands import BootVm, CreateVm, DeleteVm
from schemas.ids import new_id
from schemas.vms import VmSpec
from tests.load.agent_host import BenchError, host
from tests.load.bench_agent import REPORT
from tests.load.machine import machine_facts
from tests.support.hypervisors import Lab, Rig, open_lab, rig
from vm_agent.drivers.firecracker import FirecrackerDriver
from vm_agent.drivers.firecracker_machine import requests

_POLL_S = 0.0002
_LIMIT_S = 10.0

Start = Callable[[], Awaitable[float]]
"""Starts one guest and ends it; ms until it ran."""


def milliseconds_since(began_ns: int) -> float:
    """On the monotonic clock."""
    return (time.monotonic_ns() - began_ns) / 1e6


async def _ready(console: Path) -> None:
    async with asyncio.timeout(_LIMIT_S):
        while not console.exists() or b"READY" not in console.read_bytes():
            await asyncio.sleep(_POLL_S)


def bare(made: Rig) -> Start:
    """Firecracker and its configuration file, nothing else."""

    async def start() -> float:
        plan = made.plan()
        machine = dict(requests(plan))
        configuration = plan.run_dir / "machine.json"
        configuration.write_text(
            json.dumps({
                "boot-source": machine["/boot-source"],
                "drives": [machine["/drives/disk"]],
                "machine-config": machine["/machine-config"],
            })
        )  # fmt: skip
        console = plan.run_dir / "bare.log"
        command = [str(made.lab.firecracker), "--no-api", "--config-file", str(configuration)]
        with console.open("wb") as output:
            began_ns = time.monotonic_ns()
            vmm = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, stdout=output
            )
        try:
            await _ready(console)
            return milliseconds_since(began_ns)
        finally:
            vmm.kill()
            await vmm.wait()

    return start


def driven(made: Rig) -> Start:
    """Through the rig's driver."""

    async def start() -> float:
        plan = made.plan()
        began_ns = time.monotonic_ns()
        vmm = await made.create(plan)
        await made.driver.boot(vmm)
        await _ready(made.driver.console(Path(vmm.run_dir)))
        took_ms = milliseconds_since(began_ns)
        await made.driver.kill(vmm)
        await made.driver.destroy(vmm)
        return took_ms

    return start


@asynccontextmanager
async def commanded(folder: Path) -> AsyncIterator[Start]:
    """By commands to an agent."""
    async with host(folder, "firecracker", 8) as (_, _process, client):
        await client.host()

        async def start() -> float:
            vm_id = new_id()
            began_ns = time.monotonic_ns()
            spec = VmSpec(image="tiny", memory_mib=64, disk_mib=8)
            done = [await client.do(CreateVm, vm_id, spec=spec), await client.do(BootVm, vm_id)]
            took_ms = milliseconds_since(began_ns)
            await client.do(DeleteVm, vm_id)
            if errors := [operation.error for operation in done if operation.error]:
                raise BenchError(f"a VM did not start: {errors}")
            return took_ms

        yield start


async def run(lab: Lab, rounds: int) -> dict[str, Any]:
    """All rounds; ms by kind."""
    async with AsyncExitStack() as stack:
        jailed = await stack.enter_async_context(rig(lab, "firecracker"))
        free = await stack.enter_async_context(rig(lab, "firecracker"))
        free.driver = FirecrackerDriver(lab.firecracker, free.processes)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-boot-")))
        starts = {
            "bare": bare(free),
            "driver": driven(free),
            "jailed": driven(jailed),
            "bus": await stack.enter_async_context(commanded(folder)),
        }
        took_ms: dict[str, list[float]] = {kind: [] for kind in starts}
        for number in range(rounds + 1):
            for kind, start in starts.items():
                one_ms = await start()
                if number:  # the first one reads everything from disk
                    took_ms[kind].append(one_ms)
    base_ms = statistics.median(took_ms["bare"])
    return {
        kind: {
            "p50_ms": round(statistics.median(values), 1),
            "max_ms": round(max(values), 1),
            "ratio_to_bare": round(statistics.median(values) / base_ms, 2),
        }
        for kind, values in took_ms.items()
    }


def main() -> int:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    configure_logging("bench", "error")
    with open_lab() as lab:
        if not (probe := lab.probes["firecracker"]).works:
            sys.stderr.write(f"Firecracker does not work here: {probe.reason}\n")
            return 1
        kinds = asyncio.run(run(lab, arguments.rounds))
    result = {"rounds": arguments.rounds, "starts": kinds, "machine": machine_facts()}
    report = REPORT.with_name("boot.json")
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(json.dumps(result, indent=2) + "\n")
    if arguments.json:
        sys.stdout.write(json.dumps(result, indent=2) + "\n")
        return 0
    sys.stdout.write(f"{'':10}{'p50 ms':>9}{'max ms':>9}{'to bare':>9}\n")
    for kind, one in kinds.items():
        cells = "".join(f"{one[key]:>9}" for key in ("p50_ms", "max_ms", "ratio_to_bare"))
        sys.stdout.write(f"{kind:10}{cells}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
