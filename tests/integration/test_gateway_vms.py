"""VMs over HTTP: their lives, operations, places, lists, owners and limits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import msgspec
import pytest
import pytest_asyncio

from runtime.buckets import Bucket
from runtime.clock import utc_now
from schemas.commands import CreateVm
from schemas.errors import ErrorCode
from schemas.hosts import Customer, CustomerStatus, Resources, decode_customer
from schemas.ids import new_id
from schemas.subjects import CUSTOMERS, OPERATIONS, VM_SPECS, vm_key
from schemas.vms import decode_vm_record
from tests.support.gateway import TINY, WAIT, Stack, made, refusing, shared_stack, until
from tests.support.tokens import bearer

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """One stack for all tests here; each test is a customer of its own."""
    async with shared_stack(tmp_path_factory.mktemp("gateway")) as running:
        yield running


async def test_a_vm_lives_and_dies_over_http(shared: Stack) -> None:
    """Every verb leads where it should, and a deleted VM is gone but for its tombstone."""
    async with shared.client(headers=bearer("life")) as api:
        response = await api.post("/v1/vms", json={**TINY, "name": "web"}, headers=WAIT)
        assert response.status_code == 201
        assert response.headers["Preference-Applied"] == "wait=10"
        body = response.json()
        vm_id = body["vm"]["vm_id"]
        assert response.headers["Location"] == f"/v1/vms/{vm_id}"
        assert (body["vm"]["state"], body["vm"]["name"]) == ("created", "web")
        for verb, state in (
            ("boot", "running"),
            ("pause", "paused"),
            ("resume", "running"),
            ("reboot", "running"),
            ("shutdown", "stopped"),
        ):
            response = await api.post(f"/v1/vms/{vm_id}/{verb}", headers=WAIT)
            assert (response.status_code, response.json()["vm"]["state"]) == (200, state)
            # A read right after the answer shows no older state.
            assert (await api.get(f"/v1/vms/{vm_id}")).json()["state"] == state
        assert (await api.get(f"/v1/vms/{vm_id}")).json()["incarnation"] == 2
        response = await api.delete(f"/v1/vms/{vm_id}", headers=WAIT)
        assert (response.status_code, response.json()["vm"]["state"]) == (200, "deleted")
        operation = response.json()["operation"]["operation_id"]
        assert (await api.get(f"/v1/vms/{vm_id}")).status_code == 404
        assert (await api.get("/v1/vms")).json() == {"vms": [], "next_cursor": ""}
        assert (await api.delete(f"/v1/vms/{vm_id}")).status_code == 404
        assert (await api.get(f"/v1/operations/{operation}")).json()["status"] == "succeeded"
    records = Bucket(shared.bus, VM_SPECS, decode_vm_record)

    async def buried() -> bool:
        entry = await records.get(vm_key("life", UUID(vm_id)))
        return entry is not None and entry.value.deleted_at is not None

    await until(buried)


async def test_metadata_ends_with_the_vm_that_it_was_for(shared: Stack) -> None:
    """Its agent and its owner get what was asked for; the tombstone keeps no value."""
    wishes = {
        "metadata": {"password": "hunter2"},
        "balloon_mib": 16,
        "limits": {
            "disk_bytes_per_s": 1_000_000,
            "disk_ops_per_s": 0,
            "net_rx_bytes_per_s": 0,
            "net_tx_bytes_per_s": 7,
        },
    }
    records = Bucket(shared.bus, VM_SPECS, decode_vm_record)
    async with shared.client(headers=bearer("wishes")) as api:
        vm_id = UUID(await made(api, **wishes))
        (create,) = [c for c in shared.agent.seen if c.vm_id == vm_id]
        assert isinstance(create, CreateVm)
        assert msgspec.to_builtins(create.spec).items() >= wishes.items()
        assert (await api.get(f"/v1/vms/{vm_id}")).json()["spec"].items() >= wishes.items()
        assert (await api.delete(f"/v1/vms/{vm_id}", headers=WAIT)).status_code == 200

    async def buried() -> bool:
        entry = await records.get(vm_key("wishes", vm_id))
        return entry is not None and entry.value.deleted_at is not None

    await until(buried)
    entry = await records.get(vm_key("wishes", vm_id))
    assert entry is not None
    assert entry.value.spec == create.spec.without_secrets()


async def test_wishes_that_cannot_be_are_refused(shared: Stack) -> None:
    """By the gateway as a bad request; by an agent whose driver cannot, with its own words."""
    async with shared.client(headers=bearer("vain")) as api:
        for wishes, words in (
            ({"metadata": {"a": "hunter2"}, "network": False}, "needs network"),
            ({"metadata": {"a": "hunter2\u0001"}}, "$.metadata"),
            ({"balloon_mib": 128}, "less than memory_mib"),
            ({"limits": {"disk": 1}}, "unknown field `disk`"),
        ):
            refused = await api.post("/v1/vms", json={**TINY, **wishes})
            assert (refused.status_code, refused.json()["code"]) == (400, "bad_request")
            assert words in refused.text
            assert "hunter2" not in refused.text
        shared.agent.script = refusing(ErrorCode.UNSUPPORTED, "create")
        try:
            refused = await api.post("/v1/vms", json={**TINY, "balloon_mib": 16}, headers=WAIT)
        finally:
            shared.agent.script = lambda _: None
        assert refused.json()["code"] == "unsupported"
        assert (await api.get("/v1/vms")).json()["vms"] == []


async def test_without_a_preference_the_operation_tells_of_the_end(shared: Stack) -> None:
    """202 at once, with the operation's address; the operation succeeds later."""
    async with shared.client(headers=bearer("later")) as api:
        shared.agent.gate.clear()
        try:
            response = await api.post("/v1/vms", json={**TINY, "boot": True})
            assert response.status_code == 202
            where = response.headers["Location"]
            body = response.json()
            assert body["operation"]["status"] == "pending"
            assert body["vm"]["state"] == "pending"
            assert where == f"/v1/operations/{body['operation']['operation_id']}"
            slow = await api.post(
                f"/v1/vms/{body['vm']['vm_id']}/shutdown", headers={"Prefer": "wait=1"}
            )
            # It would overtake the boot.
            assert slow.status_code == 409
        finally:
            shared.agent.gate.set()

        async def done() -> bool:
            return bool((await api.get(where)).json()["status"] == "succeeded")

        await until(done)
        vm = f"/v1/vms/{body['vm']['vm_id']}"
        shared.agent.gate.clear()
        try:
            slow = await api.post(f"{vm}/shutdown", headers={"Prefer": "wait=1"})
            assert slow.status_code == 202
            assert slow.headers["Preference-Applied"] == "wait=1"
            # Judged by where the shutdown leads: the boot comes after it.
            assert (await api.post(f"{vm}/pause")).status_code == 409
            again = await api.post(f"{vm}/boot")
            assert again.status_code == 202
        finally:
            shared.agent.gate.set()
        where = again.headers["Location"]
        await until(done)
        assert (await api.get(vm)).json()["incarnation"] == 2


