"""Placement over a real bus: several gateways, hosts that fill up or fall silent, wishes."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import msgspec

from gateway.attempts import create_id
from runtime.buckets import Bucket
from runtime.bus import Bus
from schemas.codec import encode
from schemas.commands import Command, CreateVm
from schemas.errors import ErrorCode, ErrorInfo
from schemas.places import PlaceExplanation, PlaceQuestion, decode_place_reply
from schemas.subjects import PLACE_EXPLAIN, VM_SPECS
from schemas.vms import VmSpec, decode_vm_record
from schemas.wishes import PlacementWishes
from tests.support.gateway import ROOM, TINY, WAIT, ScriptedAgent, made, running_gateway, until
from tests.support.nats import NatsServer, bus_with_streams
from tests.support.tokens import bearer, sighted

LONG = {"Prefer": "wait=50"}


class SmallAgent(ScriptedAgent):
    """An agent with so many slots, which has the last word on who gets them."""

    def __init__(self, bus: Bus, host_id: str, slots: int) -> None:
        super().__init__(bus, host_id, script=self._admit)
        self.slots = slots
        self.held: list[UUID] = []
        self.refused = 0

    def _admit(self, command: Command) -> ErrorInfo | None:
        if isinstance(command, CreateVm):
            if len(self.held) == self.slots:
                self.refused += 1
                return ErrorInfo(code=ErrorCode.NO_CAPACITY, message="full")
            self.held.append(command.vm_id)
        return None

    async def beat(self, **changes: Any) -> None:
        """Tell what is left, and who has got the rest."""
        free = msgspec.structs.replace(ROOM, slots=self.slots - len(self.held))
        room = {"free": free, "admitted": tuple(self.held), "vms": len(self.held)}
        await super().beat(**room | changes)


@asynccontextmanager
async def at_work(agents: list[ScriptedAgent], **heartbeats: dict[str, Any]) -> AsyncIterator[None]:
    """Agents that beat and carry out commands for the length of the block."""
    for agent in agents:
        await agent.beat(**heartbeats.get(agent.host_id, {}))
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(agent.run(**heartbeats.get(agent.host_id, {})), name=agent.host_id)
            for agent in agents
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()


@asynccontextmanager
async def apis(
    server: NatsServer, count: int, customer: str = "acme", **options: Any
) -> AsyncIterator[list[httpx.AsyncClient]]:
    """Clients of so many gateways, which see the names of hosts."""
    async with AsyncExitStack() as open_ones:
        found = []
        for _ in range(count):
            _, _, url = await open_ones.enter_async_context(running_gateway(server, **options))
            client = httpx.AsyncClient(base_url=url, timeout=60, headers=sighted(customer))
            found.append(await open_ones.enter_async_context(client))
        yield found


async def test_two_hundred_creates_over_three_gateways_fill_the_hosts_exactly(
    tmp_path: Path,
) -> None:
    """As many VMs are made as fit, whatever the gateways know of each other."""
    async with bus_with_streams(tmp_path) as (server, bus):
        agents = [SmallAgent(bus, f"h{number}", 12) for number in range(10)]
        async with (
            at_work([*agents]),
            apis(server, 3, begin_within_s=30.0, command_deadline_s=60.0) as doors,
        ):
            answers = await asyncio.gather(
                *(
                    doors[number % 3].post(
                        "/v1/vms", json=TINY, headers={**LONG, **bearer(f"c{number % 20}")}
                    )
                    for number in range(200)
                )
            )
            outcomes = Counter(answer.status_code for answer in answers)
            assert outcomes == {201: 120, 503: 80}
            codes = {a.json()["code"] for a in answers if a.status_code == 503}
            assert codes == {"no_capacity"}
            assert [len(agent.held) for agent in agents] == [12] * 10
            records = await Bucket(bus, VM_SPECS, decode_vm_record).all()
            placed = Counter(record.host_id for record in records.values())
            assert placed == {agent.host_id: 12 for agent in agents}


async def test_a_placement_counts_on_every_gateway_that_has_heard_of_it(tmp_path: Path) -> None:
    """Before the agent has said or done anything."""
    async with bus_with_streams(tmp_path) as (server, bus):
        agent = SmallAgent(bus, "h1", 1)
        agent.gate.clear()
        async with at_work([agent]), apis(server, 3) as (here, there, elsewhere):
            first = await here.post("/v1/vms", json=TINY)
            assert first.status_code == 202
            path = f"/v1/vms/{first.json()['vm']['vm_id']}"
            for other in (there, elsewhere):

                async def heard(api: httpx.AsyncClient = other) -> bool:
                    return (await api.get(path)).status_code == 200

                await until(heard)
                refused = await other.post("/v1/vms", json=TINY)
                assert (refused.status_code, refused.json()["code"]) == (503, "no_capacity")
                assert "1 x short of slots" in refused.json()["detail"]
            agent.gate.set()


async def test_a_host_that_does_not_begin_loses_the_vm_to_another_one(tmp_path: Path) -> None:
    """Well before the deadline; when it comes back it does nothing."""
    async with bus_with_streams(tmp_path) as (server, bus):
        silent, other = ScriptedAgent(bus, "h1"), ScriptedAgent(bus, "h2")
        silent.gate.clear()
        less = {"free": msgspec.structs.replace(ROOM, memory_mib=1024)}
        async with (
            at_work([silent, other], h2=less),
            apis(server, 2, begin_within_s=0.3, command_deadline_s=50.0) as (api, observer),
        ):
            answer = await api.post("/v1/vms", json={**TINY, "boot": True}, headers=LONG)
            assert answer.status_code == 201, answer.text
            vm = answer.json()["vm"]
            assert (vm["host_id"], vm["state"]) == ("h2", "running")
            vm_id = UUID(vm["vm_id"])
            shown = (await observer.get(f"/v1/operations/{create_id(vm_id, 0)}")).json()
            assert (shown["status"], "placed" in shown) == ("succeeded", False)
            moved = await other.operations.get(str(create_id(vm_id, 1)))
            assert moved is not None
            assert (moved.value.host_id, moved.value.placed) == ("h2", "spread+again")
            silent.gate.set()
            later = await made(observer, memory_mib=2048)
            await until(lambda: any(str(c.vm_id) == later for c in silent.seen))
            assert all(c.vm_id != vm_id for c in silent.seen)


async def test_a_silent_host_keeps_the_vm_while_there_is_no_other(tmp_path: Path) -> None:
    """It is not taken away to be refused."""
    async with bus_with_streams(tmp_path) as (server, bus):
        agent = SmallAgent(bus, "h1", 1)
        agent.gate.clear()
        async with at_work([agent]), apis(server, 1, begin_within_s=0.05) as (api,):
            accepted = await api.post("/v1/vms", json=TINY)
            refused = await api.post("/v1/vms", json=TINY)
            assert (accepted.status_code, refused.status_code) == (202, 503)
            await asyncio.sleep(0.3)
            agent.gate.set()

            async def created() -> bool:
                return bool((await api.get(accepted.headers["Location"])).json()["finished_at"])

            await until(created)
            assert len(agent.held) == 1


async def test_vms_get_hosts_by_label_driver_and_architecture(tmp_path: Path) -> None:
    """Who asks for what no host has is refused, with the reasons counted."""
    async with bus_with_streams(tmp_path) as (server, bus):
        hosts: dict[str, dict[str, Any]] = {
            "h1": {"arch": "aarch64", "labels": {"disk": "nvme"}},
            "h2": {"arch": "x86_64", "driver": "qemu"},
        }
        agents = [ScriptedAgent(bus, name) for name in hosts]
        async with at_work(agents, **hosts), apis(server, 1) as (api,):
            for wishes, host_id in (
                ({"host_labels": {"disk": "nvme"}}, "h1"),
                ({"arch": "x86_64"}, "h2"),
                ({"driver": "qemu"}, "h2"),
            ):
                answer = await api.post("/v1/vms", json={**TINY, "placement": wishes}, headers=WAIT)
                assert answer.status_code == 201, answer.text
                assert answer.json()["vm"]["host_id"] == host_id
            both = {"host_labels": {"disk": "nvme"}, "driver": "qemu"}
            answer = await api.post("/v1/vms", json={**TINY, "placement": both})
            assert (answer.status_code, answer.json()["code"]) == (503, "no_capacity")
            for reason in ("1 x with another driver", "1 x without the labels"):
                assert reason in answer.json()["detail"]
            for wrong in ({"driver": "vmware"}, {"arch": "vax"}, {"near": "me"}, {"apart_by": "x"}):
                answer = await api.post("/v1/vms", json={**TINY, "placement": wrong})
                assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")


async def test_vms_of_one_label_go_to_different_hosts(tmp_path: Path) -> None:
    """Where possible, or else not at all; another customer's do not count."""
    async with bus_with_streams(tmp_path) as (server, bus):
        agents = [ScriptedAgent(bus, name) for name in ("h1", "h2")]
        async with at_work([*agents]), apis(server, 1) as (api,):

            def asked(apart: str) -> dict[str, Any]:
                wish = {"apart_by": "app", "apart": apart}
                return {**TINY, "labels": {"app": "db"}, "placement": wish}

            hosts = []
            for _ in range(2):
                answer = await api.post("/v1/vms", json=asked("required"), headers=WAIT)
                hosts.append(answer.json()["vm"]["host_id"])
            assert sorted(hosts) == ["h1", "h2"]
            refused = await api.post("/v1/vms", json=asked("required"), headers=WAIT)
            assert refused.status_code == 503
            assert "2 x with a VM to be apart from" in refused.json()["detail"]
            more = await api.post("/v1/vms", json=asked("preferred"), headers=WAIT)
            assert more.status_code == 201
            foreign = await api.post(
                "/v1/vms", json=asked("required"), headers={**WAIT, **bearer("other")}
            )
            assert foreign.status_code == 201


