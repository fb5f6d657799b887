"""Customer `bolt` tries everything with `acme`'s ids: it is as if they were missing.

What is tried stands in tests/tenancy/table.py; which routes and verbs there are, the gateway says.
"""

from __future__ import annotations

import asyncio
import json
import re
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import pytest_asyncio

from decisec.devkit.api_contract import described
from gateway.door import Door
from runtime.bus import Message
from schemas.ids import new_id
from schemas.subjects import vm_request
from tests.support.answering import answering_stack
from tests.support.gateway import WAIT, Stack
from tests.support.tokens import bearer
from tests.tenancy.table import REPEATING, ROUTES, VERBS, Things, Try

pytestmark = pytest.mark.asyncio(loop_scope="module")

OWNER, OTHER = "acme", "bolt"
_TRACE = re.compile(r'"trace_id":"[0-9a-f]*"')
_SINCE = re.compile(r'"since":"[^"]*"')
_CHANGING = re.compile(r"^(date|content-length|ratelimit.*|retry-after)$")
_UNLIMITED = dict.fromkeys(
    ("reads_per_s", "mutations_per_s", "expensive_per_s", "address_per_s"), 0.0
)
_LISTEN_S = 0.3
_UNANSWERED = ("usage.windows.", "metrics.series.")


@dataclass
class World:
    """A gateway, what `acme` has, and what other services were asked for.

    Attributes:
        asked: Subjects that name a customer.
    """

    stack: Stack
    owned: Things
    asked: list[str] = field(default_factory=list)


def missing() -> Things:
    """Things of nobody, in the same shape."""
    vm_id, snapshot_id, operation_id, event_id = (str(new_id()) for _ in range(4))
    peer_id = f"absent-{operation_id}"
    return Things(vm_id, snapshot_id, operation_id, event_id, "absent", "absent", peer_id)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    folder = tmp_path_factory.mktemp("tenancy")
    async with answering_stack(folder, OWNER, OTHER, **_UNLIMITED) as running:
        async with running.client(headers=bearer(OWNER)) as api:
            body = {"image": "tiny", "boot": True, "labels": {"secret": "x"}, "name": "secret"}
            made = (await api.post("/v1/vms", json=body, headers=WAIT)).json()
            vm_id = made["vm"]["vm_id"]
            taken = (await api.post(f"/v1/vms/{vm_id}/snapshot", headers=WAIT)).json()
            await api.put("/v1/network/peers/carl")
        owned = Things(
            vm_id=vm_id,
            snapshot_id=taken["operation"]["snapshot_id"],
            operation_id=made["operation"]["operation_id"],
            event_id=str(new_id()),
            label="secret",
            name="secret",
            peer_id=OWNER,
        )
        found = World(running, owned)

        async def note(message: Message) -> bytes | None:
            found.asked.append(message.subject)
            # Who is not stood in for says something that makes no sense: quicker than nothing.
            return b"{}" if message.subject.startswith(_UNANSWERED) else None

        for subject in ("usage.*.*", "metrics.series.*", "events.query.*", "auditlog.query.*"):
            await running.bus.subscribe(subject, note)
        yield found


async def ask(
    api: httpx.AsyncClient, route: str, case: Try, query: Any, things: Things
) -> tuple[int, dict[str, str], str]:
    """Status, headers and body of one try; what was asked for and what always changes left out."""
    method, path = route.split(" ")
    for name in re.findall(r"\{(\w+)\}", path):
        path = path.replace(f"{{{name}}}", getattr(things, name))
    options: dict[str, Any] = {"params": query(things), "headers": dict(case.headers or {})}
    if case.body is not None:
        options["json"] = case.body(things)
    if not case.streams:
        response = await api.request(method, path, **options)
        text = response.text
    else:
        chunks: list[str] = []
        async with api.stream(method, path, **options) as response:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LISTEN_S):
                    chunks.extend([chunk async for chunk in response.aiter_text()])
        text = "".join(chunks)
    headers = {n: v for n, v in response.headers.items() if not _CHANGING.match(n)}
    text = _SINCE.sub('"since":"then"', text)
    for one in reversed(things.ids):
        text = text.replace(one, "THING")
        headers = {name: value.replace(one, "THING") for name, value in headers.items()}
    return response.status_code, headers, _TRACE.sub("", text)


async def test_every_route_of_the_gateway_is_tried() -> None:
    """The list comes from the gateway: whoever adds a route adds a line to the table."""
    there = {
        f"{method.upper()} {path}" for path, item in described()["paths"].items() for method in item
    }
    customers = {route for route in there if "/v1/admin/" not in route}
    new, gone = sorted(customers - ROUTES.keys()), sorted(ROUTES.keys() - customers)
    assert not new, f"add to ROUTES in tests/tenancy/table.py how another customer tries: {new}"
    assert not gone, f"take out of ROUTES in tests/tenancy/table.py, for it is gone: {gone}"


async def test_every_verb_of_the_bus_is_tried() -> None:
    """The same for the door on the bus."""
    nothing: Any = None
    parts = [nothing] * 7
    verbs = Door(
        *parts, operations=nothing, snapshots=nothing, images=nothing, peers=nothing, reads=nothing
    ).verbs
    new, gone = sorted(verbs - VERBS.keys()), sorted(VERBS.keys() - verbs)
    assert not new, f"add to VERBS in tests/tenancy/table.py how another customer tries: {new}"
    assert not gone, f"take out of VERBS in tests/tenancy/table.py, for it is gone: {gone}"


