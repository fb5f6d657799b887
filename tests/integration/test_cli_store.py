"""`decisec store`: asked of the batcher that owns an embedded store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from batcher.grants import grants
from batcher.migrations import shipped
from decisec.cli.exits import Exit
from runtime.buckets import Bucket
from runtime.bus import Bus
from runtime.reading import read_stream
from schemas.audit import decode_audit_entry
from schemas.hosts import HostLoss, decode_host_loss
from schemas.ids import new_id
from schemas.subjects import AUDIT, LOST_HOSTS
from tests.support.batcher import batcher_process
from tests.support.nats import bus_with_streams
from tests.support.shell import Done, Shell
from tests.support.store import Reading, embedded_store, enriched, insert

TODAY = datetime.now(UTC).date()


@dataclass(frozen=True)
class Served:
    """A batcher over a store that lacks an hour and a day of customer `acme`."""

    shell: Shell
    bus: Bus
    url: str

    async def __call__(self, *arguments: str) -> Done:
        return await asyncio.to_thread(self.shell, "store", *arguments, DECISEC_NATS_URL=self.url)


@pytest.fixture
async def store(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Served]:
    now_ms = int(datetime.now(UTC).timestamp()) * 1000
    async with embedded_store(tmp_path / "store") as opened:
        for customer in ("acme", "bolt"):
            await insert(opened, [enriched([Reading(new_id(), now_ms, 1, 0, {}, customer)])])
        for table in ("usage_hour", "usage_day"):
            await opened.command(f"ALTER TABLE {table} DELETE WHERE customer_id = 'acme'"
                                 " SETTINGS mutations_sync = 2")  # fmt: skip
    async with (
        bus_with_streams(tmp_path / "nats") as (server, bus),
        batcher_process(tmp_path, server.url),
    ):
        shell = Shell(tmp_path, capfd, monkeypatch)
        served = Served(shell, bus, server.url)
        async with asyncio.timeout(60):
            while (await served("status")).code == Exit.UNREACHABLE:
                await asyncio.sleep(0.1)
        yield served


async def test_a_store_is_looked_at_checked_and_repaired(store: Served) -> None:
    """Status, a difference and its repair, with a reason, on the record; then all is well."""
    status = (await store("status", "--json")).json
    assert [(m["name"], m["state"], m["sha256"]) for m in status["migrations"]] == [
        (m.name, "applied", m.sha256) for m in shipped()
    ]
    assert status["embedded"] is True
    assert {t["name"]: t["rows"] for t in status["tables"]}["samples"] == 2
    words = (await store("status")).out
    for word in ("usage_hour", "applied", shipped()[0].sha256[:12], "2555"):
        assert word in words

    found = await store("check", "--json")
    assert found.code == 1
    assert (await store("check")).code == 1
    unreasoned = await store("check", "--repair", "--json")
    assert unreasoned.problem["exit_code"] == Exit.USAGE
    assert list(await read_stream(store.bus, AUDIT)) == []

    repaired = await store("check", "--from", str(TODAY), "--repair", "--reason", "lost a disk")
    assert repaired.code == 0, repaired
    assert "repaired" in repaired.out
    entries = [decode_audit_entry(m.data) for m in await read_stream(store.bus, AUDIT)]
    acts = [e for e in entries if e.details.get("customers") == "acme"]
    assert len(acts) == 1
    assert (acts[0].action, acts[0].reason, acts[0].outcome) == (
        "store-repair", "lost a disk", "succeeded",
    )  # fmt: skip
    assert "@" in acts[0].actor
    assert {e.details["phase"] for e in entries} == {"begun", "ended"}

    after = (await store("check", "--json")).json
    assert all(day["differences"] == [] for day in after["days"])
    assert sum(day["compared"] for day in after["days"]) == 6

    outside = await store("check", "--from", "2020-01-01", "--to", "2020-01-02", "--json")
    assert outside.code == Exit.USAGE
    assert "name a day" in outside.problem["detail"]


def test_without_a_batcher_it_says_so(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a bus nor a store is made up."""
    shell = Shell(tmp_path, capfd, monkeypatch)
    assert shell("store", "status", "--json").code == Exit.UNREACHABLE
    refused = shell("store", "migrate", "--json")
    assert (refused.code, refused.problem["code"]) == (Exit.USAGE, "refused")
    assert "STORE_URL" in refused.problem["detail"]


