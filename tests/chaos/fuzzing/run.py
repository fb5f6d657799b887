"""One fuzz from the first message to the reckoning."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runtime.bus import Bus
from tests.chaos.fuzzing.fuzz import OPERATIONS, Fuzz
from tests.chaos.fuzzing.reckoning import left_behind, misaudited, miscounted, misdone, overgrown
from tests.chaos.fuzzing.vitals import Counted, Vitals
from tests.chaos.fuzzing.witnesses import Witnesses
from tests.support.agents import AgentProcess, Client
from tests.support.hypervisors import GUEST_ARGS
from tests.support.nats import NatsServer, bus_with_streams
from tests.support.ports import free_port
from tests.support.raw_bus import raw_bus
from vm_agent.images import ImageStore

_PORTIONS = 20
_FEW = 4
_MANY_MESSAGES = 100_000
"""From so many on there are more portions; the end of each waits for what witnesses do."""

_EARLY = 2
"""Portions before the agent is looked at for the first time; it is warm by then."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done.

    Attributes:
        restart: Whether the agent ends and starts again early on.
        witnesses: VMs that live all the time; another one is always passing by.
        rest_s: How long they rest between two commands at most.
    """

    driver: str
    messages: int
    seed: int
    restart: bool = True
    firecracker: str = ""
    witnesses: int = 3
    rest_s: float = 0.5


async def fuzz_agent(
    folder: Path, kernel: Path, plan: Plan, say: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Fuzz a fresh agent; what it came to. `problems` is empty if all is well.

    Args:
        folder: For all that it leaves.
        kernel: What its VMs boot.
        plan: What is to be done.
        say: Told of progress.
    """
    async with (
        _stage(folder, kernel, plan) as (server, agent, port),
        _client(server) as client,
    ):
        return await _Run(plan, server, agent, client, port, say).run()


class _Run:
    def __init__(
        self,
        plan: Plan,
        server: NatsServer,
        agent: AgentProcess,
        client: Client,
        port: int,
        say: Callable[[str], None],
    ) -> None:
        self._plan = plan
        self._server = server
        self._agent = agent
        self._client = client
        self._port = port
        self._say = say
        self._counted = Counted.nothing()
        self._fuzz = Fuzz(client, plan.seed)
        chance = random.Random(plan.seed)  # noqa: S311 - to be repeated
        self._witnesses = Witnesses(client, chance, self._fuzz.note_done, self._fuzz.problem)

    async def run(self) -> dict[str, Any]:
        began_s = time.monotonic()
        fuzz, witnesses = self._fuzz, self._witnesses
        fuzz.scripted = witnesses.ids
        await witnesses.begin(self._plan.witnesses)
        fuzz.model.owners.update({str(vm): owner for vm, owner in witnesses.owners.items()})
        stop = asyncio.Event()
        async with raw_bus(self._server.port, fuzz.hear) as raw, asyncio.TaskGroup() as group:
            raw.subscribe(OPERATIONS)
            await raw.flush()
            for vm_id in witnesses.owners:
                group.create_task(witnesses.live(vm_id, stop, self._plan.rest_s), name="witness")
            group.create_task(witnesses.pass_by(stop, self._plan.rest_s), name="passing")
            early, seconds = await self._pour(raw)
            late = Vitals.of(self._agent.pid)
            stop.set()
        self._say("reckoning")
        return await self._reckon(began_s, seconds, early, late)

    async def _pour(self, raw: Any) -> tuple[Vitals, float]:
        early = Vitals.of(self._agent.pid)
        spent_s = 0.0
        portions = _PORTIONS if self._plan.messages >= _MANY_MESSAGES else _FEW
        sizes = [self._plan.messages // portions] * portions
        sizes[-1] += self._plan.messages % portions
        for number, size in enumerate(sizes):
            began_s = time.monotonic()
            await self._fuzz.pour(raw, size)
            spent_s += time.monotonic() - began_s
            if number == 0 and self._plan.restart:
                await self._restart()
            if number == _EARLY - 1:
                early = Vitals.of(self._agent.pid)
            self._say(
                f"{number + 1} of {portions} portions, {sum(sizes[: number + 1]) / spent_s:.0f}"
                f" messages/s, {Vitals.of(self._agent.pid)}, {len(self._fuzz.problems)} problems"
            )
        return early, spent_s

    async def _restart(self) -> None:
        """End the agent in order, and start it again."""
        before = await self._client.host()
        # What is carried out after the counters are read would be in no count.
        async with self._witnesses.at_rest():
            await self._count_and_end()
        await self._agent.start()
        async with asyncio.timeout(30):
            await self._client.host(other_than=before.run_id)

    async def _count_and_end(self) -> None:
        await self._counted.add(self._port)
        code = await self._agent.stop()
        if code != 0:
            self._fuzz.problem(f"the agent ended with {code}")

    async def _reckon(
        self, began_s: float, seconds: float, early: Vitals, late: Vitals
    ) -> dict[str, Any]:
        client, witnesses, fuzz = self._client, self._witnesses, self._fuzz
        problems = fuzz.problems
        problems += await left_behind(client, self._agent, witnesses)
        await witnesses.end()
        problems += await left_behind(client, self._agent, witnesses)
        await self._count_and_end()
        problems += miscounted(fuzz, witnesses, self._counted)
        wrong, entries = await misaudited(client, self._counted, time.monotonic() - began_s)
        problems += wrong
        wrong, lives = await misdone(client, witnesses)
        problems += wrong
        problems += overgrown(early, late)
        return {
            **asdict(self._plan),
            "seconds": round(seconds, 1),
            "messages_per_s": round(self._plan.messages / seconds),
            "sent": _plain(fuzz.sent),
            "made": dict(sorted(fuzz.made.items())),
            "discarded": fuzz.undecided,
            "refused": _plain(self._counted.refused),
            "carried_out": _plain(self._counted.commands),
            "redelivered": self._counted.redelivered,
            "audit_entries": entries,
            "lives": lives,
            "at_a_tenth": asdict(early),
            "at_the_end": asdict(late),
            "problems": problems,
        }


def _plain(counts: Counter[tuple[str, str]]) -> dict[str, int]:
    return {" ".join(kind): count for kind, count in sorted(counts.items())}


@asynccontextmanager
async def _stage(
    folder: Path, kernel: Path, plan: Plan
) -> AsyncIterator[tuple[NatsServer, AgentProcess, int]]:
    port = free_port()
    settings = {"driver": plan.driver, "disk_mib": "20000", "firecracker": plan.firecracker}
    async with bus_with_streams(folder / "nats") as (server, _):
        agent = AgentProcess(
            folder / "agent",
            server.url,
            settings=settings,
            env={"DECISEC_HTTP_PORT": str(port), "DECISEC_LOG_LEVEL": "warning"},
        )
        ImageStore(folder / "agent" / "images").add(
            "tiny", kernel, allowed_args=GUEST_ARGS, driver_args={"*": "console=ttyS0"}
        )
        try:
            await agent.start()
            yield server, agent, port
        finally:
            await agent.kill()
            with contextlib.suppress(AssertionError):
                await agent.reap()


@asynccontextmanager
async def _client(server: NatsServer) -> AsyncIterator[Client]:
    async with Bus.connect(server.settings(), name="fuzz") as bus:
        client = Client(bus)
        async with asyncio.timeout(30):
            await client.host()
        yield client
