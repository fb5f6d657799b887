"""Frames that were enriched before a correction are stored by it."""

from __future__ import annotations

import time
from uuid import UUID

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from batcher.amendment import View
from batcher.batch import table
from runtime.corrections import CorrectionIndex
from schemas.corrections import Correction
from schemas.frames import EnrichedFrame
from schemas.ids import new_id
from tests.support.corrections import corrected, owned, planned
from tests.support.store import DAY_NS, Reading, enriched

VMS = [new_id() for _ in range(4)]
BASE_MS = time.time_ns() // 10**9 * 1000 - 60_000


def view_of(corrections: dict[UUID, list[Correction]]) -> View:
    index = CorrectionIndex()
    for vm_id, some in corrections.items():
        index.change(str(vm_id), corrected(vm_id, *some))
    return View(index.version, index.snapshot())


def frames_of(ticks: range, incarnation: int = 1) -> list[EnrichedFrame]:
    return [
        enriched([Reading(vm, BASE_MS + 100 * tick, incarnation) for vm in VMS], seq=tick)
        for tick in ticks
    ]


def rows(frames: list[EnrichedFrame]) -> set[tuple[object, ...]]:
    found = table(frames, now_ns=time.time_ns(), keep_ns=DAY_NS).to_pylist()
    return {
        (
            UUID(bytes=r["vm_id"]).int,
            r["tick_ms"],
            r["customer_id"],
            r["pool"],
            r["region"],
            r["price_plan"],
        )
        for r in found
    }


def test_frames_of_nobody_who_was_corrected_are_the_same_frames() -> None:
    """Without corrections, and of other VMs: not even copied, and no other batch by their id."""
    frames = frames_of(range(3))
    assert view_of({}).amend(frames) == (frames, "")
    assert view_of({}).amend(frames)[0] is frames
    assert view_of({new_id(): [owned("bolt")]}).amend(frames)[0] is frames


def test_a_batch_by_another_correction_is_another_batch() -> None:
    """Else the store would take it for the one that it has: also when it says the same again."""
    frames = frames_of(range(2))
    to_bolt, back = owned("bolt"), owned("acme")
    lists: list[list[Correction]] = [[to_bolt], [to_bolt, back], [to_bolt, back, owned("bolt")]]
    marks = [view_of({VMS[0]: some}).amend(frames)[1] for some in lists]
    assert len({*marks, ""}) == 4
    assert view_of({VMS[0]: lists[0]}).amend(frames)[1] == marks[0]


@st.composite
def corrections(draw: st.DrawFn) -> list[Correction]:
    found: list[Correction] = []
    for _ in range(draw(st.integers(0, 4))):
        if draw(st.booleans()):
            first = draw(st.integers(1, 3))
            found.append(
                owned(draw(st.sampled_from(("acme", "bolt", "corp"))), first,
                      draw(st.integers(first, 3)))
            )  # fmt: skip
        else:
            begin = draw(st.integers(0, 8))
            end = draw(st.integers(begin + 1, 10))
            found.append(
                planned(
                    BASE_MS + 100 * begin,
                    BASE_MS + 100 * end,
                    pool=draw(st.sampled_from((None, "fast"))),
                    region=draw(st.sampled_from((None, "north", "south"))),
                    price_plan=draw(st.sampled_from((None, "gold", "iron"))),
                )
            )
    return found


@settings(deadline=None)
@given(st.fixed_dictionaries(dict.fromkeys(VMS[:3], corrections())), st.integers(1, 3))
def test_each_row_is_what_the_latest_corrections_say(
    said: dict[UUID, list[Correction]], incarnation: int
) -> None:
    """Row by row and word by word, however corrections overlap; no row is lost or doubled."""
    frames = frames_of(range(10), incarnation)
    amended, _ = view_of(said).amend(frames)
    expected = set()
    for vm_id in VMS:
        for tick in range(10):
            at_ms = BASE_MS + 100 * tick
            row = {
                "customer_id": "acme",
                "pool": "default",
                "region": "local",
                "price_plan": "default",
            }
            for one in said.get(vm_id, []):
                words = msgspec.structs.asdict(one)
                if "from_ms" in words:
                    here = words["from_ms"] <= at_ms < words["until_ms"]
                else:
                    here = words["first_incarnation"] <= incarnation <= words["last_incarnation"]
                row |= {k: words[k] for k in row if here and words.get(k)}
            expected.add((vm_id.int, at_ms, *row.values()))
    assert rows(list(amended)) == expected
    assert sum(frame.rows for frame in amended) == 40
