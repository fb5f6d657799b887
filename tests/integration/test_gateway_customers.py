"""Customers over the operators' API: entered, changed, suspended, closed, at all gateways."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from runtime.buckets import Bucket
from runtime.reading import read_stream
from schemas.audit import OPERATOR, decode_audit_entry
from schemas.hosts import Customer, CustomerStatus, decode_customer
from schemas.ids import RESERVED_CUSTOMERS
from schemas.subjects import AUDIT, CUSTOMERS, vm_request
from tests.support.gateway import TINY, WAIT, Stack, made, running_gateway, shared_stack, until
from tests.support.tokens import bearer, operator

pytestmark = pytest.mark.asyncio(loop_scope="module")
PATH = "/v1/admin/customers"
MERGE = {"Content-Type": "application/merge-patch+json"}
DEFAULTS = {
    "vms": 100, "vcpus": 64, "memory_mib": 131_072, "disk_mib": 1_048_576, "snapshots": 100,
}  # fmt: skip


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """One stack for all tests here; each test has customers of its own."""
    async with shared_stack(tmp_path_factory.mktemp("gateway")) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def api(shared: Stack) -> AsyncIterator[httpx.AsyncClient]:
    """An operator's client."""
    async with shared.client(headers=operator()) as client:
        yield client


async def patch(api: httpx.AsyncClient, name: str, body: Any, **headers: str) -> httpx.Response:
    """A merge patch."""
    return await api.patch(f"{PATH}/{name}", content=json.dumps(body), headers={**MERGE, **headers})


async def entered(api: httpx.AsyncClient, name: str, **fields: Any) -> dict[str, Any]:
    """A customer that has just been entered."""
    answer = await api.post(PATH, json={"customer_id": name, **fields})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def stored(running: Stack, name: str) -> Customer:
    """The entry on the server."""
    entry = await Bucket(running.bus, CUSTOMERS, decode_customer).get(name)
    assert entry is not None
    return entry.value


async def test_a_customer_is_entered_once(shared: Stack, api: httpx.AsyncClient) -> None:
    """With the defaults where nothing is said; again it is a conflict; reserved names are none."""
    answer = await api.post(
        PATH,
        json={
            "customer_id": "new", "pool": "fast", "quota": {"vms": 3, "vcpus": None},
            "rates": {"reads": {"per_s": 2.5, "burst": 5}},
        },
    )  # fmt: skip
    assert answer.status_code == 201
    assert answer.headers["Location"] == f"{PATH}/new"
    assert answer.headers["ETag"] == '"1"'
    body = answer.json()
    assert body["quota"] == {**DEFAULTS, "vms": 3}
    assert body["used"] == dict.fromkeys(DEFAULTS, 0)
    assert (body["status"], body["pool"], body["price_plan"]) == ("active", "fast", "default")
    assert body["rates"] == {
        "reads": {"per_s": 2.5, "burst": 5}, "mutations": None, "expensive": None,
    }  # fmt: skip
    assert (await api.get(f"{PATH}/new")).json() == body
    assert (await stored(shared, "new")).quota.slots == 3
    again = await api.post(PATH, json={"customer_id": "new"})
    assert (again.status_code, again.json()["code"]) == (409, "conflict")
    for name in RESERVED_CUSTOMERS:
        refused = await api.post(PATH, json={"customer_id": name})
        assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
        assert (await api.get(f"{PATH}/{name}")).status_code == 404
    for body, field in (
        ({"customer_id": "A.b"}, "$.customer_id"),
        ({"customer_id": "x", "status": "closed"}, "$.status"),
        ({"customer_id": "x", "quota": {"vms": -1}}, "$.quota.vms"),
        ({"customer_id": "x", "quota": {"cpus": 1}}, "$.quota.cpus"),
        ({}, "$.customer_id"),
    ):
        wrong = await api.post(PATH, json=body)
        assert (wrong.status_code, wrong.json()["errors"][0]["field"]) == (400, field)