async def test_an_operator_is_told_why_a_host_is_taken_or_not(tmp_path: Path) -> None:
    """Each host with its reason and room; what is in flight counts; nothing is held by asking."""
    async with bus_with_streams(tmp_path) as (server, bus):
        hosts: dict[str, dict[str, Any]] = {
            "h1": {},
            "h2": {"free": msgspec.structs.replace(ROOM, memory_mib=30_000)},
            "h3": {"draining": True},
            "h4": {"pool": "gold"},
        }
        agents = [ScriptedAgent(bus, name) for name in hosts]
        for agent in agents:
            agent.gate.clear()

        async def explain(question: PlaceQuestion) -> PlaceExplanation:
            answer = await bus.request(PLACE_EXPLAIN, encode(question), timeout_s=5)
            reply = decode_place_reply(answer.data)
            assert reply.explanation is not None
            return reply.explanation

        async with at_work([*agents], **hosts), apis(server, 1) as (api,):
            asked = VmSpec(image="tiny", memory_mib=1024)
            for _ in range(2):
                found = await explain(PlaceQuestion(spec=asked))
                seen = [(host.host_id, host.reason) for host in found.hosts]
                assert (found.host_id, found.why, found.elsewhere) == ("h1", "spread", 1)
                assert seen == [("h1", ""), ("h2", ""), ("h3", "draining")]
            wish = {"apart_by": "app"}
            body = {**TINY, "labels": {"app": "db"}, "placement": wish, "memory_mib": 1024}
            assert (await api.post("/v1/vms", json=body)).status_code == 202
            likewise = msgspec.structs.replace(
                asked, labels={"app": "db"}, placement=PlacementWishes(apart_by="app")
            )
            found = await explain(PlaceQuestion(spec=likewise, customer_id="acme"))
            assert (found.host_id, found.why) == ("h2", "spread+apart")
            (taken,) = [host for host in found.hosts if host.host_id == "h1"]
            assert (taken.peers, taken.in_flight.memory_mib, taken.vms) == (1, 1024, 1)
            assert taken.free.memory_mib == ROOM.memory_mib - 1024
            huge = msgspec.structs.replace(asked, memory_mib=100_000)
            found = await explain(PlaceQuestion(spec=huge))
            assert found.host_id is None
            assert found.error is not None
            assert "2 x short of memory_mib" in found.error.message
            assert (await explain(PlaceQuestion(spec=asked, pool="gold"))).host_id == "h4"
            answer = await bus.request(PLACE_EXPLAIN, b'{"spec": 1}', timeout_s=5)
            error = decode_place_reply(answer.data).error
            assert error is not None
            assert error.code is ErrorCode.BAD_REQUEST
            for agent in agents:
                agent.gate.set()
