"""Usage by windows and metrics as series, from HTTP to a real chDB and back."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import httpx
import pytest
import pytest_asyncio

from batcher.archive import Archive
from batcher.corrections import Corrections
from batcher.store import Store
from batcher.windows_door import WindowsDoor
from runtime.buckets import Bucket
from runtime.bus import Message
from runtime.clock import SystemClock
from schemas.codec import encode
from schemas.corrections import decode_vm_corrections
from schemas.errors import ErrorCode
from schemas.ids import new_id
from schemas.series import METRICS
from schemas.subjects import CORRECTIONS, usage_windows
from schemas.usage_windows import GroupBy, UsageWindowsQuery, decode_windows_reply
from schemas.vms import METERS
from tests.support.figures import KEPT, doors, recorded, watermark_of
from tests.support.gateway import Stack, shared_stack, until
from tests.support.store import Reading, embedded_store, enriched, insert
from tests.support.tokens import bearer
from tests.support.usage import ask, at

pytestmark = pytest.mark.asyncio(loop_scope="module")
MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def store(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Store]:
    async with embedded_store(tmp_path_factory.mktemp("figures") / "store") as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory, store: Store) -> AsyncIterator[Stack]:
    """A gateway, and the batcher's doors over a store."""
    async with shared_stack(tmp_path_factory.mktemp("stack")) as running, doors(running.bus, store):
        yield running


def midnight() -> int:
    """The begin of the day three days ago, UTC; Unix ms."""
    return int(datetime.now(UTC).timestamp()) * 1000 // DAY * DAY - 3 * DAY


async def lived(
    running: Stack, store: Store, customer: str, vms: dict[UUID, dict[str, str]]
) -> int:
    """VMs that have used one more unit of everything each hour for two days; returns the begin."""
    begin = midnight()
    for vm_id, labels in vms.items():
        await recorded(running.bus, customer, vm_id, **labels)
    frames = [
        enriched(
            [
                Reading(
                    vm_id,
                    begin + hour * HOUR + 1000,
                    counters=dict.fromkeys(METERS, hour),
                    customer=customer,
                )
                for vm_id in vms
            ]
        )
        for hour in range(48)
    ]
    await insert(store, frames)
    return begin


async def pages(api: httpx.AsyncClient, **query: Any) -> list[dict[str, Any]]:
    """All rows, over all pages."""
    rows: list[dict[str, Any]] = []
    cursor = ""
    while True:
        answer = await api.get(
            "/v1/usage", params={**query, **({"cursor": cursor} if cursor else {})}
        )
        assert answer.status_code == 200, answer.text
        page = answer.json()
        assert len(page["rows"]) <= int(query.get("limit", 1000))
        rows += page["rows"]
        cursor = page["next_cursor"]
        if not cursor:
            return rows


def span(start_ms: int, end_ms: int) -> dict[str, str]:
    return {"start": at(start_ms).isoformat(), "end": at(end_ms).isoformat()}


async def test_windows_of_any_size_add_up_to_the_whole(shared: Stack, store: Store) -> None:
    """By VM, page by page, in three zones: to the unit what one report says."""
    vms: dict[UUID, dict[str, str]] = {new_id(): {}, new_id(): {}, new_id(): {}}
    begin = await lived(shared, store, "adds", vms)
    start, end = begin - 90 * MINUTE, begin + 40 * HOUR + 1234
    whole = {row.vm_id: row for row in (await ask(store, "adds", start, end)).vms}
    async with shared.client(headers=bearer("adds")) as api:
        for window, zone, limit in (
            ("day", "UTC", 1000),
            ("day", "Europe/Berlin", 2),
            ("hour", "Asia/Kolkata", 7),
            ("hour", "UTC", 1000),
            ("minute", "UTC", 50),
            (None, "UTC", 1),
        ):
            query = {"tz": zone, "limit": limit, **span(start, end)}
            if window:
                query["window"] = window
            rows = await pages(api, **query)
            keys = [(row["start"], row["vm_id"]) for row in rows]
            assert len(set(keys)) == len(keys)
            for vm_id, total in whole.items():
                mine = [one for one in rows if one["vm_id"] == str(vm_id)]
                for meter in (*METERS, "samples"):
                    assert sum(one[meter] for one in mine) == getattr(total, meter)
            for row in rows:
                if window != "day":
                    continue
                begun, ended = (
                    round(datetime.fromisoformat(row[name]).timestamp() * 1000)
                    for name in ("start", "end")
                )
                alone = await ask(store, "adds", begun, ended, (UUID(row["vm_id"]),))
                assert alone.totals == {meter: row[meter] for meter in METERS}


