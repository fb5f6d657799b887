"""Patches of VMs over HTTP: what they change, entity tags, and two gateways at once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
import pytest_asyncio

from runtime.buckets import Bucket
from schemas.ids import new_id
from schemas.subjects import VM_SPECS, vm_key
from schemas.vms import decode_vm_record
from tests.support.gateway import (
    TINY,
    WAIT,
    Stack,
    made,
    running_gateway,
    shared_stack,
    stack,
    until,
)
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
