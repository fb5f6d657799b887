"""What a VM's spec wishes for beyond a plain machine, and whether a driver can fulfil it.

Asked when a VM is made and again when it starts: its host may have got another driver meanwhile.
"""

from __future__ import annotations

from schemas.devices import RateLimits
from schemas.errors import ErrorCode
from schemas.vms import VmSpec
from vm_agent.drivers.abc import Ability, Driver
from vm_agent.states import RefusedError


def wishes(spec: VmSpec) -> dict[str, Ability]:
    """Fields of the spec that wish for something, and the ability that each needs."""
    wished: dict[str, tuple[object, Ability]] = {
        "metadata": (spec.metadata, Ability.METADATA),
        "balloon_mib": (spec.balloon_mib, Ability.BALLOON),
        "limits": (spec.limits != RateLimits(), Ability.RATE_LIMITS),
    }
    return {name: ability for name, (wish, ability) in wished.items() if wish}


def require(spec: VmSpec, driver: Driver) -> None:
    """Refuse a VM that would silently be another one than its owner asked for.

    Args:
        spec: With the disk that the VM really gets (`disks.with_disk`).
        driver: Who would run it.

    Raises:
        RefusedError: UNSUPPORTED, naming the driver and the field; BAD_REQUEST for limits of a
            disk that the VM has not.
    """
    for name, ability in wishes(spec).items():
        if ability not in driver.abilities:
            raise RefusedError(
                ErrorCode.UNSUPPORTED, f"{driver.name} cannot give a VM {ability} ({name})"
            )
    if spec.limits.of_disk and not spec.disk_mib:
        raise RefusedError(ErrorCode.BAD_REQUEST, "limits of the disk: the VM has no disk")
