"""Finds a Firecracker binary for the agent, which itself finds out by booting what works."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from decisec.dev.programs import Programs
from decisec.dev.state import StateDir
from decisec.dev.supervisor import Report, Supervisor

_KVM = Path("/dev/kvm")


async def find_firecracker(
    driver: str, state: StateDir, supervisor: Supervisor, programs: Programs, report: Report
) -> Path | None:
    """The binary on PATH, else the pinned one in the state directory, fetched if need be.

    None, with a word, when there is none: the agent then goes on to the next hypervisor.
    """
    if driver not in ("auto", "firecracker"):
        return None
    if found := shutil.which("firecracker"):
        return Path(found)
    if why := _kvm_refused():
        report(f"no Firecracker: {why}")
        return None
    code, word = await supervisor.guard(
        supervisor.run(
            programs.tool(
                "firecracker-fetch", "decisec.devkit.firecracker", "--dest", str(state.bin)
            )
        )
    )
    if code:
        report(f"no Firecracker: {word}")
        return None
    return state.bin / "firecracker"


def _kvm_refused() -> str:
    try:
        os.close(os.open(_KVM, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"{_KVM} cannot be opened: {error.strerror}"
    return ""
