"""A stand-in that is told to go wrong does, when it is told to, and says what a driver can see."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decisec.dev.guest import GUEST_ARGS, allowed_args
from schemas.ids import new_id
from tests.support.faults import ENDINGS
from vm_agent.drivers.abc import DeviceCounters, DriverError, MachinePlan, Vmm, VmmState
from vm_agent.drivers.firecracker import RefusedError
from vm_agent.drivers.simulator import SimulatorDriver
from vm_agent.drivers.unix_http import UnixHttpConnection
from vm_agent.process import VmmProcesses, cpu_ns, is_alive
from vm_agent.simulator.disk import ROOM_BYTES, Disk
from vm_agent.simulator.faults import ARGUMENTS, KINDS, PASSING, Fault, fault_in
from vm_agent.simulator.load import Load
from vm_agent.simulator.machine import Machine

MS = 1_000_000
LINE_START = b'{"utc_timestamp_ms"'


@given(st.integers(0, 10_000), st.none() | st.integers(0, 10_000), st.integers(0, 10**12))
def test_a_fault_comes_and_goes_once_at_its_time(
    after_ms: int, for_ms: int | None, start_ns: int
) -> None:
    """Waiting as long as it says is enough, a nanosecond less than told is too early."""
    fault = Fault("hang", after_ms=after_ms, for_ms=for_ms)
    assert fault.wait_ms(start_ns) is None
    assert not fault.comes(start_ns)
    fault.begin(start_ns)
    due_ns = start_ns + after_ms * MS
    assert not fault.comes(due_ns - 1)
    assert fault.wait_ms(start_ns + 1) == after_ms
    assert fault.comes(due_ns)
    assert not fault.comes(due_ns)
    if for_ms is None:
        assert fault.wait_ms(due_ns) is None
        assert not fault.goes(due_ns + 10**12)
        return
    assert fault.wait_ms(due_ns) == for_ms
    assert not fault.goes(due_ns + for_ms * MS - 1)
    assert fault.goes(due_ns + for_ms * MS)
    assert not fault.goes(due_ns + for_ms * MS)
    assert fault.wait_ms(due_ns) is None


def test_kernel_arguments_name_a_fault() -> None:
    """Among others that mean nothing here."""
    assert fault_in("console=ttyS0 blkw=1 quiet") is None
    for kind in KINDS:
        found = fault_in(f"quiet fault={kind} fault_after_ms=10")
        assert found is not None
        assert found.kind == kind
    for kind in PASSING:
        assert fault_in(f"fault={kind} fault_for_ms=10") is not None


def test_only_images_for_the_simulator_allow_faults() -> None:
    """On a real hypervisor nobody shall believe that something will go wrong."""
    for driver in ("auto", "firecracker", "qemu"):
        assert set(allowed_args(driver)) == set(GUEST_ARGS)
    assert set(allowed_args("simulator")) == {*GUEST_ARGS, *ARGUMENTS}


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("fault=meltdown", "no fault `meltdown`, expected one of crash, "),
        ("fault=", "no fault ``"),
        ("fault_after_ms=5", "no fault"),
        ("fault_for_ms=5", "no fault"),
        ("fault=hang fault_after_ms=-1", "`fault_after_ms` is no number"),
        ("fault=hang fault_after_ms=", "`fault_after_ms` is no number"),
        ("fault=hang fault_for_ms=1e3", "`fault_for_ms` is no number"),
        ("fault=hang fault_for_ms=9999999999", "`fault_for_ms` is no number"),
        ("fault=crash fault_for_ms=5", "`crash` does not pass"),
    ],
)
def test_a_fault_that_does_not_exist_is_refused(words: str, complaint: str) -> None:
    """With a sentence for whoever asked."""
    with pytest.raises(ValueError, match=complaint):
        fault_in(words)


def test_a_full_disk_tears_what_is_written_and_refuses_the_rest(tmp_path: Path) -> None:
    """By the kernel's own ENOSPC; when there is space again, nothing is made up for."""
    path = tmp_path / "file"
    file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    disk = Disk()
    disk.write(file, b"before\n")
    disk.fill()
    for _ in range(3):
        with pytest.raises(OSError, match="No space left on device"):
            disk.write(file, b"x" * ROOM_BYTES + b"lost\n")
    disk.free()
    disk.write(file, b"after\n")
    os.close(file)
    assert path.read_bytes() == b"before\n" + b"x" * ROOM_BYTES + b"after\n"


