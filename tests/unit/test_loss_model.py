"""No complete answer changes by what a lost host sends, but by what is listed as an adjustment.

One host ticks for ever, and sends its frames in order whenever it can. What it has sent is stored
up to 15 s after it was collected, in order. It is declared lost and found at any time when nothing
of it is on its way (a collector sees to that; see `runtime.transit`); answers are asked for at
any time.
"""

from __future__ import annotations

from collections import deque
from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from batcher.watermark import settle
from collector.losses import Losses
from schemas.hosts import HostLoss

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
START_MS = 1_760_000_000_000
TICK_MS = 1000
MARGIN_MS = 30_000
MOST_LAG_MS = 15_000
HOST = "h1"

_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["wait", "wait", "send", "send some", "lose", "find", "ask"]),
        st.integers(1, 40),
    ),
    max_size=80,
)


def at(ms: int) -> datetime:
    return EPOCH + timedelta(milliseconds=ms)


class Way:
    """A host, a collector, a store and who asks."""

    def __init__(self, lag_ms: int) -> None:
        self.losses = Losses()
        self.now_ms = START_MS
        self.lag_ms = lag_ms
        self.next_tick_ms = START_MS
        self.spool: deque[int] = deque()
        self.transit: deque[tuple[int, int, bool]] = deque()
        self.told_ms = START_MS
        self.passed_ms = 0

    def wait(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now_ms += TICK_MS
            while self.next_tick_ms < self.now_ms:
                self.spool.append(self.next_tick_ms)
                self.next_tick_ms += TICK_MS
            self.store()

    def send(self, most: int) -> None:
        while self.spool and most:
            tick_ms, most = self.spool.popleft(), most - 1
            passed = self.losses.passed(HOST, self.now_ms)
            listed = passed is not None and tick_ms < passed.until_ms
            self.transit.append((self.now_ms + self.lag_ms, tick_ms, listed))
        self.store()

    def store(self) -> None:
        while self.transit and self.transit[0][0] <= self.now_ms:
            _, tick_ms, listed = self.transit.popleft()
            assert listed or tick_ms >= self.passed_ms, "a complete answer has changed"
            self.told_ms = tick_ms

    def lose(self) -> None:
        if not self.transit and HOST not in self.losses.standing:
            loss = HostLoss(host_id=HOST, reason="x", requested_by="y", declared_at=at(self.now_ms))
            self.losses.change(HOST, loss)

    def find(self) -> None:
        if HOST in self.losses.standing:
            self.losses.change(HOST, None)
            self.losses.removed(HOST, at(self.now_ms))

    def ask(self) -> None:
        until = settle(
            {HOST: None},
            {HOST: self.told_ms},
            self.losses.standing,
            start_ms=0,
            latest_ms=self.now_ms - MARGIN_MS,
            margin_ms=MARGIN_MS,
        )
        assert until.time is not None
        until_ms = (until.time - EPOCH) // timedelta(milliseconds=1)
        self.passed_ms = max(self.passed_ms, until_ms)


@settings(max_examples=400)
@given(_STEPS, st.integers(0, MOST_LAG_MS // 1000))
def test_a_complete_answer_changes_only_by_what_is_listed(
    steps: list[tuple[str, int]], lag_s: int
) -> None:
    """Whenever the host is cut off, lost, found, lost again."""
    way = Way(lag_s * 1000)
    for what, number in steps:
        match what:
            case "wait":
                way.wait(number)
            case "send":
                way.send(10**9)
            case "send some":
                way.send(number)
            case "lose":
                way.lose()
            case "find":
                way.find()
            case _:
                way.ask()
    way.ask()
    way.send(10**9)
    way.wait(60)


def test_the_hours_between_a_loss_and_the_return_are_listed() -> None:
    """They are from after the declaration, and answers have passed them all the same."""
    way = Way(0)
    way.wait(10)
    way.send(10**9)
    way.lose()
    way.wait(3600)
    way.ask()
    assert way.passed_ms == way.now_ms - MARGIN_MS
    passed = way.losses.passed(HOST, way.now_ms)
    assert passed is not None
    assert passed.until_ms > way.passed_ms
    way.find()
    way.wait(3600)
    way.send(10**9)
    assert way.told_ms == way.next_tick_ms - TICK_MS
