"""No customer learns what a host is called, wherever VMs, events and usage are told of."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from runtime.bus import Message
from schemas.codec import encode
from schemas.event_lists import EventsFound, EventsReply
from schemas.ids import new_id
from schemas.series import SeriesReply, SeriesReport
from schemas.subjects import customer_of, vm_request
from schemas.usage import UsageReply, UsageReport
from schemas.usage_windows import WindowsFound, WindowsReply, decode_usage_windows_query
from tests.support.events import created, publish, reading
from tests.support.gateway import (
    TINY,
    WAIT,
    ScriptedAgent,
    Stack,
    made,
    running_gateway,
    stack,
)
from tests.support.tokens import bearer, sighted

HOSTS = ("h1", "plato", "kant")
"""What no answer to a customer may hold; `h1` is looked for with quotes."""

DAY = {"start": "2026-01-01T00:00:00Z", "end": "2026-01-02T00:00:00Z"}
_START, _END = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)


async def lost(message: Message) -> bytes:
    """What the batcher says while two hosts are lost."""
    customer_id = customer_of(message.subject)
    hosts = ("kant", "plato")
    match message.subject.rpartition(".")[0]:
        case "usage.query":
            report = UsageReport(
                customer_id=customer_id, start=_START, end=_END, vms=(), totals={},
                lost_hosts=hosts,
            )  # fmt: skip
            return encode(UsageReply(report=report))
        case "usage.windows":
            windows = len(decode_usage_windows_query(message.data).edges_ms) - 1
            found = WindowsFound(rows=(), windows=windows, lost_hosts=hosts)
            return encode(WindowsReply(found=found))
        case "metrics.series":
            series = SeriesReport(
                customer_id=customer_id, start=_START, end=_END, step_ms=60_000, points=0,
                series=(), lost_hosts=hosts,
            )  # fmt: skip
            return encode(SeriesReply(report=series))
    event = msgspec.structs.replace(created(customer_id), host_id="kant")
    return encode(EventsReply(found=EventsFound(events=(msgspec.Raw(encode(event)),))))


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Stack]:
    async with stack(tmp_path) as found:
        for subject in ("usage.query.*", "usage.windows.*", "metrics.series.*", "events.query.*"):
            await found.bus.subscribe(subject, lost)
        await found.bus.client.flush()
        yield found


def check(text: str) -> None:
    """Nothing in an answer is a host's name."""
    assert not any(f'"{host}"' in text for host in HOSTS), text


async def test_customers_see_another_name_for_each_host(running: Stack) -> None:
    """The same one at every gateway and in all that they are told, and another customer's own."""
    async with (
        running.client(headers=bearer("acme")) as acme,
        running.client(headers=bearer("bolt")) as bolt,
        running.client(headers=sighted("acme")) as operator,
        running_gateway(running.server) as (_, _, url),
        httpx.AsyncClient(base_url=url, headers=bearer("acme"), timeout=30) as elsewhere,
    ):
        begun = await acme.post("/v1/vms", json=TINY, headers=WAIT)
        vm_id = begun.json()["vm"]["vm_id"]
        name = begun.json()["vm"]["host_id"]
        assert name.startswith("host-")
        path = f"/v1/vms/{vm_id}"
        answers = [
            begun,
            await acme.get(path),
            await acme.patch(path, json={"name": "x"}),
            await acme.post(f"{path}/boot", headers=WAIT),
            await acme.post(f"{path}/snapshot", headers=WAIT),
            await acme.post(f"{path}/shutdown"),
            await elsewhere.get(path),
            await acme.get("/v1/vms"),
            await acme.get("/v1/operations"),
            await acme.get("/v1/snapshots"),
            await acme.get("/v1/quotas"),
        ]
        for answer in answers:
            assert answer.status_code < 300, answer.text
            check(answer.text)
            for shown in (answer.json().get("vm", answer.json()), *answer.json().get("vms", ())):
                assert shown.get("host_id", name) == name
        theirs = await made(bolt)
        assert (await bolt.get(f"/v1/vms/{theirs}")).json()["host_id"] not in (name, "h1")
        assert (await operator.get(path)).json()["host_id"] == "h1"
        assert (await operator.get("/v1/vms", params={"host": "h1"})).json()["vms"]
        assert (await acme.get("/v1/vms", params={"host": name})).status_code == 403
        for verb, body in (("get", {"vm_id": vm_id}), ("list", {}), ("boot", {"vm_id": vm_id})):
            reply = await running.bus.request(
                vm_request("acme", verb), json.dumps(body).encode(), timeout_s=10
            )
            check(reply.data.decode())
            assert verb == "boot" or name in reply.data.decode()


async def test_vms_apart_are_seen_to_be_apart(running: Stack) -> None:
    """By the names that customers are told: as many of them as there are hosts."""
    await ScriptedAgent(running.bus, "plato").beat()
    wish = {"apart_by": "app", "apart": "required"}
    body = {**TINY, "labels": {"app": "db"}, "placement": wish}
    async with running.client(headers=bearer("pair")) as api:
        placed = [(await api.post("/v1/vms", json=body)).json()["vm"] for _ in range(2)]
        assert len({vm["host_id"] for vm in placed}) == 2
        check(json.dumps(placed))


async def test_events_name_hosts_as_vms_do(running: Stack) -> None:
    """Listed and streamed, for operators too."""
    for headers in (bearer("acme"), sighted("acme")):
        async with running.client(headers=headers) as api:
            listed = await api.get("/v1/events")
            check(listed.text)
            async with reading(api) as reader:
                await publish(running.bus, created("acme"))
                streamed = (await reader.next()).data.decode()
            check(streamed)
            assert json.loads(streamed)["host_id"].startswith("host-")


async def test_lost_hosts_are_named_as_vms_hosts_are(running: Stack) -> None:
    """In usage, windows and series; operators see what they are called."""
    queries: tuple[tuple[str, dict[str, Any]], ...] = (
        ("/v1/usage", DAY),
        ("/v1/usage", {**DAY, "by": "hour"}),
        ("/v1/metrics/series", {**DAY, "vm_id": str(new_id())}),
    )
    async with running.client(headers=bearer("acme")) as acme, running.client(
        headers=sighted("acme")
    ) as operator:  # fmt: skip
        told = set()
        for path, query in queries:
            answer = await acme.get(path, params=query)
            assert answer.status_code == 200, answer.text
            check(answer.text)
            told.add(tuple(answer.json()["lost_hosts"]))
            seen = await operator.get(path, params=query)
            assert seen.json()["lost_hosts"] == ["kant", "plato"]
        ((one, two),) = told
        assert one != two
