"""Patches, snapshots, images and lists over HTTP: headers, two gateways, and a gateway's end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
import pytest_asyncio

from gateway.background import Background
from gateway.errors import RefusedError
from gateway.http import Services, build
from runtime.buckets import Bucket
from runtime.clock import utc_now
from schemas.commands import RestoreVm, SnapshotVm
from schemas.errors import ErrorCode
from schemas.hosts import Customer, decode_customer
from schemas.ids import new_id
from schemas.subjects import CUSTOMERS, VM_SPECS, vm_key
from schemas.vms import SnapshotKind, decode_vm_record
from tests.support.gateway import (
    TINY,
    WAIT,
    ScriptedAgent,
    Stack,
    made,
    refusing,
    running_gateway,
    shared_stack,
    stack,
    until,
)
from tests.support.nats import bus_with_streams
from tests.support.tokens import bearer

shared_loop = pytest.mark.asyncio(loop_scope="module")
MERGE = {"Content-Type": "application/merge-patch+json"}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """One stack for most tests here; each test is a customer of its own."""
    async with shared_stack(tmp_path_factory.mktemp("gateway")) as running:
        yield running


async def patch(api: httpx.AsyncClient, vm_id: str, body: Any, **headers: str) -> httpx.Response:
    """A merge patch."""
    return await api.patch(
        f"/v1/vms/{vm_id}", content=json.dumps(body), headers={**MERGE, **headers}
    )


@shared_loop
async def test_a_patch_changes_what_it_names(shared: Stack) -> None:
    """Names and labels set, kept and removed; the record on the bus says so, and nothing else."""
    async with shared.client(headers=bearer("patch")) as api:
        vm_id = await made(api, name="web", labels={"a": "1", "b": "2"}, metadata={"key": "s"})
        records = Bucket(shared.bus, VM_SPECS, decode_vm_record)
        before = await records.get(vm_key("patch", UUID(vm_id)))
        assert before is not None
        for body, name, labels in (
            ({"labels": {"b": None, "c": "3"}}, "web", {"a": "1", "c": "3"}),
            ({"name": "db"}, "db", {"a": "1", "c": "3"}),
            ({}, "db", {"a": "1", "c": "3"}),
            ({"labels": {"nobody": None}}, "db", {"a": "1", "c": "3"}),
            ({"name": None}, "", {"a": "1", "c": "3"}),
            ({"labels": None}, "", {}),
            ({"name": "web", "labels": {"a": ""}}, "web", {"a": ""}),
        ):
            answer = await patch(api, vm_id, body)
            assert answer.status_code == 200
            for seen in (answer, await api.get(f"/v1/vms/{vm_id}")):
                assert (seen.json()["name"], seen.json()["spec"]["labels"]) == (name, labels)
        after = await records.get(vm_key("patch", UUID(vm_id)))
        assert after is not None
        assert after.value.generation == 6
        assert after.value.spec.metadata == {"key": "s"}
        assert (after.value.host_id, after.value.created_at) == (
            before.value.host_id, before.value.created_at
        )  # fmt: skip
        # Filters go by it at once, and the order by name.
        for query, found in (({"label": "a:"}, 1), ({"label": "c"}, 0), ({"name": "web"}, 1)):
            assert len((await api.get("/v1/vms", params=query)).json()["vms"]) == found


@shared_loop
async def test_bad_patches_change_nothing(shared: Stack) -> None:
    """Fields that cannot be changed, wrong labels, other media types, too many labels."""
    async with shared.client(headers=bearer("badpatch")) as api:
        labels = {f"l{number}": "x" for number in range(30)}
        vm_id = await made(api, labels=labels)
        for body, field in (
            ({"vcpus": 4}, "$.vcpus"),
            ({"image": "x"}, "$.image"),
            ({"name": 7}, "$.name"),
            ({"name": "A.b"}, "$.name"),
            ({"labels": {"A": "x"}}, "$.labels"),
            ({"labels": {"a": 1}}, "$.labels[...]"),
            ({"labels": {f"m{number}": "x" for number in range(3)}}, "$.labels"),
            ({"labels": {f"m{number}": "x" for number in range(65)}}, "$.labels"),
            ([], "$"),
            (None, "$"),
        ):
            answer = await patch(api, vm_id, body)
            assert answer.status_code == 400, body
            assert [error["field"] for error in answer.json()["errors"]] == [field]
        other = await patch(api, vm_id, {}, **{"Content-Type": "application/json-patch+json"})
        assert other.status_code == 415
        assert "application/merge-patch+json" in other.headers["Accept-Patch"]
        # Plain JSON is understood as well.
        assert (await api.patch(f"/v1/vms/{vm_id}", json={"name": "x"})).status_code == 200
        seen = await api.get(f"/v1/vms/{vm_id}")
        assert seen.json()["spec"]["labels"] == labels
        assert seen.headers["ETag"] == '"2"'
        reader = bearer("badpatch", scopes=("vms:read",))
        assert (await patch(api, vm_id, {"name": "y"}, **reader)).status_code == 403
        thief = bearer("patchthief")
        for name in (vm_id, str(new_id())):
            foreign = await patch(api, name, {"name": "y"}, **thief)
            assert foreign.json()["detail"] == "There is no such VM."


@shared_loop
async def test_if_match_tells_whether_somebody_was_faster(shared: Stack) -> None:
    """Tags in every answer with a VM; 412 with a stable code, and nothing is changed."""
    async with shared.client(headers=bearer("match")) as api:
        created = await api.post("/v1/vms", json=TINY, headers=WAIT)
        vm_id = created.json()["vm"]["vm_id"]
        assert created.headers["ETag"] == '"1"'
        first = await patch(api, vm_id, {"name": "one"}, **{"If-Match": '"1"'})
        assert (first.status_code, first.headers["ETag"]) == (200, '"2"')
        booted = await api.post(f"/v1/vms/{vm_id}/boot", headers=WAIT)
        # What a VM does is no change of what was asked for.
        assert booted.headers["ETag"] == '"2"'
        for tags, status in (
            ('"1"', 412),
            ('W/"2"', 412),
            ('"02"', 412),
            ('"x"', 412),
            ('"1", "2"', 200),
            ("*", 200),
            ("2", 400),
            ('"2', 400),
            ('"2",', 400),
            ('"' + "2" * 300 + '"', 400),
        ):
            answer = await patch(api, vm_id, {"name": "one"}, **{"If-Match": tags})
            assert answer.status_code == status, tags
            if status == 412:
                assert answer.json()["code"] == "precondition_failed"
        assert (await api.get(f"/v1/vms/{vm_id}")).headers["ETag"] == '"2"'


async def test_patches_by_two_gateways_are_never_lost(tmp_path: Path) -> None:
    """Each sets a label of its own at the same time; of those with one tag exactly one wins."""
    async with (
        stack(tmp_path) as running,
        running_gateway(running.server) as (_, _, url),
        running.client(headers=bearer()) as one,
        httpx.AsyncClient(base_url=url, headers=bearer(), timeout=30) as two,
    ):
        vm_id = await made(one)
        answers = await asyncio.gather(
            *(
                patch(api, vm_id, {"labels": {f"{name}{number}": "x"}})
                for number in range(8)
                for name, api in (("a", one), ("b", two))
            )
        )
        assert {answer.status_code for answer in answers} == {200}
        # Read back at once, by who wrote: no older state.
        tags = sorted(int(answer.headers["ETag"].strip('"')) for answer in answers)
        assert tags == list(range(2, 18))
        for api in (one, two):

            async def all_there(api: httpx.AsyncClient = api) -> bool:
                seen = (await api.get(f"/v1/vms/{vm_id}")).json()
                return len(seen["spec"]["labels"]) == 16 and seen["generation"] == 17

            await until(all_there)
        answers = await asyncio.gather(
            *(
                patch(api, vm_id, {"name": f"n{number}"}, **{"If-Match": '"17"'})
                for number in range(5)
                for api in (one, two)
            )
        )
        assert sorted(answer.status_code for answer in answers) == [200] + [412] * 9
        # A patch while a host takes the VM, and one of a VM that is being deleted.
        running.agent.gate.clear()
        begun = await one.post("/v1/vms", json=TINY)
        early = begun.json()["vm"]["vm_id"]
        assert (await patch(two, early, {"name": "early"})).status_code == 200
        deleting = await one.delete(f"/v1/vms/{vm_id}")
        assert deleting.status_code == 202
        assert (await patch(one, vm_id, {"name": "late"})).status_code == 200
        running.agent.gate.set()

        async def done() -> bool:
            there = await two.get(f"/v1/vms/{early}")
            gone = await two.get(f"/v1/vms/{vm_id}")
            return there.json()["state"] == "created" and gone.status_code == 404

        await until(done)
        assert (await two.get(f"/v1/vms/{early}")).json()["name"] == "early"
        assert (await patch(two, vm_id, {"name": "x"})).status_code == 404


@shared_loop
async def test_lists_are_filtered_and_sorted(shared: Stack) -> None:
    """Over HTTP, with what is wrong named; hosts are for operators only."""
    async with shared.client(headers=bearer("lists")) as api:
        a = await made(api, name="b", labels={"team": "x"})
        b = await made(api, name="a", labels={"team": "x", "tier": "1"})
        c = await made(api, name="a")

        async def ids(headers: dict[str, str] | None = None, **query: Any) -> list[str]:
            page = await api.get("/v1/vms", params=query, headers=headers)
            assert page.status_code == 200, page.text
            return [vm["vm_id"] for vm in page.json()["vms"]]

        assert await ids(sort="-created_at") == [c, b, a]
        assert await ids(sort="name") == [b, c, a]
        assert await ids(sort="-name") == [a, c, b]
        assert await ids(label="team") == [a, b]
        assert await ids(label=["team:x", "tier"]) == [b]
        assert await ids(label=["team", "team:x"]) == [a, b]
        assert await ids(label="team:y") == []
        assert await ids(image="tiny", name="a", state="created") == [b, c]
        assert await ids(image="linux") == []
        operator = bearer("lists", scopes=("vms:read", "admin"))
        assert await ids(operator, host="h1") == [a, b, c]
        assert await ids(operator, host="h2") == []
        denied = await api.get("/v1/vms", params={"host": "h1"})
        assert (denied.status_code, denied.json()["code"]) == (403, "forbidden")
        first = (await api.get("/v1/vms", params={"limit": 1})).json()["next_cursor"]
        for wrong, field in (
            ({"sort": "size"}, "sort"),
            ({"label": ["a:1", "a:2"]}, "label"),
            ({"label": ["a"] * 33}, "label"),
            ({"cursor": first, "sort": "name"}, "cursor"),
            ({"cursor": first, "label": "team"}, "cursor"),
            ({"cursor": first + "A"}, "cursor"),
            ({"cursor": str(new_id())}, "cursor"),
        ):
            refused = await api.get("/v1/vms", params=wrong)
            assert (refused.status_code, refused.json()["errors"][0]["field"]) == (400, field)
        other = await api.get("/v1/vms", params={"cursor": first, "sort": "name"})
        assert "another query" in other.json()["detail"]


@shared_loop
async def test_a_snapshot_lives_and_dies(shared: Stack) -> None:
    """Taken, looked at, restored into another VM, thrown away; the rest goes with its VM."""
    async with shared.client(headers=bearer("shots")) as api:
        vm_id = await made(api, boot=True)
        other = await made(api)
        taken = await api.post(f"/v1/vms/{vm_id}/snapshot", headers=WAIT)
        assert taken.status_code == 200
        operation = taken.json()["operation"]
        snapshot_id = operation["snapshot_id"]
        assert (operation["verb"], operation["state"]) == ("snapshot", "running")
        assert taken.headers["Location"] == f"/v1/operations/{operation['operation_id']}"
        found = (await api.get(f"/v1/snapshots/{snapshot_id}")).json()
        assert (found["vm_id"], found["kind"], found["image"]) == (vm_id, "full", "tiny")
        accepted = await api.post(f"/v1/vms/{vm_id}/snapshot", json={"kind": "diff"})
        assert accepted.status_code == 202
        second = accepted.json()["operation"]["snapshot_id"]

        async def listed() -> bool:
            page = (await api.get("/v1/snapshots")).json()
            return [one["snapshot_id"] for one in page["snapshots"]] == [snapshot_id, second]

        await until(listed)
        sent = [c for c in shared.agent.seen if isinstance(c, SnapshotVm)]
        assert sent[-1].kind is SnapshotKind.DIFF
        restored = await api.post(
            f"/v1/vms/{other}/restore", json={"snapshot_id": snapshot_id}, headers=WAIT
        )
        assert (restored.status_code, restored.json()["vm"]["state"]) == (200, "running")
        (command,) = [c for c in shared.agent.seen if isinstance(c, RestoreVm)]
        assert (str(command.vm_id), str(command.snapshot_id)) == (other, snapshot_id)
        for body, status in (
            (None, 400),
            ({}, 400),
            ({"snapshot_id": "x"}, 400),
            ({"snapshot_id": str(new_id())}, 404),
            ({"snapshot_id": snapshot_id}, 409),
        ):
            refused = await api.post(f"/v1/vms/{other}/restore", json=body)
            assert refused.status_code == status
        thrown = await api.delete(f"/v1/snapshots/{snapshot_id}", headers=WAIT)
        assert (thrown.status_code, thrown.json()["operation"]["verb"]) == (200, "discard")
        assert (await api.get(f"/v1/snapshots/{snapshot_id}")).status_code == 404
        assert (await api.delete(f"/v1/snapshots/{snapshot_id}")).status_code == 404
        assert (await api.delete(f"/v1/vms/{vm_id}", headers=WAIT)).status_code == 200
        assert (await api.get("/v1/snapshots")).json() == {"snapshots": [], "next_cursor": ""}
        assert (await api.get(f"/v1/snapshots/{second}")).status_code == 404


@shared_loop
async def test_foreign_and_missing_snapshots_give_the_same_answer(shared: Stack) -> None:
    """For every route that takes a snapshot's id."""
    async with (
        shared.client(headers=bearer("shotowner")) as owner,
        shared.client(headers=bearer("shotthief")) as thief,
    ):
        vm_id = await made(owner, boot=True)
        taken = await owner.post(f"/v1/vms/{vm_id}/snapshot", headers=WAIT)
        theirs = taken.json()["operation"]["snapshot_id"]
        mine = await made(thief)
        before = await shared.commands()
        for method, path, body in (
            ("GET", "/v1/snapshots/{}", None),
            ("DELETE", "/v1/snapshots/{}", None),
            ("POST", f"/v1/vms/{mine}/restore", "{}"),
        ):
            answers = []
            for name in (theirs, str(new_id())):
                answer = await thief.request(
                    method,
                    path.format(name),
                    json={"snapshot_id": name} if body else None,
                )
                problem = answer.json()
                problem.pop("trace_id")
                problem.pop("instance")
                answers.append((answer.status_code, problem))
            assert answers[0] == answers[1]
            assert answers[0][0] == 404
        assert (await thief.get("/v1/snapshots")).json()["snapshots"] == []
        assert (await thief.get("/v1/snapshots", params={"vm_id": vm_id})).status_code == 404
        assert await shared.commands() == before


