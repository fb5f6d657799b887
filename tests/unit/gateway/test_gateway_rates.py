"""Token buckets over several gateways, on a clock and a bus of the test's own."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.rates import MAX_BUCKETS, Buckets
from gateway.rounds import TICK_S, Rounds
from schemas.limits import Rate, SpendReport

RATE = Rate(per_s=100, burst=200)


class Replica:
    """A gateway: its buckets and its part in the rounds."""

    def __init__(self, name: str, rate: Rate, now_s: float) -> None:
        self.rate = rate
        self.buckets = Buckets(lambda _: rate)
        self.rounds = Rounds(name, self.buckets, now_s)
        self.connected = True
        self.admitted = 0

    def ask(self, now_s: float) -> bool:
        """Spend a token of the one bucket."""
        verdict = self.buckets.take("acme.reads", self.rate, now_s, self.rounds.members)
        self.admitted += verdict.admitted
        return verdict.admitted


class Fleet:
    """Replicas on a bus that takes some milliseconds, in simulated time."""

    def __init__(self, rate: Rate = RATE, seed: int = 0) -> None:
        self.now_s = 1000.0
        self.rate = rate
        self.replicas: dict[str, Replica] = {}
        self.left: list[Replica] = []
        self._random = random.Random(seed)  # noqa: S311 - no secret
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()

    def at(self, after_s: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.now_s + after_s, next(self._count), act))

    def join(self, name: str) -> Replica:
        replica = Replica(name, self.rate, self.now_s)
        others = [other for other in self.replicas.values() if other.connected]
        self.replicas[name] = replica
        if others:
            self._send(
                replica, replica.rounds.join(others[0].rounds.levels(self.now_s), self.now_s)
            )
        self._tick(replica)
        return replica

    def kill(self, name: str) -> None:
        self.left.append(self.replicas.pop(name))

    def load(self, names: Sequence[str], per_s: float) -> None:
        """Let requests come to these replicas at random, until they are killed."""

        def one(name: str) -> None:
            replica = self.replicas.get(name)
            if replica is not None:
                replica.ask(self.now_s)
                self.at(self._random.expovariate(per_s), lambda: one(name))

        for name in names:
            one(name)

    def run(self, for_s: float) -> None:
        end_s = self.now_s + for_s
        while self._queue and self._queue[0][0] <= end_s:
            self.now_s, _, act = heapq.heappop(self._queue)
            act()
        self.now_s = end_s

    @property
    def admitted(self) -> int:
        return sum(replica.admitted for replica in [*self.replicas.values(), *self.left])

    def _tick(self, replica: Replica) -> None:
        if replica in self.left:
            return
        if replica.connected:
            self._send(replica, replica.rounds.tick(self.now_s))
        else:
            replica.rounds.alone(self.now_s)
        self.at(TICK_S * self._random.uniform(0.95, 1.1), lambda: self._tick(replica))

    def _send(self, sender: Replica, report: SpendReport | None) -> None:
        if report is None or not sender.connected:
            return
        for replica in list(self.replicas.values()):
            delay_s = self._random.uniform(0.0002, 0.004)
            self.at(delay_s, lambda to=replica: self._deliver(to, report))  # type: ignore[misc]

    def _deliver(self, replica: Replica, report: SpendReport) -> None:
        if replica in self.left or not replica.connected:
            return
        self._send(replica, replica.rounds.hear(report, self.now_s))


def fleet(count: int, seed: int = 0, rate: Rate = RATE) -> tuple[Fleet, list[str]]:
    made = Fleet(rate, seed)
    names = [f"g{number}" for number in range(count)]
    for name in names:
        made.join(name)
    made.run(3)
    return made, names


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("per_s", [120, 400, 2000])
def test_a_steady_load_gets_the_limit_and_no_more(count: int, per_s: int) -> None:
    """Within 10 %, over any part of the time, however much more is asked."""
    made, names = fleet(count)
    made.load(names, per_s / count)
    marks = [0]
    for _ in range(20):
        made.run(1)
        marks.append(made.admitted)
    if per_s > 200:
        assert 0.9 * 2200 <= marks[-1] <= 1.1 * 2200
    for begin, end in itertools.combinations(range(21), 2):
        allowed = 200 + 100 * (end - begin)
        assert marks[end] - marks[begin] <= 1.1 * allowed


@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_load_on_one_gateway_gets_the_whole_limit(count: int) -> None:
    """What the others do not spend is not lost."""
    made, names = fleet(count)
    made.load(names[:1], 500)
    made.run(20)
    assert 0.9 * 2200 <= made.admitted <= 1.1 * 2200


@given(st.integers(2, 5), st.integers(0, 2**32), st.integers(1, 1000))
def test_a_burst_gets_the_burst_and_no_more(count: int, seed: int, at_once: int) -> None:
    """Requests all at once, at all gateways, again after a while."""
    made, names = fleet(count, seed)
    admitted = 0
    for _ in range(4):
        for name in names:
            for _ in range(at_once):
                made.replicas[name].ask(made.now_s)
        made.run(0.02)
    admitted = made.admitted
    assert admitted <= 1.1 * (200 + 100 * 0.1)
    assert admitted >= min(0.9 * 200, 4 * count * at_once)


@given(st.integers(0, 2**32), st.integers(2, 4))
def test_the_limit_holds_while_gateways_die_and_join(seed: int, count: int) -> None:
    """A dead one's share goes to the others, a new one gets none of what is spent."""
    made, names = fleet(count, seed)
    made.load(names, 600 / count)
    made.run(5)
    made.kill(names[0])
    made.run(5)
    made.join("new")
    made.load(["new"], 300)
    made.run(5)
    assert len({replica.rounds.members for replica in made.replicas.values()}) == 1
    assert next(iter(made.replicas.values())).rounds.members == count
    assert 0.9 * 1700 <= made.admitted <= 1.1 * 1700