async def test_changes_hold_at_all_gateways_within_a_second(
    shared: Stack, api: httpx.AsyncClient
) -> None:
    """Quota and status, written through one gateway, are gone by at the other."""
    await entered(api, "many", quota={"vms": 0})
    async with (
        running_gateway(shared.server) as (_, _, url),
        httpx.AsyncClient(base_url=url, headers=bearer("many"), timeout=30) as other,
    ):
        async with asyncio.timeout(1):
            while (await other.get("/v1/quotas")).json()["limits"]["vms"] != 0:
                await asyncio.sleep(0.01)
        assert (await other.post("/v1/vms", json=TINY)).status_code == 403
        changed = await patch(api, "many", {"quota": {"vms": 1, "snapshots": 0}})
        assert changed.status_code == 200
        assert changed.json()["quota"] == {**DEFAULTS, "vms": 1, "snapshots": 0}
        async with asyncio.timeout(1):
            while (await other.get("/v1/quotas")).json()["limits"]["vms"] != 1:
                await asyncio.sleep(0.01)
        vm_id = await made(other)
        used = (await api.get(f"{PATH}/many")).json()["used"]
        assert (used["vms"], used["vcpus"], used["memory_mib"]) == (1, 1, 128)
        await patch(api, "many", {"status": "suspended"})

        async def refused() -> bool:
            return (await other.post(f"/v1/vms/{vm_id}/boot")).status_code == 403

        await until(refused, 1)


async def test_a_patch_sets_keeps_and_resets(api: httpx.AsyncClient) -> None:
    """What is not named stays, null is the default, and what changes nothing is no change."""
    await entered(api, "p", pool="fast", quota={"vms": 7}, rates={"reads": {"per_s": 1.0}})
    changes: tuple[tuple[dict[str, Any], str, Any], ...] = (
        ({"quota": {"vcpus": 2}}, "quota", {**DEFAULTS, "vms": 7, "vcpus": 2}),
        ({"quota": {"vms": None}}, "quota", {**DEFAULTS, "vcpus": 2}),
        ({}, "quota", {**DEFAULTS, "vcpus": 2}),
        ({"quota": None}, "quota", DEFAULTS),
        ({"pool": None}, "pool", "default"),
        ({"rates": {"expensive": {"per_s": 0.5, "burst": 9}}}, "rates", {
            "reads": {"per_s": 1.0, "burst": 1}, "mutations": None,
            "expensive": {"per_s": 0.5, "burst": 9},
        }),
        ({"rates": {"reads": None}}, "rates", {
            "reads": None, "mutations": None, "expensive": {"per_s": 0.5, "burst": 9},
        }),
        ({"rates": None}, "rates", {"reads": None, "mutations": None, "expensive": None}),
    )  # fmt: skip
    for body, field, value in changes:
        answer = await patch(api, "p", body)
        assert answer.status_code == 200
        assert answer.json()[field] == value
    assert answer.json()["generation"] == 8
    for body in ({"status": "closed"}, {"status": None}, {"customer_id": "q"}, {"quota": 7}):
        assert (await patch(api, "p", body)).status_code == 400
    assert (await patch(api, "nobody", {})).status_code == 404


async def test_no_change_of_anybody_is_lost(api: httpx.AsyncClient) -> None:
    """If-Match refuses what has not been seen; changes at once of different things all stand."""
    await entered(api, "etag")
    first = await patch(api, "etag", {"pool": "a"}, **{"If-Match": '"1"'})
    assert (first.status_code, first.headers["ETag"]) == (200, '"2"')
    stale = await patch(api, "etag", {"pool": "b"}, **{"If-Match": '"1"'})
    assert (stale.status_code, stale.json()["code"]) == (412, "precondition_failed")
    closing = await api.post(f"{PATH}/etag/close", headers={"If-Match": '"1"'})
    assert closing.status_code == 412
    names = ("vms", "vcpus", "memory_mib", "disk_mib", "snapshots")
    answers = await asyncio.gather(
        *(patch(api, "etag", {"quota": {name: 1}}) for name in names),
        patch(api, "etag", {"status": "suspended"}),
    )
    assert {answer.status_code for answer in answers} == {200}
    body = (await api.get(f"{PATH}/etag")).json()
    assert body["quota"] == dict.fromkeys(names, 1)
    assert (body["status"], body["pool"], body["generation"]) == ("suspended", "a", 8)