def test_an_embedded_store_is_migrated_where_no_batcher_holds_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the batcher's own settings; a second time there is nothing to do."""
    shell = Shell(tmp_path, capfd, monkeypatch)
    for _ in range(2):
        done = shell("store", "migrate", "--json", DECISEC_BATCHER_STORE_PATH=str(tmp_path / "s"))
        assert done.json["pending"] == 0
        assert len(done.json["migrations"]) == len(shipped())


def test_grants_are_shown_before_they_are_given(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a server; an embedded store has no users, and a name that is none is refused."""
    shell = Shell(tmp_path, capfd, monkeypatch)
    server = "http://bat%20cher@nowhere.invalid:8123"
    shown = shell("store", "grant", "acme", "--print", "--json", DECISEC_BATCHER_STORE_URL=server)
    assert shown.json == {
        "applied": False,
        "statements": grants("acme", database="decisec", reads_all=["bat cher"]),
    }
    for customer, settings, words in (
        ("acme", {"DECISEC_BATCHER_STORE_PATH": str(tmp_path / "s")}, "no users"),
        ("it's", {"DECISEC_BATCHER_STORE_URL": server}, "no valid id"),
        ("--print", {"DECISEC_BATCHER_STORE_URL": server}, "no valid id"),
    ):
        refused = shell("store", "grant", "--json", "--", customer, **settings)
        assert refused.code in (Exit.USAGE, Exit.FAILED)
        assert words in refused.err


async def test_usage_of_a_host_is_told_to_operators(store: Served) -> None:
    """By customer and by VM, in sums; until when it is complete; words and figures."""
    assert (await store("check", "--repair", "--reason", "all of it")).code == 0
    found = (await store("usage", "--host", "h1", "--json")).json
    assert [(c["customer_id"], c["vms"], c["samples"]) for c in found["customers"]] == [
        ("acme", 1, 1), ("bolt", 1, 1),
    ]  # fmt: skip
    assert {vm["customer_id"] for vm in found["vms"]} == {"acme", "bolt"}
    assert (found["complete_until"], found["complete"], found["not_shown"]) == (None, False, 0)
    words = (await store("usage", "--host", "h1", "--vms")).out
    assert all(vm["vm_id"] in words for vm in found["vms"])
    assert "may still change" in words
    tomorrow = str(TODAY + timedelta(days=1))
    later = await store("usage", "--host", "h1", "--from", tomorrow, "--json")
    assert (later.json["customers"], later.json["totals"]["cpu_ns"]) == ([], 0)
    assert (await store("usage", "--host", "nobody", "--json")).json["vms"] == []

    losses = Bucket(store.bus, LOST_HOSTS, decode_host_loss)
    await losses.put(
        "h1",
        HostLoss(host_id="h1", reason="burnt", requested_by="o", declared_at=datetime.now(UTC)),
    )
    async with asyncio.timeout(20):
        while not (lost := (await store("usage", "--host", "h1", "--json")).json)["lost"]:
            await asyncio.sleep(0.05)
    assert lost["complete_until"] is not None


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--host", "h.*"), "--host"),
        (("--host", "h1", "--from", "yesterday"), "--from"),
        (("--host", "h1", "--to", "2001-01-01"), "end must be later"),
        (("--host", "h1", "--from", "2001-01-01", "--to", "2001-01-02"), ""),
    ],
)
async def test_a_window_of_a_host_s_usage_is_checked(
    store: Served, arguments: tuple[str, ...], word: str
) -> None:
    """As one of a customer's: a store that has lost nothing yet knows that there was none."""
    done = await store("usage", *arguments, "--json")
    if word:
        assert done.code == Exit.USAGE
        assert word in done.problem["detail"]
    else:
        assert done.json["customers"] == []
