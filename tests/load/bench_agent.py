"""What metering costs an agent, and whether its ticks come in time. Prints a table.

Each run has a nats-server and an agent process of its own, creates and boots VMs over the bus and
leaves them alone for a while. All figures are taken from outside: ticks and lateness from the
frames in the stream, CPU from the process clock. With `--outage` the server is then killed for so
long, and started again. At the end all VMs are deleted; what is left of them fails the run.

    python -m tests.load.bench_agent --vms 10,100,1000 --seconds 60 --outage 60
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from runtime.telemetry import configure_logging
from schemas.units import MIB, NS_PER_S
from schemas.vms import VmSpec
from tests.load.agent_frames import catching_up, last_in_stream, punctuality, read_heads
from tests.load.agent_host import BenchError, Fleet, host
from tests.load.machine import Machine, Usage, machine_facts
from tests.support.agents import AgentProcess, Client
from tests.support.nats import NatsServer

_ROOT = Path(__file__).resolve().parents[2]
REPORT = _ROOT / ".decisec" / "bench" / "agent.json"

_SETTLE_S = 5.0
_CATCH_UP_S = 600.0


def say(words: str) -> None:
    """Progress, so that nobody takes a long run for one that hangs."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {words}\n")


async def run(folder: Path, vms: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One run with so many VMs."""
    load_before = os.getloadavg()[0]
    more = dict(pair.split("=", 1) for pair in arguments.set)
    async with host(folder, arguments.driver, vms, **more) as (server, process, client):
        fleet = Fleet(client, say)
        result: dict[str, Any] = {"vms": vms, "driver": arguments.driver}
        result["network"] = arguments.network
        try:
            spec = VmSpec(image="tiny", memory_mib=16, disk_mib=1, network=arguments.network)
            result["boot_s"] = round(await fleet.boot(vms, spec), 1)
            result["boots_failed"] = fleet.boots_failed
            await asyncio.sleep(_SETTLE_S)
            say(f"{vms} VMs run; measuring for {arguments.seconds} s")
            result |= await steady(process, client, vms, arguments.seconds)
            result["load_average"] = [round(load_before, 2), round(os.getloadavg()[0], 2)]
            if arguments.outage and vms == arguments.vms[-1]:
                result["outage"] = await outage(server, process, client, arguments.outage)
            result["delete_s"] = round(await fleet.delete(process), 1)
        except BaseException:
            kept = _ROOT / ".decisec" / "bench" / "agent.log"
            kept.write_text(process.log())
            say(f"the run failed; the agent's log is in {kept}")
            raise
        await process.stop()
        if left := fleet.left_over(process):
            raise BenchError(f"left over of deleted VMs: {', '.join(left[:10])}")
    return result


async def steady(process: AgentProcess, client: Client, vms: int, seconds: float) -> dict[str, Any]:
    """Nothing but metering for a while; what it cost."""
    first = await last_in_stream(client.bus) + 1
    before, machine = Usage.of(process.pid), Machine.now()
    await asyncio.sleep(seconds)
    after, machine_after = Usage.of(process.pid), Machine.now()
    heads = await read_heads(client.bus, first, await last_in_stream(client.bus))
    if any(head.rows != vms for head in heads):
        raise BenchError("a frame does not hold all VMs")
    elapsed_ns = after.at_ns - before.at_ns
    used_ns = after.cpu_ns - before.cpu_ns
    return punctuality(heads) | {
        "cpu_ratio": round(used_ns / elapsed_ns, 3),
        "cpu_us_per_vm_tick": round(used_ns / 1000 / len(heads) / vms, 1),
        "rss_bytes": [before.rss_bytes, after.rss_bytes],
        "frame_bytes": heads[-1].size_bytes,
        # How disturbed the run was: the agent ready to go without a CPU, and both CPUs' load.
        "waited_ratio": round((after.waited_ns - before.waited_ns) / elapsed_ns, 3),
        "machine_busy_ratio": round(
            (machine_after.busy_s - machine.busy_s) * NS_PER_S / elapsed_ns / (os.cpu_count() or 1),
            3,
        ),
        "stolen_ratio": round(
            (machine_after.stolen_s - machine.stolen_s) * NS_PER_S / elapsed_ns, 3
        ),
    }


async def outage(
    server: NatsServer, process: AgentProcess, client: Client, seconds: float
) -> dict[str, Any]:
    """Kill the server for a while; how the agent made up for it."""
    say(f"no NATS for {seconds} s")
    first = await last_in_stream(client.bus) + 1
    epoch = client.bus.epoch
    before = Usage.of(process.pid)
    await server.kill()
    await asyncio.sleep(seconds)
    away = Usage.of(process.pid)
    spool = process.data_dir / "spool"
    spooled = sum(path.stat().st_size for path in spool.glob("*.frames"))
    await server.start()
    back_at_ns = time.time_ns()
    await client.bus.reconnected_after(epoch)
    say(f"NATS is back; {spooled / MIB:.0f} MiB wait in the spool")
    async with asyncio.timeout(_CATCH_UP_S):
        while any(spool.glob("*.frames")):
            await asyncio.sleep(0.1)
    made_up = Usage.of(process.pid)
    await asyncio.sleep(2.0)  # the live frames meanwhile belong to it too
    heads = await read_heads(client.bus, first, await last_in_stream(client.bus))
    elapsed_ns = away.at_ns - before.at_ns
    return {
        "seconds": seconds,
        "spooled_bytes": spooled,
        "cpu_ratio_away": round((away.cpu_ns - before.cpu_ns) / elapsed_ns, 3),
        "rss_bytes": [before.rss_bytes, away.rss_bytes, made_up.rss_bytes],
        **catching_up(heads, back_at_ns),
        **punctuality(heads),
    }


_COLUMNS = (
    ("VMs", "vms", 6), ("ticks", "ticks", 6), ("missed", "missed", 6), ("late p50", "p50", 9),
    ("p99 ms", "p99", 7), ("max", "max", 7), ("CPU", "cpu", 7), ("us/VM/tick", "us", 10),
    ("RSS MiB", "rss", 12), ("waited", "waited", 7), ("busy", "busy", 6), ("load", "load", 12),
)  # fmt: skip


def table(runs: list[dict[str, Any]]) -> str:
    """The runs, one a line."""
    lines = ["".join(f"{title:>{width + 1}}" for title, _, width in _COLUMNS)]
    for one in runs:
        cells = {
            **one["lateness_ms"],
            "vms": one["vms"], "ticks": one["ticks"], "missed": one["missed"],
            "cpu": f"{one['cpu_ratio']:.1%}", "us": one["cpu_us_per_vm_tick"],
            "rss": " → ".join(f"{size / MIB:.0f}" for size in one["rss_bytes"]),
            "waited": f"{one['waited_ratio']:.1%}", "busy": f"{one['machine_busy_ratio']:.0%}",
            "load": " → ".join(map(str, one["load_average"])),
        }  # fmt: skip
        lines.append("".join(f"{cells[key]!s:>{width + 1}}" for _, key, width in _COLUMNS))
    lines.extend(
        f"{one['vms']} VMs, no NATS for {gone['seconds']:g} s: {gone['frames']} frames "
        f"({gone['size_bytes'] / MIB:.0f} MiB) sent in {gone['sent_in_s']} s, "
        f"{gone['ratio_to_live']} times live; {gone['holes']} holes, "
        f"{gone['out_of_order']} out of order, {gone['missed']} ticks missed, "
        f"late p99 {gone['lateness_ms']['p99']} ms"
        for one in runs
        if (gone := one.get("outage"))
    )
    return "\n".join(lines)


async def run_all(arguments: argparse.Namespace) -> dict[str, Any]:
    """All runs, each with everything new."""
    runs = []
    for vms in arguments.vms:
        with tempfile.TemporaryDirectory(prefix="bench-agent-") as folder:
            runs.append(await run(Path(folder), vms, arguments))
    return {"runs": runs, "machine": machine_facts()}


def main() -> int:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--vms", type=lambda text: sorted(map(int, text.split(","))), default=[10, 100],
        help="numbers of VMs, one run each (default: 10,100)",
    )  # fmt: skip
    parser.add_argument("--seconds", type=float, default=30.0, help="to measure per run")
    parser.add_argument("--driver", default="simulator", choices=("simulator", "firecracker"))
    parser.add_argument("--network", action="store_true", help="a tap in a namespace per VM")
    parser.add_argument(
        "--outage", type=float, default=0.0, help="s without NATS, in the largest run"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the agent"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    configure_logging("bench", "error")
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    result = asyncio.run(run_all(arguments))
    REPORT.write_text(json.dumps(result, indent=2) + "\n")
    sys.stdout.write(
        (json.dumps(result, indent=2) if arguments.json else table(result["runs"])) + "\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
