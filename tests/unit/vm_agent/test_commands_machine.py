"""Commands in any order, repeated, interleaved and cut short: one effect, the same answer.

A state machine plays gateway, guest, collector and power cut against the agent's logic on a host
in memory. Threads run inline, so that an example can be cut at the same place again.
"""

from __future__ import annotations

import asyncio
import tempfile
from array import array
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from ipaddress import IPv6Network
from pathlib import Path
from typing import Any
from uuid import UUID

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from runtime.clock import utc_now
from schemas.commands import (
    BootVm,
    Command,
    CreateVm,
    DeleteVm,
    PauseVm,
    RebootVm,
    ResumeVm,
    ShutdownVm,
)
from schemas.events import VmCreated, VmDeleted, VmStarted, VmStopped
from schemas.frames import SampleFlag, decode_frame
from schemas.hosts import OperationStatus
from schemas.ids import new_id
from schemas.vms import METERED_STATES, METERS, Counters, VmSpec
from tests.support.memory_agent import CAPACITY, InlineExecutor, Mail, Run
from tests.support.memory_host import MemoryDesk
from tests.support.memory_kernel import MemoryKernel
from vm_agent.network.leases import Leases, Ranges
from vm_agent.network.numbers import Numbers

SPEC = VmSpec(image="tiny", memory_mib=64, disk_mib=1)
KINDS: tuple[Callable[..., Command], ...] = (
    BootVm, ShutdownVm, DeleteVm, PauseVm, ResumeVm, RebootVm,
)  # fmt: skip


