"""Hosts that have stopped sending: suspected first, silent later, heard again at last."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from uuid import NAMESPACE_OID, UUID, uuid5

from schemas.events import HostHeard, HostSilent, HostSuspected
from schemas.units import NS_PER_MS


@dataclass(frozen=True, slots=True)
class SilenceLimits:
    """After how long without a frame a host is suspected, silent, forgotten."""

    suspect_ns: int
    silent_ns: int
    forget_ns: int


class _Level(IntEnum):
    HEARD = 0
    SUSPECTED = 1
    SILENT = 2


@dataclass(slots=True)
class _Host:
    heard_ns: int
    since: datetime
    frame_ns: int
    level: _Level = _Level.HEARD


class Silence:
    """What is to be said of each host at a given moment. Time is passed in, monotonic, in ns.

    Args:
        limits: When to say it.
        tells_of: Whether a host's silence is to be told here at all: a host whose frames go
            elsewhere since the stream was parted anew is not silent.
    """

    def __init__(
        self, limits: SilenceLimits, tells_of: Callable[[str], bool] = lambda _: True
    ) -> None:
        self._limits = limits
        self._tells_of = tells_of
        self._hosts: dict[str, _Host] = {}

    @property
    def hosts(self) -> int:
        """Hosts that have sent a frame and are not forgotten."""
        return len(self._hosts)

    def knows(self, host_id: str) -> bool:
        """Whether a host has sent a frame and is not forgotten."""
        return host_id in self._hosts

    def quiet_ns(self, host_id: str, now_ns: int) -> int | None:
        """How long ago its last frame came here, whoever is to blame; None if that is not known."""
        host = self._hosts.get(host_id)
        return None if host is None else now_ns - host.frame_ns

    def heard(self, host_id: str, now_ns: int, at: datetime) -> list[HostHeard]:
        """Note that a frame of a host has come."""
        host = self._hosts.get(host_id)
        if host is None:
            self._hosts[host_id] = _Host(now_ns, at, now_ns)
            return []
        events = []
        if host.level is not _Level.HEARD:
            events.append(
                HostHeard(
                    event_id=_event_id(host_id, "host_heard", host.since),
                    at=at,
                    host_id=host_id,
                    silent_ms=max(0, now_ns - host.heard_ns) // NS_PER_MS,
                )
            )
        host.heard_ns, host.since, host.level = max(host.heard_ns, now_ns), at, _Level.HEARD
        host.frame_ns = now_ns
        return events

    def watch(self, now_ns: int, at: datetime) -> list[HostSuspected | HostSilent]:
        """What has become true of hosts that send nothing; each thing is said once."""
        events: list[HostSuspected | HostSilent] = []
        for host_id, host in self._hosts.items():
            quiet_ns = now_ns - host.heard_ns
            if quiet_ns < self._limits.suspect_ns or not self._tells_of(host_id):
                continue
            if host.level < _Level.SUSPECTED:
                host.level = _Level.SUSPECTED
                event_id = _event_id(host_id, "host_suspected", host.since)
                events.append(HostSuspected(event_id=event_id, at=at, host_id=host_id))
            if host.level < _Level.SILENT and quiet_ns >= self._limits.silent_ns:
                host.level = _Level.SILENT
                event_id = _event_id(host_id, "host_silent", host.since)
                events.append(HostSilent(event_id=event_id, at=at, host_id=host_id))
        return events

    def forget(self, now_ns: int) -> list[str]:
        """Drop the hosts that have been silent for very long, and name them."""
        gone = [
            host_id
            for host_id, host in self._hosts.items()
            if now_ns - host.heard_ns >= self._limits.forget_ns
        ]
        for host_id in gone:
            del self._hosts[host_id]
        return gone

    def deafened(self, now_ns: int) -> None:
        """Until now the collector itself could hear nothing: no host is more silent for that."""
        for host in self._hosts.values():
            if host.level is _Level.HEARD:
                host.heard_ns = max(host.heard_ns, now_ns)
            elif host.level is _Level.SUSPECTED:
                host.heard_ns = max(host.heard_ns, now_ns - self._limits.suspect_ns)


def _event_id(host_id: str, kind: str, since: datetime) -> UUID:
    return uuid5(NAMESPACE_OID, f"decisec:{kind}:{host_id}:{since.isoformat()}")
