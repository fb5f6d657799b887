"""The configuration of a machine, and that of a snapshot made into another machine's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from schemas.devices import RateLimits
from schemas.ids import new_id
from vm_agent.drivers.abc import DriverError, MachinePlan, Nic
from vm_agent.drivers.cloud_hypervisor_machine import require_files, restored_config, vm_config


def plan_in(directory: Path, *, nic: bool = True) -> MachinePlan:
    """A plan whose files are there."""
    directory.mkdir(exist_ok=True)
    for name in ("kernel", "initrd", "disk"):
        (directory / name).touch()
    return MachinePlan(
        vm_id=new_id(),
        incarnation=1,
        vcpus=2,
        memory_mib=64,
        kernel=directory / "kernel",
        initrd=directory / "initrd",
        kernel_args="console=ttyS0",
        disk=directory / "disk",
        nic=Nic(netns="ns", tap=f"tap-{directory.name}", mac="02:00:00:00:00:01") if nic else None,
        run_dir=directory,
    )


def saved(plan: MachinePlan, **changes: Any) -> bytes:
    """A snapshot's configuration, with more in it than was ever sent."""
    config = msgspec.to_builtins(vm_config(plan, landlock=True))
    config["cpus"]["max_phys_bits"] = 46
    config["disks"][0]["num_queues"] = 1
    config["rng"] = {"src": "/dev/urandom"}
    return json.dumps(config | changes).encode()


def test_the_vmm_guesses_no_format_and_asks_for_no_terminal(tmp_path: Path) -> None:
    """A guest writes its disk's first bytes, so they decide nothing."""
    config = msgspec.to_builtins(vm_config(plan_in(tmp_path), landlock=False))
    assert config["disks"] == [{"path": str(tmp_path / "disk"), "id": "disk", "image_type": "Raw"}]
    assert config["memory"] == {"size": 64 * 1024 * 1024}
    assert config["console"] == {"mode": "Off"}
    assert "landlock_enable" not in config
    assert "landlock_rules" not in config


def test_a_disk_has_buckets_of_a_second_and_an_interface_none(tmp_path: Path) -> None:
    """The host holds the VM to limits of its network; a limit of nothing is none."""
    limits = RateLimits(disk_bytes_per_s=5_000_000, disk_ops_per_s=100)
    plan = replace(plan_in(tmp_path), limits=limits)
    config = msgspec.to_builtins(vm_config(plan, landlock=False))
    assert config["disks"][0]["rate_limiter_config"] == {
        "bandwidth": {"size": 5_000_000, "refill_time": 1000},
        "ops": {"size": 100, "refill_time": 1000},
    }
    assert config["net"][0].keys() == {"tap", "mac", "id"}
    plan = replace(plan, limits=RateLimits(disk_ops_per_s=1))
    config = msgspec.to_builtins(vm_config(plan, landlock=False))
    assert config["disks"][0]["rate_limiter_config"] == {"ops": {"size": 1, "refill_time": 1000}}


def test_a_confined_vmm_reaches_one_folder_more(tmp_path: Path) -> None:
    """The one for snapshots: not the agent's own files beside it."""
    config = vm_config(plan_in(tmp_path), landlock=True)
    assert config.landlock_enable
    assert [rule.path for rule in config.landlock_rules or ()] == [str(tmp_path / "snapshot")]


def test_a_snapshot_is_made_another_machines(tmp_path: Path) -> None:
    """Every path and name is the new plan's; what else the VMM wrote is kept."""
    old, new = plan_in(tmp_path / "old"), plan_in(tmp_path / "new")
    text = restored_config(saved(old), new, landlock=True)
    assert b"/old/" not in text
    assert b"tap-old" not in text
    config = json.loads(text)
    wanted = msgspec.to_builtins(vm_config(new, landlock=True))
    for name in ("payload", "landlock_enable", "landlock_rules", "serial", "console", "net"):
        assert config[name] == wanted[name], name
    assert config["cpus"]["max_phys_bits"] == 46
    assert config["disks"] == [{**wanted["disks"][0], "num_queues": 1}]
    assert config["rng"] == {"src": "/dev/urandom"}


def test_a_snapshot_goes_to_a_host_without_landlock(tmp_path: Path) -> None:
    """It is confined as its host can, not as the former one could."""
    old, new = plan_in(tmp_path / "old"), plan_in(tmp_path / "new")
    config = json.loads(restored_config(saved(old), new, landlock=False))
    assert config["landlock_enable"] is False
    assert config["landlock_rules"] is None


def test_a_snapshot_of_another_kind_of_machine_is_refused(tmp_path: Path) -> None:
    """Its state would not fit."""
    plan = plan_in(tmp_path)
    for other, word in (
        (replace(plan, vcpus=1), "CPUs"),
        (replace(plan, memory_mib=65), "memory"),
        (replace(plan, disk=None), "disks"),
        (replace(plan, nic=None), "net"),
    ):
        with pytest.raises(DriverError, match=word):
            restored_config(saved(plan), other, landlock=True)


@pytest.mark.parametrize(
    "config",
    [b"", b"[]", b"{}", b"\xff", b'{"disks":1}', b'{"disks":[1]}', b'{"disks":[{"id":"disk"}]}'],
)
def test_a_damaged_configuration_is_refused(tmp_path: Path, config: bytes) -> None:
    """Whatever is wrong with it."""
    with pytest.raises(DriverError):
        restored_config(config, plan_in(tmp_path), landlock=True)


@pytest.mark.parametrize("name", ["kernel", "initrd", "disk"])
def test_a_missing_file_is_found_before_the_vmm_starts(tmp_path: Path, name: str) -> None:
    """It would say so only at boot."""
    plan = plan_in(tmp_path)
    require_files(plan)
    (tmp_path / name).unlink()
    with pytest.raises(DriverError, match=f"{name}.*No such file"):
        require_files(plan)
