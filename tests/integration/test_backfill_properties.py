"""Conservation: whatever is corrected how often, and whatever comes late, the sum stays."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from uuid import UUID

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.errors import TransientError
from schemas.corrections import BackfillWish
from schemas.frames import EnrichedFrame
from schemas.ids import new_id
from schemas.vms import METERS, Counters
from tests.support.backfill import Past, life, past

CUSTOMERS = ("acme", "bolt", "corp")
TICKS = 40
LIVES = 3


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def store(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Past]:
    async with past(tmp_path_factory.mktemp("properties")) as opened:
        yield opened


@dataclass(frozen=True)
class Round:
    """What happens at once.

    Attributes:
        wishes: Place of a VM, customer, first and last incarnation.
        early: Frames that come between a correction and its move; by VM and place.
        late: Those that come after it.
        dies: The move ends with an error after so many statements, and is begun anew.
    """

    wishes: list[tuple[int, str, int, int]]
    early: set[tuple[int, int]]
    late: set[tuple[int, int]]
    dies: int | None


@st.composite
def rounds(draw: st.DrawFn) -> Round:
    frames = st.sets(st.tuples(st.integers(0, 1), st.integers(0, LIVES * TICKS - 1)), max_size=30)
    wishes = []
    for vm in (0, 1):
        if draw(st.booleans()):
            first = draw(st.integers(1, LIVES))
            last = draw(st.integers(first, LIVES))
            wishes.append((vm, draw(st.sampled_from(CUSTOMERS)), first, last))
    return Round(wishes, draw(frames), draw(frames), draw(st.none() | st.integers(0, 8)))


@pytest.mark.asyncio(loop_scope="module")
@settings(
    max_examples=5,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(st.lists(rounds(), min_size=1, max_size=3))
async def test_the_sum_over_all_customers_stays_to_the_unit(
    store: Past, history: list[Round]
) -> None:
    """Each incarnation is billed once, to the customer whom the latest correction names."""
    vms = [new_id(), new_id()]
    frames = [_three_lives(vm_id) for vm_id in vms]
    owners = {(vm, number): "acme" for vm in (0, 1) for number in range(1, LIVES + 1)}
    await store.publish([frame for of_vm in frames for frame in of_vm])
    await store.stored()
    for one in history:
        for vm, customer, first, last in one.wishes:
            wish = BackfillWish(
                vm_id=vms[vm], customer_id=customer, first_incarnation=first, last_incarnation=last
            )
            await store.correct(wish, settle=False)
            owners |= {(vm, number): customer for number in range(first, last + 1)}
        await store.publish([frames[vm][place] for vm, place in sorted(one.early)], again=True)
        store.store.lives = one.dies
        try:
            await store.settle(*vms)
        except TransientError:
            store.store.lives = None
            await store.settle(*vms)
        store.store.lives = None
        await store.publish([frames[vm][place] for vm, place in sorted(one.late)], again=True)
        await store.stored()
        await _billed(store, vms, owners)


async def _billed(store: Past, vms: list[UUID], owners: dict[tuple[int, int], str]) -> None:
    for customer in CUSTOMERS:
        found = await store.used(customer, range(10_000), *vms)
        for place, vm_id in enumerate(vms):
            mine = [n for n in range(1, LIVES + 1) if owners[place, n] == customer]
            assert found.get(vm_id, Counters()) == _used(mine), (customer, place)
            assert bool(await store.rows(customer, vm_id)) == bool(mine)


def _three_lives(vm_id: UUID) -> list[EnrichedFrame]:
    return [
        frame
        for number in range(1, LIVES + 1)
        for frame in life(
            vm_id, range(1000 * number, 1000 * number + TICKS), incarnation=number, step=7 * number
        )
    ]


def _used(incarnations: list[int]) -> Counters:
    return Counters(
        **{
            meter: sum((TICKS - 1) * (7 * number + place) for number in incarnations)
            for place, meter in enumerate(METERS)
        }
    )
