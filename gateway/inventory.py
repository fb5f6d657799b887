"""The hosts and the room on them, as this gateway knows them by now: where VMs are placed.

It is told of heartbeats, records, statuses and operations, by whichever gateway or agent they are
written, and holds room for each VM that is on its way to a host (`Reservations`). So a VM placed
by another gateway counts here as soon as its record is heard of, and a decision asks nobody.

A record says that room is needed before any command is stored. The host shows the room as used in
its heartbeat, or refuses. Whatever two gateways promise at the same moment, the agent has the last
word; what it refuses is placed again.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Set
from datetime import datetime, timedelta
from uuid import UUID

from gateway.placement import Demand, Placement, Rank, Strategy, need_of, rank_of
from gateway.reservations import LINGER, Reservations
from runtime.clock import utc_now
from schemas.errors import ErrorCode
from schemas.hosts import HostInfo, Operation, OperationStatus, Resources
from schemas.vms import VmRecord, VmSpec, VmState, VmStatus

NOTHING_MADE = frozenset(
    {
        ErrorCode.NO_CAPACITY,
        ErrorCode.UNKNOWN_IMAGE,
        ErrorCode.UNSUPPORTED,
        ErrorCode.BAD_REQUEST,
        ErrorCode.FORBIDDEN,
        ErrorCode.UNAVAILABLE,
    }
)
"""With these codes an agent has refused a create and holds nothing of the VM."""

_BEFORE_RESERVED = frozenset({VmState.PENDING})
_Shelf = tuple[str, str]


class Inventory:
    """Hosts by pool and region, each pool's in the order of the room left.

    Args:
        deadline_s: How long a create may be under way.
        clock: The time.
    """

    def __init__(self, deadline_s: float = 60.0, clock: Callable[[], datetime] = utc_now) -> None:
        self.hosts: dict[str, HostInfo] = {}
        self._deadline = timedelta(seconds=deadline_s)
        self._clock = clock
        self._reservations = Reservations(self._reorder)
        self._shelves: dict[_Shelf, list[Rank]] = {}
        self._places: dict[str, tuple[_Shelf, Rank]] = {}

    def taken(self, host_id: str) -> Resources | None:
        """What was placed on a host and is not in its heartbeat yet; None for nothing."""
        return self._reservations.taken(host_id)

    def pool(self, pool: str, region: str) -> Iterator[HostInfo]:
        """The hosts of a pool, the one with the most free memory first."""
        for rank in self._shelves.get((pool, region), ()):
            yield self.hosts[rank[2]]

    def choose(
        self,
        spec: VmSpec,
        now: datetime,
        *,
        pool: str,
        region: str,
        strategy: Strategy = Strategy.SPREAD,
        avoid: Set[str] = frozenset(),
        silent: Set[str] = frozenset(),
        peers: Mapping[str, int] | None = None,
    ) -> Placement:
        """Choose as `place` does; hosts are looked at in order, up to the first that will do."""
        self._reservations.expire(now)
        shelf = self._shelves.get((pool, region), [])
        demand = Demand(spec, now, avoid=avoid, silent=silent, peers=peers)
        # Behind these nobody has the memory.
        end = bisect_left(shelf, (1 - spec.memory_mib, -1, ""))
        fewest = 0
        chosen: HostInfo | None = None
        numbers = range(end) if strategy is Strategy.SPREAD else range(end - 1, -1, -1)
        for number in numbers:
            host_id = shelf[number][2]
            there = demand.peers.get(host_id, 0)
            if chosen is not None and there >= fewest:
                continue
            host = self.hosts[host_id]
            if demand.unfit(host, self._reservations.taken(host_id)):
                continue
            chosen, fewest = host, there
            if not there:
                break
        if chosen is not None:
            return Placement(chosen, why=demand.why(strategy))
        return self._none(demand, shelf)

    def _none(self, demand: Demand, shelf: list[Rank]) -> Placement:
        """Why there is no host."""
        reasons: Counter[str] = Counter()
        image_known = False
        for rank in shelf:
            host = self.hosts[rank[2]]
            image_known = image_known or demand.spec.image in host.images
            reasons[demand.unfit(host, self._reservations.taken(host.host_id))] += 1
        if elsewhere := len(self.hosts) - len(shelf):
            reasons["other pool or region"] = elsewhere
        return Placement(None, dict(reasons), image_known)

    def hold(self, vm_id: UUID, host_id: str, spec: VmSpec, now: datetime) -> None:
        """Hold room for a VM that is being placed, on this host and no other."""
        self._reservations.hold(vm_id, host_id, need_of(spec), now + self._deadline + LINGER)

    def release(self, vm_id: UUID, host_id: str = "") -> None:
        """Hold no room any more for a VM: on this host, or wherever it is."""
        held = host_id or self._reservations.holder(vm_id)
        if held is not None:
            self._reservations.release(vm_id, held)

    def take_host(self, host_id: str, info: HostInfo | None) -> None:
        """Take a heartbeat, or the end of them."""
        if info is None:
            self.hosts.pop(host_id, None)
            self._reservations.gone(host_id)
        else:
            self.hosts[host_id] = info
            self._reservations.heard(info)
        self._reorder(host_id)

    def take_record(
        self, known: VmRecord | None, record: VmRecord | None, status: VmStatus | None
    ) -> None:
        """Take a record that was written or removed.

        Args:
            known: What stood there before.
            record: What stands there now.
            status: What is known of the VM besides.
        """
        if record is None or record.deleted_at is not None:
            gone = record or known
            if gone is not None:
                self.release(gone.vm_id)
            return
        if known is not None and known.host_id == record.host_id:
            return
        now = self._clock()
        begun = record.created_at if known is None else now
        if begun + self._deadline + LINGER < now:
            return
        self.hold(record.vm_id, record.host_id, record.spec, begun)
        if status is not None:
            self.take_status(status)

    def take_status(self, status: VmStatus) -> None:
        """Take what an agent says of a VM: from the first word on it has reserved the room."""
        if status.state not in _BEFORE_RESERVED:
            self._reservations.reserved(status.vm_id, status.host_id, status.updated_at)

    def take_operation(self, operation: Operation) -> None:
        """Take the end of a create."""
        if operation.verb != "create" or not operation.finished:
            return
        vm_id, host_id = operation.vm_id, operation.host_id
        failed = operation.status is OperationStatus.FAILED
        refused = failed and operation.error is not None and operation.error.code in NOTHING_MADE
        if refused or operation.finished_at is None:
            self._reservations.release(vm_id, host_id)
        else:
            self._reservations.reserved(vm_id, host_id, operation.finished_at)

    def _reorder(self, host_id: str) -> None:
        """Put a host where it belongs by the room it has left."""
        info = self.hosts.get(host_id)
        place: tuple[_Shelf, Rank] | None = None
        if info is not None:
            place = (info.pool, info.region), rank_of(info, self._reservations.taken(host_id))
        before = self._places.get(host_id)
        if place == before:
            return
        if before is not None:
            shelf = self._shelves[before[0]]
            del shelf[bisect_left(shelf, before[1])]
            if not shelf:
                del self._shelves[before[0]]
        if place is None:
            self._places.pop(host_id, None)
        else:
            insort(self._shelves.setdefault(place[0], []), place[1])
            self._places[host_id] = place
