"""The gateway when hosts refuse, agents are silent, NATS goes away, or it is started anew."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx

from gateway.attempts import create_id
from runtime.buckets import Bucket
from runtime.bus import Bus
from runtime.clock import utc_now
from schemas.errors import ErrorCode
from schemas.hosts import Operation, OperationStatus
from schemas.ids import new_id
from schemas.subjects import VM_SPECS, status_key, vm_key
from schemas.vms import VmRecord, VmSpec, VmState, VmStatus, decode_vm_record
from tests.support.gateway import ScriptedAgent, refusing, running_gateway, stack, until
from tests.support.nats import NatsServer, bus_with_streams
from tests.support.ports import free_port
from tests.support.tokens import KEY, bearer, sighted

WAIT = {"Prefer": "wait=20"}
TINY = {"image": "tiny"}


@asynccontextmanager
async def agents(bus: Bus, **hosts: dict[str, Any]) -> AsyncIterator[dict[str, ScriptedAgent]]:
    """Scripted agents by host id, with changes to their heartbeats."""
    found = {name: ScriptedAgent(bus, name) for name in hosts}
    for name, agent in found.items():
        await agent.beat(**hosts[name])
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(agent.run(**hosts[name]), name=f"agent-{name}")
            for name, agent in found.items()
        ]
        try:
            yield found
        finally:
            for task in tasks:
                task.cancel()


def status_is(api: httpx.AsyncClient, path: str, status: int) -> Callable[[], Any]:
    async def check() -> bool:
        return (await api.get(path)).status_code == status

    return check


async def test_a_refused_create_is_placed_on_another_host(tmp_path: Path) -> None:
    """The caller sees one operation that succeeds, whichever host it was in the end."""
    async with bus_with_streams(tmp_path) as (server, bus), agents(bus, h1={}, h2={}) as found:
        found["h1"].script = refusing(ErrorCode.NO_CAPACITY, "create")
        async with (
            running_gateway(server) as (_, _, url),
            httpx.AsyncClient(base_url=url, headers=sighted(), timeout=30) as api,
        ):
            for boot, verb, state in ((False, "create", "created"), (True, "boot", "running")):
                response = await api.post("/v1/vms", json={**TINY, "boot": boot}, headers=WAIT)
                assert response.status_code == 201
                body = response.json()
                assert (body["vm"]["host_id"], body["vm"]["state"]) == ("h2", state)
                path = f"/v1/operations/{body['operation']['operation_id']}"
                operation = (await api.get(path)).json()
                assert (operation["verb"], operation["status"]) == (verb, "succeeded")
            vm_id = UUID(body["vm"]["vm_id"])
            first = (await api.get(f"/v1/operations/{create_id(vm_id, 0)}")).json()
            assert (first["status"], first["error"]) == ("succeeded", None)
        assert [c.verb for c in found["h2"].seen] == ["create", "create", "boot"]


async def test_creates_under_way_count_against_their_host(tmp_path: Path) -> None:
    """Many creates at once, faster than any heartbeat, are never promised the same room."""
    async with bus_with_streams(tmp_path) as (server, bus):
        agent = ScriptedAgent(bus, "h1")
        await agent.beat(heartbeat_at=utc_now() + timedelta(seconds=30))
        async with (
            running_gateway(server) as (_, _, url),
            httpx.AsyncClient(base_url=url, headers=bearer(), timeout=30) as api,
        ):
            body = {**TINY, "memory_mib": 16_384}
            answers = await asyncio.gather(*(api.post("/v1/vms", json=body) for _ in range(7)))
            assert sorted(a.status_code for a in answers) == [202] * 4 + [503] * 3


async def test_a_command_that_no_agent_takes_fails_at_its_deadline(tmp_path: Path) -> None:
    """504 to who waits, a failed operation to who asks later, and no VM left of a create."""
    async with (
        stack(tmp_path, command_deadline_s=1.0) as running,
        running.client(headers=bearer()) as api,
    ):
        made = await api.post("/v1/vms", json=TINY, headers=WAIT)
        vm_id = made.json()["vm"]["vm_id"]
        running.agent.gate.clear()
        response = await api.post(f"/v1/vms/{vm_id}/boot", headers=WAIT)
        assert (response.status_code, response.json()["code"]) == (504, "deadline_exceeded")
        operation = (await api.get(response.headers["Location"])).json()
        assert operation["error"]["code"] == "deadline_exceeded"
        lost = await api.post("/v1/vms", json=TINY)
        assert lost.status_code == 202
        path = f"/v1/vms/{lost.json()['vm']['vm_id']}"
        await until(status_is(api, path, 404), timeout_s=15)
        operation = (await api.get(lost.headers["Location"])).json()
        assert operation["error"]["code"] == "deadline_exceeded"
        running.agent.gate.set()


async def test_a_deletion_while_the_gateway_was_away_is_caught_up(tmp_path: Path) -> None:
    """The status alone is enough to bury the record at the next start."""
    async with bus_with_streams(tmp_path) as (server, bus):
        vm_id = new_id()
        record = VmRecord(
            vm_id=vm_id,
            customer_id="acme",
            host_id="h1",
            spec=VmSpec(image="tiny"),
            created_at=utc_now(),
        )
        records = Bucket(bus, VM_SPECS, decode_vm_record)
        agent = ScriptedAgent(bus, "h1")
        await records.create(vm_key("acme", vm_id), record)
        status = VmStatus(
            vm_id=vm_id,
            customer_id="acme",
            host_id="h1",
            state=VmState.DELETED,
            updated_at=utc_now(),
        )
        await agent.statuses.put(status_key(status.host_id, "acme", vm_id), status)

        async def buried() -> bool:
            entry = await records.get(vm_key("acme", vm_id))
            return entry is not None and entry.value.deleted_at is not None

        async with running_gateway(server):
            await until(buried)


async def test_a_creation_is_picked_up_by_the_next_gateway(tmp_path: Path) -> None:
    """Written but not published, and refused but not placed again: both come to their end."""
    async with bus_with_streams(tmp_path) as (server, bus), agents(bus, h2={}) as found:
        records = Bucket(bus, VM_SPECS, decode_vm_record)
        operations = found["h2"].operations
        now = utc_now()

        async def leave(host_id: str, operation: bool, **result: Any) -> UUID:
            vm_id = new_id()
            record = VmRecord(
                vm_id=vm_id,
                customer_id="acme",
                host_id=host_id,
                spec=VmSpec(image="tiny"),
                created_at=now,
            )
            await records.create(vm_key("acme", vm_id), record)
            if operation:
                entry = Operation(
                    operation_id=create_id(vm_id, 0),
                    customer_id="acme",
                    vm_id=vm_id,
                    host_id=host_id,
                    verb="create",
                    created_at=now,
                    deadline=now + timedelta(seconds=30),
                    **{"status": OperationStatus.PENDING, **result},
                )
                await operations.create(str(entry.operation_id), entry)
            return vm_id

        unpublished = await leave("h2", True)
        refused = await leave(
            "h1",
            True,
            status=OperationStatus.FAILED,
            error=refusing(ErrorCode.NO_CAPACITY, "create")(_create_command()),
            finished_at=now,
        )
        bare = await leave("h2", False)
        async with (
            running_gateway(server) as (_, _, url),
            httpx.AsyncClient(base_url=url, headers=sighted(), timeout=30) as api,
        ):
            for vm_id in (unpublished, refused):
                path = f"/v1/vms/{vm_id}"

                async def created(path: str = path) -> bool:
                    body = (await api.get(path)).json()
                    return bool(body.get("state") == "created" and body["host_id"] == "h2")

                await until(created)
            await until(status_is(api, f"/v1/vms/{bare}", 404))


def _create_command() -> Any:
    from schemas.commands import CreateVm

    return CreateVm(
        command_id=new_id(),
        customer_id="acme",
        vm_id=new_id(),
        host_id="h1",
        issued_at=utc_now(),
        deadline=utc_now(),
        spec=VmSpec(image="tiny"),
    )


async def test_without_nats_reads_go_on_and_mutations_are_put_off(tmp_path: Path) -> None:
    """503 with Retry-After and no trace of the request; all is well when NATS is back."""
    async with (
        bus_with_streams(tmp_path) as (server, bus),
        running_gateway(server) as (_, health, url),
        httpx.AsyncClient(base_url=url, headers=bearer(), timeout=30) as api,
    ):
        async with agents(bus, h1={}):
            made = await api.post("/v1/vms", json=TINY, headers=WAIT)
            path = f"/v1/vms/{made.json()['vm']['vm_id']}"
        await server.kill()
        await until(lambda: bool(health.problems))
        assert (await api.get(path)).status_code == 200
        for method, target, body in (
            ("POST", "/v1/vms", TINY),
            ("POST", f"{path}/boot", None),
            ("DELETE", path, None),
            ("GET", "/v1/usage", None),
        ):
            response = await api.request(method, target, json=body, headers=WAIT)
            assert (response.status_code, response.json()["code"]) == (503, "unavailable")
            assert int(response.headers["Retry-After"]) >= 1
        await server.start()
        await until(lambda: not health.problems and bus.connected)
        async with agents(bus, h1={}):

            async def boots() -> bool:
                response = await api.post(f"{path}/boot", headers=WAIT)
                return response.status_code == 200

            await until(boots, timeout_s=20)


async def test_a_command_that_cannot_be_stored_leaves_nothing(tmp_path: Path) -> None:
    """The stream refuses: 503, the operation has failed, the record is gone."""
    async with (
        bus_with_streams(tmp_path) as (server, bus),
        running_gateway(server, publish_limit_s=0.5) as (_, _, url),
        httpx.AsyncClient(base_url=url, headers=bearer(), timeout=30) as api,
    ):
        agent = ScriptedAgent(bus, "h1")
        await agent.beat(heartbeat_at=utc_now() + timedelta(seconds=30))
        config = (await bus.js.stream_info("VM_COMMANDS")).config
        await bus.js.update_stream(config.evolve(max_bytes=1))

        async def known() -> bool:
            response = await api.post("/v1/vms", json=TINY)
            assert response.status_code == 503
            return bool(response.json()["code"] == "unavailable")

        await until(known)
        operations = await agent.operations.all()
        assert {o.status for o in operations.values()} == {OperationStatus.FAILED}
        assert (await api.get("/v1/vms")).json()["vms"] == []


async def test_the_process_serves_and_ends_in_order(tmp_path: Path) -> None:
    """`python -m gateway`: ready, answers, and exits 0 on SIGTERM; a short key ends it at once."""
    key = tmp_path / "dev.key"
    key.write_bytes(KEY)
    async with bus_with_streams(tmp_path / "nats") as (server, _):
        code, log = await _run_gateway(server, key)
        assert code == 0
        assert KEY.decode() not in log
        key.write_bytes(b"short-key")
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "gateway", env=_env(server, key, 0, 0), stderr=-1
        )
        _, errors = await process.communicate()
        assert process.returncode != 0
        assert b"32 bytes" in errors
        assert b"short-key" not in errors


def _env(server: NatsServer, key: Path, api_port: int, probe_port: int) -> dict[str, str]:
    return {
        **os.environ,
        "DECISEC_NATS_URL": server.url,
        "DECISEC_GATEWAY_JWT_KEY_FILE": str(key),
        "DECISEC_GATEWAY_API_PORT": str(api_port),
        "DECISEC_HTTP_PORT": str(probe_port),
    }


async def _run_gateway(server: NatsServer, key: Path) -> tuple[int | None, str]:
    api_port, probe_port = free_port(), free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway", env=_env(server, key, api_port, probe_port), stderr=-1
    )
    try:
        async with httpx.AsyncClient(timeout=5) as http:

            async def ready() -> bool:
                try:
                    found = await http.get(f"http://127.0.0.1:{probe_port}/readyz")
                except httpx.TransportError:
                    return False
                return found.status_code == 200

            await until(ready, timeout_s=30)
            api = f"http://127.0.0.1:{api_port}"
            who = await http.get(f"{api}/v1/whoami", headers=bearer())
            assert who.json()["customer_id"] == "acme"
            assert (await http.get(f"{api}/v1/nothing")).status_code == 404
            metrics = (await http.get(f"http://127.0.0.1:{probe_port}/metrics")).text
            assert 'route="/v1/whoami"' in metrics
            assert 'route="unmatched"' in metrics
            assert "decisec_http_request_duration_seconds_bucket" in metrics
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(15):
            _, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode, errors.decode()
