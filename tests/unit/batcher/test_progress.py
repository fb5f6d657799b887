"""What collectors say of hosts, and the time before which an answer is complete."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

from batcher.buffer import Custody
from batcher.progress import ProgressKeeper
from batcher.watermark import Placed, Placements, decode_placed
from runtime.clock import SystemClock
from runtime.consumer import Delivery
from schemas.codec import encode
from schemas.ids import new_id
from schemas.progress import HostProgress
from schemas.subjects import metrics_enriched, metrics_progress, vm_key
from tests.support.frames import record
from tests.support.pipeline_model import Table
from tests.unit.batcher.test_buffer import Answers

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Desk:
    """A keeper, its store, and the floor that a test sets."""

    def __init__(self) -> None:
        self.table = Table()
        self.floor = 0
        refusals: Any = self
        self.refused: list[str] = []
        self.answers: dict[int, Answers] = {}
        custody = Custody(SystemClock(), renew_after_s=1)
        self.keeper = ProgressKeeper(self.table, custody, refusals, self._ack_floor)

    async def _ack_floor(self) -> int:
        return self.floor

    async def refuse(self, _delivery: Delivery, reason: str, _detail: str) -> None:
        self.refused.append(reason)

    async def say(self, place: int, **complete_ms: int) -> None:
        await self.deliver(place, encode(HostProgress(complete_ms=complete_ms)))

    async def deliver(self, place: int, data: bytes) -> None:
        answers = self.answers[place] = Answers()
        raw: Any = answers
        await self.keeper.take(
            Delivery(raw, metrics_progress("collector"), data, {}, "METRICS_ENRICHED", place, 1)
        )

    @property
    def answered(self) -> list[int]:
        return [place for place, answers in self.answers.items() if answers.said]


async def test_a_message_is_written_once_every_frame_before_it_is_answered() -> None:
    """And is answered itself only after that."""
    desk = Desk()
    await desk.say(10, a=1000, b=900)
    desk.floor = 8
    assert not await desk.keeper.look()
    assert (desk.table.complete_ms, desk.answered) == ({}, [])
    desk.floor = 9
    assert await desk.keeper.look()
    assert (desk.table.complete_ms, desk.answered) == ({"a": 1000, "b": 900}, [10])
    assert len(desk.keeper) == 0


async def test_what_a_later_message_says_as_well_need_not_wait() -> None:
    """All but the first, which is closest to coming true, and what nobody else says."""
    desk = Desk()
    await desk.say(10, a=1000)
    await desk.say(20, a=2000)
    await desk.say(30, a=3000, b=1)
    await desk.say(40, b=2)
    assert desk.answered == [20]
    desk.floor = 9
    assert await desk.keeper.look()
    assert desk.table.complete_ms == {"a": 1000}
    assert desk.answered == [10, 20]


async def test_a_message_that_comes_again_is_the_first_again() -> None:
    """Another batcher had it, and has ended: the floor stands before it."""
    desk = Desk()
    await desk.say(20, a=2000)
    await desk.say(10, a=1000, b=5)
    desk.floor = 9
    assert await desk.keeper.look()
    desk.floor = 19
    assert await desk.keeper.look()
    assert desk.table.complete_ms == {"a": 2000, "b": 5}


async def test_a_store_that_is_away_loses_nothing() -> None:
    """It is written once the store is back."""
    desk = Desk()
    await desk.say(1, a=1000)
    desk.table.away = True
    task = asyncio.create_task(desk.keeper.run(), name="keeper")
    try:
        async with asyncio.timeout(10):
            while not desk.table.refused:
                await asyncio.sleep(0.01)
            assert desk.answered == []
            desk.table.away = False
            while len(desk.keeper):
                await asyncio.sleep(0.01)
    finally:
        task.cancel()
        await asyncio.wait({task})
    assert desk.table.complete_ms == {"a": 1000}


async def test_what_says_nothing_is_refused() -> None:
    """It neither waits nor holds up what does."""
    desk = Desk()
    await desk.deliver(1, b"{}")
    await desk.deliver(2, b"garbage")
    assert desk.refused == ["invalid_message", "not_json"]
    assert len(desk.keeper) == 0


def test_only_subjects_tell_frames_from_progress() -> None:
    """A host's frame can never pass for it."""
    for subject, is_progress in (
        (metrics_enriched("progress"), False),
        (metrics_progress("c"), True),
    ):
        raw: Any = None
        assert ProgressKeeper.concerns(Delivery(raw, subject, b"", {}, "", 1, 1)) is is_progress


def test_the_hosts_of_a_customer_are_those_that_its_records_name() -> None:
    """Per host until when: always, or until the last of its VMs was deleted."""
    placements = Placements()
    vms = [new_id() for _ in range(5)]
    for vm_id, host, deleted in (
        (vms[0], "h1", None),
        (vms[1], "h1", NOW),
        (vms[2], "h2", NOW),
        (vms[3], "h2", NOW + timedelta(seconds=1)),
    ):
        placements.change(
            vm_key("acme", vm_id),
            Placed(vm_id=vm_id, customer_id="acme", host_id=host, deleted_at=deleted),
        )
    now_ms = int(NOW.timestamp() * 1000)
    assert placements.hosts("acme", ()) == {"h1": None, "h2": now_ms + 1000}
    assert placements.hosts("acme", (vms[1], vms[2])) == {"h1": now_ms, "h2": now_ms}
    assert placements.hosts("acme", (vms[4],)) == {}
    assert placements.hosts("other", ()) == {}
    # What is another's by a correction comes from the host of the VM that it was on.
    assert placements.hosts("other", (), [vms[0], vms[3]]) == {"h1": None, "h2": now_ms + 1000}
    assert placements.hosts("other", (vms[3],), [vms[0], vms[3]]) == {"h2": now_ms + 1000}
    assert placements.hosts("other", (), [vms[4]]) == {}
    assert (placements.knows("acme"), placements.knows("other")) == (True, False)
    placements.change(vm_key("acme", vms[0]), None)
    assert placements.hosts("acme", ()) == {"h1": now_ms, "h2": now_ms + 1000}


def test_a_place_is_read_from_a_whole_record() -> None:
    """What the gateway writes holds more."""
    whole = record(new_id())
    assert decode_placed(encode(whole)) == Placed(
        vm_id=whole.vm_id, customer_id=whole.customer_id, host_id=whole.host_id
    )