async def test_rows_are_about_vms_labels_or_all(shared: Stack, store: Store) -> None:
    """A VM without the label has a row of its own kind; windows without use have zeros."""
    one, two, three = new_id(), new_id(), new_id()
    begin = await lived(
        shared, store, "groups", {one: {"team": "a"}, two: {"team": "b"}, three: {}}
    )
    whole = span(begin - DAY, begin + 2 * DAY)
    async with shared.client(headers=bearer("groups")) as api:
        rows = await pages(api, by="label:team", **whole)
        assert [(row["label"], row["vms"], row["cpu_ns"]) for row in rows] == [
            (None, 1, 47), ("a", 1, 47), ("b", 1, 47),
        ]  # fmt: skip
        assert (await pages(api, by="label:team", limit=1, window="day", **whole)) == await pages(
            api, by=["day", "label:team"], **whole
        )
        days = await pages(api, by="day", **whole)
        assert [(row["vms"], row["cpu_ns"], row["samples"]) for row in days] == [
            (0, 0, 0), (3, 69, 72), (3, 72, 72),
        ]  # fmt: skip
        only = await pages(api, by="day,vm", vm_id=str(two), **whole)
        assert [(row["vm_id"], row["cpu_ns"]) for row in only] == [(str(two), 23), (str(two), 24)]
        await recorded(shared.bus, "groups", three, team="a")
        moved = await pages(api, by="label:team", **whole)
        assert [(row["label"], row["vms"]) for row in moved] == [("a", 2), ("b", 1)]
    async with shared.client(headers=bearer("nobody")) as api:
        assert await pages(api, by="vm", vm_id=str(one), **whole) == []


async def test_csv_says_the_same_as_json(shared: Stack, store: Store) -> None:
    """Page by page by `Link`, as a file."""
    begin = await lived(shared, store, "csv", {new_id(): {}, new_id(): {}})
    query = {"window": "day", "tz": "Europe/Berlin", "limit": "3", **span(begin, begin + 2 * DAY)}
    async with shared.client(headers=bearer("csv")) as api:
        expected = await pages(api, **query)
        found: list[dict[str, str]] = []
        answer = await api.get("/v1/usage", params=query, headers={"Accept": "text/csv"})
        while True:
            assert answer.headers["Content-Type"].startswith("text/csv")
            assert "attachment" in answer.headers["Content-Disposition"]
            found += csv.DictReader(io.StringIO(answer.text))
            if "Link" not in answer.headers:
                break
            where = answer.headers["Link"].partition("<")[2].partition(">")[0]
            answer = await api.get(where, headers={"Accept": "text/csv"})
        assert len(found) == len(expected) > 3
        for line, row in zip(found, expected, strict=True):
            assert datetime.fromisoformat(line["start"]) == datetime.fromisoformat(row["start"])
            assert line["vm_id"] == row["vm_id"]
            assert [int(line[meter]) for meter in METERS] == [row[meter] for meter in METERS]
            assert (line["complete"] == "true") == row["complete"]
        labels = await api.get("/v1/usage", params={**query, "by": "label:team", "format": "csv"})
        assert labels.text.startswith("start,end,label_team,vms,")


