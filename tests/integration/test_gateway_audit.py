"""What the gateway tells the audit stream: every act before its effect, every refusal."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway import acts
from gateway.acts import Act
from gateway.errors import RefusedError
from gateway.trail import MAX_BUFFERED, SINGLE_REFUSALS, Refusal, Trail
from runtime.bus import Bus, Message
from runtime.reading import read_stream
from runtime.streams import apply, declared
from schemas.audit import AuditEntry, decode_audit_entry
from schemas.ids import new_id
from schemas.subjects import AUDIT, vm_request
from tests.support.gateway import TINY, WAIT, running_gateway, stack, until
from tests.support.nats import bus_with_streams
from tests.support.tokens import bearer


async def entries(bus: Bus) -> list[AuditEntry]:
    """All that stand in the stream."""
    return [decode_audit_entry(one.data) for one in await read_stream(bus, AUDIT)]


def told(found: list[AuditEntry], action: str) -> list[tuple[str, str, str]]:
    """Phase, outcome and code of the entries of an action."""
    return [
        (e.details.get("phase", ""), e.outcome, e.details.get("code", ""))
        for e in found
        if e.action == action
    ]


async def test_every_act_is_told_with_who_where_what_and_how(tmp_path: Path) -> None:
    """Over both doors: before, and at the end if the answer is the end; refusals once."""
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    async with stack(tmp_path) as running:
        async with (
            running_gateway(running.server) as (_, _, url),
            httpx.AsyncClient(base_url=url, headers=bearer(subject="ann"), timeout=30) as api,
        ):
            headers = {**WAIT, "traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
            vm = (await api.post("/v1/vms", json=TINY, headers=headers)).json()["vm"]["vm_id"]
            later = await api.post(f"/v1/vms/{vm}/boot")
            assert later.status_code == 202
            operation_id = later.json()["operation"]["operation_id"]
            refused = (
                ("POST", f"/v1/vms/{vm}/resume", 409, "illegal_transition"),
                ("DELETE", f"/v1/vms/{new_id()}", 404, "not_found"),
                ("POST", "/v1/vms", 400, "bad_request"),
            )
            for method, path, status, _ in refused:
                body = {"image": 7} if path == "/v1/vms" else None
                assert (await api.request(method, path, json=body)).status_code == status
            weak = bearer(scopes=("vms:read",), subject="bob")
            assert (await api.post(f"/v1/vms/{vm}/boot", headers=weak)).status_code == 403
        found = await entries(running.bus)
    assert told(found, "create-vm") == [
        ("begun", "under_way", ""),
        ("ended", "succeeded", ""),
        ("", "refused", "bad_request"),
    ]
    assert told(found, "boot-vm") == [("begun", "under_way", ""), ("", "refused", "forbidden")]
    assert told(found, "resume-vm") == [("", "refused", "illegal_transition")]
    assert told(found, "delete-vm") == [("", "refused", "not_found")]
    begun, ended = (e for e in found if e.action == "create-vm" and e.details.get("phase"))
    assert begun.details["act_id"] == ended.details["act_id"]
    for entry in (begun, ended):
        assert (entry.actor, entry.customer_id, entry.target) == ("ann", "acme", f"vm {vm}")
        assert (entry.details["door"], entry.details["address"]) == ("http", "127.0.0.1")
        assert entry.details["trace_id"] == trace
    assert (ended.details["status"], ended.details["operation_id"]) == (
        "201",
        begun.details["operation_id"],
    )
    (boot,) = (e for e in found if e.action == "boot-vm" and e.outcome == "under_way")
    assert boot.details["operation_id"] == operation_id
    (foreign,) = (e for e in found if e.action == "delete-vm")
    assert foreign.target.startswith("vm ")
    (denied,) = (e for e in found if e.details.get("code") == "forbidden")
    assert denied.actor == "bob"


async def test_the_bus_door_tells_the_same(tmp_path: Path) -> None:
    """Actions have the same names; who asks is known by the customer only."""
    async with stack(tmp_path) as running:

        async def ask(verb: str, body: Any) -> Any:
            data = json.dumps(body).encode()
            return json.loads(
                (await running.bus.request(vm_request("acme", verb), data, timeout_s=10)).data
            )

        made = await ask("create", {"vm": TINY, "wait_s": 10})
        vm = made["result"]["vm"]["vm_id"]
        await ask("pause", {"vm_id": vm})
        await ask("delete", {"vm_id": vm})
        await ask("explode", {"vm_id": vm})

        async def all_told() -> bool:
            return len(await entries(running.bus)) >= 4

        await until(all_told)
        found = await entries(running.bus)
    assert told(found, "create-vm") == [("begun", "under_way", ""), ("ended", "succeeded", "")]
    assert told(found, "pause-vm") == [("", "refused", "illegal_transition")]
    assert told(found, "delete-vm") == [("begun", "under_way", "")]
    assert {(e.actor, e.details["door"], e.customer_id) for e in found} == {("bus", "bus", "acme")}


async def test_an_act_is_told_before_its_first_effect(tmp_path: Path) -> None:
    """On the server the entry comes before the record, the operation and the command."""
    async with stack(tmp_path) as running, running.client(headers=bearer()) as api:
        seen: list[Message] = []

        async def note(message: Message) -> None:
            seen.append(message)

        def about(name: str) -> list[str]:
            """What was said of one thing; the host may still be busy with another one."""
            return [m.subject for m in seen if name in m.subject or name.encode() in m.data]

        subscriptions = [
            await running.bus.subscribe(subject, note)
            for subject in ("audit.>", "$KV.vm_specs.>", "$KV.operations.>", "vm.cmd.>")
        ]
        await running.bus.client.flush()
        for path, body in (("/v1/vms", {**TINY, "boot": True}), ("/v1/vms", TINY)):
            response = await api.post(path, json=body)
            assert response.status_code == 202
            vm = response.json()["vm"]["vm_id"]
            assert about(vm)[0] == "audit.acme.create-vm"
            assert any(subject.startswith("vm.cmd.") for subject in about(vm))
        await until(lambda: len(running.agent.seen) >= 3)
        response = await api.delete(f"/v1/vms/{vm}")
        assert response.status_code == 202
        operation = about(response.json()["operation"]["operation_id"])
        assert operation[0] == "audit.acme.delete-vm"
        assert any(subject.startswith("$KV.operations.") for subject in operation)
        assert any(subject.startswith("vm.cmd.") for subject in operation)
        for subscription in subscriptions:
            await subscription.unsubscribe()


async def test_floods_become_one_entry_of_each_kind(tmp_path: Path) -> None:
    """Without a token by address, foreign reads by customer, refused acts beyond the first ones."""
    async with stack(tmp_path) as running:
        async with (
            running_gateway(running.server) as (_, _, url),
            httpx.AsyncClient(base_url=url, timeout=30) as api,
        ):
            for number in range(60):
                bad = {"Authorization": f"Bearer x{number}"}
                assert (await api.get("/v1/vms", headers=bad)).status_code == 401
                assert (await api.post("/v1/vms", json=TINY)).status_code == 401
                missing = f"/v1/vms/{new_id()}"
                assert (await api.get(missing, headers=bearer())).status_code == 404
                assert (await api.delete(missing, headers=bearer())).status_code == 404
        found = await entries(running.bus)
    counted: Counter[tuple[str, str, str]] = Counter()
    for entry in found:
        kind = (entry.customer_id, entry.action, entry.details["code"])
        counted[kind] += int(entry.details.get("count", "1"))
    assert counted == {
        ("operator", "authenticate", "unauthenticated"): 120,
        ("acme", "get-vm", "not_found"): 60,
        ("acme", "delete-vm", "not_found"): 60,
    }
    # One interval may have ended in between.
    assert len(found) <= 2 * (SINGLE_REFUSALS + 3)
    assert all("x1" not in str(entry) for entry in found if entry.action == "authenticate")


def act(trail: Trail) -> Act:
    return Act(
        customer_id="acme",
        actor="ann",
        action="create-vm",
        target="",
        door="http",
        address="::1",
        trace_id="",
        begin=trail.begin,
    )


@asynccontextmanager
async def running_trail(bus: Bus, **options: float) -> AsyncIterator[Trail]:
    trail = Trail(bus, **options)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(trail.run(), name="trail")
        yield trail
        task.cancel()


async def test_without_a_trail_nothing_is_done(tmp_path: Path) -> None:
    """While entries find no stream, acts are refused; none is lost once it is there again."""
    async with bus_with_streams(tmp_path) as (_, bus), running_trail(bus, stalled_after_s=0.3) as t:
        await bus.js.delete_stream(AUDIT)
        began = 0

        async def refused() -> bool:
            nonlocal began
            acts.enter(act(t))
            try:
                await acts.commit()
            except RefusedError as error:
                return error.code == "unavailable"
            began += 1
            return False

        await until(refused)
        assert began > 0
        await apply(bus, declared())

        async def goes_on() -> bool:
            return not await refused()

        await until(goes_on, timeout_s=40)

        async def all_told() -> bool:
            return len(await entries(bus)) == began

        await until(all_told, timeout_s=40)
        assert len({e.details["act_id"] for e in await entries(bus)}) == began


async def test_what_does_not_fit_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The buffer is bounded; the log says once how many were given up."""
    async with bus_with_streams(tmp_path) as (_, bus):
        trail = Trail(bus)
        for number in range(MAX_BUFFERED + 50):
            trail.refused(
                Refusal(
                    customer_id=f"c{number}",
                    actor="",
                    action="create-vm",
                    target="",
                    door="http",
                    address="",
                    trace_id="",
                    code="conflict",
                    status=409,
                    single=True,
                )
            )
        assert sum("audit.entries_lost" in record.getMessage() for record in caplog.records) == 1
        async with asyncio.TaskGroup() as group:
            task = group.create_task(trail.run(), name="trail")

            async def written() -> bool:
                return (await bus.js.stream_info(AUDIT)).state.messages == MAX_BUFFERED

            await until(written, timeout_s=60)
            task.cancel()
