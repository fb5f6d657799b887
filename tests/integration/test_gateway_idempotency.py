"""Requests with an idempotency key: one effect, one answer, whatever breaks in between."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from decisec.devkit.tokens import mint
from decisec.sdk import AsyncClient, IdempotencyKeyReusedError
from runtime.buckets import Bucket
from schemas.api import CreateVmRequest
from schemas.commands import BootVm, CreateVm
from schemas.errors import ErrorCode
from schemas.idempotency import decode_key_record, idempotency_entry
from schemas.ids import new_id
from schemas.subjects import IDEMPOTENCY_KEYS, vm_request
from tests.support.gateway import (
    TINY,
    WAIT,
    refusing,
    running_gateway,
    stack,
    until,
)
from tests.support.idempotency import key, same, settled, vms
from tests.support.tokens import KEY, bearer


async def test_the_same_request_has_one_effect_and_one_answer(tmp_path: Path) -> None:
    """Creates and verbs, done or under way, granted or refused; for each customer its own."""
    async with stack(tmp_path) as running, running.client(headers=bearer()) as api:
        first = await api.post("/v1/vms", json=TINY, headers=key("a"))
        assert first.status_code == 202
        same(first, await api.post("/v1/vms", json=TINY, headers=key("a")))
        waited = await api.post("/v1/vms", json=TINY, headers=key("b", **WAIT))
        assert waited.status_code == 201
        same(waited, await api.post("/v1/vms", json=TINY, headers=key("b", **WAIT)))
        assert len(await vms(api)) == 2
        path = f"/v1/vms/{waited.json()['vm']['vm_id']}"
        booted = await api.post(f"{path}/boot", headers=key("c", **WAIT))
        same(booted, await api.post(f"{path}/boot", headers=key("c", **WAIT)))
        refused = await api.post(f"{path}/boot", headers=key("d"))
        assert refused.json()["code"] == "illegal_transition"
        deleted = await api.delete(path, headers=key("e", **WAIT))
        same(deleted, await api.delete(path, headers=key("e", **WAIT)))
        same(refused, await api.post(f"{path}/boot", headers=key("d")))
        gone = await api.delete(path, headers=key("f"))
        assert gone.status_code == 404
        same(gone, await api.delete(path, headers=key("f")))
        commands = await running.commands()
        for method, target, body in (
            ("POST", "/v1/vms", {**TINY, "name": "other"}),
            ("POST", f"/v1/vms/{new_id()}/boot", None),
            ("DELETE", path, None),
        ):
            other = await api.request(method, target, json=body, headers=key("a"))
            assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
        assert await running.commands() == commands
        async with running.client(headers=bearer("other")) as others:
            theirs = await others.post("/v1/vms", json=TINY, headers=key("a"))
            assert theirs.status_code == 202
            assert theirs.content != first.content


async def test_what_was_not_done_may_come_again(tmp_path: Path) -> None:
    """Bad bodies and full hosts leave the key free; so does a create that came to nothing."""
    async with stack(tmp_path) as running, running.client(headers=bearer()) as api:
        bad = await settled(api, "POST", "/v1/vms", json={"image": 7}, headers=key("a"))
        assert bad.status_code == 400
        # Each asked until the one before is out of the way.
        running.agent.script = refusing(ErrorCode.NO_CAPACITY, "create")

        async def status(body: Any, **headers: str) -> int:
            answer = await api.post("/v1/vms", json=body, headers=key("a", **headers))
            return (
                -1
                if answer.json().get("code") == "idempotency_key_reused"
                else (answer.status_code)
            )

        async def full() -> bool:
            return await status(TINY, **WAIT) == 503

        await until(full)
        running.agent.script = lambda _: None

        async def there() -> bool:
            return await status(TINY, **WAIT) == 201

        await until(there)
        assert len(await vms(api)) == 1


@pytest.mark.parametrize("bad", ["", "a b", "k" * 129, "ä", "a\tb"])
async def test_a_bad_key_is_refused(tmp_path: Path, bad: str) -> None:
    """400 that names the header, and nothing done."""
    async with stack(tmp_path) as running, running.client(headers=bearer()) as api:
        headers = [(b"Idempotency-Key", bad.encode())]
        response = await api.post("/v1/vms", json=TINY, headers=headers)
        assert (response.status_code, response.json()["code"]) == (400, "bad_request")
        twice = [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
        assert (await api.post("/v1/vms", json=TINY, headers=twice)).status_code == 400
        assert await running.commands() == 0


async def test_while_the_first_is_under_way_the_second_is_told_to_wait(tmp_path: Path) -> None:
    """409 with Retry-After on this gateway and on another one; then the first one's answer."""
    async with (
        stack(tmp_path) as running,
        running_gateway(running.server) as (_, _, url),
        running.client(headers=bearer()) as api,
        httpx.AsyncClient(base_url=url, headers=bearer(), timeout=30) as beside,
    ):
        running.agent.gate.clear()
        headers = key("a", Prefer="wait=20")
        async with asyncio.TaskGroup() as group:
            first = group.create_task(api.post("/v1/vms", json=TINY, headers=headers))
            records = Bucket(running.bus, IDEMPOTENCY_KEYS, decode_key_record)

            async def claimed() -> bool:
                return bool(await records.get(idempotency_entry("acme", "a")))

            await until(claimed)
            for door in (api, beside):
                early = await door.post("/v1/vms", json=TINY, headers=headers)
                assert (early.status_code, early.json()["code"]) == (409, "request_in_progress")
                assert early.headers["Retry-After"] == "1"
                other = await door.post("/v1/vms", json={**TINY, "vcpus": 2}, headers=headers)
                assert other.status_code == 422
            running.agent.gate.set()
        for door in (api, beside):
            same(first.result(), await settled(door, "POST", "/v1/vms", json=TINY, headers=headers))
        assert len(await vms(beside)) == 1


