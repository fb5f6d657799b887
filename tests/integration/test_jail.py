"""What a jailed Firecracker can see and do, asked of the kernel; and what a hostile one cannot."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from schemas.units import MIB
from tests.support.hypervisors import UID, Lab, Rig, rig
from vm_agent.drivers.abc import DriverError
from vm_agent.drivers.firecracker import FirecrackerDriver
from vm_agent.drivers.jail import Jail, root_of
from vm_agent.drivers.paths import short_address

pytestmark = [
    pytest.mark.hypervisor,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can jail a VMM"),
]


@pytest.fixture
async def bench(lab: Lab) -> AsyncIterator[Rig]:
    """A jailing driver."""
    async with rig(lab, "firecracker") as made:
        yield made


def status_of(pid: int) -> dict[str, str]:
    """`/proc/<pid>/status` by field."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


async def test_a_vmm_has_no_rights_and_sees_only_its_own(bench: Rig) -> None:
    """Its user, no capability, seccomp, its own root, network and PID numbers, its limits."""
    nic = await bench.nic()
    vmm = await bench.booted(nic=nic, blkw=8, tx=3)
    status = status_of(vmm.pid)
    assert status["Uid"].split() == [str(UID)] * 4
    assert status["Gid"].split() == [str(UID)] * 4
    assert status["Groups"] == ""
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
    assert status["Seccomp"] == "2"
    assert status["NoNewPrivs"] == "1"
    assert status["NSpid"].split()[-1] == "1", "it must be the first of its own PID namespace"
    root = root_of(Path(vmm.run_dir))
    assert Path(f"/proc/{vmm.pid}/root").samefile(root)
    assert Path(f"/proc/{vmm.pid}/ns/net").samefile(f"/run/netns/{nic.netns}")
    assert not Path(f"/proc/{vmm.pid}/ns/mnt").samefile("/proc/self/ns/mnt")
    seen = {path.relative_to(root).parts[0] for path in root.rglob("*")}
    assert seen == {
        "api.sock", "dev", "disk.img", "firecracker", "firecracker.log", "firecracker.pid",
        "kernel", "metrics.json", "run",
    }  # fmt: skip
    limits = Path(f"/proc/{vmm.pid}/limits").read_text()
    (files,) = (line for line in limits.splitlines() if line.startswith("Max open files"))
    assert files.split()[3:5] == ["1024", "1024"]
    groups = Path(f"/proc/{vmm.pid}/cgroup").read_text()
    assert Path(vmm.run_dir).name in groups


async def test_a_kernel_is_shared_read_only_and_a_disk_is_the_vms_own(bench: Rig) -> None:
    """The kernel stays root's; what the guest writes is in the VM's own file."""
    plan = bench.plan(blkw=8)
    vmm = await bench.create(plan)
    root = root_of(Path(vmm.run_dir))
    kernel = (root / "kernel").stat()
    assert kernel.st_uid == 0
    assert not kernel.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    assert plan.disk is not None
    assert (root / "disk.img").samefile(plan.disk)
    await bench.driver.boot(vmm)
    await bench.says(vmm, "DONE")
    await bench.driver.kill(vmm)
    await bench.driver.destroy(vmm)
    assert plan.disk.stat().st_blocks * 512 >= 8 * 1024


async def test_what_the_vmm_says_itself_is_not_on_the_console(bench: Rig) -> None:
    """A tenant reads its guest's words there; the VMM's own are for whoever runs the host."""
    vmm = await bench.create(bench.plan())
    with pytest.raises(DriverError, match="refused PATCH"):
        await bench.driver.pause(vmm)  # its guest does not run yet
    await bench.driver.boot(vmm)
    await bench.says(vmm, "DONE")
    run_dir = Path(vmm.run_dir)
    log = root_of(run_dir) / "firecracker.log"
    assert "400 Bad Request" in log.read_text()
    assert bench.driver.console(run_dir).read_text().startswith("READY")
    # A guest may make it complain without end, wherever it writes in the file.
    with log.open("r+b") as file:
        file.seek(4 * MIB)
        file.write(b"x" * 2 * MIB)
    bench.driver.tidy(vmm)
    assert log.stat().st_blocks * 512 < MIB
    await bench.driver.kill(vmm)
    await bench.driver.destroy(vmm)
    assert not log.exists()


async def test_a_link_in_place_of_the_metrics_is_not_followed(bench: Rig) -> None:
    """A VMM that broke out may swap what is in its jail; the agent touches nothing else for it."""
    vmm = await bench.booted()
    victim = bench.directory / "victim"
    victim.write_bytes(b"precious")
    metrics = root_of(Path(vmm.run_dir)) / "metrics.json"
    driver = await bench.restart_agent()
    metrics.unlink()
    metrics.symlink_to(victim)
    with pytest.raises(DriverError):
        await driver.counters(vmm)
    assert victim.read_bytes() == b"precious"


async def test_a_link_in_place_of_the_socket_is_not_followed(bench: Rig) -> None:
    """One VM's agent must not be led to another VM's socket."""
    vmm, other = await bench.booted(), await bench.booted()
    socket = root_of(Path(vmm.run_dir)) / "api.sock"
    await bench.driver.close()
    socket.unlink()
    socket.symlink_to(root_of(Path(other.run_dir)) / "api.sock")
    with pytest.raises(DriverError):
        await bench.driver.pause(vmm)
    with pytest.raises(OSError, match=r"api\.sock"), short_address(socket):
        pass


async def test_a_tap_of_another_user_cannot_be_opened(bench: Rig) -> None:
    """The tap belongs to the VM's user alone."""
    nic = await bench.nic()
    plan = replace(bench.plan(nic=nic), uid=UID + 1)
    with pytest.raises(DriverError, match=r"tap|TAP|permitted|tun"):
        await bench.create(plan)


async def test_without_a_jailer_the_driver_says_so(bench: Rig) -> None:
    """Nobody runs unjailed by accident."""
    binary = bench.lab.firecracker
    assert binary is not None
    jail = Jail(bench.directory / "nothing", binary)
    driver = FirecrackerDriver(binary, bench.processes, jail)
    with pytest.raises(DriverError, match=r"no jailer at .*nothing.*settings"):
        await driver.probe_version()


async def test_a_qemu_gives_its_privileges_away(lab: Lab) -> None:
    """Before its guest runs: a user of its own, no capability, a root with nothing of the host."""
    async with rig(lab, "qemu") as bench:
        nic = await bench.nic()
        vmm = await bench.booted(nic=nic, blkw=8, tx=3)
        for thread in Path(f"/proc/{vmm.pid}/task").iterdir():
            status = status_of(int(thread.name))
            assert status["Uid"].split() == status["Gid"].split() == [str(UID)] * 4
            assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
            assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1")
        assert Path(f"/proc/{vmm.pid}/root").samefile(vmm.run_dir)
        assert Path(vmm.run_dir).stat().st_uid == 0, "it could change what the agent keeps there"
        await bench.driver.kill(vmm)
