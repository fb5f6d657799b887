"""`decisec place explain` and the wishes of `decisec vm create`, against a running stack."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from decisec.cli.exits import Exit
from decisec.dev.endpoint import read_endpoint
from gateway.attempts import create_id
from runtime.buckets import Bucket
from runtime.bus import Bus
from runtime.settings import CommonSettings
from schemas.hosts import decode_operation
from schemas.subjects import OPERATIONS
from tests.support.dev_stack import simulated_stack
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


def test_a_placement_is_explained(shell: Shell) -> None:
    """As a table with a sentence, and as JSON; a host that cannot take the VM says why."""
    said = shell("place", "explain", "--memory", "64")
    assert said.code == Exit.OK
    assert f"{HOST} (spread); pool default in local, spread" in said.out
    found = shell("place", "explain", "--memory", "1000000", "--json").json
    assert found["host_id"] is None
    assert [host["reason"] for host in found["hosts"]] == ["short of memory_mib"]
    assert found["error"]["code"] == "no_capacity"
    wished = shell("place", "explain", "--driver", "qemu", "--json").json
    assert wished["hosts"][0]["reason"] == "with another driver"
    for wrong in (["--host-label", "disk"], ["--apart-required"], ["--customer", "a.b"]):
        assert shell("place", "explain", *wrong).code == Exit.USAGE


def test_a_vm_is_made_with_wishes(shell: Shell, stack: Path) -> None:
    """Its operation tells operators why it is where it is, by the agent's word too."""
    arch = platform.machine().lower()
    wishes = ("--driver", "simulator", "--arch", arch)
    made = shell("vm", "create", "--label", "app=db", "--apart-by", "app", *wishes, "--json").json
    vm_id = made["vm"]["vm_id"]
    assert made["vm"]["spec"]["placement"]["apart_by"] == "app"

    async def placed() -> str:
        local = read_endpoint(stack / ".decisec")
        assert local is not None
        async with Bus.connect(CommonSettings(nats_url=local.nats_url), name="test") as bus:
            entry = await Bucket(bus, OPERATIONS, decode_operation).get(
                str(create_id(UUID(vm_id), 0))
            )
        assert entry is not None
        return entry.value.placed

    assert asyncio.run(placed()) == "spread"
    again = ("--label", "app=db", "--apart-by", "app", "--apart-required")
    refused = shell("vm", "create", *again)
    assert refused.code != Exit.OK
    assert "1 x with a VM to be apart from" in refused.err
    assert shell("vm", "delete", vm_id).code == Exit.OK
    assert shell("vm", "create", "--driver", "vmware").code == Exit.USAGE
