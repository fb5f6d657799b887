"""One life of a storm against a deployment that follows a script."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import httpx
import pytest

from decisec.sdk.errors import UnexpectedAnswerError, error_of
from schemas.api import CreateVmRequest, OperationView, Problem, VmAndOperation, VmView
from schemas.errors import ErrorCode
from schemas.hosts import OperationStatus
from schemas.ids import new_id
from schemas.usage import UsageReport
from schemas.vms import VmState
from tests.load.flood.commands.doors import (
    NOT_REACHED,
    Door,
    RefusedError,
    UnansweredError,
    refusal,
)
from tests.load.flood.commands.endings import End, Endings
from tests.load.flood.commands.life import Life, Living
from tests.load.flood.commands.plan import StormPlan
from tests.load.flood.commands.tally import Tally

Answer = Exception | None


class ScriptedDoor(Door):
    """Answers each command as its script says; without one it accepts.

    Attributes:
        asked: Verbs of all requests, in order.
    """

    name = "script"
    customer = "acme"

    def __init__(self, **script: list[Answer]) -> None:
        self._script: dict[str, Iterator[Answer]] = {k: iter(v) for k, v in script.items()}
        self.vm_id = new_id()
        self.asked: list[str] = []

    async def create(self, request: CreateVmRequest) -> VmAndOperation:
        self.request = request
        return self._answer("create")

    async def act(self, vm_id: UUID, verb: str, *, wait_s: float = 0.0) -> VmAndOperation:
        assert vm_id == self.vm_id
        return self._answer(verb)

    async def look(self, vm_id: UUID) -> VmView | None:
        return None

    async def usage(self, start: datetime, end: datetime, vm_ids: tuple[UUID, ...]) -> UsageReport:
        raise RefusedError("forbidden", "not here")

    def _answer(self, verb: str) -> VmAndOperation:
        self.asked.append(verb)
        if (answer := next(self._script.get(verb, iter(())), None)) is not None:
            raise answer
        now = datetime.now(UTC)
        return VmAndOperation(
            vm=VmView(
                vm_id=self.vm_id, customer_id="acme", name="", state=VmState.PENDING,
                spec=self.request.to_spec(), host_id="h1", created_at=now,
            ),
            operation=OperationView(
                operation_id=new_id(), vm_id=self.vm_id, verb=verb,
                status=OperationStatus.PENDING, created_at=now,
                deadline=now + timedelta(minutes=1),
            ),
        )  # fmt: skip


class ScriptedEndings(Endings):
    """Every command ends well at once, but for those that the script names by their number."""

    how = "script"

    def __init__(self, **script: End | None) -> None:
        self._script = script
        self._count = 0

    async def end(self, door: Door, vm_id: UUID, operation_id: UUID, within_s: float) -> End | None:
        assert isinstance(door, ScriptedDoor)
        return self._script.get(door.asked[-1], End(time.monotonic()))


async def led(
    door: ScriptedDoor,
    endings: ScriptedEndings | None = None,
    *,
    killed: bool = False,
    stop: asyncio.Event | None = None,
) -> tuple[Tally, Life]:
    """A life, led to its end."""
    tally = Tally()
    plan = StormPlan(up_s=0.0, tries=3, within_s=1.0)
    living = Living(
        "5702", plan, endings or ScriptedEndings(), tally, stop or asyncio.Event(), False
    )
    life = Life(0, door, time.monotonic(), killed)
    async with asyncio.timeout(20):
        await living.lead(life)
    return tally, life


async def test_a_whole_life_is_four_commands() -> None:
    """Three where the VM is deleted as it runs; it has the storm's label."""
    door = ScriptedDoor()
    tally, life = await led(door)
    assert door.asked == ["create", "boot", "shutdown", "delete"]
    assert door.request.labels == {"flood": "5702"}
    assert (tally.whole, life.booted, life.deleted, tally.problems) == (1, True, True, [])
    assert tally.commands["delete"].done_in.count == 1
    door = ScriptedDoor()
    tally, _ = await led(door, killed=True)
    assert door.asked == ["create", "boot", "delete"]
    assert tally.whole == 1


