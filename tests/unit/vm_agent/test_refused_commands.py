"""Messages that must have no effect: each is refused with its reason, told once, and ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest

from runtime.clock import utc_now
from schemas.audit import OPERATOR, is_of_host
from schemas.codec import encode
from schemas.commands import (
    BootVm,
    Command,
    CreateVm,
    DeleteVm,
    PauseVm,
    RebootVm,
    ResumeVm,
    ShutdownVm,
    digest_of,
)
from schemas.errors import ErrorCode
from schemas.hosts import Operation, OperationStatus
from schemas.ids import new_id
from schemas.subjects import vm_command
from schemas.vms import VmSpec, VmState
from schemas.wishes import PlacementWishes
from tests.support.whole_agent import SPEC, Letter, Rig, whole_agent

pytestmark = pytest.mark.timeout(20)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with whole_agent(Rig(tmp_path, pool="fast", labels="disk=ssd")) as made:
        yield made


def command(kind: type[Any], vm_id: UUID, **fields: Any) -> Command:
    """One for this host."""
    given = {
        "command_id": new_id(),
        "customer_id": "acme",
        "vm_id": vm_id,
        "host_id": "h1",
        "issued_at": utc_now(),
        "deadline": utc_now() + timedelta(minutes=1),
    }
    made: Command = kind(**{**given, **fields})
    return made


def pending(made: Command, **changes: Any) -> Operation:
    """What a gateway writes before it sends a command."""
    operation = Operation(
        operation_id=made.command_id,
        customer_id=made.customer_id,
        vm_id=made.vm_id,
        host_id=made.host_id,
        verb=made.verb,
        status=OperationStatus.PENDING,
        created_at=made.issued_at,
        deadline=made.deadline,
    )
    return msgspec.structs.replace(operation, **changes)


async def end(rig: Rig, made: Command, data: bytes = b"", subject: str = "") -> Letter:
    """Send it, and wait until it is answered for good."""
    letter = rig.letter(subject or vm_command(made), data or encode(made))
    await letter.answered.wait()
    return letter


async def told(rig: Rig, count: int) -> Counter[str]:
    """The reasons in the audit, once there are so many."""
    await rig.until(lambda: len(rig.entries) >= count)
    return Counter(entry.reason for entry in rig.entries)


async def test_what_is_no_command_is_ended_told_and_answered_where_it_can_be(rig: Rig) -> None:
    """An operation says failed if id, customer, host and VM can be read and agree."""
    vm_id = await rig.running_vm()
    good = command(PauseVm, vm_id)
    body = msgspec.json.decode(encode(good))
    broken = {**body, "command_id": str(new_id()), "deadline": "soon"}
    for subject, data in (
        (vm_command(good), b"\xff{"),
        (vm_command(good), b'{"a":' * 40_000),
        (vm_command(good), b"{" + b" " * 300_000 + b"}"),
        (vm_command(good), msgspec.json.encode(broken)),
        (vm_command(good), msgspec.json.encode({**broken, "customer_id": "*", "host_id": "h2"})),
        (f"vm.cmd.h1.{new_id()}.pause", encode(good)),
        (f"vm.cmd.h1.{vm_id}.boot", encode(good)),
        (vm_command(good), encode(msgspec.structs.replace(good, host_id="h2"))),
        (f"vm.cmd.h1.{vm_id}.explode", encode(good)),
    ):
        assert (await end(rig, good, data, subject)).answers[-1] == "term"
    assert await told(rig, 9) == Counter(
        not_json=2, too_large=1, invalid_message=2, subject_mismatch=2, wrong_host=1, bad_subject=1
    )
    assert all(is_of_host(entry, "h1") for entry in rig.entries)
    assert {entry.customer_id for entry in rig.entries} == {OPERATOR}
    (failed,) = rig.desk.operations[UUID(broken["command_id"])]
    assert (failed.status, failed.verb, failed.vm_id) == (OperationStatus.FAILED, "pause", vm_id)
    assert failed.error is not None
    assert failed.error.code is ErrorCode.BAD_REQUEST
    assert good.command_id not in rig.desk.operations
    assert rig.driver.kernel.living(vm_id)[0].state.value == "running"
    assert (await rig.do(PauseVm, vm_id)).state is VmState.PAUSED


async def test_a_broken_command_ends_only_the_wait_for_itself(rig: Rig) -> None:
    """Its pending operation fails; a result, and what waits for another VM, stay."""
    vm_id = await rig.running_vm()
    mine, others = command(PauseVm, vm_id), command(PauseVm, new_id())
    rig.desk.operations[mine.command_id] = [pending(mine, requested_by="ann")]
    rig.desk.operations[others.command_id] = [pending(others)]
    for made in (mine, others):
        spoilt = encode(made).replace(b'"issued_at":"2', b'"issued_at":"x')
        spoilt = spoilt.replace(str(others.vm_id).encode(), str(vm_id).encode())
        await end(rig, mine, spoilt)
    assert [o.status for o in rig.desk.operations[mine.command_id]] == ["pending", "failed"]
    assert rig.desk.operations[mine.command_id][-1].requested_by == "ann"
    assert [o.status for o in rig.desk.operations[others.command_id]] == ["pending"]
    # What has been called off is not carried out when it comes after all.
    assert (await end(rig, mine)).answers[-1] == "ack"
    assert await told(rig, 3) == Counter(invalid_message=2, repeated=1)
    assert rig.driver.kernel.living(vm_id)[0].state.value == "running"


async def test_who_does_not_own_a_vm_and_who_comes_too_late_hear_why(rig: Rig) -> None:
    """Foreign and missing get one answer; times are judged by the host's clock."""
    vm_id, gone = await rig.running_vm(), await rig.running_vm()
    await rig.do(DeleteVm, gone)
    now = utc_now()
    cases: list[tuple[str, ErrorCode, dict[str, Any]]] = [
        ("foreign_vm", ErrorCode.NOT_FOUND, {"customer_id": "globex"}),
        ("no_such_vm", ErrorCode.NOT_FOUND, {"vm_id": new_id()}),
        ("no_such_vm", ErrorCode.NOT_FOUND, {"vm_id": gone}),
        ("expired", ErrorCode.DEADLINE_EXCEEDED, {"deadline": now - timedelta(seconds=1)}),
        ("from_the_future", ErrorCode.UNAVAILABLE, {"issued_at": now + timedelta(minutes=2)}),
        ("endless", ErrorCode.BAD_REQUEST, {"deadline": now + timedelta(days=2)}),
    ]
    for _, code, fields in cases:
        operation = await rig.do(PauseVm, **{"vm_id": vm_id, **fields})
        assert operation.status is OperationStatus.FAILED
        assert operation.error is not None
        assert operation.error.code is code
    assert await told(rig, 6) == Counter(reason for reason, _, _ in cases)
    assert rig.entries[0].details["customer_id"] == "globex"
    assert rig.driver.kernel.living(vm_id)[0].state.value == "running"


