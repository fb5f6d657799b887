"""What a VM's spec wishes for beyond a plain machine, and whether host and driver can fulfil it.

Devices are asked for when a VM is made and again when it starts: its host may have got another
driver meanwhile. The host is asked for when a VM is made, whatever a gateway has found before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from msgspec.structs import replace

from schemas.commands import CreateVm
from schemas.devices import RateLimits
from schemas.errors import ErrorCode
from schemas.vms import VmSpec
from vm_agent.drivers.abc import Ability, Driver
from vm_agent.states import RefusedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What a host is, to those who are particular about it.

    Attributes:
        driver: What new VMs get.
        arch: As `uname -m` has it; empty if it is not known.
        pool: Empty for any.
        region: Empty for any.
    """

    driver: str
    arch: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    pool: str = ""
    region: str = ""


def suit(command: CreateVm, offer: Offer) -> None:
    """Refuse a VM that asks for another host than this.

    Raises:
        RefusedError: NO_CAPACITY, which makes a gateway try the next host; says what is asked for.
    """
    wanted = command.spec.placement
    for what, wish, is_here in (
        ("pool", command.pool, offer.pool),
        ("region", command.region, offer.region),
        ("driver", wanted.driver, offer.driver),
        ("architecture", wanted.arch, offer.arch),
    ):
        if wish and is_here and wish != is_here:
            raise RefusedError(
                ErrorCode.NO_CAPACITY, f"the VM asks for {what} {wish}, the host has {is_here}"
            )
    if not wanted.host_labels.items() <= dict(offer.labels).items():
        raise RefusedError(
            ErrorCode.NO_CAPACITY, "the host has not the labels that the VM asks for"
        )


def wishes(spec: VmSpec) -> dict[str, Ability]:
    """Fields of the spec that wish for something, and the ability that each needs."""
    wished: dict[str, tuple[object, Ability]] = {
        "metadata": (spec.metadata, Ability.METADATA),
        "balloon_mib": (spec.balloon_mib, Ability.BALLOON),
        "limits.disk_*": (spec.limits.of_disk, Ability.DISK_LIMITS),
        "limits.net_*": (spec.limits.of_network, Ability.NET_LIMITS),
    }
    return {name: ability for name, (wish, ability) in wished.items() if wish}


def shares(limits: RateLimits, driver: Driver) -> tuple[RateLimits, RateLimits]:
    """Who holds a VM to its limits: what is the VMM's to do, and what the host's network has to.

    A VMM that can is asked to: it makes its guest wait, while the host can only drop what a guest
    sends too fast. See ADR 0039.
    """
    if Ability.NET_LIMITS in driver.abilities:
        return limits, RateLimits()
    host = RateLimits(
        net_rx_bytes_per_s=limits.net_rx_bytes_per_s, net_tx_bytes_per_s=limits.net_tx_bytes_per_s
    )
    return replace(limits, net_rx_bytes_per_s=0, net_tx_bytes_per_s=0), host


def require(spec: VmSpec, driver: Driver, *, connects: bool) -> None:
    """Refuse a VM that would silently be another one than its owner asked for.

    Args:
        spec: With the disk that the VM really gets (`disks.with_disk`).
        driver: Who would run it.
        connects: Whether the host connects VMs, and can hold them to limits of the network.

    Raises:
        RefusedError: UNSUPPORTED, naming the driver and the field; BAD_REQUEST for limits of a
            disk that the VM has not.
    """
    for name, ability in wishes(spec).items():
        if ability in driver.abilities or (connects and ability is Ability.NET_LIMITS):
            continue
        message = f"{driver.name} cannot give a VM {ability} ({name})"
        if ability is Ability.NET_LIMITS:
            message += ", nor can this host, which connects no VMs"
        raise RefusedError(ErrorCode.UNSUPPORTED, message)
    if spec.limits.of_disk and not spec.disk_mib:
        raise RefusedError(ErrorCode.BAD_REQUEST, "limits of the disk: the VM has no disk")
