"""`python -m tests.support.cloud_hypervisor --api-socket path=PATH …`: one pretended VMM."""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import socket
import sys
import time
from pathlib import Path

from tests.support.cloud_hypervisor import VERSION
from tests.support.cloud_hypervisor.events import render_event
from tests.support.cloud_hypervisor.http_server import Server
from tests.support.cloud_hypervisor.vmm import PretendedVmm
from vm_agent.process import start_ticks
from vm_agent.simulator.server import MAX_CONNECTIONS


def main() -> int:
    """Serve until the guest is off. Exits 1 if the socket is in use, as the vendor's does."""
    parser = argparse.ArgumentParser(prog="cloud-hypervisor", allow_abbrev=False)
    parser.add_argument("--version", action="store_true")
    parser.add_argument("--api-socket", type=_path_option)
    parser.add_argument("--event-monitor", type=_path_option)
    parser.add_argument("--log-file", type=Path)
    parser.add_argument("--seccomp", choices=("true", "false", "log", "errno"), default="true")
    options = parser.parse_args()
    if options.version:
        sys.stdout.write(f"cloud-hypervisor v{VERSION}\nMigration Protocol Versions: 1\n")
        return 0
    os.umask(0o077)
    if options.log_file is not None:
        options.log_file.touch()
    events = options.event_monitor.open("wb", buffering=0)
    # As if it had started at once, like the vendor's: an interpreter takes its time.
    started_ns = start_of_process_ns()

    def emit(source: str, event: str) -> None:
        at_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - started_ns
        events.write(render_event(source, event, at_ns))

    lock = options.api_socket.with_name(f"{options.api_socket.name}.lock").open("wb")
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        sys.stderr.write(f"Error: Cloud Hypervisor exited: {options.api_socket} is in use\n")
        return 1
    options.api_socket.unlink(missing_ok=True)
    emit("vmm", "starting")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    listener.bind(str(options.api_socket))
    listener.listen(MAX_CONNECTIONS)
    vmm = PretendedVmm(now_ns=time.monotonic_ns, emit=emit, print_line=_print)

    def terminate(_number: int, _frame: object) -> None:
        vmm.end()
        options.api_socket.unlink(missing_ok=True)
        os._exit(0)

    signal.signal(signal.SIGTERM, terminate)
    Server(listener, vmm).serve()
    options.api_socket.unlink(missing_ok=True)
    return 0


def start_of_process_ns() -> int:
    """A little after this process's start, CLOCK_BOOTTIME: the kernel says when in 10 ms."""
    ticks = start_ticks(os.getpid())
    assert ticks is not None
    return (ticks + 1) * 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def _path_option(text: str) -> Path:
    name, equals, path = text.partition("=")
    if name != "path" or not equals or not path:
        raise argparse.ArgumentTypeError(f"expected path=<path>, not {text}")
    return Path(path)


def _print(line: str) -> None:
    os.write(sys.stdout.fileno(), f"{line}\n".encode())


if __name__ == "__main__":
    sys.exit(main())
