"""What was placed on hosts and is not yet in their heartbeats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from uuid import UUID

from gateway.placement import total
from schemas.hosts import HostInfo, Operation, OperationStatus, Resources

_LINGER = timedelta(seconds=10)
"""After its deadline a command that was never answered holds nothing any more."""


@dataclass(frozen=True, slots=True)
class _Hold:
    host_id: str
    need: Resources
    deadline: datetime
    finished_at: datetime | None = None


class Reservations:
    """Creates under way, by command.

    A successful create stays counted until its host's heartbeat is younger than the result,
    because only then the heartbeat's `free` shows the VM. Both times are that host's own.
    """

    def __init__(self) -> None:
        self._holds: dict[UUID, _Hold] = {}

    def hold(self, command_id: UUID, host_id: str, need: Resources, deadline: datetime) -> None:
        """Count a create from now on; holding it twice counts once."""
        self._holds.setdefault(command_id, _Hold(host_id, need, deadline))

    def release(self, command_id: UUID) -> None:
        """Count it no more: the create did not happen."""
        self._holds.pop(command_id, None)

    def take(self, operation: Operation) -> None:
        """Note how a create has ended."""
        hold = self._holds.get(operation.operation_id)
        if hold is None or not operation.finished:
            return
        if operation.status is OperationStatus.FAILED or operation.finished_at is None:
            self.release(operation.operation_id)
        else:
            self._holds[operation.operation_id] = replace(hold, finished_at=operation.finished_at)

    def in_flight(self, hosts: Mapping[str, HostInfo], now: datetime) -> dict[str, Resources]:
        """Per host, what its heartbeat does not show yet."""
        for command_id, hold in list(self._holds.items()):
            host = hosts.get(hold.host_id)
            shown = (
                hold.finished_at is not None
                and host is not None
                and host.heartbeat_at > hold.finished_at
            )
            if shown or now > hold.deadline + _LINGER:
                del self._holds[command_id]
        per_host: dict[str, list[Resources]] = {}
        for hold in self._holds.values():
            per_host.setdefault(hold.host_id, []).append(hold.need)
        return {host_id: total(needs) for host_id, needs in per_host.items()}
