"""Storms of commands on a stack of simulated VMs: they pass where all is well, and only there."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from rich.progress import Progress

from decisec.dev.tokens import development_token
from decisec.sdk import AsyncClient
from runtime.reading import count_messages
from schemas.api import VmView
from schemas.subjects import VM_COMMANDS
from schemas.vms import VmState
from tests.load.flood.commands.doors import HttpDoor
from tests.load.flood.commands.life import Life
from tests.load.flood.commands.plan import StormPlan
from tests.load.flood.commands.storm import Storm, Ways
from tests.load.flood.commands.tally import Tally
from tests.load.flood.commands.verdict import Audit
from tests.load.flood.commands.ways import (
    OWN_CUSTOMERS,
    Address,
    given_ways,
    left_on_hosts,
    own_stack,
    ways_of,
)
from tests.support.stack import KillableStack

pytestmark = pytest.mark.asyncio(loop_scope="module")

PLAN = StormPlan(lives=20, rate=8.0, at_once=12, up_s=0.5, killed=0.3)
FEW = StormPlan(lives=4, rate=20.0, up_s=3.0, killed=0.0, within_s=20.0)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[KillableStack]:
    """One for all storms; each has lives of its own."""
    root = tmp_path_factory.mktemp("storms")
    async with own_stack(PLAN, root) as running:
        yield running


async def stormed(ways: Ways, plan: StormPlan) -> tuple[dict[str, Any], Storm]:
    """A storm that tells nobody of its progress, and what it came to."""
    with Progress(disable=True) as progress:
        storm = Storm(plan, ways, progress, settled_within_s=10.0)
        async with asyncio.timeout(100):
            report = await storm.run()
    assert report is not None
    return report, storm


async def test_all_lives_through_both_doors_are_carried_out_and_billed(
    stack: KillableStack,
) -> None:
    """By HTTP and by the bus in turn, for three customers, on the edge of the room there is."""
    plan = dataclasses.replace(PLAN, through="both", burst=4, ramp_s=1.0)
    async with ways_of(stack, plan) as ways:
        assert {(door.name, door.customer) for door in ways.doors} == {
            (way, customer) for way in ("http", "bus") for customer in OWN_CUSTOMERS
        }
        report, storm = await stormed(ways, plan)
        assert report["problems"] == []
        assert report["conserved"]
        assert report["ends_told_by"] == "bus"
        assert report["lives"]["whole"] == report["bills"]["vms"] == 20
        killed = sum(plan.kills())
        commands = report["commands"]
        assert commands["shutdown"]["succeeded"] == 20 - killed < 20
        for verb in ("create", "boot", "delete"):
            assert commands[verb]["succeeded"] == commands[verb]["done_ms"]["count"] == 20
            assert commands[verb]["accepted_ms"]["p50"] <= commands[verb]["done_ms"]["p50"]
        assert await ways.leftovers.find(storm.storm_id) == {}
        assert ways.bus is not None
        assert await left_on_hosts(ways.bus) == {}


async def test_the_api_alone_is_enough(stack: KillableStack) -> None:
    """As any customer has it; one unit more or less in a bill shows."""
    plan = dataclasses.replace(PLAN, lives=8)
    token = development_token(stack.key, OWN_CUSTOMERS[0])
    address = Address(api_url=stack.ports.api_url, token=token, api_only=True)
    async with given_ways(plan, address) as ways:
        report, storm = await stormed(ways, plan)
        assert report["problems"] == []
        assert (report["ends_told_by"], report["customers"]) == ("polling", ["flood-a"])
        assert report["lives"]["whole"] == report["bills"]["vms"] == 8
        life = storm.lives[0]
        assert life.final is not None
        more = dataclasses.replace(
            life, final=type(life.final)(cpu_ns=life.final.cpu_ns + 1, uptime_ms=1)
        )
        silent = dataclasses.replace(storm.lives[1], final=None)
        never = Life(9, life.door, 0.0, killed=False, vm_id=None, booted=True)
        tally = Tally()
        audit = Audit(None, datetime.now(UTC) - timedelta(minutes=5))
        bills = await audit.judge([more, silent, never, *storm.lives[2:]], tally)
        assert (bills.vms, bills.misbilled, bills.uncounted, bills.unbilled) == (7, 1, 1, 0)
        assert len(tally.problems) == 2


async def test_a_vm_that_somebody_else_deletes_is_told(stack: KillableStack) -> None:
    """It was accepted and is gone; the others' lives go on."""
    customer = OWN_CUSTOMERS[1]
    token = development_token(stack.key, customer)

    async def delete_one() -> None:
        async with stack.client(customer) as client:
            running = [vm async for vm in client.list_vms(state=VmState.RUNNING)]
            while not running:
                await asyncio.sleep(0.05)
                running = [vm async for vm in client.list_vms(state=VmState.RUNNING)]
            await client.delete_vm(running[0].vm_id, wait_s=10)

    address = Address(api_url=stack.ports.api_url, token=token, nats_url=stack.ports.nats_url)
    async with given_ways(FEW, address) as ways, asyncio.TaskGroup() as group:
        other = group.create_task(delete_one(), name="somebody-else")
        report, _ = await stormed(ways, FEW)
        assert other.done()
    assert not report["conserved"]
    assert (report["vanished"], report["lost"], report["lives"]["whole"]) == (1, 0, 3)
    assert "gone before it was deleted" in report["problems"][0]
    # What it had used is billed all the same.
    assert report["bills"] == {"vms": 4, "misbilled": 0, "unbilled": 0, "uncounted": 0}


