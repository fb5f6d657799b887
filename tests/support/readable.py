"""Waiting for what can be read; unlike select(2), also where many files are open."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterable


def readable(sources: Iterable[socket.socket | int], within_s: float) -> set[int]:
    """The descriptors of which something can be read, as soon as there are any."""
    poll = select.poll()
    for source in sources:
        poll.register(source, select.POLLIN)
    return {descriptor for descriptor, _ in poll.poll(within_s * 1000)}
