"""`python -m vm_agent.simulator --api-sock PATH --id ID`: one pretended VM."""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time

from vm_agent.simulator.machine import Machine
from vm_agent.simulator.server import MAX_CONNECTIONS, Server


def main() -> int:
    """Bind the API socket, serve until the guest resets. Exits 1 if the socket is taken."""
    parser = argparse.ArgumentParser(prog="vm_agent.simulator", description=__doc__)
    parser.add_argument("--api-sock", required=True, metavar="PATH")
    parser.add_argument("--id", required=True)
    options = parser.parse_args()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.bind(options.api_sock)
    except OSError as error:
        listener.close()
        sys.stderr.write(f"cannot bind {options.api_sock}: {error}\n")
        return 1
    listener.listen(MAX_CONNECTIONS)
    machine = Machine(
        options.id,
        now_ns=time.monotonic_ns,
        wall_ms=lambda: time.time_ns() // 1_000_000,
        print_line=_print,
    )
    Server(listener, machine).serve()
    return 0


def _print(line: str) -> None:
    os.write(sys.stdout.fileno(), f"{line}\n".encode())


if __name__ == "__main__":
    sys.exit(main())