class Bench:
    """Simulators under their driver, each with a fault of its own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._vmms: list[Vmm] = []
        self.processes = VmmProcesses()
        self.driver = SimulatorDriver(self.processes)
        (directory / "kernel").touch()

    async def create(self, words: str) -> Vmm:
        """Configure a machine with these kernel arguments."""
        vm_id = new_id()
        run_dir = self._directory / vm_id.hex
        run_dir.mkdir()
        vmm = await self.driver.create(
            MachinePlan(
                vm_id=vm_id, incarnation=1, vcpus=1, memory_mib=64, run_dir=run_dir,
                kernel=self._directory / "kernel", kernel_args=words,
                disk=self._directory / "kernel",
            )
        )  # fmt: skip
        self._vmms.append(vmm)
        return vmm

    async def booted(self, words: str) -> Vmm:
        """Create and boot."""
        vmm = await self.create(words)
        await self.driver.boot(vmm)
        return vmm

    async def exit_code(self, vmm: Vmm) -> int | None:
        """Wait for the process to end."""
        async with asyncio.timeout(5):
            return (await self.processes.wait_exit(vmm.pid, vmm.start_ticks)).exit_code

    async def fails(self, vmm: Vmm) -> DriverError:
        """Wait until a question is not answered as it should be."""
        async with asyncio.timeout(5):
            while True:
                try:
                    await self.driver.inspect(vmm)
                except DriverError as error:
                    return error
                await asyncio.sleep(0.005)

    async def close(self) -> None:
        """End every process."""
        for vmm in self._vmms:
            self.processes.kill(vmm.pid, vmm.start_ticks)
            await self.processes.wait_exit(vmm.pid, vmm.start_ticks)
        await self.driver.close()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    try:
        yield made
    finally:
        await made.close()


@pytest.mark.parametrize("kind", ENDINGS)
async def test_a_machine_ends_as_told(bench: Bench, kind: str) -> None:
    """At its time and by itself; all but a crash write their last counters."""
    code, reasons = ENDINGS[kind]
    began = time.monotonic()
    vmm = await bench.booted(f"fault={kind} fault_after_ms=150")
    seen = await bench.driver.counters(vmm)
    assert await bench.exit_code(vmm) == code
    assert time.monotonic() - began > 0.15
    assert bench.driver.exit_reason(vmm, code) in reasons
    final = await bench.driver.counters(vmm)
    if kind == "crash":
        assert final == seen
    else:
        assert cpu_of(final) >= load_of(vmm).at(150)[0]
    assert await bench.driver.inspect(vmm) is VmmState.GONE


def load_of(vmm: Vmm) -> Load:
    """What its guest pretends to do."""
    return Load(str(vmm.vm_id), vcpus=1, disk=True, nic=False)


def cpu_of(counters: DeviceCounters) -> int:
    """The simulated CPU time."""
    assert counters.cpu_ns is not None
    return counters.cpu_ns


async def test_a_machine_hangs_and_goes_on(bench: Bench) -> None:
    """Nothing is answered meanwhile, nothing is worked, and nothing is lost."""
    vmm = await bench.booted("fault=hang fault_after_ms=50 fault_for_ms=1500")
    assert "did not answer" in str(await bench.fails(vmm))
    assert is_alive(vmm.pid, vmm.start_ticks)
    used_ns = cpu_ns(vmm.pid)
    async with asyncio.timeout(5):
        while True:
            with suppress(DriverError):
                assert await bench.driver.inspect(vmm) is VmmState.RUNNING
                break
    assert cpu_ns(vmm.pid) - used_ns < 100 * MS
    assert cpu_of(await bench.driver.counters(vmm)) >= load_of(vmm).at(1550)[0]


async def test_a_machine_that_hangs_for_good_can_be_killed(bench: Bench) -> None:
    """Its driver waits for an answer no longer than it promises."""
    vmm = await bench.booted("fault=hang fault_after_ms=1")
    await bench.fails(vmm)
    async with asyncio.timeout(5):
        await bench.driver.kill(vmm)
    assert await bench.exit_code(vmm) == -signal.SIGKILL


async def test_a_machine_refuses_for_a_while(bench: Bench) -> None:
    """Everything is answered with 500, then as before."""
    vmm = await bench.booted("fault=refuse fault_after_ms=50 fault_for_ms=1000")
    error = await bench.fails(vmm)
    assert isinstance(error, RefusedError)
    assert error.status == 500
    with pytest.raises(RefusedError, match="refuses every request"):
        await bench.driver.pause(vmm)
    async with asyncio.timeout(5):
        while True:
            with suppress(RefusedError):
                assert await bench.driver.inspect(vmm) is VmmState.RUNNING
                break
    await bench.driver.shutdown(vmm)
    assert await bench.exit_code(vmm) == 0


async def test_a_machine_loses_its_socket(bench: Bench) -> None:
    """The file is gone and so are all connections; the process lives and does nothing."""
    vmm = await bench.booted("fault=lose_socket fault_after_ms=50")
    assert "failed" in str(await bench.fails(vmm))
    assert not (Path(vmm.run_dir) / "api.sock").exists()
    assert is_alive(vmm.pid, vmm.start_ticks)
    await bench.driver.kill(vmm)
    assert await bench.exit_code(vmm) == -signal.SIGKILL


@pytest.mark.parametrize("kind", ["crash", "lose_socket", "refuse"])
async def test_a_fault_at_once_meets_the_request_that_starts_the_guest(
    bench: Bench, kind: str
) -> None:
    """Such a machine does not boot."""
    vmm = await bench.create(f"fault={kind}")
    with pytest.raises(DriverError):
        await bench.driver.boot(vmm)


async def test_an_unknown_fault_is_a_machine_that_is_not_made(bench: Bench) -> None:
    """As for any configuration that the vendor does not take; nothing is left of it."""
    with pytest.raises(DriverError, match="Boot source error: no fault `meltdown`"):
        await bench.create("fault=meltdown")


async def test_on_a_full_disk_a_flush_is_refused_in_the_vendors_words(bench: Bench) -> None:
    """Until there is space again; then a line follows on one that was torn."""
    vmm = await bench.booted("fault=fill_disk fault_after_ms=50 fault_for_ms=1000")
    api = UnixHttpConnection(Path(vmm.run_dir) / "api.sock")
    flush = json.dumps({"action_type": "FlushMetrics"}).encode()
    words = set()
    try:
        async with asyncio.timeout(5):
            while (answer := await api.request("PUT", "/actions", flush)).status == 204:
                await asyncio.sleep(0.005)
            while answer.status != 204:
                assert answer.status == 400
                words.add(json.loads(answer.body)["fault_message"])
                answer = await api.request("PUT", "/actions", flush)
    finally:
        await api.close()
    assert words == {
        "Internal VMM error: Metrics error: Failed to write metrics: "
        "No space left on device (os error 28)"
    }
    (metrics,) = Path(vmm.run_dir).rglob("metrics.json")
    assert [line.count(LINE_START) for line in metrics.read_bytes().splitlines()].count(2) == 1


def test_a_full_disk_loses_what_was_used_meanwhile_and_nothing_else(tmp_path: Path) -> None:
    """A count that was not written is gone, as with the vendor; no count is made up."""
    (tmp_path / "kernel").touch()
    metrics = tmp_path / "metrics"
    now_ns = 0
    machine = Machine(
        "vm", now_ns=lambda: now_ns, wall_ms=lambda: 1, print_line=lambda _: None, disk=Disk()
    )
    for path, body in (
        ("/metrics", {"metrics_path": str(metrics)}),
        ("/boot-source", {"kernel_image_path": str(tmp_path / "kernel")}),
        ("/drives/disk", {"drive_id": "disk", "path_on_host": str(tmp_path / "kernel")}),
        ("/actions", {"action_type": "InstanceStart"}),
    ):
        assert machine.handle("PUT", path, json.dumps(body).encode()).status == 204

    def flush() -> int:
        nonlocal now_ns
        now_ns += 700 * MS
        return machine.handle("PUT", "/actions", b'{"action_type":"FlushMetrics"}').status

    assert flush() == 204
    machine.disk.fill()
    assert [flush(), flush()] == [400, 400]
    machine.disk.free()
    assert flush() == 204
    load = Load("vm", vcpus=1, disk=True, nic=False)
    upto = [load.at(700 * flushes) for flushes in range(5)]
    written = [
        json.loads(line[line.rindex(LINE_START) :]) for line in metrics.read_bytes().splitlines()
    ]
    assert [line["simulated"]["cpu_ns"] for line in written] == [
        upto[1][0], upto[4][0] - upto[3][0],
    ]  # fmt: skip
    assert [line["block"]["write_bytes"] for line in written] == [
        upto[1][2], upto[4][2] - upto[3][2],
    ]  # fmt: skip


async def test_garbage_in_a_body_is_refused(bench: Bench) -> None:
    """Also by a process that has never imported the standard library's decoder."""
    vmm = await bench.create("")
    api = UnixHttpConnection(Path(vmm.run_dir) / "api.sock")
    try:
        for body in (b"{", b"", b"\xff", b"{}{}", b"[" * 20_000):
            answer = await api.request("PUT", "/actions", body)
            assert answer.status == 400
            assert b"deserializing" in answer.body
    finally:
        await api.close()
