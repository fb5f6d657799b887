"""The audit log read: by its customer through the API, by operators through the bus."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from batcher.audit_log import AuditDoor, page
from batcher.records import FEEDS
from batcher.store import Store
from batcher.windows import RefusedQueryError
from decisec.cli.exits import Exit
from decisec.devkit.tokens import mint
from decisec.sdk import AsyncClient
from runtime.bus import Message
from schemas.audit import AuditEntry
from schemas.audit_log import AuditQuery, decode_audit_reply
from schemas.codec import encode
from schemas.ids import new_id
from schemas.subjects import audit_query
from tests.support.batcher import batcher_process
from tests.support.gateway import TINY, WAIT, ScriptedAgent, running_gateway, until
from tests.support.nats import bus_with_streams
from tests.support.shell import Shell
from tests.support.store import embedded_store
from tests.support.tokens import KEY, bearer

AUDIT = FEEDS[2]
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = AuditQuery(start=NOW - timedelta(days=1), end=NOW + timedelta(days=1), limit=2)


async def fill(store: Store) -> None:
    rows = [
        {
            "customer_id": customer,
            # Three at the same instant: pages part them by id.
            "at": NOW + timedelta(seconds=number // 3),
            "event_id": new_id().bytes,
            "actor": "ann",
            "action": "boot-vm",
            "target": f"{customer} {number}",
            "reason": "",
            "outcome": "succeeded",
            "details": [("door", "http"), ("status", "200")],
            "recorded_at": NOW,
        }
        for customer in ("acme", "bolt", "operator")
        for number in range(7)
    ]
    for copy in ("one", "two"):
        await store.insert("audit_log", AUDIT.rows([dict(row) for row in rows]), token=copy)


async def test_pages_hold_each_entry_once_newest_first(tmp_path: Path) -> None:
    """Of one customer only, though every row stands twice; operators see all or one."""
    async with embedded_store(tmp_path / "store") as store:
        await fill(store)
        for customer in ("acme", None):
            seen: list[AuditEntry] = []
            query = DAY
            while True:
                found = await page(store, customer, query, limit_s=10)
                seen += found.entries
                if not found.next_cursor:
                    break
                assert len(found.entries) == 2
                query = AuditQuery(start=DAY.start, end=DAY.end, limit=2, cursor=found.next_cursor)
            assert len({entry.event_id for entry in seen}) == len(seen)
            assert [entry.at for entry in seen] == sorted((e.at for e in seen), reverse=True)
            assert len(seen) == (7 if customer else 21)
            assert seen[0].details == {"door": "http", "status": "200"}
        before = AuditQuery(start=NOW, end=NOW + timedelta(seconds=1))
        assert len((await page(store, "acme", before, limit_s=10)).entries) == 3
        for wrong in (
            AuditQuery(start=NOW, end=NOW),
            AuditQuery(start=NOW, end=NOW + timedelta(days=32)),
        ):
            with pytest.raises(RefusedQueryError):
                await page(store, "acme", wrong, limit_s=10)


async def test_the_subject_says_whose_entries(tmp_path: Path) -> None:
    """Nobody is the operator by calling himself so; what is no question gets a reason."""
    async with embedded_store(tmp_path / "store") as store:
        await fill(store)
        door = AuditDoor(store, limit_s=10)

        query = encode(AuditQuery(start=DAY.start, end=DAY.end))
        for customer, count in (("acme", 7), ("carl", 0), ("operator", 0)):
            reply = decode_audit_reply(
                await door.answer(Message(audit_query(customer), query, {}, "r"))
            )
            assert reply.page is not None
            assert [e.customer_id for e in reply.page.entries] == [customer] * count
        for subject, data in (
            ("auditlog.query.*", query),
            (audit_query("acme"), b"{"),
            (audit_query("acme"), query.replace(b'"cursor":""', b'"cursor":"x\' OR 1=1"')),
            (audit_query("acme"), query.replace(b'"limit":100', b'"limit":100000')),
        ):
            reply = decode_audit_reply(await door.answer(Message(subject, data, {}, "r")))
            assert reply.page is None
            assert reply.error is not None
            assert reply.error.code == "bad_request"


async def test_what_was_done_is_read_by_api_sdk_and_command_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the gateway's act over the stream and the store back to its customer, and no other."""
    async with (
        bus_with_streams(tmp_path / "nats") as (server, bus),
        batcher_process(tmp_path, server.url),
        asyncio.TaskGroup() as group,
    ):
        agent = ScriptedAgent(bus, "h1")
        await agent.beat()
        task = group.create_task(agent.run(), name="agent")
        async with (
            running_gateway(server) as (_, _, url),
            httpx.AsyncClient(base_url=url, headers=bearer(subject="ann"), timeout=30) as api,
        ):
            made = await api.post("/v1/vms", json=TINY, headers=WAIT)
            assert made.status_code == 201
            assert (await api.delete(f"/v1/vms/{new_id()}")).status_code == 404

            async def there() -> bool:
                found = await api.get("/v1/audit")
                return found.status_code == 200 and len(found.json()["entries"]) == 3

            await until(there, timeout_s=60)
            body = (await api.get("/v1/audit", params={"limit": 2})).json()
            assert [entry["outcome"] for entry in body["entries"]] == ["refused", "succeeded"]
            assert body["next_cursor"]
            other = await api.get("/v1/audit", headers=bearer("other"))
            assert other.json() == {"entries": [], "next_cursor": ""}
            for wrong, field in (
                ({"start": "yesterday"}, "start"),
                ({"start": "2026-01-01T00:00:00Z", "end": "2026-03-01T00:00:00Z"}, "start"),
                ({"end": "2026-01-01T00:00:00Z", "start": "2026-03-01T00:00:00Z"}, "end"),
                ({"cursor": "x"}, "cursor"),
            ):
                refused = await api.get("/v1/audit", params=wrong)
                assert (refused.status_code, refused.json()["errors"][0]["field"]) == (400, field)
            weak = bearer(scopes=("usage:read",))
            assert (await api.get("/v1/audit", headers=weak)).status_code == 403
            async with AsyncClient(url, mint(KEY, "acme")) as sdk:
                actors = [entry.actor async for entry in sdk.audit(page_size=1)]
            assert actors == ["ann"] * 3
            shell = Shell(tmp_path, capfd, monkeypatch)
            own = await asyncio.to_thread(
                shell, "audit", "--json", DECISEC_API_URL=url, DECISEC_TOKEN=mint(KEY, "acme")
            )
            assert [e["action"] for e in own.json["entries"]] == [
                "delete-vm", "create-vm", "create-vm",
            ]  # fmt: skip
            table = await asyncio.to_thread(
                shell, "audit", "--all", "--limit", "2", DECISEC_NATS_URL=server.url
            )
            assert "acme" in table.out
            assert "not_found" in table.out
            none = await asyncio.to_thread(
                shell, "audit", "--customer", "other", "--json", DECISEC_NATS_URL=server.url
            )
            assert none.json == {"entries": []}
            both = await asyncio.to_thread(shell, "audit", "--customer", "x", "--all")
            assert both.code == Exit.USAGE
        task.cancel()
