"""QEMU is told what the operator and the plan say."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from schemas.devices import RateLimits
from schemas.ids import new_id
from vm_agent.drivers.abc import MachinePlan
from vm_agent.drivers.qemu_command import command

NO_LIMITS = RateLimits()


@pytest.mark.parametrize(
    ("accel", "words"), [("kvm:tcg", ["kvm", "tcg"]), ("kvm", ["kvm"]), ("tcg", ["tcg"])]
)
def test_accelerators_are_tried_in_the_order_given(accel: str, words: list[str]) -> None:
    """And no other."""
    assert values("-accel", accel=accel) == words


def test_a_guest_with_an_initial_ram_disk_gets_it(tmp_path: Path) -> None:
    """One without does not."""
    assert values("-initrd", initrd=tmp_path / "initrd") == [str(tmp_path / "initrd")]
    assert values("-initrd") == []


def test_a_comma_in_a_path_is_no_separator() -> None:
    """A run directory may be called anything."""
    assert "file,id=console,path=/run/a,,b/console.log,append=on" in values("-chardev")


def test_one_with_a_user_gives_its_privileges_away() -> None:
    """Which the filter against getting others would kill it for."""
    assert values("-runas", uid=1234) == ["1234:1234"]
    assert values("-chroot", uid=1234) == ["/run/a,b"]
    assert "elevateprivileges" not in values("-sandbox", uid=1234)[0]
    assert values("-runas") == values("-chroot") == []
    assert values("-sandbox")[0].endswith("elevateprivileges=deny")


def test_a_disk_with_limits_is_behind_a_bucket() -> None:
    """And what is counted are the guest's own requests; one without is as it was."""
    disk = Path("/disk")
    (free,) = map(json.loads, values("-blockdev", disk=disk))
    assert free["driver"] == "raw"
    assert values("-object", disk=disk) == []
    assert "merging" not in values("-device", disk=disk)[0]
    bytes_only = RateLimits(disk_bytes_per_s=7_000_000)
    (group,) = map(json.loads, values("-object", disk=disk, limits=bytes_only))
    assert group["limits"] == {"bps-total": 7_000_000}
    (limited,) = map(json.loads, values("-blockdev", disk=disk, limits=bytes_only))
    assert (limited["driver"], limited["throttle-group"]) == ("throttle", group["id"])
    assert limited["file"] | {"node-name": "disk"} == free
    assert "merging" not in values("-device", disk=disk, limits=bytes_only)[0]
    ops = RateLimits(disk_ops_per_s=20)
    (group,) = map(json.loads, values("-object", disk=disk, limits=ops))
    assert group["limits"] == {"iops-total": 20}
    assert values("-device", disk=disk, limits=ops)[0].endswith(",request-merging=off")


def values(
    option: str,
    *,
    accel: str = "tcg",
    initrd: Path | None = None,
    uid: int | None = None,
    disk: Path | None = None,
    limits: RateLimits = NO_LIMITS,
) -> list[str]:
    """What follows each occurrence of an option."""
    plan = MachinePlan(
        disk=disk,
        limits=limits,
        vm_id=new_id(),
        incarnation=1,
        vcpus=1,
        memory_mib=64,
        kernel=Path("/kernel"),
        kernel_args="",
        initrd=initrd,
        run_dir=Path("/run/a,b"),
        uid=uid,
    )
    return [
        value for name, value in pairwise(command(Path("/qemu"), plan, accel)) if name == option
    ]
