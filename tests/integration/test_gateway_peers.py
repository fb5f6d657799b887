"""Peers over the API: two halves, nothing told of who exists, caps, and customers that end."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest
import pytest_asyncio

from runtime.buckets import Bucket
from runtime.reading import read_stream
from schemas.audit import decode_audit_entry
from schemas.network_peers import MAX_ADDED, MAX_HALVES, decode_customer_peers
from schemas.subjects import AUDIT, NETWORK_PEERS
from tests.support.gateway import Stack, running_gateway, stack, until
from tests.support.tokens import bearer, operator

pytestmark = pytest.mark.asyncio(loop_scope="module")
PATH = "/v1/network/peers"
CUSTOMERS = "/v1/admin/customers"


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """One stack for all tests here; each test has customers of its own."""
    unlimited = {"mutations_per_s": 0.0, "reads_per_s": 0.0}
    async with stack(tmp_path_factory.mktemp("gateway"), **unlimited) as running:
        yield running


class Party:
    """One customer at the API."""

    def __init__(self, api: httpx.AsyncClient, name: str) -> None:
        self.name = name
        self._api = api
        self._who = bearer(name)

    async def ask(self, method: str, path: str = "", **options: Any) -> httpx.Response:
        return await self._api.request(method, PATH + path, headers=self._who, **options)

    async def add(self, other: str) -> dict[str, Any]:
        answer = await self.ask("PUT", f"/{other}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    async def remove(self, other: str) -> dict[str, Any]:
        answer = await self.ask("DELETE", f"/{other}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    async def states(self, **query: str) -> dict[str, str]:
        """State by peer, over all pages."""
        found: dict[str, str] = {}
        cursor = ""
        while True:
            answer = await self.ask("GET", params={"limit": "2", "cursor": cursor, **query})
            page = answer.json()
            assert len(page["peers"]) <= 2
            found |= {one["customer_id"]: one["state"] for one in page["peers"]}
            if not (cursor := page["next_cursor"]):
                assert list(found) == sorted(found)
                return found


@pytest_asyncio.fixture(loop_scope="module")
async def api(shared: Stack) -> AsyncIterator[httpx.AsyncClient]:
    async with shared.client() as client:
        yield client


async def test_a_peering_stands_while_both_halves_stand(
    shared: Stack, api: httpx.AsyncClient
) -> None:
    """Each side sees the same agreement; a repetition changes nothing, not even the time."""
    ann, bob = Party(api, "ann"), Party(api, "bob")
    first = await ann.add("bob")
    assert (first["customer_id"], first["state"]) == ("bob", "waiting")
    assert await ann.add("bob") == first
    assert await ann.states() == {"bob": "waiting"}
    assert await bob.states() == {"ann": "asked"}
    agreed = await bob.add("ann")
    assert agreed["state"] == "agreed"
    assert agreed["since"] > first["since"]
    (seen,) = (await ann.ask("GET")).json()["peers"]
    assert seen == {**agreed, "customer_id": "bob"}
    assert (await ann.remove("bob"))["state"] == "asked"
    assert await bob.states() == {"ann": "waiting"}
    assert await bob.remove("ann") == {"customer_id": "ann", "state": "none", "since": None}
    assert await bob.remove("ann") == {"customer_id": "ann", "state": "none", "since": None}
    assert (await ann.states(), await bob.states()) == ({}, {})
    entry = await Bucket(shared.bus, NETWORK_PEERS, decode_customer_peers).get("ann")
    assert entry is not None
    assert entry.value.halves == {}


async def test_a_list_is_paged_and_filtered(api: httpx.AsyncClient) -> None:
    """Who is flooded with askers still finds his own."""
    cat = Party(api, "cat")
    for number in range(5):
        await Party(api, f"asker-{number}").add("cat")
    await cat.add("asker-3")
    await cat.add("zoe")
    asked = {f"asker-{number}": "asked" for number in (0, 1, 2, 4)}
    assert await cat.states() == {**asked, "asker-3": "agreed", "zoe": "waiting"}
    assert await cat.states(state="asked") == asked
    assert await cat.states(state="agreed") == {"asker-3": "agreed"}


async def test_what_can_be_no_other_customer_is_refused(api: httpx.AsyncClient) -> None:
    """Oneself, names that nobody gets, and what is no name."""
    dan = Party(api, "dan")
    for name, why in (
        ("dan", "a customer's own VMs reach each other anyway"),
        ("operator", "no customer can be called so"),
        ("Globex", "is no valid id"),
    ):
        for method in ("PUT", "DELETE"):
            answer = await dan.ask(method, f"/{name}")
            assert answer.status_code == 400, answer.text
            (problem,) = answer.json()["errors"]
            assert problem["field"] == "peer_id"
            assert why in problem["message"]
    assert await dan.states() == {}


async def test_there_is_an_end_to_agreeing_also_at_two_gateways_at_once(
    shared: Stack, api: httpx.AsyncClient
) -> None:
    """To the half; one that is taken back makes room, and what stands may be said again."""
    async with (
        running_gateway(shared.server, mutations_per_s=0.0) as (_, _, url),
        httpx.AsyncClient(base_url=url, timeout=30) as other,
    ):
        here, there = Party(api, "eve"), Party(other, "eve")
        for number in range(MAX_HALVES - 4):
            await here.add(f"peer-{number}")
        answers = await asyncio.gather(
            *((here if number % 2 else there).ask("PUT", f"/late-{number}") for number in range(8))
        )
        codes = sorted(answer.status_code for answer in answers)
        assert codes == [200] * 4 + [409] * 4
        refused = next(answer.json() for answer in answers if answer.status_code == 409)
        assert refused["code"] == "conflict"
        assert str(MAX_HALVES) in refused["detail"]
        assert len(await there.states()) == MAX_HALVES
        await here.add("peer-0")
        assert (await here.ask("PUT", "/one-more")).status_code == 409
        await here.remove("peer-0")
        await here.add("one-more")


async def test_minds_are_not_changed_all_the_time(shared: Stack, api: httpx.AsyncClient) -> None:
    """Hosts hear of each change. What is agreed already, and taking back, is never refused."""
    pat = Party(api, "pat")
    bucket = Bucket(shared.bus, NETWORK_PEERS, decode_customer_peers)
    await pat.add("quinn")

    async def refused() -> httpx.Response:
        """The answer to one more, in the minute in which there were many."""
        for number in itertools.count():
            entry = await bucket.get("pat")
            assert entry is not None
            many = msgspec.structs.replace(
                entry.value, minute=int(time.time()) // 60, added=MAX_ADDED
            )
            await bucket.update("pat", many, entry.revision)
            answer = await pat.ask("PUT", f"/rob-{number}")
            if int(time.time()) // 60 == many.minute:
                return answer
        raise AssertionError

    answer = await refused()
    assert (answer.status_code, answer.json()["code"]) == (429, "rate_limited")
    assert 0 < int(answer.headers["Retry-After"]) <= 60
    assert (await pat.add("quinn"))["state"] == "waiting"
    assert (await pat.remove("quinn"))["state"] == "none"
    entry = await bucket.get("pat")
    assert entry is not None
    earlier = msgspec.structs.replace(entry.value, minute=entry.value.minute - 1)
    await bucket.update("pat", earlier, entry.revision)
    assert (await pat.add("rob"))["state"] == "waiting"


async def test_a_suspended_customer_takes_back_and_agrees_to_nothing(
    api: httpx.AsyncClient,
) -> None:
    """What it agreed to stands meanwhile: its VMs run on."""
    fay, gus = Party(api, "fay"), Party(api, "gus")
    await fay.add("gus")
    await gus.add("fay")
    made = await api.post(
        CUSTOMERS, json={"customer_id": "fay", "status": "suspended"}, headers=operator()
    )
    assert made.status_code == 201, made.text
    answer = await fay.ask("PUT", "/hal")
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert await gus.states() == {"fay": "agreed"}
    assert (await fay.remove("gus"))["state"] == "asked"


async def test_of_a_closed_customer_nothing_holds_and_nothing_revives(
    shared: Stack, api: httpx.AsyncClient
) -> None:
    """At once to the eye, and in the bucket within a second; opened again it has agreed to none."""
    ivy, jon, kim = Party(api, "ivy"), Party(api, "jon"), Party(api, "kim")
    await ivy.add("jon")
    await ivy.add("kim")
    await jon.add("ivy")
    assert await jon.states() == {"ivy": "agreed"}
    assert (await api.post(CUSTOMERS, json={"customer_id": "ivy"}, headers=operator())).is_success
    closed = await api.post(f"{CUSTOMERS}/ivy/close", headers=operator())
    assert closed.status_code == 200, closed.text
    assert await jon.states() == {"ivy": "waiting"}
    assert await kim.states() == {}
    bucket = Bucket(shared.bus, NETWORK_PEERS, decode_customer_peers)

    async def ended() -> bool:
        entry = await bucket.get("ivy")
        return entry is not None and not entry.value.halves

    await until(ended, 3.0)
    opened = await api.patch(
        f"{CUSTOMERS}/ivy",
        json={"status": "active"},
        headers={**operator(), "Content-Type": "application/merge-patch+json"},
    )
    assert opened.status_code == 200, opened.text
    assert await ivy.states() == {"jon": "asked"}
    assert await jon.states() == {"ivy": "waiting"}


async def test_who_agreed_is_in_ones_own_audit_and_in_nobody_elses(
    shared: Stack, api: httpx.AsyncClient
) -> None:
    """Both acts and a refusal, each with the customer that it was about."""
    lea = Party(api, "lea")
    await lea.add("max")
    await lea.remove("max")
    await lea.ask("PUT", "/lea")

    async def told() -> bool:
        entries = [decode_audit_entry(one.data) for one in await read_stream(shared.bus, AUDIT)]
        assert not [entry for entry in entries if entry.customer_id == "max"]
        ended = [
            (entry.action, entry.target, entry.outcome)
            for entry in entries
            if entry.customer_id == "lea" and entry.details.get("phase") == "ended"
        ]
        return ended == [
            ("add-peer", "peer max", "succeeded"),
            ("remove-peer", "peer max", "succeeded"),
            ("add-peer", "peer lea", "failed"),
        ]

    await until(told)


async def test_rights_are_asked_for(api: httpx.AsyncClient) -> None:
    """Whoever may only look cannot agree."""
    reader = bearer("ned", scopes=("vms:read",))
    assert (await api.get(PATH, headers=reader)).status_code == 200
    for method in ("PUT", "DELETE"):
        answer = await api.request(method, f"{PATH}/ola", headers=reader)
        assert answer.status_code == 403
    blind = bearer("ned", scopes=("usage:read",))
    assert (await api.get(PATH, headers=blind)).status_code == 403
