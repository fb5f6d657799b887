"""`decisec backfill`: asked of a batcher that may be killed meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import pytest

from decisec.cli.exits import Exit
from runtime.buckets import Bucket
from runtime.bus import Bus
from runtime.errors import TransientError
from runtime.publisher import Publisher
from runtime.reading import read_stream
from schemas import subjects
from schemas.audit import decode_audit_entry
from schemas.codec import encode
from schemas.corrections import Correction, VmCorrections, decode_vm_corrections
from schemas.frames import encode_frame
from schemas.ids import new_id
from schemas.usage import UsageQuery, UsageReport, decode_usage_reply
from tests.support.backfill import at, life
from tests.support.batcher import BatcherProcess, all_stored, batcher_process
from tests.support.nats import bus_with_streams
from tests.support.shell import Done, Shell

REASON = ("--reason", "sold to bolt in May", "--yes")


@dataclass(frozen=True)
class Served:
    """A batcher with an incarnation of customer `acme` in its store."""

    shell: Shell
    bus: Bus
    url: str
    batcher: BatcherProcess
    vm_id: UUID

    async def __call__(self, *arguments: str) -> Done:
        return await asyncio.to_thread(
            self.shell, "backfill", *arguments, DECISEC_NATS_URL=self.url
        )

    async def usage(self, customer: str) -> UsageReport:
        query = encode(UsageQuery(start=at(0), end=at(5000)))
        async with asyncio.timeout(60):
            while True:
                try:
                    answer = await self.bus.request(
                        subjects.usage_query(customer), query, timeout_s=10
                    )
                except TransientError:  # no batcher listens yet
                    await asyncio.sleep(0.1)
                    continue
                if (found := decode_usage_reply(answer.data).report) is not None:
                    return found

    async def publish(self, vm_id: UUID, ticks: range) -> None:
        publisher = Publisher(self.bus)
        for frame in life(vm_id, ticks):
            await publisher.publish(
                subjects.metrics_enriched(frame.host), encode_frame(frame), msg_id=str(new_id())
            )
        await all_stored(self.bus)


@pytest.fixture
async def served(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Served]:
    async with (
        bus_with_streams(tmp_path / "nats") as (server, bus),
        batcher_process(tmp_path, server.url) as batcher,
    ):
        vm_id = new_id()
        made = Served(Shell(tmp_path, capfd, monkeypatch), bus, server.url, batcher, vm_id)
        await made.publish(vm_id, range(200))
        yield made


def cpu(report: UsageReport) -> int:
    return report.totals["cpu_ns"]


async def test_an_owner_is_corrected_with_totals_before_and_after(served: Served) -> None:
    """Looked at, done, listed, done again; on the record, and billed to the right customer."""
    vm = ("--vm", str(served.vm_id))
    before = await served.usage("acme")
    assert cpu(before) == 199 * 11
    ends = ("--from", at(-10).isoformat(), "--to", at(300).isoformat())

    tried = await served("owner", "bolt", *vm, *ends, "--dry-run", "--json")
    assert tried.json["dry_run"] is True
    assert [(t["customer_id"], t["used"]["cpu_ns"]) for t in tried.json["vms"][0]["after"]] == [
        ("bolt", 2189)
    ]
    assert cpu(await served.usage("acme")) == 2189
    words = (await served("owner", "bolt", *vm, *ends, "--dry-run")).out
    assert "2189" in words
    assert "expected" in words

    assert (await served("owner", "bolt", *vm, *ends, "--yes")).code == Exit.USAGE
    done = (await served("owner", "bolt", *vm, *ends, *REASON, "--json")).json
    assert done["conserved"] is True
    correction = done["vms"][0]["correction"]
    sums = [
        sum(total["used"]["cpu_ns"] for total in correction[when]) for when in ("before", "after")
    ]
    assert sums == [2189, 2189]
    assert cpu(await served.usage("acme")) == 0
    assert cpu(await served.usage("bolt")) == 2189

    again = await served("owner", "bolt", *vm, *ends, *REASON)
    assert again.code == 0
    assert "so already, nothing to do" in again.out
    listed = (await served("ls", "--json")).json["corrections"]
    assert [(c["vm_id"], c["correction"]["reason"]) for c in listed] == [
        (str(served.vm_id), "sold to bolt in May")
    ]
    assert listed[0]["correction"]["applied_at"]
    assert "owner bolt of incarnation 1" in (await served("ls", *vm)).out
    assert (await served("ls", "--vm", str(new_id()), "--json")).json == {"corrections": []}
    entries = [decode_audit_entry(m.data) for m in await read_stream(served.bus, subjects.AUDIT)]
    assert [(e.action, e.outcome, e.reason) for e in entries] == [
        ("backfill", "under_way", "sold to bolt in May"),
        ("backfill", "succeeded", "sold to bolt in May"),
    ]
    assert "2189" in entries[1].details["after"]


async def test_what_cannot_be_done_is_refused_before_anything_is(served: Served) -> None:
    """A range that cuts, an unknown VM beside a known one, words that are none, no batcher."""
    vm = ("--vm", str(served.vm_id))
    cut = await served(
        "owner", "bolt", *vm, "--from", at(50).isoformat(), "--to", at(300).isoformat(), *REASON
    )
    assert cut.code == Exit.USAGE
    assert f"ran from {at(0).isoformat()} to {at(199).isoformat()}" in cut.err
    one_of_two = await served(
        "owner", "bolt", *vm, "--vm", str(new_id()), "--incarnations", "1", *REASON
    )
    assert one_of_two.code == Exit.USAGE
    assert cpu(await served.usage("acme")) == 2189
    for arguments in (
        ("owner", "Bolt.*", *vm, "--incarnations", "1", *REASON),
        ("owner", "bolt", "--vm", "x", "--incarnations", "1", *REASON),
        ("owner", "bolt", *vm, "--incarnations", "2-1", *REASON),
        ("owner", "bolt", *vm, "--from", "17", "--to", "18", *REASON),
        ("owner", "bolt", *vm, *REASON),
        ("plan", *vm, "--from", "-2h", "--to", "-1s", *REASON),
    ):
        refused = await served(*arguments, "--json")
        assert refused.code == Exit.USAGE, arguments
        assert refused.problem["exit_code"] == Exit.USAGE
    assert await Bucket(served.bus, subjects.CORRECTIONS, decode_vm_corrections).all() == {}


@pytest.mark.chaos
async def test_a_batcher_that_is_killed_amid_a_backfill_completes_it_when_it_is_back(
    served: Served,
) -> None:
    """SIGKILL again and again while rows move there and back: to the unit, under one customer."""
    vms = [served.vm_id, new_id(), new_id(), new_id()]
    for vm_id in vms[1:]:
        await served.publish(vm_id, range(100))
    options = [word for vm_id in vms for word in ("--vm", str(vm_id))]
    whole = 2189 + 3 * 99 * 11
    bucket = Bucket(served.bus, subjects.CORRECTIONS, decode_vm_corrections)
    for number, customer in enumerate(("bolt", "acme")):
        ordered = asyncio.create_task(
            served("owner", customer, *options, "--incarnations", "1", *REASON, "--json")
        )
        async with asyncio.timeout(60):
            while len(await asked(bucket)) < 4 * (number + 1):
                await asyncio.sleep(0.05)
        for _ in range(2):
            # At other moments of the move each time: it takes two seconds or more.
            await asyncio.wait({ordered}, timeout=0.3 + 0.5 * number)
            starts = served.batcher.log().count("service.started")
            await served.batcher.kill()
            await served.batcher.start()
            async with asyncio.timeout(60):
                while served.batcher.log().count("service.started") == starts:
                    await asyncio.sleep(0.05)
        await served.publish(vms[1], range(100))
        done = await ordered
        assert done.code == 0, done
        assert done.json["conserved"] is True
        usages = {c: await served.usage(c) for c in ("acme", "bolt")}
        assert {c: cpu(usage) for c, usage in usages.items()} == {
            **dict.fromkeys(usages, 0),
            customer: whole,
        }


async def asked(bucket: Bucket[VmCorrections]) -> list[Correction]:
    """All that was accepted so far."""
    return [one for value in (await bucket.all()).values() for one in value.corrections]


async def test_a_plan_is_corrected_and_counted(served: Served) -> None:
    """Samples by plan before and after; the bill stays."""
    vm = ("--vm", str(served.vm_id))
    ends = ("--from", at(50).isoformat(), "--to", at(150).isoformat())
    done = await served("plan", *vm, *ends, "--price-plan", "gold", *REASON)
    assert done.code == 0, done
    assert "gold" in done.out
    found = (await served("ls", "--json")).json["corrections"][0]["correction"]
    assert [(r["price_plan"], r["samples"]) for r in found["before"]] == [("default", 100)]
    assert [(r["price_plan"], r["samples"]) for r in found["after"]] == [("gold", 100)]
    assert cpu(await served.usage("acme")) == 2189