async def test_an_illegal_verb_changes_nothing(shared: Stack) -> None:
    """409 before anything reaches the agent."""
    async with shared.client(headers=bearer("illegal")) as api:
        vm_id = await made(api)
        commands, operations = await shared.commands(), await shared.keys(OPERATIONS)
        for verb in ("pause", "resume", "shutdown", "reboot"):
            response = await api.post(f"/v1/vms/{vm_id}/{verb}", headers=WAIT)
            assert response.status_code == 409
            assert response.json()["code"] == "illegal_transition"
        assert await shared.commands() == commands
        assert await shared.keys(OPERATIONS) == operations
        assert (await api.get(f"/v1/vms/{vm_id}")).json()["state"] == "created"


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (ErrorCode.ILLEGAL_TRANSITION, 409),
        (ErrorCode.HYPERVISOR_FAILED, 502),
        (ErrorCode.DEADLINE_EXCEEDED, 504),
        (ErrorCode.UNSUPPORTED, 422),
        (ErrorCode.NO_CAPACITY, 503),
        (ErrorCode.INTERNAL, 500),
    ],
)
async def test_a_failed_operation_is_a_problem_to_who_waits(
    shared: Stack, code: ErrorCode, status: int
) -> None:
    """The agent's code decides the status; the operation shows the same error."""
    async with shared.client(headers=bearer("failing")) as api:
        vm_id = await made(api)
        shared.agent.script = refusing(code, "boot")
        try:
            response = await api.post(f"/v1/vms/{vm_id}/boot", headers=WAIT)
        finally:
            shared.agent.script = lambda _: None
        assert response.status_code == status
        assert response.headers["Content-Type"] == "application/problem+json"
        problem = response.json()
        assert (problem["code"], problem["status"]) == (code.value, status)
        operation = (await api.get(response.headers["Location"])).json()
        assert (operation["status"], operation["error"]["code"]) == ("failed", code.value)


