"""Packets that the host drops: counted by reason for operators, by VM for their owners.

A VM of which far more is dropped than a guest in order ever sends is told of by an event, to its
owner as well: it is often the owner who does not know.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections import deque
from collections.abc import Iterable, Mapping
from uuid import UUID

import structlog

from schemas.events import NetworkAbuseSuspected
from schemas.units import NS_PER_S
from schemas.vms import METERED_STATES
from vm_agent.fleet import Fleet, Vm
from vm_agent.network.reasons import Reason
from vm_agent.telemetry import Telemetry

_log = structlog.get_logger("decisec.network")

WINDOW_S = 60
MANY = 1000
"""So many suspicious packets in `WINDOW_S` are abuse: a guest in order sends none, and one that
tries something out a few."""
QUIET_S = 3600
"""A VM is told of once in so long."""
_SHOWN_EVERY_NS = 60 * NS_PER_S

_SUSPICIOUS = frozenset(reason.label for reason in Reason if reason.suspicious)
_NOT_THE_GUESTS = frozenset({Reason.HOST_CHATTER.label, Reason.UPLINK.label})
"""What nobody at the VM's end has any part in."""


class Suspicion:
    """What was dropped of each VM lately. Pure: time is passed in."""

    def __init__(self) -> None:
        self._seen: dict[UUID, deque[tuple[float, Tally[str]]]] = {}
        self._told_s: dict[UUID, float] = {}

    def see(self, vm_id: UUID, dropped: Mapping[str, int], now_s: float) -> Tally[str] | None:
        """Note what was dropped since the last time; what to tell, if it is abuse now."""
        fresh = Tally({reason: n for reason, n in dropped.items() if reason in _SUSPICIOUS and n})
        seen = self._seen.setdefault(vm_id, deque())
        if fresh:
            seen.append((now_s, fresh))
        while seen and seen[0][0] <= now_s - WINDOW_S:
            seen.popleft()
        total: Tally[str] = Tally()
        for _, some in seen:
            total.update(some)
        told_s = self._told_s.get(vm_id)
        if total.total() < MANY or (told_s is not None and now_s < told_s + QUIET_S):
            return None
        self._told_s[vm_id] = now_s
        return total

    def keep(self, vm_ids: Iterable[UUID]) -> None:
        """Forget all others."""
        kept = set(vm_ids)
        self._seen = {vm_id: seen for vm_id, seen in self._seen.items() if vm_id in kept}
        self._told_s = {vm_id: s for vm_id, s in self._told_s.items() if vm_id in kept}


class Dropping:
    """Follows the filter's counts.

    Args:
        fleet: Whose packets they are.
        telemetry: Gets the counts by reason.
    """

    def __init__(self, fleet: Fleet, telemetry: Telemetry) -> None:
        self._fleet = fleet
        self._telemetry = telemetry
        self._suspicion = Suspicion()
        self._last: dict[tuple[str, str], int] | None = None
        self._shown_ns = 0

    async def take(self, drops: Mapping[str, Mapping[str, int]], now_ns: int) -> None:
        """Note what stands now.

        Args:
            drops: Packets so far by interface and reason.
            now_ns: Monotonic time.
        """
        flat = {(tap, reason): n for tap, by in drops.items() for reason, n in by.items()}
        # What stood when the agent began an earlier run has told already.
        last = flat if self._last is None else self._last
        fresh: dict[str, Tally[str]] = {}
        for (tap, reason), count in flat.items():
            before = last.get((tap, reason), 0)
            # A count that has gone back began anew.
            if more := count - before if count >= before else count:
                fresh.setdefault(tap, Tally())[reason] += more
        self._last = flat
        by_reason: Tally[str] = Tally()
        for some in fresh.values():
            by_reason.update(some)
        for reason, count in by_reason.items():
            self._telemetry.network_dropped.add(count, {"reason": reason})
        await self._by_vm(fresh, now_ns)

    async def _by_vm(self, fresh: Mapping[str, Tally[str]], now_ns: int) -> None:
        show = now_ns >= self._shown_ns + _SHOWN_EVERY_NS
        if show:
            self._shown_ns = now_ns
        running = [vm for vm in self._fleet.vms if vm.record.state in METERED_STATES]
        self._suspicion.keep(vm.vm_id for vm in running)
        for vm in running:
            lease = vm.record.lease
            if lease is None:
                continue
            some = fresh.get(lease.tap, Tally())
            for reason in some.keys() - _NOT_THE_GUESTS:
                vm.dropped[reason] = vm.dropped.get(reason, 0) + some[reason]
                vm.dropped_unshown = True
            abuse = self._suspicion.see(vm.vm_id, some, now_ns / NS_PER_S)
            if abuse is not None:
                await self._tell(vm, abuse)
            elif show and vm.dropped_unshown:
                vm.report_status()
                await self._fleet.commit(vm)
                vm.dropped_unshown = False

    async def _tell(self, vm: Vm, abuse: Tally[str]) -> None:
        reason = abuse.most_common(1)[0][0]
        _log.warning("network.abuse_suspected", vm_id=str(vm.vm_id), reason=reason, **abuse)
        self._telemetry.network_abuse.add(1, {"reason": reason})
        vm.report_status()
        vm.happened(NetworkAbuseSuspected, reason=reason, dropped=dict(abuse), window_s=WINDOW_S)
        await self._fleet.commit(vm)
        vm.dropped_unshown = False
