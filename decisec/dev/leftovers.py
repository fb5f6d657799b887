"""Proof that a stack left nothing running: asks the kernel, not the supervisor.

Every process of a stack inherits a marker variable, a VMM by way of its agent too, so whoever
still carries it is a leftover.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

MARKER = "DECISEC_STACK_MARKER"

_NETNS = Path("/run/netns")


class Process(NamedTuple):
    """A process that is still there."""

    pid: int
    command: str


def marked_processes(marker: str) -> list[Process]:
    """All processes that carry the marker in their environment, zombies excepted."""
    wanted = f"{MARKER}={marker}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if wanted not in (entry / "environ").read_bytes().split(b"\0"):
                continue
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it ended meanwhile, or is not ours to look at
        found.append(Process(int(entry.name), command.strip()))
    return found


def network_namespaces(prefix: str = "decisec-") -> frozenset[str]:
    """Names of the network namespaces that agents on this machine hold."""
    if not _NETNS.is_dir():
        return frozenset()
    return frozenset(e.name for e in _NETNS.iterdir() if e.name.startswith(prefix))