async def test_each_window_says_whether_it_can_still_change(shared: Stack, store: Store) -> None:
    """By how far the VMs' hosts have come: the days before are complete, the one since is not."""
    begin = await lived(shared, store, "until", {new_id(): {}})
    query = {"by": "day", **span(begin, begin + 2 * DAY)}
    async with shared.client(headers=bearer("until")) as api:
        rows = await pages(api, **query)
        assert [row["complete"] for row in rows] == [False, False]
        assert all(row["complete_until"] is None for row in rows)
        await store.command(
            "INSERT INTO host_progress (host, complete_ms) SELECT 'h-told', {ms:Int64}",
            {"ms": begin + DAY},
        )
        rows = []

        async def told() -> bool:
            # Nobody can say while the records are being read anew.
            nonlocal rows
            rows = await pages(api, **query)
            return rows[0]["complete_until"] is not None

        await until(told)
        assert [row["complete"] for row in rows] == [True, False]
        times = {datetime.fromisoformat(row["complete_until"]) for row in rows}
        assert times == {at(begin + DAY)}


async def test_what_cannot_be_answered_is_refused_with_the_field(shared: Stack) -> None:
    """And today's parameters get today's answer, from where they always did."""
    async with shared.client(headers=bearer("wrong")) as api:
        for bad, field in (
            ({"tz": "Mars/Olympus"}, "tz"),
            ({"tz": "../../etc/passwd"}, "tz"),
            ({"window": "week"}, "window"),
            ({"by": "host"}, "by"),
            ({"by": "label:"}, "by"),
            ({"by": "label:A B"}, "by"),
            ({"by": "vm,label:a"}, "by"),
            ({"by": "day", "window": "hour"}, "by"),
            ({"format": "xml"}, "format"),
            ({"limit": "0"}, "limit"),
            ({"limit": "2001"}, "limit"),
            ({"by": "vm", "cursor": "x"}, "cursor"),
            ({"by": "vm", "cursor": "e30"}, "cursor"),
            ({"start": "2026-01-01"}, "start"),
            ({"tz": "UTC", "start": "2026-13-01"}, "start"),
            ({"by": "vm", "start": "0001-01-01T00:00:00Z"}, "start"),
            ({"by": "vm", "end": "9999-01-01T00:00:00Z"}, "end"),
        ):
            answer = await api.get("/v1/usage", params=bad)
            assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, field), bad
        day = {"tz": "Europe/Berlin", "start": "2026-03-29", "end": "2026-03-30", "by": "day"}
        (row,) = await pages(api, **day)
        assert (row["start"], row["end"]) == (
            "2026-03-29T00:00:00+01:00", "2026-03-30T00:00:00+02:00",
        )  # fmt: skip
        late = {"by": "minute", "start": "2021-01-01T00:00:30Z", "end": "2021-01-01T00:03:00Z"}
        answer = await api.get("/v1/usage", params=late)
        assert answer.status_code == 400
        # Nobody answers that subject here: the new parameters went elsewhere.
        assert (await api.get("/v1/usage")).status_code == 503
    async with shared.client(headers=bearer("wrong", scopes=("vms:read",))) as api:
        assert (await api.get("/v1/usage?by=vm")).status_code == 403
        assert (await api.get(f"/v1/metrics/series?vm_id={new_id()}")).status_code == 403