@pytest.mark.parametrize(
    ("code", "status"), [(ErrorCode.NO_CAPACITY, 503), (ErrorCode.UNKNOWN_IMAGE, 422)]
)
async def test_a_create_that_every_host_refuses_leaves_no_vm(
    shared: Stack, code: ErrorCode, status: int
) -> None:
    """The record goes, and a boot that was asked for fails with the same error."""
    shared.agent.script = refusing(code, "create")
    try:
        async with shared.client(headers=bearer("refused")) as api:
            for boot in (False, True):
                response = await api.post("/v1/vms", json={**TINY, "boot": boot}, headers=WAIT)
                assert (response.status_code, response.json()["code"]) == (status, code.value)
                operation = (await api.get(response.headers["Location"])).json()
                assert (operation["status"], operation["error"]["code"]) == ("failed", code.value)
            assert (await api.get("/v1/vms")).json()["vms"] == []
    finally:
        shared.agent.script = lambda _: None
    assert not [key for key in await shared.keys(VM_SPECS) if key.startswith("refused.")]


async def test_an_image_that_no_host_has_is_refused_at_once(shared: Stack) -> None:
    """422, and nothing is written."""
    before = await shared.commands()
    async with shared.client(headers=bearer("image")) as api:
        response = await api.post("/v1/vms", json={"image": "missing"})
        assert (response.status_code, response.json()["code"]) == (422, "unknown_image")
        response = await api.post("/v1/vms", json={**TINY, "memory_mib": 1_000_000})
        assert (response.status_code, response.json()["code"]) == (403, "forbidden")
        response = await api.post("/v1/vms", json={**TINY, "memory_mib": 100_000})
        assert (response.status_code, response.json()["code"]) == (503, "no_capacity")
        assert response.headers["Retry-After"] == "5"
    assert await shared.commands() == before


async def test_foreign_and_missing_vms_give_the_same_answer(shared: Stack) -> None:
    """Nobody can tell whether an id that is not theirs exists."""
    async with (
        shared.client(headers=bearer("owner")) as owner,
        shared.client(headers=bearer("thief")) as thief,
    ):
        vm_id = await made(owner)
        accepted = await owner.post(f"/v1/vms/{vm_id}/boot")
        operation = accepted.json()["operation"]["operation_id"]
        before = await shared.commands()

        async def answers(method: str, path: str, theirs: str) -> tuple[Any, Any]:
            found = []
            for name in (theirs, str(new_id())):
                response = await thief.request(method, path.format(name), headers=WAIT)
                body = response.json()
                assert body.pop("instance") == path.format(name)
                body.pop("trace_id")
                found.append((response.status_code, body))
            return found[0], found[1]

        for method, path, theirs in (
            ("GET", "/v1/vms/{}", vm_id),
            ("DELETE", "/v1/vms/{}", vm_id),
            ("POST", "/v1/vms/{}/boot", vm_id),
            ("POST", "/v1/vms/{}/shutdown", vm_id),
            ("POST", "/v1/vms/{}/pause", vm_id),
            ("POST", "/v1/vms/{}/resume", vm_id),
            ("POST", "/v1/vms/{}/reboot", vm_id),
            ("GET", "/v1/operations/{}", operation),
        ):
            foreign, missing = await answers(method, path, theirs)
            assert foreign == missing
            assert foreign[0] == 404
        assert (await thief.get("/v1/vms")).json()["vms"] == []
        assert await shared.commands() == before


