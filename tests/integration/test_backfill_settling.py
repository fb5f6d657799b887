"""The store kept in agreement with the corrections: by whom, when, and what stops it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from batcher.mover import Mover, OutdatedError
from decisec.backfill import Corrections, RefusedError
from runtime.corrections import Attribution
from schemas.ids import new_id
from tests.support.backfill import ALL, BASE_MS, Gated, Past, life, own, past, used
from tests.support.corrections import corrected, owned, planned
from tests.support.store import insert


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Past]:
    async with past(tmp_path) as opened:
        yield opened


async def test_rows_that_another_batcher_left_by_a_former_view_are_found(store: Past) -> None:
    """It was killed before it could know better, and never came back."""
    vm_id = new_id()
    frames = life(vm_id, range(100))
    await store.publish(frames[:50])
    await store.stored()
    await store.correct(own(vm_id, "bolt", running=True))
    await insert(store.store, frames[50:])
    assert await store.rows("acme", vm_id) != {}
    settler = store.settler(look_every_s=0.05)
    settling = asyncio.create_task(settler.run())
    async with asyncio.timeout(30):
        while await store.rows("acme", vm_id):
            await asyncio.sleep(0.05)
    settling.cancel()
    assert await store.used("bolt", ALL) == {vm_id: used(100)}


async def test_answers_are_not_complete_while_rows_move(store: Past) -> None:
    """Neither the former owner's nor the new one's; others' are."""
    vm_id, other = new_id(), new_id()
    await store.publish([*life(vm_id, range(50)), *life(other, range(50))])
    await store.stored()
    watermark = store.watermark()
    assert await watermark.undisturbed("acme", ()) is not None
    await store.correct(own(vm_id, "bolt"), settle=False)
    for customer, vm_ids, moving in (
        ("acme", (), True),
        ("acme", (vm_id,), True),
        ("acme", (other,), False),
        ("bolt", (), True),
        ("corp", (), False),
    ):
        assert (await watermark.undisturbed(customer, vm_ids) is None) == moving, customer
    await store.settle(vm_id)
    before = await watermark.undisturbed("acme", ())
    assert before is not None
    await store.correct(own(vm_id, "corp"))
    assert await watermark.undisturbed("acme", ()) not in (before, None)


async def test_a_store_that_refuses_is_told_of_and_asked_again(store: Past) -> None:
    """Whoever waits hears why; once it may, it is done, and the problem is gone."""
    vm_id = new_id()
    await store.publish(life(vm_id, range(50)))
    await store.stored()
    asked = await store.correct(own(vm_id, "bolt"), settle=False)
    assert asked.correction is not None
    store.store.refuses = True
    settling = asyncio.create_task(store.settler().run())
    with pytest.raises(RefusedError, match="may not"):
        await Corrections(store.bus).applied(vm_id, asked.correction.correction_id)
    settling.cancel()
    assert len(await store.rows("acme", vm_id)) == 4
    assert await store.rows("bolt", vm_id) == {}
    store.store.refuses = False
    await store.settle(vm_id)
    applied = await Corrections(store.bus).applied(vm_id, asked.correction.correction_id)
    assert applied.problem == ""
    assert await store.rows("acme", vm_id) == {}


class OnReplicas(Gated):
    """The embedded store as if it had replicas: they are parsed and not waited for.

    Attributes:
        done: What was asked of it, in order.
    """

    def __init__(self, inner: Gated) -> None:
        super().__init__(inner)
        self.settings = replace(inner.settings, store_cluster="main")
        self.done: list[str] = []

    async def command(self, sql: str, parameters: Mapping[str, Any] | None = None) -> None:
        self.done.append(" ".join(sql.split()))
        if sql.startswith("SYSTEM SYNC REPLICA"):
            await self.query("SELECT formatQuery({sql:String})", {"sql": sql})
        else:
            await super().command(sql, parameters)


async def test_on_replicas_all_of_them_are_waited_for(store: Past) -> None:
    """Before rows are copied, for what others have taken; and until deleted rows are gone there."""
    vm_id = new_id()
    await store.publish(life(vm_id, range(50)))
    await store.stored()
    await store.correct(own(vm_id, "bolt"), settle=False)
    replicas = OnReplicas(store.store)
    gold = planned(BASE_MS, BASE_MS + 1000, price_plan="gold")
    attribution = Attribution(corrected(vm_id, owned("bolt"), gold))

    async def still_true() -> bool:
        return True

    await Mover(replicas).settle([attribution], still_true)
    kinds = [statement.partition(" ")[0] for statement in replicas.done]
    assert kinds == ["SYSTEM"] * 4 + ["INSERT"] * 4 + ["DELETE"] * 4 + ["ALTER"]
    assert all("deletes_sync = 2" in one for one in replicas.done if one.startswith("DELETE"))
    assert "mutations_sync = 2" in replicas.done[-1]
    assert await store.rows("acme", vm_id) == {}
    assert await store.used("bolt", ALL) == {vm_id: used(50)}


async def test_nothing_is_deleted_by_a_correction_that_is_not_the_last_one(store: Past) -> None:
    """Another one was accepted while rows were copied."""
    vm_id = new_id()
    await store.publish(life(vm_id, range(50)))
    await store.stored()

    async def still_true() -> bool:
        return False

    with pytest.raises(OutdatedError):
        await Mover(store.store).settle([Attribution(corrected(vm_id, owned("bolt")))], still_true)
    assert await store.used("acme", ALL) == {vm_id: used(50)}
