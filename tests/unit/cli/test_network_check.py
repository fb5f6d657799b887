"""`decisec network check`: what is found as a table, and whether it is proven as an exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from decisec.cli.exits import Exit
from schemas.ids import new_id
from schemas.network_checks import NetworkCheck, NetworkFinding, Outcome, Probed, StoppedPackets
from schemas.vms import VmState
from tests.support.shell import Shell
from tests.support.stub_api import Asked, StubApi

VM = new_id()
OK = NetworkFinding(
    probed=Probed.OUTSIDE, outcome=Outcome.OK, detail="it answers [all]", round_trip_us=1234
)
WRONG = NetworkFinding(probed=Probed.RULES, outcome=Outcome.WRONG, detail="missing: a rule")
PROVEN = NetworkCheck(
    vm_id=VM, state=VmState.RUNNING, proven=True, summary="the path is proven", findings=(OK,),
    addresses=("2001:db8::1",), sent_frames=5, sent_bytes=1900,
)  # fmt: skip
NOT = NetworkCheck(
    vm_id=VM, state=VmState.RUNNING, proven=False, summary="the path is not proven: rules",
    findings=(OK, WRONG),
    stopped=(
        StoppedPackets(reason="source", meaning="the IPv6 source is not the VM's", packets=3),
    ),
)  # fmt: skip
PAUSED = NetworkCheck(
    vm_id=VM, state=VmState.PAUSED, proven=False, summary="it is paused; nothing was sent"
)


@pytest.fixture
def shell(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Shell:
    return Shell(tmp_path, capfd, monkeypatch)


def api_of(check: NetworkCheck) -> StubApi:
    """An API that finds this of the VM."""

    def answer(asked: Asked) -> tuple[int, Any]:
        right = (asked.method, asked.path) == ("POST", f"/v1/vms/{VM}/network-check")
        return (200, check) if right else (404, {})

    return StubApi(answer)


@pytest.mark.parametrize(
    ("check", "code", "lines"),
    [
        (
            PROVEN,
            Exit.OK,
            [
                "what     found             round trip",
                "outside  ok  it answers [all]  1.2 ms",
                "sent: 5 frames, 1900 bytes, to 2001:db8::1",
                "proven: the path is proven",
            ],
        ),
        (
            NOT,
            Exit.FAILED,
            [
                "rules    wrong  missing: a rule",
                "stopped meanwhile: 3 source (the IPv6 source is not the VM's)",
                "not proven: the path is not proven: rules",
            ],
        ),
        (PAUSED, Exit.FAILED, ["not proven: it is paused; nothing was sent"]),
    ],
    ids=["proven", "not proven", "paused"],
)
def test_what_is_found_is_shown(
    shell: Shell, check: NetworkCheck, code: Exit, lines: list[str]
) -> None:
    """For people and, with --json, for programs."""
    with api_of(check).serving() as api:
        env = {"DECISEC_API_URL": api.url, "DECISEC_TOKEN": "t"}
        done = shell("network", "check", str(VM), **env)
        assert done.code == code
        said = [" ".join(line.split()) for line in done.out.splitlines()]
        for line in lines:
            assert " ".join(line.split()) in said
        told = shell("network", "check", str(VM), "--json", **env)
        assert told.code == code
        document = json.loads(told.out)
        assert (document["proven"], document["summary"]) == (check.proven, check.summary)