async def test_an_answer_outlives_its_gateway(tmp_path: Path) -> None:
    """A gateway that ends in order has written all it answered; the next one gives it again."""
    async with stack(tmp_path) as running:
        answers = []
        async with (
            running_gateway(running.server) as (_, _, url),
            httpx.AsyncClient(base_url=url, headers=bearer(), timeout=30) as api,
        ):
            for number in range(20):
                headers = key(f"k{number}")
                answers.append(await api.post("/v1/vms", json=TINY, headers=headers))
        async with (
            running_gateway(running.server) as (_, _, url),
            httpx.AsyncClient(base_url=url, headers=bearer(), timeout=30) as api,
        ):
            for number, answer in enumerate(answers):
                headers = key(f"k{number}")
                same(answer, await api.post("/v1/vms", json=TINY, headers=headers))
            assert len(await vms(api)) == 20


async def test_the_bus_door_keeps_answers_too(tmp_path: Path) -> None:
    """The same bytes again with a header that says so; refusals in the same words as over HTTP."""
    async with stack(tmp_path) as running:

        async def ask(verb: str, body: Any) -> tuple[bytes, str]:
            answer = await running.bus.request(
                vm_request("acme", verb), json.dumps(body).encode(), timeout_s=10
            )
            return answer.data, answer.headers.get("Idempotency-Replayed", "")

        create = {"vm": TINY, "wait_s": 10, "idempotency_key": "a"}
        first = await ask("create", create)
        assert first[1] == ""
        assert await ask("create", create) == (first[0], "true")
        vm_id = json.loads(first[0])["result"]["vm"]["vm_id"]
        boot = {"vm_id": vm_id, "wait_s": 10, "idempotency_key": "b"}
        booted = await ask("boot", boot)
        assert await ask("boot", boot) == (booted[0], "true")
        other = json.loads((await ask("boot", {**boot, "wait_s": 0}))[0])
        assert other["error"]["code"] == "idempotency_key_reused"
        bad = json.loads((await ask("boot", {**boot, "idempotency_key": "a b"}))[0])
        assert bad["error"]["code"] == "bad_request"
        assert len([c for c in running.agent.seen if isinstance(c, BootVm)]) == 1


@asynccontextmanager
async def cutting_proxy(url: str, cuts: int) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Passes requests on, and cuts the first connections once their request has gone through."""
    host, _, port = url.removeprefix("http://").partition(":")
    requests: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind, ahead = await asyncio.open_connection(host, int(port))
        try:
            while data := await reader.read(65_536):
                requests.append(data)
                ahead.write(data)
                await ahead.drain()
                answer = await behind.read(65_536)
                if len(requests) <= cuts:
                    break
                writer.write(answer)
                await writer.drain()
        finally:
            ahead.close()
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", requests
    finally:
        server.close()
        await server.wait_closed()


async def test_the_sdk_makes_one_vm_though_the_answers_are_lost(tmp_path: Path) -> None:
    """Cut after the request has gone through, three times; the fourth try is answered."""
    async with stack(tmp_path) as running:
        async with (
            cutting_proxy(running.url, 3) as (url, requests),
            AsyncClient(url, mint(KEY, "acme")) as sdk,
        ):
            answer = await sdk.create_vm(CreateVmRequest(image="tiny"))
        assert len(requests) == 4
        async with AsyncClient(running.url, mint(KEY, "acme")) as sdk:
            assert [vm.vm_id async for vm in sdk.list_vms()] == [answer.vm.vm_id]
            one = await sdk.create_vm(CreateVmRequest(image="tiny"), idempotency_key="mine")
            again = await sdk.create_vm(CreateVmRequest(image="tiny"), idempotency_key="mine")
            assert again == one
            with pytest.raises(IdempotencyKeyReusedError):
                await sdk.create_vm(CreateVmRequest(image="tiny", vcpus=2), idempotency_key="mine")


async def test_the_sdk_waits_for_a_first_request_that_is_under_way(tmp_path: Path) -> None:
    """Cut while the gateway is still waiting for the host: the repeat asks until it is done."""
    async with stack(tmp_path) as running:
        running.agent.gate.clear()
        sdk = AsyncClient(running.url, mint(KEY, "acme"))
        async with sdk, asyncio.TaskGroup() as group:
            request = CreateVmRequest(image="tiny")
            one = group.create_task(sdk.create_vm(request, wait_s=20, idempotency_key="k"))
            two = group.create_task(sdk.create_vm(request, wait_s=20, idempotency_key="k"))
            await asyncio.sleep(0.2)
            running.agent.gate.set()
        assert one.result() == two.result()
        assert len([c for c in running.agent.seen if isinstance(c, CreateVm)]) == 1
