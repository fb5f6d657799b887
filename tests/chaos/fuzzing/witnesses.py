"""VMs that live by the book while the agent is fuzzed: what they do must come out as always."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

from schemas.codec import encode
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
from schemas.hosts import Operation, OperationStatus
from schemas.ids import new_id
from schemas.subjects import vm_command
from schemas.vms import VmSpec, VmState
from tests.chaos.fuzzing.minting import Message
from tests.support.agents import Client

SPEC = VmSpec(image="tiny", memory_mib=32, disk_mib=4)
_STEP_S = 60.0
_AT_ONCE = 16
"""Commands under way at most."""

_CYCLE: tuple[tuple[type[Command], dict[str, Any], VmState, tuple[str, ...]], ...] = (
    (PauseVm, {}, VmState.PAUSED, ("vm_paused",)),
    (ResumeVm, {}, VmState.RUNNING, ("vm_resumed",)),
    (RebootVm, {"grace_s": 2.0}, VmState.RUNNING, ("vm_stopped", "vm_started")),
    (PauseVm, {}, VmState.PAUSED, ("vm_paused",)),
    (ShutdownVm, {"grace_s": 2.0}, VmState.STOPPED, ("vm_stopped",)),
    (BootVm, {}, VmState.RUNNING, ("vm_started",)),
)


class Witnesses:
    """Long lives and short ones.

    Args:
        client: Sends their commands.
        chance: Decides how long they rest.
        done: Called with each command that has its result, as it was sent.
        problem: Called with what went otherwise than it must.
    """

    def __init__(
        self,
        client: Client,
        chance: random.Random,
        done: Callable[[Message, Command], None],
        problem: Callable[[str], None],
    ) -> None:
        self._client = client
        self._chance = chance
        self._done = done
        self._problem = problem
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self.owners: dict[UUID, str] = {}
        self.ids: set[str] = set()
        self.events: dict[UUID, list[str]] = {}
        self.carried_out: Counter[tuple[str, str]] = Counter()
        self.states: dict[UUID, VmState] = {}

    async def begin(self, count: int) -> None:
        """Make those that live all the time."""
        for number in range(count):
            customer = ("acme", "globex")[number % 2]
            vm_id = await self._born(customer)
            self.owners[vm_id] = customer

    async def live(self, vm_id: UUID, stop: asyncio.Event, rest_s: float) -> None:
        """Go through the verbs again and again until `stop` is set; ends in a whole cycle."""
        while not stop.is_set():
            for kind, fields, state, events in _CYCLE:
                await self._do(kind, vm_id, self.owners[vm_id], state, events, **fields)
                if kind is PauseVm and self._chance.random() < 0.3:
                    await self._must_fail(kind, vm_id)
                await asyncio.sleep(self._chance.uniform(0, rest_s))

    async def pass_by(self, stop: asyncio.Event, rest_s: float) -> None:
        """Short lives, one after the other, until `stop` is set."""
        while not stop.is_set():
            vm_id = await self._born("acme")
            await asyncio.sleep(self._chance.uniform(0, rest_s))
            await self._end(vm_id, "acme")

    @asynccontextmanager
    async def at_rest(self) -> AsyncIterator[None]:
        """No command is under way within the block."""
        for _ in range(_AT_ONCE):
            await self._turns.acquire()
        yield
        for _ in range(_AT_ONCE):
            self._turns.release()

    async def end(self) -> None:
        """Delete those that are left."""
        for vm_id, customer in self.owners.items():
            await self._end(vm_id, customer)

    async def _born(self, customer: str) -> UUID:
        vm_id = new_id()
        await self._do(CreateVm, vm_id, customer, VmState.CREATED, ("vm_created",), spec=SPEC)
        await self._do(BootVm, vm_id, customer, VmState.RUNNING, ("vm_started",))
        return vm_id

    async def _end(self, vm_id: UUID, customer: str) -> None:
        events = ("vm_stopped", "vm_deleted")
        await self._do(DeleteVm, vm_id, customer, VmState.DELETED, events)

    async def _do(
        self,
        kind: type[Command],
        vm_id: UUID,
        customer: str,
        state: VmState,
        events: tuple[str, ...],
        **fields: Any,
    ) -> None:
        command, done = await self._result(kind, vm_id, customer, **fields)
        if (done.status, done.state) != (OperationStatus.SUCCEEDED, state):
            self._problem(f"{command.verb} of witness {vm_id} came to {done}")
        self.events.setdefault(vm_id, []).extend(events)
        self.states[vm_id] = state
        self.carried_out[command.verb, "succeeded"] += 1
        self._done(Message(vm_command(command).encode(), encode(command)), command)

    async def _must_fail(self, kind: type[Command], vm_id: UUID) -> None:
        command, done = await self._result(kind, vm_id, self.owners[vm_id])
        if done.error is None or done.error.code != "illegal_transition":
            self._problem(f"a second {command.verb} of witness {vm_id} came to {done}")
        self.carried_out[command.verb, "illegal_transition"] += 1

    async def _result(
        self, kind: type[Command], vm_id: UUID, customer: str, **fields: Any
    ) -> tuple[Command, Operation]:
        """Send a command; TimeoutError if it has no result in a minute."""
        async with self._turns, asyncio.timeout(_STEP_S):
            command_id = new_id()
            self.ids.add(str(command_id))
            command = await self._client.send(
                kind, vm_id, customer_id=customer, command_id=command_id, **fields
            )
            return command, await self._client.result(command_id)
