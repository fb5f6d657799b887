"""The process around a pretended machine: its arguments, its console, its exit code."""

from __future__ import annotations

import sys
import time

from vm_agent.simulator.cpython import listen
from vm_agent.simulator.disk import Disk
from vm_agent.simulator.machine import Machine
from vm_agent.simulator.server import MAX_CONNECTIONS, Server

_CONSOLE = 1


def main(arguments: list[str]) -> int:
    """Bind the API socket and serve until the machine ends; the exit code.

    It is 1 if the socket is taken, 2 for other arguments than these.
    """
    match arguments:
        case ["--api-sock", path, "--id", identity]:
            pass
        case _:
            sys.stderr.write("usage: vm_agent.simulator --api-sock PATH --id ID\n")
            return 2
    try:
        listener = listen(path, MAX_CONNECTIONS)
    except OSError as error:
        sys.stderr.write(f"cannot bind {path}: {error}\n")
        return 1
    disk = Disk()

    def print_line(line: str) -> None:
        try:
            disk.write(_CONSOLE, f"{line}\n".encode())
        except OSError:
            return  # a serial port does not wait, nor does its guest hear of it

    machine = Machine(
        identity,
        now_ns=time.monotonic_ns,
        wall_ms=lambda: time.time_ns() // 1_000_000,
        print_line=print_line,
        disk=disk,
    )
    return Server(path, listener, machine, time.monotonic_ns).serve()
