"""`decisec host` against a running stack: taken out of service, seen to be empty, taken back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from decisec.cli.exits import Exit
from decisec.dev.endpoint import read_endpoint
from runtime.buckets import Bucket
from runtime.bus import Bus
from runtime.clock import utc_now
from runtime.settings import CommonSettings
from schemas.hosts import decode_host_info
from schemas.subjects import HOSTS
from tests.support.dev_stack import program, simulated_stack
from tests.support.shell import Shell

HOST = "dev-host"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory where a stack of simulated VMs runs on `.decisec`: commands look there."""
    with simulated_stack(tmp_path_factory.mktemp("cli")) as folder:
        yield folder


@pytest.fixture
def shell(stack: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    """A shell beside the stack."""
    return Shell(stack, capfd, monkeypatch)


def hosts_of(shell: Shell) -> dict[str, Any]:
    """What `ls` says, by host."""
    return {host["host_id"]: host for host in shell("host", "ls", "--json").json["hosts"]}


@pytest.fixture
def taken_back(shell: Shell) -> Iterator[None]:
    """Whatever a test orders, the host takes VMs afterwards."""
    yield
    assert shell("host", "undrain", HOST).code == Exit.OK


@pytest.mark.usefixtures("taken_back")
def test_a_host_is_drained_until_it_is_empty(shell: Shell, stack: Path) -> None:
    """New VMs are refused, those that are there are named and run on; all of it can be repeated."""
    vm = shell("vm", "create", "--name", "web", "--boot", "--json").json["vm"]["vm_id"]
    reason = "new [disks]"
    done = shell("host", "drain", HOST, "--reason", reason)
    assert done.code == 0, done
    assert "1 VM is left" in done.out
    assert f"decisec host get {HOST}" in done.out
    refused = shell("vm", "create", "--json")
    assert refused.code == Exit.UNREACHABLE
    assert "draining" in refused.problem["detail"]

    again = shell("host", "drain", HOST, "--json").json
    assert (again["changed"], again["order"]["reason"]) == (False, reason)
    assert reason in shell("host", "drain", HOST).out
    seen = shell("host", "get", HOST, "--json").json
    assert (seen["state"], seen["info"]["drain_reason"]) == ("draining", reason)
    assert [(v["vm_id"], v["customer_id"]) for v in seen["vms"]] == [(vm, "demo")]
    room = seen["info"]
    for name, capacity in room["capacity"].items():
        assert room["reserved"][name] + room["free"][name] == capacity
    assert room["reserved"]["slots"] == 1
    details = shell("host", "get", HOST).out
    for words in (vm, reason, room["driver_reason"], "reserved", "tiny"):
        assert words in details

    late = shell("host", "drain", HOST, "--wait", "--timeout", "2")
    assert (late.code, late.out) == (Exit.FAILED, "")
    assert "1 VM is left" in late.err
    with program(
        "host", "drain", HOST, "--wait", cwd=stack, state_dir=stack / "no-stack"
    ) as waiting:
        waiting.until("1 VM is left")
        assert shell("vm", "delete", vm).code == 0
        waiting.until("empty")
        assert waiting.wait() == 0
        assert "is empty" in waiting.stdout
    listed = hosts_of(shell)[HOST]
    assert (listed["state"], listed["info"]["vms"]) == ("empty", 0)

    for _ in range(2):
        assert shell("host", "undrain", HOST).out == f"{HOST} takes new VMs\n"
    made = shell("vm", "create", "--json").json["vm"]["vm_id"]
    assert shell("vm", "delete", made).code == 0
    assert " up " in shell("host", "ls").out


def test_a_vm_is_cut_off_from_the_network_and_let_back(shell: Shell) -> None:
    """Its owner sees it, the host takes VMs as before, and both acts can be repeated."""
    vm = shell("vm", "create", "--boot", "--json").json["vm"]["vm_id"]
    for changed in (True, False):
        said = shell("vm", "quarantine", vm, "--reason", "it scans", "--json").json
        assert (said["changed"], said["taken"], said["quarantined"]) == (changed, True, True)
    assert shell("vm", "get", vm, "--json").json["quarantined"]
    assert "cut off by the operator" in shell("vm", "get", vm).out
    assert hosts_of(shell)[HOST]["state"] == "up"
    done = shell("vm", "release", vm, "--reason", "its owner has answered")
    assert done.out == f"VM {vm} on {HOST} is on the network\n"
    assert not shell("vm", "get", vm, "--json").json["quarantined"]
    assert shell("vm", "delete", vm).code == 0

    unknown = shell("vm", "release", "01a22c50-a984-753b-a1b0-f216c209d186", "--reason", "x")
    assert unknown.code == Exit.NOT_FOUND
    assert shell("vm", "quarantine", "web", "--reason", "x").code == Exit.USAGE


def test_a_mistyped_host_is_told_and_one_that_is_down_can_be_ordered(shell: Shell) -> None:
    """Nothing is ordered for a name that nobody has heard of, unless it is meant."""
    for verb in ("get", "drain", "undrain"):
        done = shell("host", verb, "dev-hots", "--json")
        assert done.code == Exit.NOT_FOUND
        assert "dev-hots" in done.problem["detail"]
    assert "dev-hots" not in shell("host", "ls").out
    ordered = shell("host", "drain", "h9", "--force", "--reason", "no fan", "--json").json
    assert (ordered["changed"], ordered["host"]["state"]) == (True, "not heard")
    assert "not heard, drain ordered" in shell("host", "ls").out
    assert "no fan" in shell("host", "get", "h9").out
    assert shell("host", "drain", "h9", "--json").json["changed"] is False
    for _ in range(2):
        assert shell("host", "undrain", "h9").out.endswith("once its agent is heard\n")
    assert "h9" not in shell("host", "ls").out


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--timeout", "3"], "--wait"),
        (["--reason", "two\nlines"], "--reason"),
        (["--reason", "x" * 201], "--reason"),
        (["--reason", "\x1b[31m"], "--reason"),
    ],
)
def test_an_order_that_makes_no_sense_is_not_given(
    shell: Shell, arguments: list[str], word: str
) -> None:
    """The option is named; a host's name is checked as well."""
    done = shell("host", "drain", HOST, *arguments, "--json")
    assert done.code == Exit.USAGE
    assert word in done.problem["detail"]
    assert shell("host", "drain", "h.*", "--force").code == Exit.USAGE
    assert hosts_of(shell)[HOST]["state"] == "up"