async def test_a_key_makes_one_change(shared: Stack, api: httpx.AsyncClient) -> None:
    """The same request again gets the same answer; what was done in between stays."""
    headers = {"Idempotency-Key": "enter-1"}
    first = await api.post(PATH, json={"customer_id": "keyed"}, headers=headers)
    await patch(api, "keyed", {"pool": "other"})
    again = await api.post(PATH, json={"customer_id": "keyed"}, headers=headers)
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.content == first.content
    assert again.headers["Idempotency-Replayed"] == "true"
    assert (await stored(shared, "keyed")).pool == "other"


async def test_a_suspended_customer_looks_stops_and_deletes(
    shared: Stack, api: httpx.AsyncClient
) -> None:
    """Through either door; whatever would make or start something is refused until `active`."""
    async with shared.client(headers=bearer("sus")) as own:
        await entered(api, "sus")
        runs, stopped, doomed = [await made(own, boot=boot) for boot in (True, False, True)]
        taken = await own.post(f"/v1/vms/{runs}/snapshot", headers=WAIT)
        shot = taken.json()["operation"]["snapshot_id"]
        assert (await patch(api, "sus", {"status": "suspended"})).json()["used"]["vms"] == 3
        before = await shared.commands()

        async def ask(verb: str, body: dict[str, Any]) -> dict[str, Any]:
            reply = await shared.bus.request(
                vm_request("sus", verb), json.dumps(body).encode(), timeout_s=10
            )
            return dict(json.loads(reply.data))

        for method, path, given in (
            ("POST", "/v1/vms", TINY),
            ("POST", f"/v1/vms/{stopped}/boot", None),
            ("POST", f"/v1/vms/{runs}/reboot", {}),
            ("POST", f"/v1/vms/{runs}/resume", None),
            ("POST", f"/v1/vms/{runs}/snapshot", {}),
            ("POST", f"/v1/vms/{stopped}/restore", {"snapshot_id": shot}),
            ("PATCH", f"/v1/vms/{runs}", {"name": "x"}),
        ):
            answer = await own.request(method, path, json=given)
            assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), path
            assert "suspended" in answer.json()["detail"]
        for verb, body in (
            ("create", {"vm": TINY}),
            ("boot", {"vm_id": stopped}),
            ("reboot", {"vm_id": runs}),
            ("resume", {"vm_id": runs}),
            ("snapshot", {"vm_id": runs}),
            ("restore", {"vm_id": stopped, "snapshot_id": shot}),
            ("patch", {"vm_id": runs, "patch": {"name": "x"}}),
        ):
            assert (await ask(verb, body))["error"]["code"] == "forbidden", verb
        assert await shared.commands() == before

        assert len((await own.get("/v1/vms")).json()["vms"]) == 3
        assert len((await ask("list", {}))["vms"]["vms"]) == 3
        assert len((await own.get("/v1/snapshots")).json()["snapshots"]) == 1
        assert (await own.post(f"/v1/vms/{runs}/pause", headers=WAIT)).status_code == 200
        assert (await own.post(f"/v1/vms/{runs}/shutdown", headers=WAIT)).status_code == 200
        assert (await ask("shutdown", {"vm_id": doomed, "wait_s": 10}))["result"]
        assert (await own.delete(f"/v1/snapshots/{shot}", headers=WAIT)).status_code == 200
        assert (await own.delete(f"/v1/vms/{stopped}", headers=WAIT)).status_code == 200
        assert (await ask("delete", {"vm_id": doomed, "wait_s": 10}))["result"]

        assert (await patch(api, "sus", {"status": "active"})).status_code == 200
        assert (await own.post(f"/v1/vms/{runs}/boot", headers=WAIT)).status_code == 200


