"""Control groups: on this kernel, and as files where its hierarchies are others."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.ids import new_id
from schemas.units import MIB
from vm_agent.cgroups import Cgroups, Group, Hierarchy, Limits, hierarchies
from vm_agent.process import VmmProcesses, cpu_ns

LIMITS = Limits(cpus=2, memory_bytes=64 * MIB, tasks=50)
SPIN = "import time\nwhile time.process_time() < 0.1: pass"
HOG = "x = bytearray(256 << 20)\nimport time\ntime.sleep(60)"

V1 = """\
33 29 0:30 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
34 33 0:31 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:1 - cgroup cgroup rw,cpu,cpuacct
35 33 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
36 33 0:33 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
37 33 0:34 / /sys/fs/cgroup/a\\040b rw - cgroup cgroup rw,pids
"""


@pytest.fixture
def groups() -> Iterator[Cgroups]:
    """Groups of this test alone; all gone afterwards."""
    made = Cgroups(f"test-{new_id().hex[-8:]}")
    if made.unavailable:
        pytest.skip(made.unavailable)
    yield made
    for name in made.names():
        made.destroy(name)
    made.close()


def spawn(groups: Cgroups, folder: Path, *argv: str) -> tuple[VmmProcesses, int, int]:
    """A process in a group called `g`."""
    processes = VmmProcesses()
    group = groups.create("g", LIMITS)
    assert group is not None
    process = processes.spawn(argv, cwd=folder, console=folder / "out", doors=group.doors)
    return processes, process.pid, process.start_ticks


def test_hierarchies_are_read_from_the_mounts() -> None:
    """Each controller once, also where two share a hierarchy; others are left alone."""
    assert hierarchies(V1) == [
        Hierarchy(Path("/sys/fs/cgroup/cpu,cpuacct"), 1, frozenset({"cpu", "cpuacct"})),
        Hierarchy(Path("/sys/fs/cgroup/memory"), 1, frozenset({"memory"})),
        Hierarchy(Path("/sys/fs/cgroup/a b"), 1, frozenset({"pids"})),
    ]


def test_version_2_counts_cpu_time_without_a_controller(tmp_path: Path) -> None:
    """What its root offers, and CPU time with `cpu`."""
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    mounts = f"30 1 0:26 / {tmp_path} rw - cgroup2 cgroup2 rw,nsdelegate\n"
    (found,) = hierarchies(mounts)
    assert found == Hierarchy(tmp_path, 2, frozenset({"cpu", "cpuacct", "memory", "pids"}))


def test_limits_of_version_2_are_written_as_its_files(tmp_path: Path) -> None:
    """Controllers are passed down, guests weigh less than the host, a VM gets what it may take."""
    (tmp_path / "cgroup.subtree_control").write_text("cpu\n")
    parent = tmp_path / "decisec-x"
    parent.mkdir()
    (parent / "cgroup.subtree_control").write_text("")
    hierarchy = Hierarchy(tmp_path, 2, frozenset({"cpu", "cpuacct", "memory", "pids"}))
    groups = Cgroups("x", [hierarchy])
    assert groups.unavailable is None
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+memory +pids"
    assert (parent / "cgroup.subtree_control").read_text() == "+cpu +memory +pids"
    assert int((parent / "cpu.weight").read_text()) == min(10_000, 50 * (os.cpu_count() or 1))
    group = groups.create("g", LIMITS)
    assert group is not None
    written = {path.name: path.read_text() for path in group.folders[0].iterdir()}
    assert written == {
        "cpu.weight": "200",
        "cpu.max": "200000 100000",
        "memory.max": str(64 * MIB),
        "pids.max": "50",
    }
    (group.folders[0] / "cpu.stat").write_text("usage_usec 17\nuser_usec 9\nsystem_usec 8\n")
    assert groups.cpu_ns("g") == 17_000
    (group.folders[0] / "memory.events").write_text("low 0\noom 3\noom_kill 2\n")
    assert groups.oom_kills("g") == 2


def test_the_kernel_takes_the_limits(groups: Cgroups) -> None:
    """Each hierarchy that is mounted here holds what was asked for."""
    group = groups.create("g", LIMITS)
    assert group is not None
    files = {path.name: path for folder in group.folders for path in folder.iterdir()}
    expected = {
        "cpu.shares": "2048",
        "cpu.cfs_quota_us": "200000",
        "cpu.max": "200000 100000",
        "memory.limit_in_bytes": str(64 * MIB),
        "memory.max": str(64 * MIB),
        "pids.max": "50",
    }
    found = {name: files[name].read_text().strip() for name in expected if name in files}
    assert found
    assert found == {name: expected[name] for name in found}


async def test_a_group_tells_its_members_and_their_time(groups: Cgroups, tmp_path: Path) -> None:
    """Also when they are gone; and a group made anew starts at zero."""
    processes, pid, ticks = spawn(groups, tmp_path, sys.executable, "-S", "-c", SPIN)
    async with asyncio.timeout(20):
        status = await processes.wait_exit(pid, ticks)
    assert status.exit_code == 0
    used_ns = groups.cpu_ns("g")
    assert used_ns is not None
    assert status.cpu_ns is not None
    # It spent a moment before it joined, and the kernel one for it after its clock had stopped.
    assert abs(used_ns - status.cpu_ns) < 50_000_000
    assert groups.names() == ["g"]
    groups.create("g", LIMITS)
    assert (groups.cpu_ns("g") or 0) < 1_000_000


async def test_a_group_ends_with_all_that_is_in_it(groups: Cgroups, tmp_path: Path) -> None:
    """Nothing survives the removal, and removing again is nothing."""
    processes, pid, ticks = spawn(groups, tmp_path, "sleep", "60")
    group = groups.group("g")
    assert group is not None
    async with asyncio.timeout(5):
        while group.pids() != {pid}:
            await asyncio.sleep(0.005)
    assert cpu_ns(pid) > 0
    await asyncio.to_thread(groups.destroy, "g")
    status = await processes.wait_exit(pid, ticks)
    assert status.exit_code == -9
    assert groups.names() == []
    groups.destroy("g")


async def test_who_takes_too_much_memory_is_killed_and_told(
    groups: Cgroups, tmp_path: Path
) -> None:
    """The kernel ends it alone, and the group says why."""
    processes, pid, ticks = spawn(groups, tmp_path, sys.executable, "-S", "-c", HOG)
    async with asyncio.timeout(20):
        status = await processes.wait_exit(pid, ticks)
    assert status.exit_code == -9
    assert groups.oom_kills("g") == 1


def test_a_group_is_entered_by_thread_where_there_is_such_a_door(tmp_path: Path) -> None:
    """The other one makes the kernel wait until nobody forks."""
    first, second = tmp_path / "one", tmp_path / "two"
    for folder, files in ((first, ("cgroup.procs", "tasks")), (second, ("cgroup.procs",))):
        folder.mkdir()
        for file in files:
            (folder / file).touch()
    group = Group("g", (first, second))
    assert group.doors == (str(first / "tasks"), str(second / "cgroup.procs"))
