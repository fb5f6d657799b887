"""Two batchers on one server, and the past is corrected under their hands."""

from __future__ import annotations

import asyncio
from pathlib import Path
from uuid import UUID

from decisec.backfill import Corrections, changed
from runtime.bus import Bus
from runtime.errors import TransientError
from runtime.publisher import Publisher
from schemas import subjects
from schemas.codec import encode
from schemas.corrections import BackfillWish, Correction
from schemas.frames import EnrichedFrame, encode_frame
from schemas.ids import new_id
from schemas.usage import UsageQuery, decode_usage_reply
from tests.support.backfill import at, life
from tests.support.batcher import all_stored, batcher_process
from tests.support.clickhouse_door import clickhouse_door
from tests.support.nats import bus_with_streams

PASSWORD = "not in any log"


async def send(bus: Bus, frames: list[EnrichedFrame]) -> None:
    publisher = Publisher(bus)
    for frame in frames:
        await publisher.publish(
            subjects.metrics_enriched(frame.host), encode_frame(frame), msg_id=str(new_id())
        )


async def correct(bus: Bus, vm_id: UUID, customer: str) -> Correction:
    """Have an incarnation moved, whoever of the batchers answers and lives."""
    corrections = Corrections(bus)
    wish = BackfillWish(
        vm_id=vm_id, customer_id=customer, first_incarnation=1, last_incarnation=1, running=True
    )
    async with asyncio.timeout(100):
        while True:
            try:
                asked = await corrections.order(wish, "tester", "because")
            except TransientError:
                await asyncio.sleep(0.1)
                continue
            assert asked.correction is not None
            return await corrections.applied(vm_id, asked.correction.correction_id)


async def cpu(bus: Bus, customer: str) -> int:
    query = encode(UsageQuery(start=at(0), end=at(5000)))
    answer = await bus.request(subjects.usage_query(customer), query, timeout_s=30)
    report = decode_usage_reply(answer.data).report
    assert report is not None
    return report.totals["cpu_ns"]


async def test_rows_go_to_one_owner_although_two_batchers_move_them_and_one_dies(
    tmp_path: Path,
) -> None:
    """There and back and there, while frames of it come; nothing is lost, nothing billed twice."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    vm_id = new_id()
    frames = life(vm_id, range(400))
    with clickhouse_door(tmp_path / "server", password=PASSWORD) as door:
        settings = {"store_url": door.url, "store_password": PASSWORD, "store_path": ""}
        async with (
            bus_with_streams(tmp_path / "nats") as (server, bus),
            batcher_process(tmp_path / "one", server.url, **settings) as one,
            batcher_process(tmp_path / "two", server.url, **settings) as two,
        ):
            await send(bus, frames[:100])
            await all_stored(bus)
            for number, customer in enumerate(("bolt", "acme", "bolt")):
                async with asyncio.TaskGroup() as group:
                    sending = group.create_task(send(bus, frames[: 200 + 100 * number]))
                    moving = group.create_task(correct(bus, vm_id, customer))
                    if number == 1:
                        await asyncio.wait({moving}, timeout=1)
                        await one.kill()
                assert sending.done()
                correction = moving.result()
                # More may have come while rows were moved, and nothing gets less.
                assert all(change.after > change.before for change in changed(correction))
                await all_stored(bus)
                async with asyncio.timeout(60):
                    other = "acme" if customer == "bolt" else "bolt"
                    while await cpu(bus, other):
                        await asyncio.sleep(0.1)
                assert await cpu(bus, customer) == (199 + 100 * number) * 11
            assert await two.stop() == 0