async def test_lists_come_in_pages_and_by_state(shared: Stack) -> None:
    """In the order of making, each VM once; the cursor is refused if it is none."""
    async with shared.client(headers=bearer("lister")) as api:
        ids = [await made(api) for _ in range(5)]
        await api.post(f"/v1/vms/{ids[2]}/boot", headers=WAIT)
        seen: list[str] = []
        cursor = ""
        while True:
            query: dict[str, str | int] = {"limit": 2, **({"cursor": cursor} if cursor else {})}
            page = (await api.get("/v1/vms", params=query)).json()
            seen += [vm["vm_id"] for vm in page["vms"]]
            cursor = page["next_cursor"]
            if not cursor:
                break
        assert seen == ids
        running = (await api.get("/v1/vms", params={"state": "running"})).json()["vms"]
        assert [vm["vm_id"] for vm in running] == [ids[2]]
        for wrong, field in (
            ({"limit": "0"}, "limit"),
            ({"limit": "1001"}, "limit"),
            ({"limit": "x"}, "limit"),
            ({"cursor": "../x"}, "cursor"),
            ({"state": "flying"}, "state"),
        ):
            response = await api.get("/v1/vms", params=wrong)
            assert (response.status_code, response.json()["errors"][0]["field"]) == (400, field)


async def test_scopes_suspension_and_quota_are_kept(shared: Stack) -> None:
    """403 for each, and nothing is written."""
    customers = Bucket(shared.bus, CUSTOMERS, decode_customer)
    before = await shared.commands()
    async with shared.client() as api:
        reader = bearer("scoped", scopes=("vms:read",))
        assert (await api.get("/v1/vms", headers=reader)).status_code == 200
        for method, path in (
            ("POST", "/v1/vms"),
            ("DELETE", f"/v1/vms/{new_id()}"),
            ("POST", f"/v1/vms/{new_id()}/boot"),
            ("GET", "/v1/usage"),
        ):
            body = TINY if path == "/v1/vms" else None
            response = await api.request(method, path, headers=reader, json=body)
            assert (response.status_code, response.json()["code"]) == (403, "forbidden")
            assert "insufficient_scope" in response.headers["WWW-Authenticate"]
        assert (await api.get("/v1/vms", headers=bearer("x", scopes=()))).status_code == 403

        quota = Resources(vcpus=4, memory_mib=4096, disk_mib=0, slots=1)
        await customers.put(
            "small", Customer(customer_id="small", quota=quota, created_at=utc_now())
        )
        await customers.put(
            "bad",
            Customer(customer_id="bad", status=CustomerStatus.SUSPENDED, created_at=utc_now()),
        )

        async def suspended() -> bool:
            response = await api.post("/v1/vms", json={"image": "no"}, headers=bearer("bad"))
            return response.status_code == 403

        await until(suspended)
        assert await shared.commands() == before
        assert (await api.get("/v1/vms", headers=bearer("bad"))).status_code == 200
        # One slot, however many ask at once.
        answers = await asyncio.gather(
            *(api.post("/v1/vms", json=TINY, headers=bearer("small")) for _ in range(5))
        )
        assert sorted(a.status_code for a in answers) == [202, 403, 403, 403, 403]
        refused = next(a for a in answers if a.status_code == 403)
        assert refused.json()["detail"] == "The quota would be exceeded: slots 2 of 1."