async def test_a_command_that_comes_again_has_one_effect_also_in_another_run(
    tmp_path: Path,
) -> None:
    """Also when the bus has forgotten its result; the answer stays the same."""
    rig = Rig(tmp_path)
    async with whole_agent(rig):
        vm_id = await rig.running_vm()
        boot = command(RebootVm, vm_id, grace_s=0.0)
        await end(rig, boot)
        later = msgspec.structs.replace(boot, deadline=boot.deadline + timedelta(minutes=5))
        for copy in (boot, later):
            assert (await end(rig, copy)).answers[-1] == "ack"
    async with whole_agent(rig):
        first = rig.desk.operations.pop(boot.command_id)
        assert (await end(rig, boot)).answers[-1] == "ack"
        second = rig.desk.operations[boot.command_id]
    assert {(o.status, o.state, o.finished_at) for o in (*first, *second)} == {
        (OperationStatus.SUCCEEDED, VmState.RUNNING, first[0].finished_at)
    }
    assert len(rig.kernel.machines) == 2
    assert Counter(e.reason for e in rig.entries) == Counter(repeated=3)


@pytest.mark.parametrize("forgotten", [False, True])
async def test_an_id_stands_for_one_command_only(rig: Rig, forgotten: bool) -> None:
    """Another body, VM or customer under it has no effect, and the first answer stays."""
    vm_id, other = await rig.running_vm(), await rig.running_vm()
    first = command(PauseVm, vm_id)
    await end(rig, first)
    answer = rig.desk.operations[first.command_id][-1]
    if forgotten:
        del rig.desk.operations[first.command_id]
    same: dict[str, Any] = {"command_id": first.command_id}
    thieves = [command(ShutdownVm, vm_id, **same)]
    if not forgotten:
        thieves += [
            command(DeleteVm, other, **same),
            command(PauseVm, vm_id, customer_id="globex", **same),
            command(CreateVm, new_id(), spec=SPEC, **same),
        ]
    for thief in thieves:
        assert (await end(rig, thief)).answers[-1] == "term"
    assert rig.desk.operations.get(first.command_id, [answer])[-1] == answer
    assert await told(rig, len(thieves)) == Counter(id_reused=len(thieves))
    assert rig.driver.kernel.living(vm_id)[0].state.value == "paused"
    assert rig.driver.kernel.living(other)[0].state.value == "running"