class CommandsMachine(RuleBasedStateMachine):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory(prefix="dsm-")
        self.folder = Path(self.directory.name)
        self.runner = asyncio.Runner()
        self.runner.get_loop().set_default_executor(InlineExecutor(1))
        self.kernel = MemoryKernel()
        self.desk = MemoryDesk()
        self.vm_ids = [new_id() for _ in range(3)]
        self.mails: list[Mail] = []
        self.tick_ms = 0
        self.rows: dict[tuple[UUID, int], list[tuple[int, Counters]]] = defaultdict(list)
        self.seen_dying: set[int] = set()
        self.run = self.runner.run(self._new_run())

    def _begin(self) -> None:
        """What a fresh run finds, besides what outlives the one before."""

    async def _new_run(self) -> Run:
        self._begin()
        run = Run(self.folder, self.kernel, self.desk)
        await run.start()
        await run.quiet()
        return run

    def teardown(self) -> None:
        async def end() -> None:
            await self.run.die()

        self.runner.run(end())
        self.runner.close()
        self.directory.cleanup()

    def _post(self, mail: Mail) -> None:
        self.mails.append(mail)
        self.run.inbox.queue.put_nowait(mail)

    def _command(self, kind: Callable[..., Command], vm: int, customer: str) -> Mail:
        # Ids are never used again, so a new VM in the place of a deleted one has another.
        gone = {e.vm_id for e in self.desk.events.values() if isinstance(e, VmDeleted)}
        if self.vm_ids[vm] in gone:
            self.vm_ids[vm] = new_id()
        extra: dict[str, Any] = {}
        if kind is CreateVm:
            extra["spec"] = SPEC
        if kind in (ShutdownVm, RebootVm):
            extra["grace_s"] = 5.0
        return Mail(
            kind(
                command_id=new_id(),
                customer_id=customer,
                vm_id=self.vm_ids[vm],
                host_id="h1",
                issued_at=utc_now(),
                deadline=utc_now() + timedelta(hours=1),
                **extra,
            )
        )

    vms = st.integers(0, 2)
    customers = st.sampled_from(["acme", "acme", "acme", "globex"])

    @rule(vm=vms)
    def create_and_boot(self, vm: int) -> None:
        """The usual beginning."""
        self._post(self._command(CreateVm, vm, "acme"))
        self._post(self._command(BootVm, vm, "acme"))
        self.runner.run(self.run.quiet())

    @rule(kind=st.sampled_from((CreateVm, *KINDS)), vm=vms, customer=customers)
    def command(self, kind: Callable[..., Command], vm: int, customer: str) -> None:
        """A command, carried out in peace."""
        self._post(self._command(kind, vm, customer))
        self.runner.run(self.run.quiet())

    @rule(kinds=st.lists(st.tuples(st.sampled_from(KINDS), vms), min_size=2, max_size=5))
    def commands_at_once(self, kinds: list[tuple[Callable[..., Command], int]]) -> None:
        """Several commands, over several VMs."""
        for kind, vm in kinds:
            self._post(self._command(kind, vm, "acme"))
        self.runner.run(self.run.quiet())

    @rule(data=st.data())
    def redelivery(self, data: st.DataObject) -> None:
        """Any old command once more."""
        if self.mails:
            old = data.draw(st.sampled_from(self.mails))
            self._post(Mail(old.command))
            self.runner.run(self.run.quiet())

    @rule(kind=st.sampled_from((CreateVm, *KINDS)), vm=vms, turns=st.integers(0, 60))
    def crash(self, kind: Callable[..., Command], vm: int, turns: int) -> None:
        """The agent is killed at any point of a command; the next run gets what was not acked."""
        self._post(self._command(kind, vm, "acme"))

        async def cut() -> None:
            for _ in range(turns):
                await asyncio.sleep(0)
            await self.run.die()
            self.run = await self._new_run()
            for mail in self.mails:
                if not mail.acked:
                    self.run.inbox.queue.put_nowait(mail)
            await self.run.quiet()

        self.runner.run(cut())

    @rule(vm=vms, unseen=st.booleans())
    def a_vmm_dies(self, vm: int, unseen: bool) -> None:
        """By itself, before the eyes of the agent or while there is none."""

        async def strike() -> None:
            if unseen:
                await self.run.die()
            for machine in self.kernel.living(self.vm_ids[vm]):
                machine.die(1)
                if unseen:
                    self.seen_dying.add(machine.vmm.pid)
            if unseen:
                self.run = await self._new_run()
            await self.run.quiet()

        self.runner.run(strike())

    @rule(vm=vms, amount=st.integers(1, 1000), ticks=st.integers(1, 3))
    def work(self, vm: int, amount: int, ticks: int) -> None:
        """Guests use something, time passes, ticks are sampled."""
        for machine in self.kernel.living(self.vm_ids[vm]):
            machine.work(amount)
        self._ticks(ticks)

    def _ticks(self, ticks: int) -> None:
        for _ in range(ticks):
            self.tick_ms += 100
            self.kernel.now_ns += 100_000_000
            for payload in self.runner.run(self.run.tick(self.tick_ms)):
                self._collect(payload)

    def _collect(self, payload: bytes) -> None:
        frame = decode_frame(payload)
        ids = [frame.vm_ids[16 * row : 16 * row + 16] for row in range(frame.rows)]
        assert len(set(ids)) == len(ids)
        for row, raw in enumerate(ids):
            counters = Counters(**{m: array("Q", getattr(frame, m))[row] for m in METERS})
            key = (UUID(bytes=raw), array("I", frame.incarnations)[row])
            series = self.rows[key]
            if series:
                for meter in METERS:
                    assert getattr(series[-1][1], meter) <= getattr(counters, meter)
                assert not frame.flags[row] & SampleFlag.BASELINE
            elif not frame.flags[row] & SampleFlag.FINAL:
                assert frame.flags[row] & SampleFlag.BASELINE
                assert counters == Counters()
            series.append((frame.flags[row], counters))

    @invariant()
    def each_command_has_one_answer(self) -> None:
        """All mail is acked, and a command's results are all the same."""
        assert all(mail.acked for mail in self.mails)
        for results in self.desk.operations.values():
            assert all(r.finished for r in results)
            assert len({(r.status, r.state, r.error) for r in results}) == 1

    @invariant()
    def each_success_happened_once(self) -> None:
        """One start per boot, one creation and one deletion per VM."""
        started = [e for e in self.desk.events.values() if isinstance(e, VmStarted)]
        by_command = [e.command_id for e in started]
        succeeded = [
            r[-1] for r in self.desk.operations.values()
            if r[-1].status is OperationStatus.SUCCEEDED
        ]  # fmt: skip
        for operation in succeeded:
            if operation.verb in ("boot", "reboot"):
                assert by_command.count(operation.operation_id) == 1
        for kind, verb in ((VmCreated, "create"), (VmDeleted, "delete")):
            told = [e.vm_id for e in self.desk.events.values() if isinstance(e, kind)]
            assert len(told) == len(set(told))
            assert {o.vm_id for o in succeeded if o.verb == verb} == set(told)

    @invariant()
    def host_and_records_agree(self) -> None:
        """One VMM per VM in a metered state, none otherwise; interfaces likewise."""
        metered = set()
        for vm in self.run.fleet.vms:
            living = self.kernel.living(vm.vm_id)
            if vm.record.state in METERED_STATES:
                metered.add(vm.vm_id)
                assert [m.vmm for m in living] == [vm.record.vmm]
            else:
                assert living == []
        assert {m.vmm.vm_id for m in self.kernel.living()} == metered
        assert len(self.kernel.nics) == len(metered)
        held = CAPACITY.slots - self.run.admission.free.slots
        assert held == sum(vm.record.state != "deleted" for vm in self.run.fleet.vms)

    @invariant()
    def every_end_is_billed_exactly(self) -> None:
        """Final counters are the machine's own, and the final sample says the same."""
        while self.run.sampler.settling:
            self._ticks(1)
        for event in self.desk.events.values():
            if not isinstance(event, VmStopped):
                continue
            (machine,) = [
                m for m in self.kernel.machines.values()
                if (m.vmm.vm_id, m.vmm.incarnation) == (event.vm_id, event.incarnation)
            ]  # fmt: skip
            final = event.final_counters
            assert (final.disk_read_bytes, final.disk_write_bytes) == (
                machine.device.disk_read_bytes, machine.device.disk_write_bytes,
            )  # fmt: skip
            assert (final.net_rx_bytes, final.net_tx_bytes) == machine.net
            if machine.vmm.pid not in self.seen_dying:
                assert final.cpu_ns == machine.cpu_ns
            assert final.cpu_ns <= machine.cpu_ns
            flags, last = self.rows[event.vm_id, event.incarnation][-1]
            assert flags & SampleFlag.FINAL
            assert last == final

    @invariant()
    def nothing_is_kept_for_deleted_vms(self) -> None:
        """Once the last sample and event are out, the record goes."""
        with suppress(FileNotFoundError):
            kept = {path.stem for path in (self.folder / "vms").glob("*.json")}
            assert kept == {str(vm.vm_id) for vm in self.run.fleet.vms}
            assert all(vm.record.state != "deleted" for vm in self.run.fleet.vms)


