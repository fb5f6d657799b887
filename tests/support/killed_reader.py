"""`python -m tests.support.killed_reader JSON`: agents that read a VMM and are killed, in a row.

Each is a process of its own that flushes and reads through a driver as fast as it can, until it
gets SIGKILL at a random moment after its first reading.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

import msgspec

from vm_agent.drivers.abc import Vmm
from vm_agent.drivers.firecracker import FirecrackerDriver
from vm_agent.drivers.simulator import SimulatorDriver
from vm_agent.process import VmmProcesses

MOST_READING_S = 0.03


class Order(msgspec.Struct, kw_only=True):
    """What to do."""

    driver: str
    firecracker: str | None
    vmm: Vmm
    kills: int
    seed: int


async def _read_for_ever(order: Order, started: int) -> NoReturn:
    processes = VmmProcesses()
    if order.driver == SimulatorDriver.name:
        driver: FirecrackerDriver = SimulatorDriver(processes)
    else:
        # To read a VMM that is there it does not matter who started it, and how.
        binary = Path(order.firecracker) if order.firecracker else None
        driver = FirecrackerDriver(binary, processes)
    await driver.counters(order.vmm)
    os.write(started, b"!")
    while True:
        await driver.counters(order.vmm)


def main(order: Order) -> None:
    """Kill so many, one after the other."""
    moments = random.Random(order.seed)  # noqa: S311 - a test's choice, to be repeated
    for _ in range(order.kills):
        begun, started = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(begun)
            try:
                asyncio.run(_read_for_ever(order, started))
            finally:
                os._exit(1)
        os.close(started)
        alive = os.read(begun, 1)
        os.close(begun)
        time.sleep(moments.uniform(0, MOST_READING_S))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if not alive or not os.WIFSIGNALED(status):
            sys.exit(f"the reader ended by itself: {status}")


if __name__ == "__main__":
    main(msgspec.json.decode(sys.argv[1], type=Order))
