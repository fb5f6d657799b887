"""Choosing a host for a VM: a pure function of the heartbeats and of what is under way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from schemas.errors import ErrorCode, ErrorInfo
from schemas.hosts import HostInfo, Resources
from schemas.vms import VmSpec

FRESH = timedelta(seconds=5)
"""A host whose heartbeat is older gets no new VMs; agents write one every second."""


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


@dataclass(frozen=True, slots=True)
class Placement:
    """A host, or why there is none.

    Attributes:
        host: The chosen host.
        reasons: How many hosts were left out for which reason.
        image_known: Some host of the pool has the image, whether the VM fits there or not.
    """

    host: HostInfo | None
    reasons: Mapping[str, int] = field(default_factory=dict)
    image_known: bool = True

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
) -> Placement:
    """Choose the host with the most free memory left among those that can take the VM.

    Args:
        spec: What is to be placed.
        hosts: Heartbeats.
        in_flight: Per host, what was placed there and is not yet in its heartbeat.
        now: Compared with the heartbeats.
        pool: Only hosts of this pool.
        region: Only hosts of this region.
        avoid: Hosts that have refused this VM already.
        silent: Hosts of which nothing new was heard, whatever the time in their heartbeats.
    """
    need = need_of(spec)
    reasons: Counter[str] = Counter()
    best: tuple[int, int, str] | None = None
    chosen: HostInfo | None = None
    image_known = False
    for host in hosts:
        if host.pool != pool or host.region != region:
            reasons["other pool or region"] += 1
            continue
        image_known = image_known or spec.image in host.images
        if reason := _unfit(spec, need, host, in_flight.get(host.host_id), now, avoid, silent):
            reasons[reason] += 1
            continue
        taken = in_flight.get(host.host_id, Resources())
        rank = (-(host.free.memory_mib - taken.memory_mib), host.vms + taken.slots, host.host_id)
        if best is None or rank < best:
            best, chosen = rank, host
    return Placement(chosen, dict(reasons), image_known)


def _unfit(
    spec: VmSpec,
    need: Resources,
    host: HostInfo,
    taken: Resources | None,
    now: datetime,
    avoid: Set[str],
    silent: Set[str],
) -> str:
    if host.host_id in avoid:
        return "refused it"
    if now - host.heartbeat_at > FRESH or host.host_id in silent:
        return "not heard of"
    if host.draining:
        return "draining"
    if spec.image not in host.images:
        return "without the image"
    lacks = lacking(total((need, taken or Resources())), host.free)
    return f"short of {lacks[0]}" if lacks else ""