async def series(api: httpx.AsyncClient, **query: Any) -> dict[str, Any]:
    """An answer with series."""
    answer = await api.get("/v1/metrics/series", params=query)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_series_hold_what_counters_grew_by_and_null_for_gaps(
    shared: Stack, store: Store
) -> None:
    """At every step: whole numbers that add up to the usage, null where no sample is."""
    vm_id, begin = new_id(), midnight()
    for tick in [*range(50), *range(200, 250)]:
        reading = Reading(
            vm_id, begin + tick * 100, counters=dict.fromkeys(METERS, tick * 3), customer="steps"
        )
        await insert(store, [enriched([reading])])
    async with shared.client(headers=bearer("steps")) as api:
        for step in (100, 200, 500, 1000, 5000, 10_000, 60_000, 3_600_000, DAY):
            query = {"vm_id": str(vm_id), "step_ms": step, **span(begin, begin + 30_000)}
            found = await series(api, **query)
            assert found["step_ms"] == step
            (one,) = found["series"]
            assert set(one["values"]) == set(METRICS)
            cpu, samples = one["values"]["cpu_ns"], one["values"]["samples"]
            assert len(cpu) == found["points"] == -(-30_000 // step)
            for number, (used, ticks) in enumerate(zip(cpu, samples, strict=True)):
                inside = [
                    tick
                    for tick in [*range(50), *range(200, 250)]
                    if number * step <= tick * 100 < (number + 1) * step
                ]
                assert ticks == len(inside)
                assert (used is None) == (not inside)
            assert sum(used or 0 for used in cpu) == 249 * 3
            memory = one["values"]["mem_bytes"]
            assert memory[0] == (64 * 1024 * 1024 if step < MINUTE else None)
        few = await series(
            api, vm_id=str(vm_id), points=10, metric="cpu_ns", **span(begin, begin + 30_000)
        )
        assert few["step_ms"] == 5000
        assert set(few["series"][0]["values"]) == {"cpu_ns"}
        long = await series(api, vm_id=str(vm_id), **span(begin - 60 * DAY, begin + DAY))
        assert (long["step_ms"], long["points"]) == (21_600_000, 244)
        assert sum(used or 0 for used in long["series"][0]["values"]["cpu_ns"]) == 249 * 3
    async with shared.client(headers=bearer("thief")) as api:
        answers = []
        for asked in (vm_id, new_id()):
            found = await series(api, vm_id=str(asked), **span(begin, begin + 30_000))
            answers.append(found["series"][0]["values"])
        assert answers[0] == answers[1]
        assert not any(answers[0]["samples"])


async def test_series_that_make_no_sense_are_refused(shared: Stack) -> None:
    """Each with its field, or with what to ask instead."""
    vm_id = str(new_id())
    async with shared.client(headers=bearer("bad")) as api:
        for bad, field in (
            ({}, "vm_id"),
            ({"vm_id": "x"}, "vm_id"),
            ({"vm_id": [str(new_id()) for _ in range(21)]}, "vm_id"),
            ({"vm_id": vm_id, "points": "0"}, "points"),
            ({"vm_id": vm_id, "points": "1001"}, "points"),
            ({"vm_id": vm_id, "step_ms": "150"}, "step_ms"),
            ({"vm_id": vm_id, "metric": "host"}, "metric"),
            (
                {"vm_id": vm_id, "start": "2026-01-02T00:00:00Z", "end": "2026-01-01T00:00:00Z"},
                "end",
            ),
        ):
            answer = await api.get("/v1/metrics/series", params=bad)
            assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, field), bad
        for impossible in (
            {"step_ms": "100", "start": "2026-01-01T00:00:00Z", "end": "2026-02-01T00:00:00Z"},
            {"step_ms": "100", "start": "2026-01-01T00:00:00Z", "end": "2026-01-01T00:00:10Z"},
            {"points": "1", "start": "2025-01-01T00:00:00Z", "end": "2026-01-01T00:00:00Z"},
        ):
            answer = await api.get("/v1/metrics/series", params={"vm_id": vm_id, **impossible})
            assert (answer.status_code, answer.json()["code"]) == (400, "bad_request"), impossible


async def test_vms_are_not_sorted_by_labels_that_are_not_known(shared: Stack, store: Store) -> None:
    """While the records cannot be read, that is said; a wrong sum is not."""
    await recorded(shared.bus, "unknown", new_id(), team="a")
    clock = SystemClock()
    corrections = Corrections(Bucket(shared.bus, CORRECTIONS, decode_vm_corrections))
    watermark = watermark_of(shared.bus, store, corrections)
    door = WindowsDoor(Archive(store, watermark, KEPT, clock, 30, lambda: None))
    begin = midnight()
    query = UsageWindowsQuery(edges_ms=(begin, begin + DAY), group=GroupBy.LABEL, label="team")
    message = Message(usage_windows("unknown"), encode(query), {}, "")
    reply = decode_windows_reply(await door.answer(message))
    assert reply.error is not None
    assert reply.error.code is ErrorCode.UNAVAILABLE
