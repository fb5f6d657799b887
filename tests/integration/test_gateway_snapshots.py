"""Snapshots over HTTP: their life, whose they are, and where."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from msgspec.structs import replace

from schemas.commands import RestoreVm, SnapshotVm
from schemas.ids import new_id
from schemas.vms import SnapshotKind, VmState
from tests.support.gateway import (
    WAIT,
    ScriptedAgent,
    Stack,
    made,
    shared_stack,
    stack,
    until,
)
from tests.support.tokens import bearer

shared_loop = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """One stack for most tests here; each test is a customer of its own."""
    async with shared_stack(tmp_path_factory.mktemp("gateway")) as running:
        yield running


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

        async def carried_out() -> bool:
            sent = [c for c in shared.agent.seen if isinstance(c, SnapshotVm)]
            return sent[-1].kind is SnapshotKind.DIFF

        # The list may be told of it before the agent notes that it is done.
        await until(carried_out)
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
async def test_only_the_vms_own_host_tells_of_its_snapshots(shared: Stack) -> None:
    """What another host says is neither listed nor acted on, and hides nothing."""
    liar = ScriptedAgent(shared.bus, "h2")
    async with shared.client(headers=bearer("liar")) as api:
        vm_id = await made(api, boot=True)
        taken = await api.post(f"/v1/vms/{vm_id}/snapshot", headers=WAIT)
        snapshot_id = taken.json()["operation"]["snapshot_id"]
        command = next(
            c for c in shared.agent.seen if isinstance(c, SnapshotVm) and str(c.vm_id) == vm_id
        )
        made_up = new_id()
        await liar.tell(replace(command, snapshot_id=made_up), VmState.RUNNING)
        # This one asks the bus, so that the gateway has heard the liar by now.
        assert (await api.get(f"/v1/snapshots/{made_up}")).status_code == 404
        assert (await api.delete(f"/v1/snapshots/{made_up}")).status_code == 404
        for params in ({}, {"vm_id": vm_id}):
            page = (await api.get("/v1/snapshots", params=params)).json()
            assert [one["snapshot_id"] for one in page["snapshots"]] == [snapshot_id]
        assert (await api.get(f"/v1/snapshots/{snapshot_id}")).status_code == 200