@pytest.mark.parametrize("route", ROUTES)
async def test_foreign_is_as_missing(world: World, route: str) -> None:
    """Status, headers and body are the same, and nothing of the owner's is shown or changed."""
    case = ROUTES[route]
    running = world.stack
    commands = await running.commands()
    async with (
        running.client(headers=bearer(OTHER)) as api,
        running.client(headers=bearer(OWNER)) as owner,
    ):
        before = (await owner.get(f"/v1/vms/{world.owned.vm_id}")).content
        for query in case.queries:
            world.asked.clear()
            foreign = await ask(api, route, case, query, world.owned)
            absent = await ask(api, route, case, query, missing())
            assert foreign == absent
            if "{" in route:
                assert foreign[0] == case.status
            await running.bus.client.flush()
            assert all(subject.endswith(f".{OTHER}") for subject in world.asked), world.asked
        assert (await owner.get(f"/v1/vms/{world.owned.vm_id}")).content == before
        snapshot = await owner.get(f"/v1/snapshots/{world.owned.snapshot_id}")
        assert snapshot.status_code == 200
    assert await running.commands() == commands


@pytest.mark.parametrize("verb", VERBS)
async def test_foreign_is_as_missing_on_the_bus_too(world: World, verb: str) -> None:
    """The same bytes but for the ids, for every shape of the request."""
    running = world.stack
    commands = await running.commands()
    for body in VERBS[verb]:
        answers = []
        for things in (world.owned, missing()):
            data = json.dumps(body(things)).encode()
            reply = await running.bus.request(vm_request(OTHER, verb), data, timeout_s=10)
            text = _SINCE.sub('"since":"then"', reply.data.decode())
            for one in reversed(things.ids):
                text = text.replace(one, "THING")
            answers.append(text)
        assert answers[0] == answers[1]
        assert ("THING" in answers[0]) == (verb in REPEATING)
    assert await running.commands() == commands


async def test_operators_routes_are_closed_to_customers(world: World) -> None:
    """403 with every scope but `admin`, whatever is in the path and without a body being read."""
    routes = [
        (method, path)
        for path, item in described()["paths"].items()
        for method in item
        if "/v1/admin/" in path
    ]
    async with world.stack.client(headers=bearer(OTHER)) as api:
        for method, path in routes:
            filled = re.sub(r"\{\w*vm_id\}", world.owned.vm_id, path)
            filled = re.sub(r"\{\w+\}", OWNER, filled)
            body: dict[str, Any] = {"json": {}} if method in ("post", "put", "patch") else {}
            response = await api.request(method.upper(), filled, **body)
            assert (response.status_code, response.json()["code"]) == (403, "forbidden"), path


async def test_lists_and_quotas_count_ones_own_only(world: World) -> None:
    """Of a customer who has nothing all lists are empty and all amounts 0, whatever others have."""
    async with world.stack.client(headers=bearer(OTHER)) as api:
        assert (await api.get("/v1/vms")).json() == {"vms": [], "next_cursor": ""}
        assert (await api.get("/v1/snapshots")).json() == {"snapshots": [], "next_cursor": ""}
        assert (await api.get("/v1/operations")).json() == {"operations": [], "next_cursor": ""}
        assert world.owned.vm_id not in (await api.get("/v1/quotas")).text
    async with world.stack.client(headers=bearer(OWNER)) as api:
        assert len((await api.get("/v1/vms")).json()["vms"]) == 1


async def test_an_idempotency_key_is_ones_own(world: World) -> None:
    """The same key and request of another customer is another request."""
    headers = {**WAIT, "Idempotency-Key": "shared"}
    body = {"image": "tiny"}
    async with (
        world.stack.client(headers=bearer("carl")) as carl,
        world.stack.client(headers=bearer("dora")) as dora,
    ):
        one = await carl.post("/v1/vms", json=body, headers=headers)
        two = await dora.post("/v1/vms", json=body, headers=headers)
        assert (one.status_code, two.status_code) == (201, 201)
        assert "Idempotency-Replayed" not in two.headers
        assert two.json()["vm"]["vm_id"] != one.json()["vm"]["vm_id"]
        assert two.json()["vm"]["customer_id"] == "dora"


async def test_times_are_told(world: World, record_property: Any) -> None:
    """How long foreign and missing take, side by side; reported, since machines are not quiet."""
    taken: dict[str, list[float]] = {"foreign": [], "missing": []}
    async with world.stack.client(headers=bearer(OTHER)) as api:
        for method, suffix in (("GET", ""), ("POST", "/boot")):
            for _ in range(60):
                for what, vm_id in (("foreign", world.owned.vm_id), ("missing", str(new_id()))):
                    began_s = time.perf_counter()
                    response = await api.request(method, f"/v1/vms/{vm_id}{suffix}")
                    taken[what].append(time.perf_counter() - began_s)
                    assert response.status_code == 404
    medians = {what: statistics.median(values) * 1000 for what, values in taken.items()}
    for what, median_ms in medians.items():
        record_property(f"{what}_median_ms", round(median_ms, 3))
