"""The end of a gateway, and hosts that are not heard of any more."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.addresses import Addresses
from gateway.admission import Admission
from gateway.background import Background
from gateway.errors import RefusedError
from gateway.http import Services, build
from gateway.limits import Limits
from gateway.mutations import Mutations
from gateway.settings import GatewaySettings
from runtime.clock import utc_now
from schemas.errors import ErrorCode
from tests.support.gateway import (
    TINY,
    WAIT,
    ScriptedAgent,
    made,
    running_gateway,
    stack,
    until,
)
from tests.support.nats import bus_with_streams
from tests.support.tokens import bearer, sighted


async def test_a_host_that_is_not_heard_of_gets_no_vm(tmp_path: Path) -> None:
    """By the time in its heartbeat, and, where that time is wrong, by when the last one came."""
    async with bus_with_streams(tmp_path) as (server, bus):
        old, ahead = ScriptedAgent(bus, "old"), ScriptedAgent(bus, "ahead")
        await old.beat(heartbeat_at=utc_now() - timedelta(seconds=6))
        await ahead.beat(heartbeat_at=utc_now() + timedelta(hours=1))
        async with (
            running_gateway(server) as (_, _, url),
            httpx.AsyncClient(base_url=url, headers=sighted(), timeout=30) as api,
        ):
            made = await api.post("/v1/vms", json=TINY)
            assert made.json()["vm"]["host_id"] == "ahead"

            # What is offered goes by the same, and takes no room to ask for.
            async def offered() -> bool:
                return bool((await api.get("/v1/images")).json()["images"])

            async def silent() -> bool:
                return not await offered()

            await until(silent, timeout_s=20)
            refused = await api.post("/v1/vms", json=TINY)
            assert (refused.json()["code"], refused.headers["Retry-After"]) == ("no_capacity", "5")
            assert "2 x not heard of" in refused.json()["detail"]
            await ahead.beat(heartbeat_at=utc_now() + timedelta(hours=2))
            await until(offered)
            assert (await api.post("/v1/vms", json=TINY)).status_code == 202


async def test_requests_during_the_end_are_put_off(tmp_path: Path) -> None:
    """503 with Retry-After to those that come then; those that are there are answered."""
    async with bus_with_streams(tmp_path) as (server, bus):
        agent = ScriptedAgent(bus, "h1")
        await agent.beat()
        answers: list[httpx.Response] = []
        gone = 0
        async with asyncio.TaskGroup() as group:
            running = group.create_task(agent.run(), name="agent")
            api = httpx.AsyncClient(headers=bearer(), timeout=30)
            stop = asyncio.Event()

            async def ask(url: str, method: str, path: str, body: Any) -> None:
                nonlocal gone
                while not stop.is_set():
                    try:
                        answers.append(await api.request(method, url + path, json=body))
                    except httpx.TransportError:
                        gone += 1
                        return

            async with running_gateway(server) as (_, _, url):
                first = await api.post(f"{url}/v1/vms", json=TINY, headers=WAIT)
                vm_id = first.json()["vm"]["vm_id"]
                asking = [
                    group.create_task(ask(url, method, path, body), name=f"ask-{number}")
                    for number in range(4)
                    for method, path, body in (
                        ("GET", f"/v1/vms/{vm_id}", None),
                        ("POST", "/v1/vms", {**TINY, "memory_mib": 16}),
                    )
                ]
                await until(lambda: len(answers) > 20)
            stop.set()
            await asyncio.wait(asking)
            await api.aclose()
            running.cancel()
        late = [answer for answer in answers if answer.status_code not in (200, 202)]
        # Whoever creates VMs all the time may be refused for that, too.
        late = [answer for answer in late if answer.json()["code"] != "forbidden"]
        assert {answer.status_code for answer in late} <= {503}
        assert all("Retry-After" in answer.headers for answer in late)
        assert gone <= len(asking)


async def test_a_closed_gateway_refuses_before_it_looks_at_anything() -> None:
    """Neither token nor body is read; the connection is not kept."""
    background = Background(asyncio.TaskGroup())
    background.close()
    nothing: Any = None
    services = Services(
        **{one.name: nothing for one in fields(Services)}
        | {"background": background, "mutations": Mutations(nothing, nothing)}
    )
    settings = GatewaySettings(address_per_s=0.0)
    limits = Limits(nothing, settings, lambda _: None)
    app: Any = build(
        services, nothing, limits, Admission(settings), Addresses(), max_body_bytes=1024
    )
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway.test") as api:
        for method, path in (("GET", "/v1/vms"), ("POST", "/v1/vms"), ("GET", "/v1/whoami")):
            answer = await api.request(method, path, content=b"{")
            assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
            assert answer.headers["Content-Type"] == "application/problem+json"
            assert answer.headers["Retry-After"] == "1"
            assert answer.headers["Connection"] == "close"


async def test_a_group_that_has_ended_takes_no_work_and_says_so() -> None:
    """Not an error of the program: a refusal that may be tried again."""
    async with asyncio.TaskGroup() as group:
        background = Background(group)
        task = background.spawn(asyncio.sleep(0), "first")
    assert task.done()
    background.require_open()
    with pytest.raises(RefusedError) as caught:
        background.spawn(asyncio.sleep(0), "second")
    assert caught.value.code is ErrorCode.UNAVAILABLE
    assert caught.value.retry_after_s
    background.close()
    with pytest.raises(RefusedError, match="shutting down"):
        background.require_open()


async def test_whoever_waits_at_the_end_hears_of_the_operation(tmp_path: Path) -> None:
    """202 instead of a cut connection, for a create and for a verb; and what was begun goes on."""
    async with stack(tmp_path) as running, running.client(headers=bearer()) as other:
        vm_id = await made(other)
        running.agent.gate.clear()
        before = await running.commands()
        async with (
            httpx.AsyncClient(headers=bearer(), timeout=30) as api,
            AsyncExitStack() as exits,
            asyncio.TaskGroup() as group,
        ):
            _, _, url = await exits.enter_async_context(running_gateway(running.server))
            ending = exits.pop_all()
            wait = {"Prefer": "wait=60"}
            asked = [
                group.create_task(api.post(url + path, json=body, headers=wait), name=path)
                for path, body in (("/v1/vms", TINY), (f"/v1/vms/{vm_id}/boot", None))
            ]

            async def stored() -> bool:
                return await running.commands() == before + 2

            await until(stored)
            group.create_task(ending.aclose(), name="end")
        for task in asked:
            answer = task.result()
            assert answer.status_code == 202
            assert answer.json()["operation"]["status"] == "pending"
        running.agent.gate.set()

        async def gone_on() -> bool:
            states = [vm["state"] for vm in (await other.get("/v1/vms")).json()["vms"]]
            return states == ["running", "created"]

        await until(gone_on)
