"""One VM's life, as a customer leads it: create, boot, run, shut down or not, delete."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from uuid import UUID

from schemas.api import CreateVmRequest, VmAndOperation
from schemas.errors import ErrorCode
from schemas.vms import Counters
from tests.load.flood.commands.doors import Door, RefusedError, UnansweredError
from tests.load.flood.commands.endings import End, Endings
from tests.load.flood.commands.plan import StormPlan
from tests.load.flood.commands.tally import Tally

LABEL = "flood"
_BACKOFF_S = 0.2
_MOST_WAIT_S = 30.0


@dataclass(slots=True)
class Life:
    """What is known of a VM.

    Attributes:
        due_s: When it was to begin, monotonic.
        killed: It is deleted while it runs.
        booted: It was running once.
        deleted: Its deletion has succeeded.
        final: Its last counters, as the API has told them.
    """

    number: int
    door: Door
    due_s: float
    killed: bool
    vm_id: UUID | None = None
    booted: bool = False
    deleted: bool = False
    final: Counters | None = None


@dataclass(slots=True)
class Living:
    """Leads lives.

    Attributes:
        storm_id: Label of all its VMs.
        stop: Once set, what lives goes straight to its deletion.
        truth_by_api: Nobody but the API will tell the last counters of VMs.
    """

    storm_id: str
    plan: StormPlan
    endings: Endings
    tally: Tally
    stop: asyncio.Event
    truth_by_api: bool
    _chance: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._chance = random.Random(self.plan.seed)  # noqa: S311 - nothing secret

    def request(self, life: Life) -> CreateVmRequest:
        """The VM that is asked for."""
        return CreateVmRequest(
            image=self.plan.image,
            name=f"flood-{self.storm_id}-{life.number}",
            memory_mib=self.plan.memory_mib,
            network=self.plan.network,
            labels={LABEL: self.storm_id},
        )

    async def lead(self, life: Life) -> None:
        """A life from its creation to its deletion, or as far as it comes."""
        tally, door = self.tally, life.door
        tally.begun += 1
        tally.behind_s = max(tally.behind_s, time.monotonic() - life.due_s)
        try:
            create = await self._do(
                life, "create", life.due_s, lambda: door.create(self.request(life))
            )
            if create is not None and life.vm_id is not None:
                whole = await self._use(life, life.vm_id, create)
                tally.whole += whole
        finally:
            tally.over += 1

    async def _use(self, life: Life, vm_id: UUID, create: End) -> bool:
        """What follows a creation; whether all of it was carried out."""
        if self.stop.is_set():
            return await self._delete(life, vm_id, time.monotonic())
        act = life.door.act
        boot = await self._do(life, "boot", create.at_s, lambda: act(vm_id, "boot"))
        if boot is None:
            await self._delete(life, vm_id, time.monotonic())
            return False
        life.booted = True
        due_s = await self._run_until(boot.at_s + self.plan.up_s)
        if life.killed or self.stop.is_set():
            return await self._delete(life, vm_id, due_s)
        shutdown = await self._do(life, "shutdown", due_s, lambda: act(vm_id, "shutdown"))
        await self._read_counters(life)
        due_s = shutdown.at_s if shutdown else time.monotonic()
        return await self._delete(life, vm_id, due_s) and shutdown is not None

    async def _run_until(self, due_s: float) -> float:
        """Let a VM run; when the next command is due."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, due_s - time.monotonic())):
                await self.stop.wait()
                return time.monotonic()
        return due_s

    async def _delete(self, life: Life, vm_id: UUID, due_s: float) -> bool:
        if life.deleted:
            return False
        # The answer to a deletion that was waited for is the last one to tell of a VM.
        last_word = life.booted and life.final is None and self.truth_by_api
        wait_s = min(60.0, self.plan.within_s) if last_word else 0.0
        end = await self._do(
            life, "delete", due_s, lambda: life.door.act(vm_id, "delete", wait_s=wait_s),
            waited=last_word,
        )  # fmt: skip
        if end is None:
            return False
        life.deleted = True
        return True

    async def _read_counters(self, life: Life) -> None:
        if life.vm_id is not None and self.truth_by_api:
            with suppress(RefusedError, UnansweredError):
                view = await life.door.look(life.vm_id)
                life.final = view.final_counters if view else life.final

    async def _do(
        self,
        life: Life,
        verb: str,
        due_s: float,
        send: Callable[[], Awaitable[VmAndOperation]],
        *,
        waited: bool = False,
    ) -> End | None:
        """One command to its end; None if it was not carried out.

        With `waited`, `send` answers at the end only, which says nothing of the acceptance.
        """
        commands = self.tally.commands[verb]
        accepted = await self._sent(life, verb, send)
        if accepted is None:
            return None
        commands.accepted += 1
        if not waited:
            commands.accepted_in.record_s(time.monotonic() - due_s)
        life.vm_id = accepted.vm.vm_id
        if accepted.vm.final_counters is not None:
            life.final = accepted.vm.final_counters
        operation_id = accepted.operation.operation_id
        end = await self.endings.end(life.door, life.vm_id, operation_id, self.plan.within_s)
        what = f"{verb} of VM {life.vm_id} (operation {operation_id})"
        if end is None:
            commands.lost += 1
            self.tally.note(f"{what} was accepted and has not ended in {self.plan.within_s:g} s")
            return None
        if end.failure == ErrorCode.DEADLINE_EXCEEDED:
            commands.lost += 1
            self.tally.note(f"{what} was accepted, and no host began it before its deadline")
            return None
        commands.done_in.record_s(end.at_s - due_s)
        if end.failure:
            commands.failed[end.failure] += 1
            return None
        commands.succeeded += 1
        return end

    async def _sent(
        self, life: Life, verb: str, send: Callable[[], Awaitable[VmAndOperation]]
    ) -> VmAndOperation | None:
        """A command once it is accepted; refused for now, it is sent again after a while."""
        commands = self.tally.commands[verb]
        for attempt in range(1, self.plan.tries + 1):
            try:
                return await send()
            except UnansweredError as error:
                commands.unanswered += 1
                self.tally.note(f"{verb} in life {life.number} was not answered: {error}")
                return None
            except RefusedError as error:
                commands.refused[error.code] += 1
                if verb != "create" and error.code == ErrorCode.NOT_FOUND:
                    self.tally.vanished += 1
                    life.deleted = True
                    self.tally.note(f"VM {life.vm_id} was gone before it was deleted")
                    return None
                if error.for_now and attempt < self.plan.tries:
                    await self._pause(error, attempt)
                    if verb != "create" or not self.stop.is_set():
                        continue
                commands.given_up[error.code] += 1
                return None
        return None

    async def _pause(self, error: RefusedError, attempt: int) -> None:
        """As long as was asked for; else twice as long each time, and a little by chance."""
        wait_s = error.retry_after_s
        if wait_s is None:
            wait_s = _BACKOFF_S * 2 ** (attempt - 1)
        wait_s = min(wait_s, _MOST_WAIT_S) + self._chance.random() * _BACKOFF_S
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self.stop.wait()