async def test_a_customer_is_closed_once_nothing_is_left(
    shared: Stack, api: httpx.AsyncClient
) -> None:
    """The entry stays, and so does the name; a patch opens it again."""
    async with shared.client(headers=bearer("bye")) as own:
        await entered(api, "bye")
        vm_id = await made(own)
        refused = await api.post(f"{PATH}/bye/close")
        assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
        assert "1 VMs and 0 snapshots" in refused.json()["detail"]
        assert (await own.delete(f"/v1/vms/{vm_id}", headers=WAIT)).status_code == 200
        for _ in range(2):
            closed = await api.post(f"{PATH}/bye/close")
            assert (closed.status_code, closed.json()["status"]) == (200, "closed")
            assert closed.headers["ETag"] == '"2"'
        assert (await stored(shared, "bye")).status is CustomerStatus.CLOSED
        answer = await own.post("/v1/vms", json=TINY)
        assert answer.status_code == 403
        assert "closed" in answer.json()["detail"]
        assert (await own.get("/v1/vms")).status_code == 200
        assert (await api.post(PATH, json={"customer_id": "bye"})).status_code == 409
        assert (await patch(api, "bye", {"status": "active"})).json()["generation"] == 3
        await made(own)
    assert (await api.post(f"{PATH}/nobody/close")).status_code == 404


async def test_lists_come_in_pages_by_name(api: httpx.AsyncClient) -> None:
    """All of them once, whatever is entered meanwhile; filters; cursors of another query."""
    names = [f"page-{number:02}" for number in range(7)]
    for name in reversed(names):
        await entered(api, name, pool="paged")
    await patch(api, names[3], {"status": "suspended"})
    seen: list[str] = []
    cursor = ""
    while True:
        query = {"pool": "paged", "limit": "3", "cursor": cursor}
        page = (await api.get(PATH, params=query)).json()
        seen += [customer["customer_id"] for customer in page["customers"]]
        cursor = page["next_cursor"]
        if not cursor:
            break
        await entered(api, f"aaa-{len(seen)}", pool="paged")
    assert seen == names
    suspended = await api.get(PATH, params={"pool": "paged", "status": "suspended"})
    assert [one["customer_id"] for one in suspended.json()["customers"]] == [names[3]]
    assert (await api.get(PATH, params={"price_plan": "none"})).json()["customers"] == []
    whole = (await api.get(PATH, params={"limit": "1"})).json()
    for query in (
        {"cursor": whole["next_cursor"], "pool": "paged"}, {"cursor": "x"}, {"limit": "0"},
        {"status": "away"},
    ):  # fmt: skip
        assert (await api.get(PATH, params=query)).status_code == 400, query


async def test_acts_of_operators_stand_in_their_own_audit(
    shared: Stack, api: httpx.AsyncClient
) -> None:
    """Who, what and how, under nobody's name, though the token names a customer; and refusals."""
    async with shared.client(headers=operator("ann", customer="acme")) as ann:
        await entered(ann, "told")
        assert (await patch(ann, "told", {"pool": "x"})).status_code == 200
        assert (await ann.post(PATH, json={"customer_id": "told"})).status_code == 409
        assert (await ann.post(PATH, json={"customer_id": "operator"})).status_code == 409

    async def told() -> bool:
        entries = [decode_audit_entry(one.data) for one in await read_stream(shared.bus, AUDIT)]
        hers = [entry for entry in entries if entry.actor == "ann"]
        assert {entry.customer_id for entry in hers} <= {OPERATOR}
        found = sorted(
            (entry.action, entry.target, entry.outcome)
            for entry in hers
            if entry.details.get("phase") != "begun"
        )
        return found == [
            ("create-customer", "", "refused"),
            ("create-customer", "customer told", "failed"),
            ("create-customer", "customer told", "succeeded"),
            ("patch-customer", "customer told", "succeeded"),
        ]

    await until(told)


async def test_nobody_asks_as_the_operators_on_the_bus(shared: Stack) -> None:
    """Not even with credentials that were issued when that name could still be had."""
    reply = await shared.bus.request(vm_request(OPERATOR, "list"), b"{}", timeout_s=10)
    assert json.loads(reply.data)["error"]["code"] == "forbidden"
