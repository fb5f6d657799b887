"""One suite for every hypervisor driver: real processes, nothing replaced."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from schemas.vms import ExitReason
from tests.support.hypervisors import Rig, processes_in
from vm_agent.consoles import ConsoleLog
from vm_agent.drivers.abc import Ability, DeviceCounters, Driver, DriverError, Vmm, VmmState
from vm_agent.drivers.paths import short_address
from vm_agent.drivers.process_driver import ProcessDriver
from vm_agent.kernel import LinuxProcesses
from vm_agent.process import cpu_ns, is_alive

pytestmark = pytest.mark.hypervisor

WORK = {"blkw": 3072, "blkr": 1536}
WORK_COUNTERS = DeviceCounters(disk_read_bytes=1_572_864, disk_write_bytes=3_145_728)


async def test_a_machine_goes_through_its_life(bench: Rig) -> None:
    """Created, running, paused, running, gone; and nothing stays in the run directory."""
    driver = bench.driver
    assert Ability.PAUSE in driver.abilities
    vmm = await bench.create(bench.plan())
    assert await driver.inspect(vmm) is VmmState.CREATED
    assert await driver.counters(vmm) == driver_zero(bench)
    await driver.boot(vmm)
    await bench.says(vmm, "READY")
    assert await driver.inspect(vmm) is VmmState.RUNNING
    await driver.pause(vmm)
    assert await driver.inspect(vmm) is VmmState.PAUSED
    await driver.resume(vmm)
    assert await driver.inspect(vmm) is VmmState.RUNNING
    await driver.kill(vmm)
    assert await driver.inspect(vmm) is VmmState.GONE
    await bench.exits(vmm)
    await driver.destroy(vmm)
    assert files_in(vmm.run_dir) == []


def driver_zero(bench: Rig) -> DeviceCounters:
    """What a machine that never ran has used, as this driver says it."""
    if bench.driver.simulated:
        return DeviceCounters(cpu_ns=0, net_rx_bytes=0, net_tx_bytes=0)
    return DeviceCounters()


async def test_every_verb_may_be_repeated(bench: Rig) -> None:
    """A verb that has had its effect does nothing more."""
    driver = bench.driver
    vmm = await bench.booted()
    await driver.boot(vmm)
    for _ in range(2):
        await driver.pause(vmm)
    await driver.boot(vmm)
    assert await driver.inspect(vmm) is VmmState.PAUSED
    for _ in range(2):
        await driver.resume(vmm)
    for _ in range(2):
        await driver.kill(vmm)
    await bench.exits(vmm)
    await driver.shutdown(vmm)
    await driver.kill(vmm)
    for _ in range(2):
        await driver.destroy(vmm)


async def test_a_guest_that_obeys_ends_its_vmm(bench: Rig) -> None:
    """Nobody need ask for the VMM to go; the reason is known and the counters are final."""
    bench.require_button()
    vmm = await bench.booted(**WORK)
    await bench.driver.shutdown(vmm)
    await bench.exits(vmm)
    status = await bench.processes.wait_exit(vmm.pid, vmm.start_ticks)
    assert bench.driver.exit_reason(vmm, status.exit_code) is ExitReason.GUEST_SHUTDOWN
    final = await bench.driver.counters(vmm)
    assert await bench.driver.counters(vmm) == final
    if bench.exact:
        assert final == WORK_COUNTERS
    await bench.driver.destroy(vmm)


async def test_a_guest_that_stops_amid_requests_ends_its_vmm(bench: Rig) -> None:
    """A request that meets the exit keeps nothing: not the VMM, not a byte, not the reason.

    Firecracker 1.12 hangs for ever then; the driver must help it out.
    """
    bench.require_button()
    others = [] if bench.name == "qemu" else [bench.another_driver() for _ in range(3)]
    for _ in range(5):
        vmm = await bench.booted(**WORK)

        async def ask(driver: Driver, vmm: Vmm) -> None:
            while is_alive(vmm.pid, vmm.start_ticks):
                with suppress(DriverError):
                    await driver.inspect(vmm)

        async with asyncio.timeout(5), asyncio.TaskGroup() as group:
            for number, driver in enumerate((bench.driver, *others)):
                group.create_task(ask(driver, vmm), name=f"ask-{number}")
            await bench.driver.shutdown(vmm)
        status = await bench.processes.wait_exit(vmm.pid, vmm.start_ticks)
        assert bench.driver.exit_reason(vmm, status.exit_code) is ExitReason.GUEST_SHUTDOWN
        if bench.exact:
            assert await bench.driver.counters(vmm) == WORK_COUNTERS
        await bench.driver.destroy(vmm)
    for driver in others:
        await driver.close()


async def test_a_kill_keeps_the_last_counters(bench: Rig) -> None:
    """What the guest did since the last reading is counted, and then nothing moves."""
    vmm = await bench.booted(**WORK)
    before = await bench.driver.counters(vmm)
    await bench.driver.kill(vmm)
    final = await bench.driver.counters(vmm)
    assert at_least(final, before)
    if bench.exact:
        assert final == WORK_COUNTERS
    status = await bench.processes.wait_exit(vmm.pid, vmm.start_ticks)
    assert status.exit_code == -signal.SIGKILL
    assert status.cpu_ns
    assert bench.driver.exit_reason(vmm, status.exit_code) is ExitReason.KILLED
    assert bench.driver.exit_reason(vmm, None) is ExitReason.KILLED
    assert await bench.driver.counters(vmm) == final


def files_in(directory: str | Path) -> list[str]:
    """Names of what is in a directory."""
    return sorted(path.name for path in Path(directory).iterdir())


def same_file(one: str, other: str) -> bool:
    """Whether two names mean the same thing."""
    return Path(one).samefile(other)


def at_least(later: DeviceCounters, earlier: DeviceCounters) -> bool:
    """Whether no counter went back."""
    names = DeviceCounters.__slots__
    return all((getattr(later, n) or 0) >= (getattr(earlier, n) or 0) for n in names)


async def test_counters_go_on_over_an_agent_restart(bench: Rig) -> None:
    """A new driver with the old handle counts on from where the old one was killed."""
    plan = bench.plan(blkw=64, blkr=32, loop=200)
    vmm = await bench.create(plan)
    await bench.driver.boot(vmm)
    last = await bench.driver.counters(vmm)
    for _ in range(10):
        driver = await bench.restart_agent()
        assert await driver.inspect(vmm) is VmmState.RUNNING
        now = await driver.counters(vmm)
        assert at_least(now, last)
        last = now
    await bench.says(vmm, "READY" if driver.simulated else "DONE")
    await driver.kill(vmm)
    driver = await bench.restart_agent()
    final = await driver.counters(vmm)
    assert at_least(final, last)
    if bench.exact:
        assert final.disk_write_bytes == 64 * 1024 * 200
        assert final.disk_read_bytes == 32 * 1024 * 200
    assert await driver.inspect(vmm) is VmmState.GONE
    assert driver.exit_reason(vmm, None) is ExitReason.KILLED


async def test_a_guest_that_stops_without_an_agent_is_settled_by_the_next_one(bench: Rig) -> None:
    """The agent dies, the guest shuts down, a new agent reads the exact counters."""
    bench.require_button()
    vmm = await bench.booted(**WORK)
    await bench.driver.shutdown(vmm)
    driver = await bench.restart_agent()
    async with asyncio.timeout(10):
        while await driver.inspect(vmm) is not VmmState.GONE:
            await asyncio.sleep(0.01)
    await bench.exits(vmm)
    if bench.exact:
        assert await driver.counters(vmm) == WORK_COUNTERS
    assert driver.exit_reason(vmm, 0) is ExitReason.GUEST_SHUTDOWN


async def test_a_vmm_that_a_stranger_killed_is_gone(bench: Rig) -> None:
    """Inspect says so, counters still answers, and its last words can be read."""
    vmm = await bench.booted()
    seen = await bench.driver.counters(vmm)
    assert isinstance(bench.driver, ProcessDriver)
    with bench.driver._log_of(Path(vmm.run_dir)).open("a") as log:
        log.write("\nit panicked\n")
    os.kill(vmm.pid, signal.SIGKILL)
    await bench.exits(vmm)
    assert bench.driver.last_words(vmm).endswith("it panicked")
    assert await bench.driver.inspect(vmm) is VmmState.GONE
    assert await bench.driver.counters(vmm) == seen
    assert bench.driver.exit_reason(vmm, -9) is ExitReason.KILLED
    assert bench.driver.exit_reason(vmm, -11) is ExitReason.CRASHED
    assert bench.driver.exit_reason(vmm, None) is ExitReason.UNKNOWN
    with pytest.raises(DriverError, match="ended"):
        await bench.driver.boot(vmm)


async def test_a_vmm_that_hangs_is_an_error_and_can_be_killed(bench: Rig) -> None:
    """Inspect and counters give up in time, kill succeeds."""
    vmm = await bench.booted()
    os.kill(vmm.pid, signal.SIGSTOP)
    async with asyncio.timeout(3):
        with pytest.raises(DriverError):
            await bench.driver.inspect(vmm)
        with pytest.raises(DriverError):
            await bench.driver.counters(vmm)
    async with asyncio.timeout(5):
        await bench.driver.kill(vmm)
    assert not is_alive(vmm.pid, vmm.start_ticks)


async def test_a_vmm_that_hangs_before_its_guest_runs_can_be_booted_yet(bench: Rig) -> None:
    """Where much starts at once it takes its time, and is not taken for one that ends."""
    vmm = await bench.create(bench.plan())
    os.kill(vmm.pid, signal.SIGSTOP)
    try:
        with suppress(DriverError):
            await bench.driver.counters(vmm)
    finally:
        os.kill(vmm.pid, signal.SIGCONT)
    await bench.driver.boot(vmm)
    await bench.says(vmm, "READY")
    assert await bench.driver.inspect(vmm) is VmmState.RUNNING


async def test_a_vmm_that_hung_for_a_while_is_the_same_as_before(bench: Rig) -> None:
    """After a stop of the whole process, answers belong to their questions again."""
    vmm = await bench.booted()
    os.kill(vmm.pid, signal.SIGSTOP)
    with pytest.raises(DriverError):
        await bench.driver.inspect(vmm)
    os.kill(vmm.pid, signal.SIGCONT)
    assert await bench.driver.inspect(vmm) is VmmState.RUNNING
    await bench.driver.pause(vmm)
    assert await bench.driver.inspect(vmm) is VmmState.PAUSED
    await bench.driver.kill(vmm)


@pytest.mark.parametrize(
    "garbage",
    [b"\x00" * 100, b"GET\r\n\r\n", b"{" * 5000, b"PUT / HTTP/1.1\r\nContent-Length: 99\r\n\r\n{}"],
)
async def test_garbage_on_the_socket_does_not_end_the_vmm(bench: Rig, garbage: bytes) -> None:
    """Somebody who writes nonsense to the API harms himself only."""
    vmm = await bench.booted()
    await bench.driver.close()  # QEMU talks to one client at a time
    (path,) = Path(vmm.run_dir).rglob("*.sock")
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(1)
        with short_address(path) as address:
            peer.connect(address)
        peer.sendall(garbage)
    assert await bench.driver.inspect(vmm) is VmmState.RUNNING
    await bench.driver.kill(vmm)


async def test_a_create_that_fails_leaves_nothing(bench: Rig) -> None:
    """No kernel, no machine; also no process and no file."""
    plan = replace(bench.plan(), kernel=bench.directory / "missing")
    with pytest.raises(DriverError, match=r"missing|No such file|kernel"):
        await bench.create(plan)
    assert not processes_in(plan.run_dir)
    assert files_in(plan.run_dir) == []


async def test_a_create_that_is_cancelled_leaves_nothing(bench: Rig) -> None:
    """At whatever point it was."""
    for after_s in (0, 0.001, 0.003, 0.01, 0.03):
        plan = bench.plan()
        try:
            async with asyncio.timeout(after_s):
                vmm = await bench.create(plan)
        except TimeoutError:
            assert not processes_in(plan.run_dir)
            assert files_in(plan.run_dir) == []
        else:
            await bench.driver.kill(vmm)


async def test_a_vmm_that_no_record_knows_is_found_and_ended(bench: Rig) -> None:
    """Known ones, and people who look around in a run directory, are left in peace."""
    kept, stray = await bench.booted(), await bench.booted()
    host = LinuxProcesses(bench.processes, bench.groups)
    visitor = bench.processes.spawn(
        ["sleep", "60"], cwd=Path(stray.run_dir), console=bench.directory / "visitor"
    )
    try:
        assert host.end_strays(bench.run_root, frozenset({kept.pid})) == [stray.pid]
        await bench.exits(stray)
        assert await bench.driver.inspect(kept) is VmmState.RUNNING
        assert is_alive(visitor.pid, visitor.start_ticks)
        # A VMM whose directory has been removed is a stray all the same.
        shutil.rmtree(kept.run_dir)
        assert host.end_strays(bench.run_root, frozenset()) == [kept.pid]
        await bench.exits(kept)
    finally:
        bench.processes.kill(visitor.pid, visitor.start_ticks)
        await bench.processes.wait_exit(visitor.pid, visitor.start_ticks)


async def test_machines_do_not_disturb_each_other(bench: Rig) -> None:
    """Five are created, booted, read and killed at the same time."""
    vmms = await asyncio.gather(*(bench.booted(blkw=64 * n) for n in range(1, 6)))
    counters = await asyncio.gather(*(bench.driver.counters(vmm) for vmm in vmms))
    if bench.exact:
        assert [c.disk_write_bytes for c in counters] == [65_536 * n for n in range(1, 6)]
    await asyncio.gather(*(bench.driver.kill(vmm) for vmm in vmms))
    assert {await bench.driver.inspect(vmm) for vmm in vmms} == {VmmState.GONE}


async def test_the_console_can_be_cut_while_the_vmm_writes_it(bench: Rig) -> None:
    """What is printed after the cut follows what was kept."""
    bench.require_button()
    vmm = await bench.booted()
    console = bench.driver.console(Path(vmm.run_dir))
    with console.open("ab") as file:
        file.write(b"x" * 10_000)
    log = ConsoleLog(console, 100)
    assert log.trim()
    assert not log.trim()
    await bench.driver.shutdown(vmm)
    await bench.says(vmm, "BYE")
    await bench.exits(vmm)
    content = console.read_bytes()
    assert content.startswith(b"x" * 100)
    assert len(content) < 200


async def test_a_machine_on_a_tap_can_be_stopped_and_its_tap_removed(bench: Rig) -> None:
    """The VMM lives in the VM's own network namespace."""
    nic = await bench.nic()
    vmm = await bench.booted(nic=nic, tx=10)
    assert same_file(f"/proc/{vmm.pid}/ns/net", f"/run/netns/{nic.netns}")
    await bench.driver.kill(vmm)


async def test_an_idle_vmm_costs_next_to_nothing_to_watch(bench: Rig) -> None:
    """Ten readings are ten flushes, not a load."""
    vmm = await bench.booted()
    before = cpu_ns(vmm.pid)
    for _ in range(10):
        await bench.driver.counters(vmm)
    assert cpu_ns(vmm.pid) - before < 100_000_000
    await bench.driver.kill(vmm)