async def test_two_vms_cannot_work_under_one_id_at_the_same_time(rig: Rig) -> None:
    """The second is refused although no result stands yet."""
    vm_id, other = await rig.running_vm(), await rig.running_vm()
    rig.driver.hangs.add("pause")
    first = command(PauseVm, vm_id)
    letter = rig.letter(vm_command(first), encode(first))
    await rig.until(lambda: rig.driver.hanging)
    assert (await end(rig, command(DeleteVm, other, command_id=first.command_id))).answers == [
        "term"
    ]
    spoilt = encode(first).replace(b'"deadline":"2', b'"deadline":"x')
    await end(rig, first, spoilt)
    assert first.command_id not in rig.desk.operations
    rig.driver.release.set()
    await letter.answered.wait()
    assert rig.desk.operations[first.command_id][-1].status is OperationStatus.SUCCEEDED
    assert rig.driver.kernel.living(other)


async def test_a_thief_under_way_spoils_no_repeat(rig: Rig) -> None:
    """Whoever uses an id that is answered does not keep its owner from hearing the answer."""
    vm_id, other = await rig.running_vm(), await rig.running_vm()
    first = command(PauseVm, vm_id)
    await end(rig, first)
    # As after many more commands: only the bus has the result.
    for _ in range(16):
        await rig.do(PauseVm, vm_id)
        await rig.do(ResumeVm, vm_id)
    rig.driver.hangs.add("pause")
    slow = command(PauseVm, other)
    rig.letter(vm_command(slow), encode(slow))
    await rig.until(lambda: rig.driver.hanging)
    thief = command(BootVm, other, command_id=first.command_id)
    rig.letter(vm_command(thief), encode(thief))
    assert (await end(rig, first)).answers == ["ack"]
    assert await told(rig, 1) == Counter(repeated=1)
    rig.driver.release.set()


async def test_a_create_takes_over_no_operation_of_another(rig: Rig) -> None:
    """Under the id of a command that waits it is refused, and that one goes on waiting."""
    waiting = command(BootVm, new_id())
    rig.desk.operations[waiting.command_id] = [pending(waiting)]
    thief = command(CreateVm, new_id(), spec=SPEC, command_id=waiting.command_id)
    assert (await end(rig, thief)).answers == ["term"]
    assert [o.status for o in rig.desk.operations[waiting.command_id]] == ["pending"]


async def test_a_create_for_another_host_is_refused_so_that_the_next_one_is_tried(
    rig: Rig,
) -> None:
    """Pool, driver, architecture and labels are looked at here as well."""
    ssd = PlacementWishes(driver="memory", host_labels={"disk": "ssd"})
    spec = msgspec.structs.replace(SPEC, placement=ssd)
    made = await rig.do(CreateVm, new_id(), spec=spec, pool="fast", region="local")
    assert made.status is OperationStatus.SUCCEEDED
    for said, fields in (
        ("pool", {"pool": "slow", "spec": SPEC}),
        ("region", {"region": "mars", "spec": SPEC}),
        ("driver", {"spec": _wishing(driver="qemu")}),
        ("architecture", {"spec": _wishing(arch="vax")}),
        ("labels", {"spec": _wishing(host_labels={"disk": "tape"})}),
    ):
        operation = await rig.do(CreateVm, new_id(), **fields)
        assert operation.error is not None
        assert operation.error.code is ErrorCode.NO_CAPACITY
        assert said in operation.error.message
    assert rig.beats


def test_a_digest_is_of_what_a_command_does() -> None:
    """Sent again it is the same, whoever sends it and when; with another effect it is not."""
    one = command(CreateVm, new_id(), spec=SPEC)
    assert isinstance(one, CreateVm)
    again = msgspec.structs.replace(
        one,
        issued_at=utc_now(),
        deadline=utc_now() + timedelta(hours=1),
        requested_by="a gateway that took over",
        placed="spread",
        spec=msgspec.structs.replace(SPEC, labels={"a": "b"}),
    )
    assert digest_of(again) == digest_of(one)
    for changes in (
        {"spec": msgspec.structs.replace(SPEC, vcpus=2)},
        {"vm_id": new_id()},
        {"customer_id": "globex"},
        {"host_id": "h2"},
    ):
        assert digest_of(msgspec.structs.replace(one, **changes)) != digest_of(one)
    assert digest_of(command(BootVm, one.vm_id, command_id=one.command_id)) != digest_of(one)


def _wishing(**wishes: Any) -> VmSpec:
    return msgspec.structs.replace(SPEC, placement=PlacementWishes(**wishes))
