"""`decisec bus subjects`, `schema`, `asyncapi`: the bus as a user looks it up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from decisec.cli.exits import Exit
from decisec.messages.catalog import CHANNELS, messages
from tests.support.shell import Shell

ROOT = Path(__file__).parents[3]
VM = "019c1372-8b40-7c51-9a56-6d1b2f0e4c11"


@pytest.fixture
def decisec(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Shell:
    return Shell(tmp_path, capfd, monkeypatch)


def test_subjects_are_listed_by_role(decisec: Shell) -> None:
    """All of them, or what one role may say and hear, and by which right."""
    listed = decisec("bus", "subjects", "--json").json["subjects"]
    assert [line["subject"] for line in listed] == [channel.address for channel in CHANNELS]
    mine = decisec("bus", "subjects", "--role", "customer", "--json").json["subjects"]
    assert {line["subject"].split(".")[1] for line in mine} == {"req", "evt"}
    create = next(line for line in mine if line["subject"].endswith(".create"))
    assert create["send"] == {"customer": ["publish, its own"]}
    assert create["replies"] == ["DoorResultDone", "DoorRefusal"]
    agents = decisec("bus", "subjects", "--role", "agent", "--json").json["subjects"]
    told = next(line for line in agents if line["subject"] == "host.evt.{host}.{type}")
    assert told["send"]["agent"] == ["publish, its own, only host_drained"]
    assert told["kept"] == "HOST_EVENTS"
    table = decisec("bus", "subjects", "--role", "customer")
    assert "vm.req.{customer}.snapshot-delete" in table.out
    assert "metrics.raw" not in table.out
    strange = decisec("bus", "subjects", "--role", "nobody", "--json")
    assert (strange.code, strange.problem["code"]) == (Exit.NOT_FOUND, "not_found")


@pytest.mark.parametrize(
    ("name", "needed"),
    [
        ("BootVm", "command_id"),
        (f"vm.cmd.h1.{VM}.boot", "command_id"),
        ("vm.req.{customer}.boot", "vm_id"),
        ("vm.req.acme.boot", "vm_id"),
        ("$KV.hosts.h1", "heartbeat_at"),
        ("DoorVm", "vm"),
    ],
)
def test_a_schema_stands_by_itself(decisec: Shell, name: str, needed: str) -> None:
    """By the message's name or a subject; the example of the same is valid by it."""
    schema = decisec("bus", "schema", name).json
    check: Any = jsonschema_rs.Draft7Validator(schema, validate_formats=True)
    example = decisec("bus", "schema", name, "--example").json
    assert check.is_valid(example)
    del example[needed]
    assert not check.is_valid(example)


def test_messages_are_listed_and_strange_names_refused(decisec: Shell) -> None:
    """What has no JSON in it has no example."""
    listed = decisec("bus", "schema", "--json").json["messages"]
    assert {line["name"] for line in listed} == set(messages())
    assert all(line["summary"] for line in listed)
    assert "AskCreate" in decisec("bus", "schema").out
    for arguments in (("nothing",), ("vm.req.acme.fly",), ("Rejected", "--example")):
        done = decisec("bus", "schema", *arguments)
        assert (done.code, done.out) == (Exit.NOT_FOUND, "")


def test_the_whole_document_is_the_committed_one(decisec: Shell) -> None:
    """So that an installed decisec has it."""
    committed = json.loads((ROOT / "docs/asyncapi.json").read_text())
    assert decisec("bus", "asyncapi").json == committed