async def test_a_snapshot_on_another_host_cannot_be_restored_from(tmp_path: Path) -> None:
    """409 before anything is sent, and no host is named."""
    async with stack(tmp_path) as running, running.client(headers=bearer()) as api:
        vm_id = await made(api, boot=True)
        taken = await api.post(f"/v1/vms/{vm_id}/snapshot", headers=WAIT)
        snapshot_id = taken.json()["operation"]["snapshot_id"]
        second = ScriptedAgent(running.bus, "h2")
        await second.beat(images=("tiny", "other"))
        async with asyncio.TaskGroup() as group:
            task = group.create_task(second.run(images=("tiny", "other")), name="h2")

            async def known() -> bool:
                names = (await api.get("/v1/images")).json()["images"]
                return {"name": "other"} in names

            await until(known)
            elsewhere = await made(api, image="other")
            refused = await api.post(
                f"/v1/vms/{elsewhere}/restore", json={"snapshot_id": snapshot_id}
            )
            assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
            assert "h1" not in refused.text
            assert [command.verb for command in second.seen] == ["create"]
            task.cancel()


@shared_loop
async def test_operations_are_listed_newest_first(shared: Stack) -> None:
    """One's own, by VM and by status, in pages; a gateway that starts later knows them too."""
    async with shared.client(headers=bearer("ops")) as api:
        vm_id = await made(api)
        for verb in ("boot", "pause", "resume"):
            await api.post(f"/v1/vms/{vm_id}/{verb}", headers=WAIT)
        shared.agent.gate.clear()
        try:
            await api.post(f"/v1/vms/{vm_id}/shutdown")
            pending = await api.get("/v1/operations", params={"status": "pending"})
            assert [one["verb"] for one in pending.json()["operations"]] == ["shutdown"]
        finally:
            shared.agent.gate.set()
        await made(api)

        async def verbs(api: httpx.AsyncClient, **query: Any) -> list[str]:
            found: list[str] = []
            while True:
                page = (await api.get("/v1/operations", params=query)).json()
                found += [one["verb"] for one in page["operations"]]
                if not page["next_cursor"]:
                    return found
                query["cursor"] = page["next_cursor"]

        wanted = ["create", "shutdown", "resume", "pause", "boot", "create"]
        assert await verbs(api, limit=2) == wanted
        assert await verbs(api, vm_id=vm_id, limit=1) == wanted[1:]
        assert await verbs(api, vm_id=str(new_id())) == []
        assert (await api.get("/v1/operations", headers=bearer("opsthief"))).json() == {
            "operations": [], "next_cursor": ""
        }  # fmt: skip

        async with (
            running_gateway(shared.server) as (_, _, url),
            httpx.AsyncClient(base_url=url, headers=bearer("ops"), timeout=30) as later,
        ):

            async def remembered() -> bool:
                return await verbs(later) == wanted

            await until(remembered)


