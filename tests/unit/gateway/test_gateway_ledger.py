"""Granting against a quota: gateways in any order, each with its own view of the records."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from gateway.ledger import Wish, added, decide, held
from schemas.quotas import Amounts, Hold, QuotaLedger

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ONE = Amounts(slots=1, vcpus=2)
LIMITS = Amounts(slots=3, vcpus=100, memory_mib=1000)
LASTS = timedelta(seconds=30)


def granted(ledger: QuotaLedger, *wishes: Wish, **changes: object) -> tuple[QuotaLedger, set[str]]:
    """What is granted where nothing is recorded."""
    options = {
        "known": lambda _: False,
        "stored": lambda _: False,
        "released": set(),
        "revisions": {},
        **changes,
    }
    decision = decide(ledger, wishes, LIMITS, Amounts(), NOW, **options)  # type: ignore[arg-type]
    return decision.ledger, {wish.hold_id for wish in wishes} - set(decision.refused)


def wish(name: str, amounts: Amounts = ONE) -> Wish:
    return Wish(name, amounts, NOW + LASTS)


def test_wishes_are_granted_in_order_while_they_fit() -> None:
    """The fourth is refused with the reason; asking again for one that was granted is free."""
    ledger, given = granted(QuotaLedger(), *(wish(name) for name in "abcd"))
    assert given == {"a", "b", "c"}
    again, given = granted(ledger, wish("a"))
    assert (again, given) == (ledger, {"a"})
    decision = decide(
        ledger, [wish("e", Amounts(slots=1, memory_mib=2000))], LIMITS, Amounts(), NOW,
        known=lambda _: False, stored=lambda _: False, released=set(), revisions={},
    )  # fmt: skip
    assert decision.refused == {"e": "memory_mib 2000 of 1000, slots 4 of 3"}


def test_a_hold_of_a_gateway_that_died_is_given_back() -> None:
    """After its time, and one that is released at once."""
    dead = {name: Hold(amounts=ONE, until=NOW - timedelta(seconds=1)) for name in "abc"}
    ledger, given = granted(QuotaLedger(holds=dead), wish("d"))
    assert (set(ledger.holds), given) == ({"d"}, {"d"})
    live = {name: Hold(amounts=ONE, until=NOW + LASTS) for name in "abc"}
    assert granted(QuotaLedger(holds=live), wish("d"))[1] == set()
    ledger, given = granted(QuotaLedger(holds=live), wish("d"), released={"b"})
    assert (set(ledger.holds), given) == ({"a", "c", "d"}, {"d"})


def test_more_of_what_is_not_over_its_limit_is_granted() -> None:
    """A limit that was lowered below what is there refuses only more of the same."""
    decision = decide(
        QuotaLedger(), [wish("s", Amounts(snapshots=1)), wish("v")],
        Amounts(slots=1, vcpus=10, snapshots=5), Amounts(slots=4, vcpus=4), NOW,
        known=lambda _: False, stored=lambda _: False, released=set(), revisions={},
    )  # fmt: skip
    assert decision.refused == {"v": "slots 5 of 1"}


@dataclass
class Gateway:
    """What one gateway has read and noted."""

    read: int = 0
    cached: tuple[QuotaLedger, int] = (QuotaLedger(), 0)
    to_record: list[str] = field(default_factory=list)
    noted: set[str] = field(default_factory=set)


class Racing(RuleBasedStateMachine):
    """Three gateways, one server: a log of records, and one ledger with compare and set."""

    @initialize()
    def begin(self) -> None:
        self.log: list[tuple[str, bool]] = []  # id, made or removed; position is the revision
        self.ledger: tuple[QuotaLedger, int] = (QuotaLedger(), 0)
        self.gateways = [Gateway() for _ in range(3)]
        self.count = 0

    def _standing(self, upto: int) -> set[str]:
        found: set[str] = set()
        for name, made in self.log[:upto]:
            (found.add if made else found.discard)(name)
        return found

    @rule(number=st.integers(0, 2), wishes=st.integers(1, 3), fresh=st.booleans())
    def reserve(self, number: int, wishes: int, fresh: bool) -> None:
        gateway = self.gateways[number]
        ledger, revision = self.ledger if fresh else gateway.cached
        gateway.read = max(gateway.read, ledger.seen.get("specs", 0))
        ever = {name for name, _ in self.log[: gateway.read]}
        standing = self._standing(gateway.read)
        counted = standing | {n for n in gateway.noted if n not in ever}
        asked = [wish(f"v{self.count + n}") for n in range(wishes)]
        self.count += wishes
        decision = decide(
            ledger, asked, LIMITS, added(ONE for _ in counted), NOW,
            known=lambda name: name in ever or name in gateway.noted,
            stored=lambda name: name in standing,
            released=set(), revisions={"specs": gateway.read},
        )  # fmt: skip
        if revision != self.ledger[1]:
            return  # somebody else has written
        self.ledger = gateway.cached = decision.ledger, revision + 1
        made = [one.hold_id for one in asked if one.hold_id not in decision.refused]
        gateway.to_record += made
        gateway.noted |= set(made)

    @rule(number=st.integers(0, 2))
    def record(self, number: int) -> None:
        gateway = self.gateways[number]
        if gateway.to_record:
            self.log.append((gateway.to_record.pop(0), True))

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        standing = sorted(self._standing(len(self.log)))
        if standing:
            self.log.append((data.draw(st.sampled_from(standing)), False))

    @rule(number=st.integers(0, 2), steps=st.integers(1, 5))
    def read(self, number: int, steps: int) -> None:
        gateway = self.gateways[number]
        gateway.read = min(len(self.log), gateway.read + steps)
        gateway.cached = self.ledger

    @invariant()
    def never_more_than_the_limit(self) -> None:
        if hasattr(self, "log"):
            open_ones = {name for gateway in self.gateways for name in gateway.to_record}
            assert len(self._standing(len(self.log)) | open_ones) <= 3


TestRacing = Racing.TestCase
TestRacing.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_what_is_held_counts_once() -> None:
    """Not what the records know, nor what is over."""
    holds = {
        "known": Hold(amounts=ONE, until=NOW + LASTS),
        "open": Hold(amounts=ONE, until=NOW + LASTS),
        "over": Hold(amounts=ONE, until=NOW),
    }
    found = held(QuotaLedger(holds=holds), NOW, known=lambda name: name == "known")
    assert found == ONE
