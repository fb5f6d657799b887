"""What a placement costs a gateway: decisions among a thousand hosts, and what keeps them quick.

`choose` is what a gateway does; `place` looks at each host. Phases: `usual`, where most hosts fit;
`wishes`, where one host in ten has the label; `apart`, with VMs on every second host; `full`, where
none has room, so that each is looked at and its reason counted. `heartbeat` takes one heartbeat,
`record` a placement of another gateway and its end.

    python -m tests.load.bench_place --hosts 1000 --json
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import msgspec

from gateway.inventory import Inventory
from gateway.placement import Strategy, place
from runtime.clock import utc_now
from schemas.hosts import HostInfo, Resources
from schemas.ids import new_id
from schemas.vms import VmRecord, VmSpec
from schemas.wishes import PlacementWishes

NS_PER_US = 1000
SPEC = VmSpec(image="tiny", vcpus=2, memory_mib=2048)
LARGE = msgspec.structs.replace(SPEC, memory_mib=600_000)
WISHING = msgspec.structs.replace(SPEC, placement=PlacementWishes(host_labels={"disk": "nvme"}))


def hosts(count: int, rng: random.Random) -> list[HostInfo]:
    """Hosts of one pool, filled to different degrees."""
    room = Resources(vcpus=256, memory_mib=524_288, disk_mib=4_194_304, slots=500)
    found = []
    for number in range(count):
        share = rng.random()
        free = Resources(
            vcpus=int(256 * share),
            memory_mib=int(524_288 * share),
            disk_mib=int(4_194_304 * share),
            slots=int(500 * share),
        )
        found.append(
            HostInfo(
                host_id=f"host-{number}",
                run_id=new_id(),
                boot_id="b",
                version="1",
                driver="firecracker",
                images=("tiny", "debian-12", "ubuntu-24"),
                labels={"disk": "nvme" if number % 10 == 0 else "hdd"},
                capacity=room,
                free=free,
                heartbeat_at=utc_now() + timedelta(hours=1),
                vms=500 - free.slots,
            )
        )
    return found


def spread(work: Callable[[int], Any], count: int) -> dict[str, float]:
    """CPU time of one call, in µs: waiting for others on the machine is not the decision's."""
    times = []
    gc.collect()
    for number in range(count):
        before = time.thread_time_ns()
        work(number)
        times.append(time.thread_time_ns() - before)
    times.sort()
    return {
        "p50": round(times[count // 2] / NS_PER_US, 1),
        "p99": round(times[count * 99 // 100] / NS_PER_US, 1),
        "max": round(times[-1] / NS_PER_US, 1),
    }


def measure(host_count: int, decisions: int) -> dict[str, dict[str, float]]:
    """All phases, over hosts on which thousands of VMs are in flight."""
    rng = random.Random(7)  # noqa: S311 - the same hosts each time
    found = hosts(host_count, rng)
    inventory = Inventory()
    for info in found:
        inventory.take_host(info.host_id, info)
    peers = {info.host_id: 1 for info in found[::2]}
    now = utc_now()
    options: dict[str, Any] = {"pool": "default", "region": "local"}

    def placed(spec: VmSpec, **more: Any) -> Callable[[int], Any]:
        def work(_: int) -> None:
            choice = inventory.choose(spec, now, **options, **more)
            if choice.host is not None:
                inventory.hold(new_id(), choice.host.host_id, spec, now)

        return work

    def another(_: int) -> None:
        info = found[rng.randrange(host_count)]
        record = VmRecord(
            vm_id=new_id(), customer_id="acme", host_id=info.host_id, spec=SPEC, created_at=now
        )
        inventory.take_record(None, record, None)
        inventory.take_record(record, None, None)

    return {
        "choose, usual": spread(placed(SPEC), decisions),
        "choose, packed": spread(placed(SPEC, strategy=Strategy.PACK), decisions),
        "choose, wishes": spread(placed(WISHING), decisions),
        "choose, apart": spread(placed(SPEC, peers=peers), decisions),
        "choose, full": spread(placed(LARGE), decisions),
        "place, usual": spread(lambda _: place(SPEC, found, {}, now), decisions),
        "heartbeat": spread(
            lambda n: inventory.take_host(found[n % host_count].host_id, found[n % host_count]),
            decisions,
        ),
        "record": spread(another, decisions),
    }


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--hosts", type=int, default=1000)
    parser.add_argument("--decisions", type=int, default=5000)
    parser.add_argument("--json", action="store_true", help="print figures as JSON only")
    options = parser.parse_args()
    figures = measure(options.hosts, options.decisions)
    if options.json:
        sys.stdout.write(json.dumps({"hosts": options.hosts, "place_us": figures}) + "\n")
        return 0
    for name, times in figures.items():
        cells = "  ".join(f"{what} {value:8.1f} µs" for what, value in times.items())
        sys.stdout.write(f"{name:16} {cells}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