CommandsMachine.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestCommands = CommandsMachine.TestCase


class ConnectedCommandsMachine(CommandsMachine):
    """The same on a host that connects its VMs."""

    def _begin(self) -> None:
        numbers = Numbers(self.folder / "numbers.json")
        self.kernel.leases = Leases(Ranges(IPv6Network("2001:db8::/64")), numbers)

    @invariant()
    def who_runs_is_connected_and_nobody_else(self) -> None:
        """By its own slot, and as its own incarnation."""
        running = {
            vm.record.lease.tap: (vm.vm_id, vm.record.incarnation)
            for vm in self.run.fleet.vms
            if vm.record.state in METERED_STATES and vm.record.lease is not None
        }
        attached = {tap: (a.vm_id, a.incarnation) for tap, a in self.kernel.attached.items()}
        assert attached == running

    @invariant()
    def who_is_here_has_a_lease_and_nobody_else(self) -> None:
        """The one in its record."""
        assert self.kernel.leases is not None
        kept = {
            vm.vm_id: vm.record.lease for vm in self.run.fleet.vms if vm.record.state != "deleted"
        }
        assert dict(self.kernel.leases.held) == kept


ConnectedCommandsMachine.TestCase.settings = settings(
    CommandsMachine.TestCase.settings, max_examples=12
)
TestConnectedCommands = ConnectedCommandsMachine.TestCase
