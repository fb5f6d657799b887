"""What an agent answers when it is asked about a VM."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from ipaddress import IPv6Network
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from schemas.codec import encode
from schemas.commands import DeleteVm, PauseVm
from schemas.consoles import ConsoleQuery, ConsoleReply, decode_console_reply
from schemas.errors import ErrorCode
from schemas.ids import new_id
from schemas.network_checks import NetworkQuery, NetworkReply, Probed, decode_network_reply
from schemas.subjects import vm_console, vm_network
from schemas.vms import VmSpec, VmState
from tests.support.whole_agent import Rig, whole_agent
from vm_agent.network.leases import Leases, Ranges
from vm_agent.network.numbers import Numbers

pytestmark = pytest.mark.timeout(20)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with whole_agent(Rig(tmp_path)) as made:
        yield made


async def ask(rig: Rig, vm_id: UUID, customer_id: str = "acme", **query: Any) -> ConsoleReply:
    """One question on the VM's own subject."""
    asked = ConsoleQuery(customer_id=customer_id, vm_id=vm_id, **query)
    answer = await rig.questions.ask(vm_console("h1", vm_id), encode(asked))
    return decode_console_reply(answer)


def console_of(rig: Rig, vm_id: UUID) -> Path:
    """Where its guest prints."""
    return rig.folder / "consoles" / f"{vm_id}.log"


async def test_its_owner_reads_what_a_vm_printed(rig: Rig) -> None:
    """Any bytes; nothing before it has printed."""
    vm_id = await rig.running_vm()
    first = (await ask(rig, vm_id)).chunk
    assert first is not None
    assert (first.data, first.end) == (b"", True)
    console_of(rig, vm_id).write_bytes(bytes(range(256)))
    chunk = (await ask(rig, vm_id, offset=1, limit_bytes=254)).chunk
    assert chunk is not None
    assert (chunk.data, chunk.end) == (bytes(range(1, 255)), False)


async def test_a_foreign_a_missing_and_a_deleted_vm_give_the_same_answer(rig: Rig) -> None:
    """Nobody can tell whether an id that is not theirs exists."""
    vm_id, other = await rig.running_vm(), await rig.running_vm()
    console_of(rig, vm_id).write_bytes(b"secret")
    foreign = await ask(rig, vm_id, customer_id="globex")
    assert foreign.chunk is None
    assert foreign.error is not None
    assert foreign.error.code is ErrorCode.NOT_FOUND
    assert await ask(rig, new_id()) == foreign
    await rig.do(DeleteVm, vm_id)
    assert await ask(rig, vm_id) == foreign
    assert not list((rig.folder / "consoles").glob(f"{vm_id}*"))
    assert (await ask(rig, other)).error is None


async def test_a_question_that_makes_no_sense_is_refused(rig: Rig) -> None:
    """The subject is the server's word, so the message must agree with it."""
    vm_id = await rig.running_vm()
    good = encode(ConsoleQuery(customer_id="acme", vm_id=vm_id))
    other = new_id()
    for subject, data in (
        (vm_console("h1", vm_id), b"\xff"),
        (vm_console("h1", vm_id), b'{"customer_id":"acme"}'),
        (vm_console("h1", vm_id), good.replace(b"65536", b"65537")),
        (vm_console("h1", vm_id), good.replace(b"null", b"-1", 1)),
        (vm_console("h1", other), good),
        (vm_console("h2", vm_id), good),
        (f"vm.ask.h1.{vm_id}.memory", good),
        ("vm.ask.h1", good),
    ):
        reply = decode_console_reply(await rig.questions.ask(subject, data))
        assert reply.chunk is None
        assert reply.error is not None
        assert reply.error.code is ErrorCode.BAD_REQUEST


