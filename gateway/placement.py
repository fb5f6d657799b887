"""Choosing a host for a VM: a pure function of the heartbeats and of what is under way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from schemas.errors import ErrorCode, ErrorInfo
from schemas.hosts import HEARTBEAT_FRESH, HostInfo, Resources
from schemas.vms import VmSpec
from schemas.wishes import Apart, PlacementWishes

_NO_WISHES = PlacementWishes()
_NOTHING = Resources()

Rank = tuple[int, int, str]
"""Hosts in the order of the room that they have left: the most free memory first."""


class Strategy(StrEnum):
    """Which of the hosts that fit is taken.

    Attributes:
        SPREAD: The one with the most free memory left.
        PACK: The one with the least.
    """

    SPREAD = "spread"
    PACK = "pack"


def need_of(spec: VmSpec) -> Resources:
    """What a VM takes from its host."""
    return Resources(vcpus=spec.vcpus, memory_mib=spec.memory_mib, disk_mib=spec.disk_mib, slots=1)


def total(amounts: Iterable[Resources]) -> Resources:
    """The sum of some amounts."""
    vcpus = memory_mib = disk_mib = slots = 0
    for amount in amounts:
        vcpus += amount.vcpus
        memory_mib += amount.memory_mib
        disk_mib += amount.disk_mib
        slots += amount.slots
    return Resources(vcpus=vcpus, memory_mib=memory_mib, disk_mib=disk_mib, slots=slots)


def lacking(need: Resources, free: Resources) -> tuple[str, ...]:
    """The fields in which `free` does not cover `need`."""
    return tuple(
        name for name in Resources.__struct_fields__ if getattr(need, name) > getattr(free, name)
    )


def rank_of(host: HostInfo, taken: Resources | None) -> Rank:
    """Where a host stands among those of its pool.

    Args:
        host: Its heartbeat.
        taken: What was placed there and is not yet in the heartbeat.
    """
    if taken is None:
        return -host.free.memory_mib, host.vms, host.host_id
    return taken.memory_mib - host.free.memory_mib, host.vms + taken.slots, host.host_id


@dataclass(frozen=True, slots=True)
class Placement:
    """A host, or why there is none.

    Attributes:
        host: The chosen host.
        reasons: How many hosts were left out for which reason; complete if there is no host.
        image_known: Some host of the pool has the image, whether the VM fits there or not.
        why: Why this host was chosen, in a word for operators.
    """

    host: HostInfo | None
    reasons: Mapping[str, int] = field(default_factory=dict)
    image_known: bool = True
    why: str = ""

    @property
    def error(self) -> ErrorInfo:
        """Why there is no host, for the caller."""
        if self.reasons and not self.image_known:
            return ErrorInfo(
                code=ErrorCode.UNKNOWN_IMAGE, message="No host of your pool has this image."
            )
        why = ", ".join(f"{count} x {reason}" for reason, count in sorted(self.reasons.items()))
        return ErrorInfo(
            code=ErrorCode.NO_CAPACITY,
            message=f"No host can take this VM now ({why or 'no host is known'}). Try again later.",
        )


class Demand:
    """What one VM demands of a host, taken apart once so that each host costs little.

    Args:
        spec: What is to be placed.
        now: Compared with the heartbeats.
        avoid: Hosts that have refused this VM already, or did not begin it.
        silent: Hosts of which nothing new was heard, whatever the time in their heartbeats.
        peers: VMs that it is to be apart from, by host.
    """

    __slots__ = (
        "_disk_mib",
        "_image",
        "_memory_mib",
        "_oldest",
        "_out",
        "_vcpus",
        "_wishes",
        "avoid",
        "peers",
        "required",
        "spec",
    )

    def __init__(
        self,
        spec: VmSpec,
        now: datetime,
        *,
        avoid: Set[str] = frozenset(),
        silent: Set[str] = frozenset(),
        peers: Mapping[str, int] | None = None,
    ) -> None:
        self.spec = spec
        self.avoid = avoid
        self.peers = peers or {}
        self.required = spec.placement.apart is Apart.REQUIRED
        self._oldest = now - HEARTBEAT_FRESH
        self._out = silent
        self._image = spec.image
        self._vcpus = spec.vcpus
        self._memory_mib = spec.memory_mib
        self._disk_mib = spec.disk_mib
        self._wishes = None if spec.placement == _NO_WISHES else spec.placement

    def unfit(self, host: HostInfo, taken: Resources | None) -> str:
        """Why the host cannot take the VM, in a few words of a fixed set; empty if it can."""
        host_id = host.host_id
        if host_id in self.avoid:
            return "refused it"
        if host.heartbeat_at < self._oldest or host_id in self._out:
            return "not heard of"
        if host.draining:
            return "draining"
        if self._image not in host.images:
            return "without the image"
        if self._wishes is not None and (reason := self._against(host, self._wishes)):
            return reason
        free = host.free
        taken = taken or _NOTHING
        if self._vcpus > free.vcpus - taken.vcpus:
            return "short of vcpus"
        if self._memory_mib > free.memory_mib - taken.memory_mib:
            return "short of memory_mib"
        if self._disk_mib > free.disk_mib - taken.disk_mib:
            return "short of disk_mib"
        if taken.slots >= free.slots:
            return "short of slots"
        return ""

    def _against(self, host: HostInfo, wishes: PlacementWishes) -> str:
        if wishes.arch and wishes.arch != host.arch:
            return "of another architecture"
        if wishes.driver and wishes.driver != host.driver:
            return "with another driver"
        if wishes.host_labels and not wishes.host_labels.items() <= host.labels.items():
            return "without the labels"
        if self.required and host.host_id in self.peers:
            return "with a VM to be apart from"
        return ""

    def why(self, strategy: Strategy) -> str:
        """The word for a choice that was made by this demand."""
        return "+".join(
            word
            for word, said in (
                (strategy.value, True),
                ("apart", bool(self.peers)),
                ("again", bool(self.avoid)),
            )
            if said
        )


def place(
    spec: VmSpec,
    hosts: Iterable[HostInfo],
    in_flight: Mapping[str, Resources],
    now: datetime,
    *,
    pool: str = "default",
    region: str = "local",
    avoid: Set[str] = frozenset(),
    silent: Set[str] = frozenset(),
    strategy: Strategy = Strategy.SPREAD,
    peers: Mapping[str, int] | None = None,
) -> Placement:
    """Choose among the hosts that can take the VM, looking at each.

    Hosts without a VM that it is to be apart from go first, or else those with the fewest. Of
    these the strategy takes one by `rank_of`. `Inventory.choose` comes to the same faster.

    Args:
        spec: What is to be placed.
        hosts: Heartbeats.
        in_flight: Per host, what was placed there and is not yet in its heartbeat.
        now: Compared with the heartbeats.
        pool: Only hosts of this pool.
        region: Only hosts of this region.
        avoid: See `Demand`.
        silent: See `Demand`.
        strategy: Which of those that fit.
        peers: See `Demand`.
    """
    demand = Demand(spec, now, avoid=avoid, silent=silent, peers=peers)
    reasons: Counter[str] = Counter()
    packing = strategy is Strategy.PACK
    best_peers = 0
    best: Rank | None = None
    chosen: HostInfo | None = None
    image_known = False
    for host in hosts:
        if host.pool != pool or host.region != region:
            reasons["other pool or region"] += 1
            continue
        image_known = image_known or spec.image in host.images
        taken = in_flight.get(host.host_id)
        if reason := demand.unfit(host, taken):
            reasons[reason] += 1
            continue
        rank = rank_of(host, taken)
        there = demand.peers.get(host.host_id, 0)
        if (
            best is None
            or there < best_peers
            or (there == best_peers and (rank > best if packing else rank < best))
        ):
            best, best_peers, chosen = rank, there, host
    why = demand.why(strategy) if chosen is not None else ""
    return Placement(chosen, dict(reasons), image_known, why)