async def test_a_create_that_went_on_elsewhere_is_one_operation(tmp_path: Path) -> None:
    """The list shows what the caller was told of, with its end on the second host."""
    async with bus_with_streams(tmp_path) as (server, bus):
        first, second = ScriptedAgent(bus, "h1"), ScriptedAgent(bus, "h2")
        for agent in (first, second):
            await agent.beat()
        first.script = refusing(ErrorCode.NO_CAPACITY, "create")
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(agent.run(), name=agent.host_id) for agent in (first, second)
            ]
            async with (
                running_gateway(server) as (_, _, url),
                httpx.AsyncClient(base_url=url, headers=bearer(), timeout=30) as api,
            ):
                created = await api.post("/v1/vms", json=TINY, headers=WAIT)
                assert created.json()["vm"]["host_id"] == "h2"
                listed = (await api.get("/v1/operations")).json()["operations"]
                assert listed == [created.json()["operation"]]
            for task in tasks:
                task.cancel()


@shared_loop
async def test_images_are_those_of_the_customers_pool(shared: Stack) -> None:
    """Of hosts that take VMs; none is named, and another pool's images are not told."""
    customers = Bucket(shared.bus, CUSTOMERS, decode_customer)
    await customers.put(
        "secluded", Customer(customer_id="secluded", pool="secret", created_at=utc_now())
    )
    special = ScriptedAgent(shared.bus, "h-secret")
    async with shared.client() as api:
        await special.beat(pool="secret", images=("zeta", "alpha"))

        async def images(customer: str) -> list[str]:
            answer = await api.get("/v1/images", headers=bearer(customer))
            assert "h-secret" not in answer.text
            return [image["name"] for image in answer.json()["images"]]

        async def theirs() -> bool:
            return await images("secluded") == ["alpha", "zeta"]

        await until(theirs)
        assert await images("anybody") == ["tiny"]
        await special.beat(pool="secret", images=("alpha",), draining=True)

        async def none() -> bool:
            return await images("secluded") == []

        await until(none)


async def test_a_host_that_is_not_heard_of_gets_no_vm(tmp_path: Path) -> None:
    """By the time in its heartbeat, and, where that time is wrong, by when the last one came."""
    async with bus_with_streams(tmp_path) as (server, bus):
        old, ahead = ScriptedAgent(bus, "old"), ScriptedAgent(bus, "ahead")
        await old.beat(heartbeat_at=utc_now() - timedelta(seconds=6))
        await ahead.beat(heartbeat_at=utc_now() + timedelta(hours=1))
        async with (
            running_gateway(server) as (_, _, url),
            httpx.AsyncClient(base_url=url, headers=bearer(), timeout=30) as api,
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
        **{one.name: nothing for one in fields(Services)} | {"background": background}
    )
    app: Any = build(services, nothing, max_body_bytes=1024)
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