async def test_too_many_at_the_same_time_are_refused(rig: Rig) -> None:
    """Some of one VM, while those of another one are answered; later all are."""
    vm_id, other = await rig.running_vm(), await rig.running_vm()
    replies = await asyncio.gather(*(ask(rig, vm_id) for _ in range(20)), ask(rig, other))
    codes = [reply.error.code if reply.error else None for reply in replies]
    assert codes == [None] * 16 + [ErrorCode.RATE_LIMITED] * 4 + [None]
    assert (await ask(rig, vm_id)).error is None


async def test_a_console_that_cannot_be_read_is_an_error_of_this_one(rig: Rig) -> None:
    """Without a path in it, and the agent lives on."""
    vm_id = await rig.running_vm()
    console = console_of(rig, vm_id)
    console.unlink()
    console.symlink_to("/etc/passwd")
    reply = await ask(rig, vm_id)
    assert reply.chunk is None
    assert reply.error is not None
    assert (reply.error.code, reply.error.message) == (
        ErrorCode.INTERNAL, "The console cannot be read.",
    )  # fmt: skip


@pytest.fixture
async def connected(tmp_path: Path) -> AsyncIterator[Rig]:
    """An agent that connects its VMs."""
    made = Rig(tmp_path)
    ranges = Ranges(IPv6Network("2001:db8::/64"))
    made.kernel.leases = Leases(ranges, Numbers(tmp_path / "numbers.json"))
    async with whole_agent(made):
        yield made


async def look(rig: Rig, vm_id: UUID, customer_id: str = "acme") -> NetworkReply:
    """Whether a VM can be reached."""
    asked = NetworkQuery(customer_id=customer_id, vm_id=vm_id)
    return decode_network_reply(await rig.questions.ask(vm_network("h1", vm_id), encode(asked)))


async def test_its_owner_is_told_whether_a_vm_can_be_reached(connected: Rig) -> None:
    """One that does not run is sent nothing; nobody else learns that there is one."""
    vm_id, idle = await connected.running_vm(), await connected.running_vm()
    check = (await look(connected, vm_id)).check
    assert check is not None
    assert (check.vm_id, check.state, check.quarantined) == (vm_id, VmState.RUNNING, False)
    assert {one.probed for one in check.findings} == {
        Probed.TAP, Probed.ADDRESSES, Probed.RULES, Probed.HOST,
    }  # fmt: skip
    await connected.do(PauseVm, idle)
    check = (await look(connected, idle)).check
    assert check is not None
    assert (check.proven, check.summary) == (False, "it is paused; nothing was sent")
    assert check.findings == ()
    foreign = await look(connected, vm_id, customer_id="globex")
    assert foreign.error is not None
    assert foreign.error.code is ErrorCode.NOT_FOUND
    assert await look(connected, new_id()) == foreign


async def test_a_vm_is_looked_at_by_one_at_a_time(connected: Rig) -> None:
    """And a host's by four; its console can be read meanwhile."""
    small = VmSpec(image="tiny", memory_mib=16, disk_mib=1)
    vms = [await connected.running_vm(small) for _ in range(5)]
    reading = asyncio.ensure_future(ask(connected, vms[0]))
    replies = await asyncio.gather(*(look(connected, vms[0]) for _ in range(3)))
    codes = [reply.error.code if reply.error else None for reply in replies]
    assert codes == [None, ErrorCode.RATE_LIMITED, ErrorCode.RATE_LIMITED]
    assert (await reading).error is None
    replies = await asyncio.gather(*(look(connected, vm_id) for vm_id in vms))
    assert [reply.error is None for reply in replies] == [True] * 4 + [False]
    assert (await look(connected, vms[4])).error is None


async def test_a_host_that_connects_nobody_says_so(rig: Rig) -> None:
    """And so does a VM that was made without an interface."""
    check = (await look(rig, await rig.running_vm())).check
    assert check is not None
    assert check.summary == "its host connects no VMs; nothing was sent"
    alone = VmSpec(image="tiny", memory_mib=16, disk_mib=1, network=False)
    check = (await look(rig, await rig.running_vm(alone))).check
    assert check is not None
    assert check.summary.startswith("it has no network interface")
