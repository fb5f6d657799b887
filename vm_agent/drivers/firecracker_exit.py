"""Firecracker's exit, and how it is helped out of it.

Observed with 1.12.1: when the guest resets while an API request is under way, the process stays
for ever. Its main thread waits for the API thread, and that one waits for an answer to the request.
The vCPU threads have ended by then, and the last metrics are not written yet. Its handler of SIGHUP
writes them and ends the process, with an exit code of its own.
"""

from __future__ import annotations

from pathlib import Path

HELPED_EXIT_CODE = 156
"""`FcExitCode::SIGHUP` in the vendor's sources."""

_VCPU_THREAD = "fc_vcpu"


def has_vcpus(pid: int) -> bool:
    """Whether a Firecracker process has threads that run, or could run, a guest.

    A paused one has them too. A process that is gone has none.
    """
    for comm in Path(f"/proc/{pid}/task").glob("*/comm"):
        try:
            if comm.read_text().startswith(_VCPU_THREAD):
                return True
        except (FileNotFoundError, ProcessLookupError):
            continue  # that thread has just ended
    return False
