"""Where a driver keeps things below an incarnation's run directory."""

from __future__ import annotations

from pathlib import Path

from vm_agent.drivers.abc import DriverError

API_SOCKET = "api.sock"
QMP_SOCKET = "qmp.sock"
CONSOLE = "console.log"

_TAIL_BYTES = 2048
_MAX_SOCKET_PATH_BYTES = 107


def socket_path(run_dir: Path, name: str) -> Path:
    """The path of a socket that a VMM is to bind.

    Raises:
        DriverError: It is too long for the kernel (unix(7): 108 bytes with the final NUL).
    """
    path = run_dir / name
    if len(bytes(path)) > _MAX_SOCKET_PATH_BYTES:
        raise DriverError(
            f"the run directory's path is too long for a socket ({len(bytes(path))} bytes, at most "
            f"{_MAX_SOCKET_PATH_BYTES}): choose a shorter data directory than {run_dir}"
        )
    return path


def console_tail(run_dir: Path, name: str = CONSOLE) -> str:
    """The last lines of the VMM's output, for an error message; empty if there are none."""
    try:
        with (run_dir / name).open("rb") as console:
            size = console.seek(0, 2)
            console.seek(max(0, size - _TAIL_BYTES))
            lines = console.read().decode(errors="replace").strip().splitlines()
    except FileNotFoundError:
        return ""
    return " | ".join(line.strip() for line in lines[-3:])
