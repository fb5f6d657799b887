"""An agent that is killed again and again, at named steps and at random, while it has work to do.

In each round some VMs are made, booted, rebooted, paused, snapshotted, stopped and deleted, and in
the midst of that the agent dies. The next one is then given the time to come to rest, and
everything on the host must have an owner, every owner everything, every command its result, and
every VM that was not touched the very same process. At the end each VM is billed what its guest
says it did.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from uuid import UUID

from schemas.commands import (
    BootVm,
    Command,
    CreateVm,
    DeleteVm,
    PauseVm,
    RebootVm,
    ResumeVm,
    ShutdownVm,
    SnapshotVm,
)
from schemas.events import VmStopped
from schemas.frames import Frame
from schemas.hosts import Operation, OperationStatus
from schemas.ids import new_id
from schemas.vms import Counters, ExitReason, VmSpec, VmState
from tests.chaos.bills import Did, flaw, misbilled, what_it_did
from tests.chaos.inventory import discrepancies
from tests.chaos.toll import Toll
from tests.support.agents import CUSTOMER, AgentProcess, Client
from tests.support.samples import Sample, samples_of
from vm_agent.process import cpu_ns
from vm_agent.settings import AgentSettings
from vm_agent.store import RecordStore

_REST_S = 40.0
_AFTERWARDS_S = 1.0
_UID_BASE = AgentSettings(host_id="x").uid_base

WRITER = VmSpec(
    image="tiny",
    memory_mib=32,
    disk_mib=8,
    kernel_args={"blkw": "8", "blkr": "4", "tx": "2", "loop": "1000000", "hz": "20"},
)
"""Works at a steady pace for as long as the siege lasts."""

PASSING = VmSpec(
    image="tiny", memory_mib=32, disk_mib=8, kernel_args={"blkw": "96", "blkr": "32", "tx": "5"}
)


class Siege:
    """One agent's data directory under siege.

    Args:
        agent: The mortal agent.
        client: On its bus.
        folder: For notes between test and agent.
        seed: Of what is left to chance.
        snapshots: Whether the driver can take them.
    """

    def __init__(
        self,
        agent: AgentProcess,
        client: Client,
        folder: Path,
        seed: int,
        *,
        snapshots: bool,
    ) -> None:
        self.toll = Toll()
        self._agent = agent
        self._client = client
        self._wish = folder / "wish"
        self._steps = folder / "steps"
        self._vm_ids: set[UUID] = set()
        self._chance = random.Random(seed)  # noqa: S311 - to be repeated
        self._snapshots = snapshots
        self._steady: dict[UUID, tuple[int, int]] = {}
        self._billed: dict[tuple[UUID, int], Counters] = {}
        self._said: dict[tuple[UUID, int], Did] = {}
        self._owners: dict[UUID, str] = {}

    async def settle_in(self, writers: int) -> None:
        """Start the VMs that must outlive it all."""
        for _ in range(writers):
            vm_id = new_id()
            for kind, fields in ((CreateVm, {"spec": WRITER}), (BootVm, {})):
                await self._do(kind, vm_id, **fields)
            self._steady[vm_id] = self._agent.vmm_of(vm_id)

    async def list_steps(self) -> list[str]:
        """The named steps of a round, each once, in their order; nobody dies for it."""
        await self._arm("*")
        await asyncio.gather(*(life for life in self._round()))
        await self._come_to_rest()
        return list(dict.fromkeys(self._steps.read_text().splitlines()))

    async def list_start_steps(self) -> list[str]:
        """The named steps of a start that finds work half done; nobody dies for it."""
        self._steps.unlink()
        lives = [asyncio.ensure_future(life) for life in self._round()]
        await asyncio.sleep(0.3)
        await self._agent.kill()
        self._wish.write_text("*")
        await self._start()
        await asyncio.gather(*lives)
        await self._come_to_rest()
        return list(dict.fromkeys(self._steps.read_text().splitlines()))

    async def die_again(self, step: str) -> None:
        """One round with two deaths: amid the work, and at a named step of the start after it."""
        lives = [asyncio.ensure_future(life) for life in self._round()]
        await asyncio.sleep(self._chance.uniform(0.1, 0.5))
        await self._agent.kill()
        self._wish.write_text(f"{step}#1")
        await self._agent.start()
        if await self._wait_for_death(lives):
            self.toll.steps.append(f"start: {step}")
        self.toll.kills += 1
        await self._pick_up(lives, f"start: {step}")

    async def die(self, step: str | None, times: int | None = None) -> None:
        """One round with a death in it: at a named step, or at random.

        Args:
            step: Its name.
            times: How often the step comes until it is the last; None leaves it to chance.
        """
        lives, _ = await self._fall(step, times)
        await self._pick_up(lives, step or "random")

    async def _fall(
        self, step: str | None, times: int | None = None
    ) -> tuple[list[asyncio.Future[None]], bool]:
        """Begin a round, and let the agent die; what goes on, and whether that step came."""
        if step is not None:
            await self._arm(f"{step}#{times or self._chance.choice((1, 1, 2))}")
        lives = [asyncio.ensure_future(life) for life in self._round()]
        if step is None:
            await asyncio.sleep(self._chance.uniform(0.0, 0.6))
            self._agent.send(signal.SIGKILL)
        fell = await self._wait_for_death(lives)
        if step is not None and fell:
            self.toll.steps.append(step)
        return lives, fell

    async def _wait_for_death(self, lives: Iterable[asyncio.Future[None]]) -> bool:
        """Whether the agent dies by itself, of a wish; otherwise it is killed."""
        died = asyncio.ensure_future(self._agent.died())
        lived = asyncio.ensure_future(asyncio.wait(lives))
        await asyncio.wait({died, lived}, timeout=_REST_S, return_when=asyncio.FIRST_COMPLETED)
        lived.cancel()
        fell, _ = await asyncio.wait({died}, timeout=_AFTERWARDS_S)
        if not fell:
            # That step did not come so often: it dies all the same.
            self._agent.send(signal.SIGKILL)
        code = await died
        if code != -signal.SIGKILL:
            self._problem(f"the agent ended by itself with {code}: {self._agent.log()[-500:]}")
        self.toll.kills += 1
        return bool(fell)

    async def _pick_up(self, lives: list[asyncio.Future[None]], death: str) -> None:
        """Start the agent, let it come to rest, and look for what is missing or left."""
        # An agent that was killed before it could read the wish has left it to the next one.
        self._wish.unlink(missing_ok=True)
        self._look_for_lost()
        await self._while_dead(death)
        await self._start()
        await self._go_on(lives, death)

    async def _go_on(self, lives: list[asyncio.Future[None]], death: str) -> None:
        """With an agent that runs again, let all come to its end, and look."""
        try:
            async with asyncio.timeout(_REST_S):
                await asyncio.gather(*lives)
        except TimeoutError:
            self._problem(f"commands have no result {_REST_S:g} s after a death at {death}")
            self.toll.lost_commands += 1
        await self._come_to_rest()
        for what in await asyncio.to_thread(self._discrepancies):
            self.toll.leaks += 1
            self._problem(f"after a death at {death}: {what}")
        self._look_for_lost()

    async def _while_dead(self, death: str) -> None:
        """Whatever is to be looked at before there is an agent again."""

    async def conclude(self) -> None:
        """Stop the writers, and compare every bill with what the guests and the kernel say."""
        for vm_id in self._steady:
            await self._compare_cpu(vm_id)
            await self._stop(vm_id)
        await self._come_to_rest()
        await self._compare_bills()
        for vm_id in list(self._steady):
            await self._do(DeleteVm, vm_id)
        await self._come_to_rest()
        for what in await asyncio.to_thread(self._discrepancies):
            self.toll.leaks += 1
            self._problem(f"at the end: {what}")

    def _round(self) -> list[Any]:
        """Lives of VMs, all of them at once."""
        lives = [self._plain_life(), self._life_with_reboot(), self._short_life()]
        if self._snapshots:
            lives.append(self._life_with_snapshot())
        return lives

    async def _plain_life(self) -> None:
        vm_id = await self._born(PASSING)
        await self._do(PauseVm, vm_id)
        await self._do(ResumeVm, vm_id)
        await self._stop(vm_id)
        await self._do(DeleteVm, vm_id)

    async def _life_with_reboot(self) -> None:
        vm_id = await self._born(PASSING)
        await self._do(RebootVm, vm_id, grace_s=1.0)
        await self._stop(vm_id)
        await self._do(BootVm, vm_id)
        await self._do(DeleteVm, vm_id)

    async def _life_with_snapshot(self) -> None:
        vm_id = await self._born(PASSING)
        await self._do(SnapshotVm, vm_id, snapshot_id=new_id())
        await self._stop(vm_id)
        await self._do(DeleteVm, vm_id)

    async def _short_life(self) -> None:
        vm_id = await self._born(PASSING)
        await self._do(DeleteVm, vm_id)

    async def _born(self, spec: VmSpec) -> UUID:
        vm_id = new_id()
        await self._do(CreateVm, vm_id, spec=spec)
        await self._do(BootVm, vm_id)
        return vm_id

    async def _stop(self, vm_id: UUID) -> None:
        """A guest that is asked to stop says what it has done."""
        if vm_id not in self._steady:
            await self._until_done(vm_id)
        await self._do(ShutdownVm, vm_id, grace_s=2.0)
        status = await self._client.status(vm_id, self._owner(vm_id))
        console = self._agent.data_dir / "consoles" / f"{vm_id}.log"
        if status is None or status.exit_reason is not ExitReason.REQUESTED:
            return
        text = await asyncio.to_thread(console.read_text, errors="replace")
        if (did := what_it_did(text)) is not None:
            sent = did.sent + self._sent_besides(vm_id, status.incarnation)
            self._said[vm_id, status.incarnation] = did._replace(sent=sent)

    def _owner(self, vm_id: UUID) -> str:
        return self._owners.get(vm_id, CUSTOMER)

    def _sent_besides(self, vm_id: UUID, incarnation: int) -> int:
        """Bytes that were sent as a guest's, and that it does not know of."""
        del vm_id, incarnation
        return 0

    async def _until_done(self, vm_id: UUID) -> None:
        """Let the guest do its work; one that the agent's death has stopped never will."""
        console = self._agent.data_dir / "consoles" / f"{vm_id}.log"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(3):
                while "DONE" not in console.read_text(errors="replace").rpartition("READY")[2]:
                    await asyncio.sleep(0.02)

    async def _do(self, kind: Callable[..., Command], vm_id: UUID, **fields: Any) -> Operation:
        self._vm_ids.add(vm_id)
        operation = await self._client.do(
            kind, vm_id, **{"customer_id": self._owner(vm_id), **fields}
        )
        if operation.status is not OperationStatus.SUCCEEDED:
            self.toll.lost_commands += 1
            self._problem(f"{operation.verb} of {vm_id} failed: {operation.error}")
        return operation

    async def _compare_bills(self) -> None:
        frames = await self._client.frames()
        final: dict[tuple[UUID, int], Counters] = {}
        for event in await self._client.events():
            if isinstance(event, VmStopped):
                key = (event.vm_id, event.incarnation)
                if key in final:
                    self._problem(f"{key} has stopped twice")
                final[key] = event.final_counters
        for (vm_id, incarnation), did in self._said.items():
            counters = final.get((vm_id, incarnation), Counters())
            samples = [s for s in samples_of(frames, vm_id) if s.incarnation == incarnation]
            wrong = misbilled(did, counters) or flaw(samples, counters)
            if wrong:
                self.toll.bytes_wrong += 1
                self._problem(f"the bill of {vm_id}, {incarnation} is wrong: {wrong}")
            else:
                self.toll.bytes_exact += 1

    async def _compare_cpu(self, vm_id: UUID) -> None:
        """Whether a sample has what the kernel has counted of a VMM since long before."""
        status = await self._client.status(vm_id)
        if status is None or status.simulated:
            return  # what it bills is what it simulates
        pid, _ = self._steady[vm_id]
        now_ms, least_ns = time.time() * 1000, cpu_ns(pid)

        def later(frames: list[Frame]) -> list[Sample]:
            return [s for s in samples_of(frames, vm_id) if s.tick_ms > now_ms]

        async with asyncio.timeout(_REST_S):
            sample = later(await self._client.frames_until(lambda all_: bool(later(all_))))[0]
        most_ns = cpu_ns(pid)
        if least_ns <= sample.counters.cpu_ns <= most_ns:
            self.toll.cpu_exact += 1
        else:
            self._problem(
                f"CPU of {vm_id} was billed as {sample.counters.cpu_ns} ns,"
                f" and the kernel counted {least_ns} before and {most_ns} after"
            )

    def _look_for_lost(self) -> None:
        """Whether the VMs that nobody has touched are still the same processes."""
        for vm_id, process in list(self._steady.items()):
            records = RecordStore(self._agent.data_dir / "vms").load()
            (record,) = [r for r in records if r.vm_id == vm_id]
            now = (record.vmm.pid, record.vmm.start_ticks) if record.vmm else None
            alive = Path(f"/proc/{process[0]}").exists()
            if now != process or not alive or record.state is not VmState.RUNNING:
                self.toll.lost_vms += 1
                self._problem(f"VM {vm_id} was {process}, is {now}, {record.state}")
                del self._steady[vm_id]

    def _discrepancies(self) -> list[str]:
        return discrepancies(
            self._agent.data_dir, uid_base=_UID_BASE, vm_ids=frozenset(self._vm_ids)
        )

    async def _start(self) -> None:
        before = (await self._client.host()).run_id
        await self._agent.start()
        async with asyncio.timeout(20):
            await self._client.host(other_than=before)

    async def _come_to_rest(self) -> None:
        """Until all is told and deleted VMs are forgotten: nothing is left to do."""
        busy = ["not looked yet"]

        def look() -> list[str]:
            try:
                records = RecordStore(self._agent.data_dir / "vms").load()
            except FileNotFoundError:
                return ["a record was just removed"]
            return [
                str(r)
                for r in records
                if r.state is VmState.DELETED or r.current or r.outbox or r.unsettled
            ]

        try:
            async with asyncio.timeout(_REST_S):
                while busy:
                    busy = await asyncio.to_thread(look)
                    await asyncio.sleep(0.02)
        except TimeoutError:
            self._problem("the agent does not come to rest: " + "\n".join(busy))

    async def _arm(self, wish: str) -> None:
        self._wish.write_text(wish)
        self._agent.send(signal.SIGUSR1)
        async with asyncio.timeout(5):
            while self._wish.exists():
                await asyncio.sleep(0.002)

    def _problem(self, text: str) -> None:
        self.toll.problems.append(text)