async def put_heartbeat(stack: Path, host_id: str, ahead_s: float | None) -> None:
    """Let there be another host, whose last word is that it is up; or, with None, no more."""
    endpoint = read_endpoint(stack / ".decisec")
    assert endpoint is not None
    async with Bus.connect(CommonSettings(nats_url=endpoint.nats_url), name="test") as bus:
        bucket = Bucket(bus, HOSTS, decode_host_info)
        entry = await bucket.get(HOST)
        assert entry is not None
        if ahead_s is None:
            await bucket.delete(host_id)
            return
        at = utc_now() + timedelta(seconds=ahead_s)
        # No image, so that no VM is placed there.
        info = msgspec.structs.replace(entry.value, host_id=host_id, heartbeat_at=at, images=())
        await bucket.put(host_id, info)


@pytest.fixture
def deaf(stack: Path) -> Iterator[str]:
    """A host whose agent says it is up, and follows no order."""
    asyncio.run(put_heartbeat(stack, "deaf", ahead_s=60))
    yield "deaf"
    asyncio.run(put_heartbeat(stack, "deaf", ahead_s=None))


def test_an_agent_that_does_not_obey_is_told_of(shell: Shell, stack: Path, deaf: str) -> None:
    """It goes on taking VMs, so this is no success; one that is silent may still obey."""
    done = shell("host", "drain", deaf, "--json")
    assert done.code == Exit.FAILED
    assert done.problem["code"] == "not_taken"
    assert "up, drain ordered" in shell("host", "ls").out
    asyncio.run(put_heartbeat(stack, deaf, ahead_s=-7))
    done = shell("host", "drain", deaf)
    assert done.code == 0
    assert "as soon as it runs" in done.out
    assert "silent for" in shell("host", "ls").out
    assert shell("host", "undrain", deaf).code == 0


def test_who_waits_hears_that_the_order_was_taken_back(shell: Shell, stack: Path) -> None:
    """The wait ends without success."""
    with program(
        *("host", "drain", "h9", "--force", "--wait"), cwd=stack, state_dir=stack / "no-stack"
    ) as waiting:
        waiting.until("waiting for its agent")
        assert shell("host", "undrain", "h9").code == 0
        waiting.until("taken back")
        assert waiting.wait() == Exit.FAILED


def test_a_host_is_declared_lost_and_found(shell: Shell) -> None:
    """With a reason; one that is heard of needs --force. All of it can be repeated."""
    heard = shell("host", "lost", HOST, "--reason", "burnt", "--json")
    assert (heard.code, heard.problem["code"]) == (Exit.FAILED, "host_heard")
    assert shell("host", "lost", "gone").code == Exit.USAGE
    assert shell("host", "lost", "Bad.Name", "--reason", "x").code == Exit.USAGE
    for reason in ("[burnt]", "drowned"):
        (loss,) = shell("host", "lost", "gone", "--reason", reason, "--json").json["lost_hosts"]
        assert (loss["host_id"], loss["reason"]) == ("gone", "[burnt]")
    assert "gone is lost since" in shell("host", "lost").out
    assert "[burnt]" in shell("host", "lost").out
    assert shell("host", "found", "gone", "--json").json == {"host_id": "gone", "changed": True}
    assert "was not lost" in shell("host", "found", "gone").out
    assert shell("host", "lost", "--json").json == {"lost_hosts": []}


def test_usage_becomes_complete_as_the_host_goes_on(shell: Shell) -> None:
    """Its agent claims, collector and batcher pass it on, the answer says so."""
    shell("vm", "create", "--name", "metered", "--boot", "--json")
    deadline = time.monotonic() + 80
    start, end = ((utc_now() - timedelta(seconds=s)).isoformat() for s in (60, 25))
    window = ("--start", start, "--end", end)
    while not (seen := shell("usage", *window, "--json").json)["complete"]:
        assert time.monotonic() < deadline, seen
        time.sleep(0.5)
    assert seen["complete_until"] >= end[:19]
    assert "complete" in shell("usage", *window).out