async def test_what_is_refused_for_now_is_asked_again_when_it_was_said() -> None:
    """429 with Retry-After, 503 without; the latency counts from the first try on."""
    limited = RefusedError(ErrorCode.RATE_LIMITED, "slow down", retry_after_s=0.5)
    door = ScriptedDoor(create=[limited, RefusedError(ErrorCode.UNAVAILABLE, "away")])
    tally, _ = await led(door)
    create = tally.commands["create"]
    assert create.refused == {"rate_limited": 1, "unavailable": 1}
    assert (create.accepted, create.given_up.total(), tally.whole) == (1, 0, 1)
    assert create.accepted_in.report()["max"] >= 500 + 200


async def test_tries_are_bounded_and_some_refusals_are_for_good() -> None:
    """Nothing is made, nothing is wrong."""
    limited = [RefusedError(ErrorCode.RATE_LIMITED, "no", retry_after_s=0.0) for _ in range(9)]
    door = ScriptedDoor(create=[*limited])
    tally, life = await led(door)
    assert door.asked == ["create"] * 3
    assert tally.commands["create"].given_up == {"rate_limited": 1}
    assert (life.vm_id, tally.whole, tally.problems) == (None, 0, [])
    door = ScriptedDoor(create=[RefusedError(ErrorCode.FORBIDDEN, "the quota")])
    tally, _ = await led(door)
    assert (door.asked, tally.commands["create"].given_up) == (["create"], {"forbidden": 1})


async def test_a_vm_that_does_not_boot_is_deleted() -> None:
    """A failure is told by its code; it is no loss."""
    door = ScriptedDoor()
    tally, life = await led(door, ScriptedEndings(boot=End(0.0, "hypervisor_failed")))
    assert door.asked == ["create", "boot", "delete"]
    assert tally.commands["boot"].failed == {"hypervisor_failed": 1}
    assert (tally.whole, life.deleted, tally.problems) == (0, True, [])


@pytest.mark.parametrize("end", [None, End(0.0, "deadline_exceeded")])
async def test_a_command_that_was_accepted_and_never_done_is_lost(end: End | None) -> None:
    """Whether nothing was heard of it, or no host began it."""
    tally, _ = await led(ScriptedDoor(), ScriptedEndings(shutdown=end))
    assert tally.total("lost") == 1
    assert "shutdown of VM" in tally.problems[0]


async def test_what_others_delete_and_what_nobody_answers_are_told() -> None:
    """Once each; nothing more is asked of a VM that is gone."""
    door = ScriptedDoor(shutdown=[RefusedError(ErrorCode.NOT_FOUND, "no such VM")])
    tally, life = await led(door)
    assert (tally.vanished, life.deleted, tally.whole) == (1, True, 0)
    assert door.asked == ["create", "boot", "shutdown"]
    assert "gone before it was deleted" in tally.problems[0]
    tally, _ = await led(ScriptedDoor(create=[UnansweredError("cut")]))
    assert tally.total("unanswered") == 1
    assert "create in life 0 was not answered" in tally.problems[0]


async def test_a_life_that_is_to_stop_goes_straight_to_its_deletion() -> None:
    """And one that was refused for now is not begun."""
    stop = asyncio.Event()
    stop.set()
    door = ScriptedDoor()
    await led(door, stop=stop)
    assert door.asked == ["create", "delete"]
    refused = RefusedError(ErrorCode.UNAVAILABLE, "away", retry_after_s=60.0)
    door = ScriptedDoor(create=[refused])
    tally, _ = await led(door, stop=stop)
    assert (door.asked, tally.commands["create"].given_up) == (["create"], {"unavailable": 1})


def test_errors_of_the_api_are_told_apart() -> None:
    """What was refused, what was not taken in, and what may have been."""

    def problem(code: str, status: int) -> Problem:
        return Problem(type="about:blank", title="", status=status, code=code)

    limited = refusal(error_of(problem("rate_limited", 429), 429, 7.0))
    assert isinstance(limited, RefusedError)
    assert (limited.code, limited.retry_after_s, limited.for_now) == ("rate_limited", 7.0, True)
    forbidden = refusal(error_of(problem("forbidden", 403), 403))
    assert isinstance(forbidden, RefusedError)
    assert not forbidden.for_now
    away = refusal(httpx.ConnectError("no"))
    assert isinstance(away, RefusedError)
    assert (away.code, away.for_now) == (NOT_REACHED, True)
    assert isinstance(refusal(httpx.ReadTimeout("cut")), UnansweredError)
    proxy = UnexpectedAnswerError(problem("unexpected_answer", 502), 502)
    assert isinstance(refusal(proxy), UnansweredError)