async def test_a_command_that_is_lost_is_told(tmp_path: Path) -> None:
    """Taken out of the stream while the agent is down: no host begins it; its VM is cleared up."""
    plan = dataclasses.replace(FEW, up_s=8.0)
    async with own_stack(plan, tmp_path, command_deadline_s="15") as stack:
        await _lose_a_command(stack, plan)


async def _lose_a_command(stack: KillableStack, plan: StormPlan) -> None:
    token = development_token(stack.key, OWN_CUSTOMERS[0])
    address = Address(api_url=stack.ports.api_url, token=token, nats_url=stack.ports.nats_url)
    async with (
        given_ways(plan, address) as ways,
        AsyncClient(stack.ports.api_url, token) as client,
        stack.bus() as bus,
        asyncio.TaskGroup() as group,
    ):
        running = group.create_task(stormed(ways, plan), name="storm")
        vms: list[VmView] = []
        async with asyncio.timeout(60):
            while len(vms) < plan.lives:
                vms = [vm async for vm in client.list_vms(state=VmState.RUNNING)]
                await asyncio.sleep(0.05)
            await stack.kill("agent")
            lost = f"vm.cmd.*.{vms[0].vm_id}.shutdown"
            while not await count_messages(bus, VM_COMMANDS, lost):
                await asyncio.sleep(0.05)
            await bus.js.purge_stream(VM_COMMANDS, subject=lost)
            await stack.start("agent")
        report, _ = await running
        assert await left_on_hosts(bus) == {}
    assert not report["conserved"]
    assert report["lost"] == report["commands"]["shutdown"]["lost"] == 1
    assert any(str(vms[0].vm_id) in problem for problem in report["problems"])
    assert report["lives"]["whole"] == plan.lives - 1
    assert report["bills"] == {"vms": 4, "misbilled": 0, "unbilled": 0, "uncounted": 0}
    assert report["orphans"] == 0


async def test_refusals_are_counted_and_are_no_loss(stack: KillableStack) -> None:
    """A spec that no host has room for: nothing is made, and the storm shows nothing."""
    plan = dataclasses.replace(FEW, lives=2, memory_mib=1_048_576, tries=2)
    async with ways_of(stack, plan) as ways:
        report, storm = await stormed(ways, plan)
        assert report["commands"]["create"]["given_up"] == {"forbidden": 2}
        assert (report["lost"], report["orphans"], report["cleared"]) == (0, 0, 0)
        assert report["problems"] == ["no life was whole: nothing is shown by this storm"]
        assert await ways.leftovers.find(storm.storm_id) == {}


async def test_a_wrong_token_and_a_wrong_address_are_told_in_words(stack: KillableStack) -> None:
    """With the exit codes that all commands have."""
    api_url = stack.ports.api_url
    for arguments, code, words in (
        (("--api-url", api_url), 5, "token is refused"),
        (("--api-url", "http://127.0.0.1:9"), 3, "cannot be reached"),
        (("--api-url", api_url, "--through", "bus"), 2, "--api-only: goes with"),
    ):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "decisec", "flood", "commands", "--api-only", *arguments,
            env=os.environ | {"DECISEC_TOKEN": "no.such.token"},
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        _, errors = await process.communicate()
        assert process.returncode == code, errors
        assert words in errors.decode()
        assert "no.such.token" not in errors.decode()


async def test_a_door_knows_whose_it_is(stack: KillableStack) -> None:
    """From the token."""
    async with HttpDoor(
        stack.ports.api_url, development_token(stack.key, OWN_CUSTOMERS[2]), 120
    ) as door:
        assert door.customer == OWN_CUSTOMERS[2]
        assert door.client is not door.client