@pytest.mark.parametrize("count", [2, 3])
def test_each_goes_on_by_its_share_while_nats_is_away(count: int) -> None:
    """The sum is still the limit, and stays so when NATS is back."""
    made, names = fleet(count)
    made.load(names, 900 / count)
    made.run(5)
    for replica in made.replicas.values():
        replica.connected = False
    before = [made.replicas[name].admitted for name in names]
    made.run(10)
    alone = [made.replicas[name].admitted - b for name, b in zip(names, before, strict=True)]
    assert all(0.85 * 1000 / count <= one <= 1.15 * 1000 / count for one in alone)
    for replica in made.replicas.values():
        replica.connected = True
    made.run(5)
    assert 0.9 * 2200 <= made.admitted <= 1.1 * 2200


def test_what_one_gateway_cannot_say_it_gets_its_share_of() -> None:
    """Cut off alone, it may spend its share; the others have the whole, as if it had died."""
    made, names = fleet(3)
    made.load(names, 400)
    made.run(2)
    made.replicas["g0"].connected = False
    before = made.replicas["g0"].admitted
    made.run(10)
    assert made.replicas["g0"].admitted - before <= 1.1 * (1000 / 3 + 200 / 3)


def test_memory_is_bounded_whatever_comes() -> None:
    """More names than there is room for share one bucket, and all is free again in time."""
    rate = Rate(per_s=10, burst=5)
    buckets = Buckets(lambda _: rate)
    for number in range(MAX_BUCKETS):
        assert buckets.take(f"@a{number}", rate, 0.0, 1).admitted
    answers = [buckets.take(f"@b{number}", rate, 0.01, 1).admitted for number in range(100)]
    assert sum(answers) == 5
    assert buckets.take("acme.reads", rate, 0.01, 1).admitted
    assert len(buckets) == MAX_BUCKETS + 2
    while spent := buckets.collect(1000):
        buckets.apply(spent, 0.02, mine=True)
    buckets.sweep(10.0)
    assert len(buckets) == 0


def test_a_verdict_says_when_to_come_again() -> None:
    """Waiting as long as it says is enough, and nearly as short as can be."""
    rate = Rate(per_s=2, burst=4)
    buckets = Buckets(lambda _: rate)
    verdicts = [buckets.take("acme.reads", rate, 0.0, 1) for _ in range(5)]
    assert [v.remaining for v in verdicts] == [3, 2, 1, 0, 0]
    assert [v.admitted for v in verdicts] == [True] * 4 + [False]
    assert verdicts[-1].retry_after_s == pytest.approx(0.5)
    assert verdicts[-1].reset_s == 2
    assert not buckets.take("acme.reads", rate, 0.49, 1).admitted
    assert buckets.take("acme.reads", rate, 0.51, 1).admitted


@given(st.dictionaries(st.text(max_size=20), st.integers(0, 10**9), max_size=5))
def test_a_report_of_anything_only_makes_a_bucket_wait(spent: dict[str, int]) -> None:
    """No report gives tokens, and a wild one is over after twice the time that a bucket takes."""
    buckets = Buckets(lambda _: RATE)
    buckets.apply({**spent, "acme.reads": 10**9}, 0.0, mine=False)
    assert not buckets.take("acme.reads", RATE, 0.0, 1).admitted
    assert buckets.take("acme.reads", RATE, 4.1, 1).admitted
